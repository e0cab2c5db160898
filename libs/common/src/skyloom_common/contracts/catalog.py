"""What the optimizer's catalog holds, with the age and origin of its prices."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CatalogCloud:
    """Counts of one cloud. `oldest`, `newest`: dates of its prices (ISO, as exact as the source has them)."""

    name: str
    offers: int
    instance_types: int
    regions: int
    priced: int
    spot_priced: int
    oldest: str = ""
    newest: str = ""


@dataclass(frozen=True)
class CatalogSource:
    """Where prices come from. `kind`: quoted, converted (currency or period) or computed."""

    code: str
    kind: str
    as_of: str
    licence: str
    description: str


@dataclass(frozen=True)
class CatalogInfo:
    """GET /v1/catalog of the optimizer. The same content always has the same `version`."""

    version: str
    offers: int
    instance_types: int
    accelerators: int
    clouds: tuple[CatalogCloud, ...] = ()
    sources: tuple[CatalogSource, ...] = ()
