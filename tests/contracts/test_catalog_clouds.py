"""Whatever cloud a plan may name, a task file may name too."""

from __future__ import annotations

from skyloom_common.contracts.task.parse import parse_task_mapping
from skyloom_optimizer.catalog.load import load_catalog


def test_every_cloud_of_the_catalog_is_a_place_for_a_task() -> None:
    clouds = {region.cloud for region in load_catalog().regions} | {
        "aws",
        "gcp",
        "azure",
        "crusoe",
        "together",
    }
    assert len(clouds) > 50
    for cloud in sorted(clouds):
        assert parse_task_mapping({"resources": {"infra": cloud}}).resources.cloud == cloud
