"""Where a task may run: the `infra` text and the older cloud/region/zone fields. Knows names, not whether a place exists."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Optional

from skyloom_common.contracts.task import places
from skyloom_common.contracts.task.problems import Field
from skyloom_common.core.text import did_you_mean

CLOUDS = (
    "aws", "azure", "gcp", "ibm", "lambda", "scp", "oci", "kubernetes", "runpod", "vast", "vsphere", "cudo", "fluidstack",
    "paperspace", "primeintellect", "do", "nebius", "ssh", "slurm", "hyperbolic", "seeweb", "shadeform", "yotta", "mithril",
    "verda",
)  # fmt: skip
PRICED = (
    "alibabacloud", "arubacloud", "atlanticcloud", "c1v", "civo", "cleura", "contabo", "crusoe", "cyso", "daytona", "euronodes",
    "exoscale", "gcore", "gridscale", "hetzner", "hikube", "hostinger", "hyperstack", "infomaniak", "ionos", "jarvislabs",
    "leadergpu", "leafcloud", "lium", "metalstack", "netcup", "nws", "ovhcloud", "plusserver", "rackspace-spot", "safespring",
    "scaleup", "scaleway", "serverspace", "simplepod", "spheron", "stackit", "tencentcloud", "thalassa", "together", "upcloud",
    "webdock",
)  # fmt: skip
"""Clouds of the bundled catalog beyond those: a plan may name them, so a task may too."""
OURS = ("local", "sim", "fake")
"""This machine, the simulated world and the one for tests."""
PROVIDERS = "skyloom.providers"
"""The entry point group by which a provider outside of this repository makes its name known."""

ANY = places.ANY
_ALIASES = {"k8s": "kubernetes"}
_MEANT = {
    "amazon": "aws", "google": "gcp", "gce": "gcp", "gke": "k8s", "eks": "k8s", "aks": "k8s", "microsoft": "azure",
    "oracle": "oci", "digitalocean": "do", "alibaba": "alibabacloud", "aliyun": "alibabacloud", "tencent": "tencentcloud",
    "ovh": "ovhcloud", "lambdalabs": "lambda", "localhost": "local",
}  # fmt: skip
_OWN = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_ZONE = re.compile(_NAME)
# Some clouds name their regions like "East Coast (NY2)" or "Georgia, US, NA".
_REGION = re.compile(r"(?=.*[A-Za-z0-9])[A-Za-z0-9*][A-Za-z0-9._*()-]*(?:,? [A-Za-z0-9(][A-Za-z0-9._()-]*)*")
_CONTEXT = re.compile(r"[^\s,\x00-\x1f\x7f]+")
_SEPARATOR = re.compile(r"\s*,(?! [A-Z]{2}(?:,|$))\s*")
_RIGHT = (
    "CLOUD, CLOUD/REGION or CLOUD/REGION/ZONE such as aws/us-east-1, '*/us-east-1', k8s/CONTEXT or ssh/POOL, "
    "or a list such as [aws/us-east-1, gcp]"
)


def infra(field: Field, *, frees: bool) -> dict[str, Any]:
    """The place fields that `infra` says; several places are alternatives. With `frees`, parts that are not named are `*`:
    they undo the base's."""
    if field.value in ("", None, [], ()):
        return {}
    found: list[Optional[places.Place]] = []
    for item in _items(field, _RIGHT):
        before = None
        for text in _SEPARATOR.split(item.value.strip()):
            before = _place(Field(text, item.path, item.report), before)
            found.append(before)
    good = [one for one in found if one is not None]
    return places.packed(good, frees=frees) if good and len(good) == len(found) else {}


def older(field: Field, cloud: Optional[str]) -> Optional[str]:
    """The value of `cloud`, `region` or `zone` (the last part of the path): a name, or several, any of which will do."""
    part = str(field.path[-1]).lstrip("-")
    if part == "cloud":
        right = "a name such as aws, gcp, azure, kubernetes or local"
    else:
        right = f"a {part} name such as us-east-1{'a' if part == 'zone' else ''}, or a list of names"

    def read(item: Field) -> Optional[str]:
        return cloud_name(item) if part == "cloud" else place(item, item.value, cloud, part)

    found = []
    for item in _items(field, right):
        for text in _SEPARATOR.split(item.value.strip()):
            found.append(read(Field(text, item.path, item.report)))
    return places.joined(name for name in found if name is not None)


def _items(field: Field, right: str) -> list[Field]:
    """The texts of a value that may be one or a list of them; each list item stands on its own line."""
    if isinstance(field.value, (list, tuple, set, frozenset)):
        plain = sorted(field.value, key=str) if isinstance(field.value, (set, frozenset)) else field.value
        items = list(Field(plain, field.path, field.report).elements())
    else:
        items = [field]
    wrong = [item for item in items if not isinstance(item.value, str) or not item.value.strip()]
    for item in wrong:
        item.refuse_value("a place", right)
    if not items:
        field.refuse_value("a place", right)
    return [item for item in items if item not in wrong]


def _place(field: Field, before: Optional[places.Place]) -> Optional[places.Place]:
    """One place. A bare name behind a region or zone is another one of the same: `aws/us-east-1,us-west-2`."""
    text = field.value
    if before is not None and _continues(text, before):
        return _checked(field, [before.cloud, text] if before.zone is None else [*before[:2], text])
    parts_given = _parts(text)
    if len(parts_given) > 3 or "" in parts_given:
        field.refuse_value("a place", _RIGHT)
        return None
    cloud = _cloud_name(field, parts_given[0], wildcard=True)
    return None if cloud is None else _checked(field, [cloud, *parts_given[1:]])


def _continues(text: str, before: places.Place) -> bool:
    first, slash, _ = text.partition("/")
    if before.region is None or not text or (slash and before.cloud not in places.ONE_NAME):
        return False
    return not _is_cloud(first) and not did_you_mean(first, (*CLOUDS, *PRICED, *OURS))


def _checked(field: Field, parts: Sequence[Optional[str]]) -> Optional[places.Place]:
    cloud = None if parts[0] == ANY else parts[0]
    found = [cloud]
    for kind, part in zip(("region", "zone"), parts[1:]):
        if part in (ANY, None):
            found.append(None)
            continue
        name = place(field, part, cloud, kind)
        if name is None:
            return None
        found.append(name)
    return places.Place(*found)


def cloud_name(field: Field) -> Optional[str]:
    """The value of `cloud`: a name in any letter case."""
    if not isinstance(field.value, str) or not field.value.strip():
        field.refuse_value("a cloud", "a name such as aws, gcp, azure, kubernetes or local")
        return None
    return _cloud_name(field, field.value.strip(), wildcard=False)


def place(field: Field, name: Any, cloud: Optional[str], part: str = "region") -> Optional[str]:
    """A region or zone name, as it is."""
    pattern = _CONTEXT if cloud in places.ONE_NAME else (_ZONE if part == "zone" else _REGION)
    if isinstance(name, str) and pattern.fullmatch(name):
        return name
    field.refuse_value(
        f"the name of a {part}", f"a {part} name such as us-east-1{'a' if part == 'zone' else ''}"
    )
    return None


def _parts(value: str) -> list[str]:
    cloud, slash, rest = value.partition("/")
    if _ALIASES.get(cloud.lower(), cloud.lower()) in places.ONE_NAME:
        return [cloud, rest] if slash else [cloud]
    return value.split("/")


def _cloud_name(field: Field, name: str, *, wildcard: bool) -> Optional[str]:
    if (wildcard and name == ANY) or _is_cloud(name):
        return _ALIASES.get(name.lower(), name.lower())
    known = (*CLOUDS, *PRICED, *OURS)
    meant = _MEANT.get(name.lower())
    guess = f"; did you mean {meant!r}?" if meant else did_you_mean(name, known)
    if not guess and _OWN.fullmatch(name):
        # A deployment's own offers may bear any name; the optimizer knows which there are.
        return name.lower()
    field.refuse(
        f"{name!r} is not a known cloud{guess}", None if guess else f"one of {', '.join((*CLOUDS, 'local'))}"
    )
    return None


def _is_cloud(name: str) -> bool:
    lower = _ALIASES.get(name.lower(), name.lower())
    return lower in CLOUDS or lower in PRICED or lower in OURS or lower in _installed()


def _installed() -> set[str]:
    """Asked only for a name that nobody knows: it reads the metadata of everything that is installed."""
    from importlib.metadata import entry_points

    found: Any = entry_points()
    if hasattr(found, "select"):  # Python 3.10 and later
        return {entry.name for entry in found.select(group=PROVIDERS)}
    return {entry.name for entry in found.get(PROVIDERS, ())}
