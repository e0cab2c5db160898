"""Where feeds are asked, and with what. Read from the environment once, by the process that refreshes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from skyloom_common.service.env import Env
from skyloom_optimizer.refresh.sanity import Rules

DEFAULT_URLS = {
    "aws_bulk": "https://pricing.us-east-1.amazonaws.com",
    "azure": "https://prices.azure.com/api/retail/prices",
    "azure_skus": "https://management.azure.com",
    "gcp_billing": "https://cloudbilling.googleapis.com",
    "gcp_compute": "https://compute.googleapis.com",
    "gcp_tpu": "https://tpu.googleapis.com",
    "lambda": "https://cloud.lambda.ai/api/v1",
    "vast": "https://console.vast.ai/api/v0",
}


@dataclass(frozen=True)
class FeedSettings:
    """`urls`: base addresses by feed. `aws_url` "" = the addresses that boto3 knows. Keys are not in the repr."""

    urls: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_URLS))
    aws_url: str = ""
    aws_pricing_url: str = ""
    azure_subscription: str = ""
    azure_token: str = field(default="", repr=False)
    gcp_project: str = ""
    gcp_token: str = field(default="", repr=False)
    lambda_key: str = field(default="", repr=False)
    rules: Rules = field(default_factory=Rules)
    user_home: Path = field(default_factory=Path.home)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> FeedSettings:
        """Raises SettingsError."""
        env = Env(environ)
        urls = {name: env.url(f"SKYLOOM_FEED_{name.upper()}_URL", url) for name, url in DEFAULT_URLS.items()}
        rules = Rules(
            max_drop=env.number("SKYLOOM_REFRESH_MAX_DROP", 0.3, low=0, high=1),
            max_jump=env.number("SKYLOOM_REFRESH_MAX_JUMP", 4.0, low=1),
            max_spot_jump=env.number("SKYLOOM_REFRESH_MAX_SPOT_JUMP", 20.0, low=1),
        )
        settings = cls(
            urls=urls,
            aws_url=env.url("SKYLOOM_FEED_AWS_URL"),
            aws_pricing_url=env.url("SKYLOOM_FEED_AWS_PRICING_URL") or env.url("SKYLOOM_FEED_AWS_URL"),
            azure_subscription=env.text("AZURE_SUBSCRIPTION_ID"),
            azure_token=env.text("SKYLOOM_FEED_AZURE_TOKEN"),
            gcp_project=env.text("GOOGLE_CLOUD_PROJECT"),
            gcp_token=env.text("SKYLOOM_FEED_GCP_TOKEN"),
            lambda_key=env.text("LAMBDA_API_KEY"),
            rules=rules,
        )
        env.check()
        return settings
