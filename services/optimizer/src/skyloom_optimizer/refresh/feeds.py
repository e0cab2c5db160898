"""Which clouds have a feed. A feed's module, and with it a cloud's SDK, is loaded when it is used."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from skyloom_common.core.text import did_you_mean
from skyloom_optimizer.refresh.model import Feed, FeedError
from skyloom_optimizer.refresh.settings import FeedSettings


def _aws(settings: FeedSettings) -> Feed:
    from skyloom_optimizer.refresh.aws import make_feed

    return make_feed(settings)


def _azure(settings: FeedSettings) -> Feed:
    from skyloom_optimizer.refresh.azure import make_feed

    return make_feed(settings)


def _gcp(settings: FeedSettings) -> Feed:
    from skyloom_optimizer.refresh.gcp import make_feed

    return make_feed(settings)


def _lambda(settings: FeedSettings) -> Feed:
    from skyloom_optimizer.refresh.lambda_cloud import make_feed

    return make_feed(settings)


def _vast(settings: FeedSettings) -> Feed:
    from skyloom_optimizer.refresh.vast import make_feed

    return make_feed(settings)


def _by_gpuhunt(cloud: str, settings: FeedSettings) -> Feed:
    from skyloom_optimizer.refresh.by_gpuhunt import make_feed

    return make_feed(cloud)


BY_GPUHUNT = ("crusoe", "daytona", "do", "jarvislabs", "lium", "runpod", "seeweb")
FEEDS: dict[str, Callable[[FeedSettings], Feed]] = {
    "aws": _aws,
    "azure": _azure,
    "gcp": _gcp,
    "lambda": _lambda,
    "vast": _vast,
    **{cloud: partial(_by_gpuhunt, cloud) for cloud in BY_GPUHUNT},
}


def feed_of(cloud: str, settings: FeedSettings) -> Feed:
    """Raises FeedError for a cloud without a feed, FeedNotConfigured where something is missing."""
    make = FEEDS.get(cloud)
    if make is None:
        raise FeedError(
            f"{cloud!r} has no price feed (these have: {', '.join(sorted(FEEDS))}){did_you_mean(cloud, FEEDS)}"
        )
    return make(settings)
