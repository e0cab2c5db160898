"""Where a task may run: the `infra` text and the older cloud/region/zone fields. Knows names, not whether a place exists."""

from __future__ import annotations

import re
from typing import Any, Optional

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

ANY = "*"
_ONE_NAME = ("kubernetes", "ssh")
"""Their second part is one name that may contain slashes (a context, a pool)."""
_ALIASES = {"k8s": "kubernetes"}
_PLACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CONTEXT = re.compile(r"[^\s\x00-\x1f\x7f]+")
_RIGHT = (
    "CLOUD, CLOUD/REGION or CLOUD/REGION/ZONE such as aws/us-east-1, '*/us-east-1', k8s/CONTEXT or ssh/POOL"
)


def infra(field: Field, *, frees: bool) -> dict[str, Optional[str]]:
    """cloud, region and zone of `infra`. With `frees`, parts that are not named are `*`: they undo the base's."""
    if field.value in ("", None):
        return {}
    if not isinstance(field.value, str):
        field.refuse_value("a place", _RIGHT)
        return {}
    parts = _parts(field.value.strip())
    if len(parts) > 3 or "" in parts:
        field.refuse_value("a place", _RIGHT)
        return {}
    cloud = _cloud_name(field, parts[0], wildcard=True)
    if cloud is None:
        return {}
    found: dict[str, Optional[str]] = {"cloud": cloud}
    for name, part in zip(("region", "zone"), [*parts[1:], ANY, ANY]):
        found[name] = part if part == ANY or cloud in _ONE_NAME else place(field, part, cloud)
    return found if frees else {name: None if part == ANY else part for name, part in found.items()}


def cloud_name(field: Field) -> Optional[str]:
    """The value of `cloud`: a name in any letter case."""
    if not isinstance(field.value, str) or not field.value.strip():
        field.refuse_value("a cloud", "a name such as aws, gcp, azure, kubernetes or local")
        return None
    return _cloud_name(field, field.value.strip(), wildcard=False)


def place(field: Field, name: Any, cloud: Optional[str]) -> Optional[str]:
    """A region or zone name, as it is."""
    pattern = _CONTEXT if cloud in _ONE_NAME else _PLACE
    if isinstance(name, str) and pattern.fullmatch(name):
        return name
    field.refuse_value("the name of a place", "a region or zone name such as us-east-1")
    return None


def infra_text(cloud: Optional[str], region: Optional[str], zone: Optional[str]) -> Optional[str]:
    """The shortest `infra` that says this; None when everything is open."""
    parts = [cloud or ANY, region or ANY, zone or ANY]
    while parts and parts[-1] == ANY:
        parts.pop()
    return "/".join(parts) or None


def _parts(value: str) -> list[str]:
    cloud, slash, rest = value.partition("/")
    if _ALIASES.get(cloud.lower(), cloud.lower()) in _ONE_NAME:
        return [cloud, rest] if slash else [cloud]
    return value.split("/")


def _cloud_name(field: Field, name: str, *, wildcard: bool) -> Optional[str]:
    lower = _ALIASES.get(name.lower(), name.lower())
    known = (*CLOUDS, *PRICED, *OURS)
    if lower in known or (wildcard and lower == ANY) or lower in _installed():
        return lower
    guess = did_you_mean(name, known)
    field.refuse(
        f"{name!r} is not a known cloud{guess}", None if guess else f"one of {', '.join((*CLOUDS, 'local'))}"
    )
    return None


def _installed() -> set[str]:
    """Asked only for a name that nobody knows: it reads the metadata of everything that is installed."""
    from importlib.metadata import entry_points

    found: Any = entry_points()
    if hasattr(found, "select"):  # Python 3.10 and later
        return {entry.name for entry in found.select(group=PROVIDERS)}
    return {entry.name for entry in found.get(PROVIDERS, ())}
