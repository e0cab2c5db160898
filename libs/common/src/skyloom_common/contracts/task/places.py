"""Lists of places within a ResourcesSpec: how they are kept, and what they accept. Knows no cloud and reads no YAML.

`cloud`, `region` and `zone` hold several names with commas between them: any of these (a comma before a blank belongs to a name:
there are regions called "Georgia, US, NA"). Where places belong together in pairs that
such lists cannot say (`[aws/us-east-1, gcp]`), `infra` holds them, and the three are empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import product
from typing import Any, NamedTuple, Optional

from skyloom_common.contracts.task.model import ResourcesSpec

ANY = "*"
PARTS = ("cloud", "region", "zone")
ONE_NAME = ("kubernetes", "ssh")
"""Their second part is one name that may contain slashes (a context, a pool)."""
_COMMA = ","
_BETWEEN = re.compile(r",(?! )")


class Place(NamedTuple):
    """None is any; a region may have wildcards (`us-*`)."""

    cloud: Optional[str] = None
    region: Optional[str] = None
    zone: Optional[str] = None


def listed(part: Optional[str]) -> tuple[str, ...]:
    """The names of one part; empty where any will do."""
    return tuple(_BETWEEN.split(part)) if part else ()


def joined(names: Iterable[str]) -> Optional[str]:
    """Each name once, as one part."""
    return _COMMA.join(dict.fromkeys(names)) or None


def place_of(text: str) -> Place:
    """`cloud/region/zone` as `place_text` writes it."""
    cloud, _, rest = text.partition("/")
    parts = [cloud, rest] if cloud in ONE_NAME else text.split("/", 2)
    found = [part if part and part != ANY else None for part in parts]
    return Place(*found)


def place_text(place: Sequence[Optional[str]]) -> str:
    """The shortest text that says this."""
    parts = [part or ANY for part in place]
    while len(parts) > 1 and parts[-1] == ANY:
        parts.pop()
    return "/".join(parts)


def places_of(resources: ResourcesSpec) -> tuple[Place, ...]:
    """Every place that is named, any of which will do; one with nothing in it where all is open."""
    if resources.infra:
        return tuple(map(place_of, resources.infra))
    names = [listed(getattr(resources, part)) or (None,) for part in PARTS]
    return tuple(Place(*(None if name == ANY else name for name in names)) for names in product(*names))


def clouds_of(resources: ResourcesSpec) -> Optional[frozenset[str]]:
    """The clouds that are named; None where any will do."""
    found = {place.cloud for place in places_of(resources)}
    return None if None in found else frozenset(name for name in found if name)


def accepts(resources: ResourcesSpec, cloud: str, region: str, zone: str) -> bool:
    return any(_within(place, (cloud, region, zone)) for place in places_of(resources))


def packed(places: Sequence[Place], *, frees: bool = False) -> dict[str, Any]:
    """The fields of a ResourcesSpec that say these places. With `frees`, open parts are `*`."""
    unique = list(dict.fromkeys(places))
    names = [list(dict.fromkeys(column)) for column in zip(*unique)]
    if len(names[0]) == 1 and list(product(*names)) == unique and all(map(_plain, names)):
        parts = [joined(name or ANY for name in column) for column in names]
        return {field: part if part != ANY or frees else None for field, part in zip(PARTS, parts)}
    if Place() in unique:
        return packed([Place()], frees=frees)
    return {"infra": tuple(map(place_text, unique))}


def changed(infra: Sequence[str], region: Optional[str], zone: Optional[str]) -> dict[str, Any]:
    """The places of `infra` with another region, or another zone: the fields that say so. None leaves what is there."""
    found = []
    for place in map(place_of, infra):
        regions = listed(region) or ((None,) if region == ANY else (place.region,))
        zones = listed(zone) or ((place.zone,) if region is None else (None,))
        found += [Place(place.cloud, *_open(pair)) for pair in product(regions, zones)]
    return {**dict.fromkeys(PARTS), "infra": (), **packed(found)}


def _open(names: Sequence[Optional[str]]) -> list[Optional[str]]:
    return [None if name == ANY else name for name in names]


def _plain(names: Sequence[Optional[str]]) -> bool:
    """An open part cannot stand beside a named one in one list."""
    return len(names) == 1 or None not in names


def _within(place: Place, where: Sequence[str]) -> bool:
    return all(wanted is None or same_name(wanted, name) for wanted, name in zip(place, where))


def same_name(wanted: str, name: str) -> bool:
    """Ignoring letter case; `wanted` may have wildcards."""
    if ANY in wanted:
        return fnmatchcase(name.lower(), wanted.lower())
    return wanted.lower() == name.lower()
