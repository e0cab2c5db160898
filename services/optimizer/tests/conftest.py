"""The bundled catalog, read once."""

from __future__ import annotations

import pytest

from skyloom_optimizer.catalog.load import Catalog, load_catalog
from skyloom_optimizer.snapshot import OfferSnapshot


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return load_catalog()


@pytest.fixture(scope="session")
def snapshot(catalog: Catalog) -> OfferSnapshot:
    return catalog.snapshot
