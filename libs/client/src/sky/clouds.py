"""Clouds as objects: `sky.Resources(cloud=sky.AWS())`. They carry a name; everything else is the server's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class Cloud:
    """Equal by name; made without arguments."""

    NAME: ClassVar[str] = ""

    def __repr__(self) -> str:
        return type(self).__name__

    def __str__(self) -> str:
        return type(self).__name__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cloud) and other.NAME == self.NAME

    def __hash__(self) -> int:
        return hash(self.NAME)

    @classmethod
    def canonical_name(cls) -> str:
        """The name as it stands in YAML."""
        return cls.NAME


class AWS(Cloud):
    NAME = "aws"


class Azure(Cloud):
    NAME = "azure"


class Cudo(Cloud):
    NAME = "cudo"


class DO(Cloud):
    NAME = "do"


class Fluidstack(Cloud):
    NAME = "fluidstack"


class GCP(Cloud):
    NAME = "gcp"


class Hyperbolic(Cloud):
    NAME = "hyperbolic"


class IBM(Cloud):
    NAME = "ibm"


class Kubernetes(Cloud):
    NAME = "kubernetes"


class Lambda(Cloud):
    NAME = "lambda"


class Local(Cloud):
    """This machine: nodes are directories with agents of their own."""

    NAME = "local"


class Mithril(Cloud):
    NAME = "mithril"


class Nebius(Cloud):
    NAME = "nebius"


class OCI(Cloud):
    NAME = "oci"


class Paperspace(Cloud):
    NAME = "paperspace"


class PrimeIntellect(Cloud):
    NAME = "primeintellect"


class RunPod(Cloud):
    NAME = "runpod"


class SCP(Cloud):
    NAME = "scp"


class SSH(Cloud):
    NAME = "ssh"


class Seeweb(Cloud):
    NAME = "seeweb"


class Shadeform(Cloud):
    NAME = "shadeform"


class Slurm(Cloud):
    NAME = "slurm"


class Vast(Cloud):
    NAME = "vast"


class Verda(Cloud):
    NAME = "verda"


class Vsphere(Cloud):
    NAME = "vsphere"


class Yotta(Cloud):
    NAME = "yotta"


K8s = Kubernetes


class CloudRegistry:
    """Clouds by name, in any case; `k8s` is Kubernetes."""

    def __init__(self, *kinds: type[Cloud]) -> None:
        self._kinds = {kind.NAME: kind for kind in kinds}

    def from_str(self, name: str | None) -> Cloud | None:
        if name is None:
            return None
        key = {"k8s": "kubernetes"}.get(name.lower(), name.lower())
        if key not in self._kinds:
            from skyloom_common.core.text import did_you_mean

            raise ValueError(f"Cloud {name!r} is not known{did_you_mean(name, self._kinds)}")
        return self._kinds[key]()

    def named(self, name: str) -> Cloud:
        """Also for clouds without a class of their own: those that only sell, and a deployment's own."""
        if name in self:
            return self._kinds[name.lower()]()
        kind: type[Cloud] = type(name.capitalize(), (Cloud,), {"NAME": name.lower()})
        return kind()

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._kinds

    def __len__(self) -> int:
        return len(self._kinds)


CLOUD_REGISTRY = CloudRegistry(*Cloud.__subclasses__())


def __getattr__(name: str) -> object:
    if name == "service_catalog":  # where old programs look for sky.catalog
        from sky import catalog

        return catalog
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
