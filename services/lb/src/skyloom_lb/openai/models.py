"""Which services serve which model: names, aliases, weights, fallbacks. Pure: built from settings and endpoint tables."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from skyloom_lb.openai.config import FrontSettings, Price, Target


@dataclass(frozen=True, slots=True)
class Model:
    """`chosen` are the targets a request may start at, with the running sums of their weights. `price`: None = that of the
    service that answers."""

    name: str
    chosen: tuple[Target, ...]
    sums: tuple[float, ...]
    fallbacks: tuple[Target, ...] = ()
    price: Price | None = None
    owned_by: str = "skyloom"
    listed: bool = True

    def choose(self, random: float) -> Target:
        """`random` in [0, 1)."""
        if len(self.chosen) == 1:
            return self.chosen[0]
        return self.chosen[bisect_right(self.sums, random * self.sums[-1])]

    def after(self, first: Target) -> tuple[Target, ...]:
        """What is tried when `first` gives no answer: the other targets by weight, then the fallbacks."""
        others = sorted((one for one in self.chosen if one is not first), key=lambda one: -one.weight)
        return (*others, *self.fallbacks)


@dataclass(frozen=True, slots=True)
class Served:
    """What a service says of itself: names in its settings, names its endpoints have, its price."""

    service: str
    models: tuple[str, ...] = ()
    endpoint_models: tuple[str, ...] = ()
    price: Price | None = None
    external: bool = False


class ModelTable:
    """Names from `front.models` first; then what the services serve by themselves; then each service's own name."""

    def __init__(self, settings: FrontSettings, services: Sequence[Served]) -> None:
        self._by_name: dict[str, Model] = {}
        self.any: Model | None = None
        self.knows_names = bool(settings.models)
        self.missing: list[str] = []
        """Services that `front.models` names and nobody knows: their targets are left out."""
        self.first: dict[str, Model] = {}
        """The model that stands for a service when a request reached it without naming one."""
        known = {one.service: one for one in services}
        for name, one in settings.models.items():
            self._add_configured(name, settings, known)
            for alias in one.aliases:
                if name in self._by_name:
                    self._by_name[alias] = self._by_name[name]
        for served in services:
            self._add_served(served, listed=not settings.models)
        if len(services) == 1 and not settings.models:
            self.any = _model("", (Target(services[0].service),), price=services[0].price)
        self.default = self._by_name.get(settings.default_model)

    def _add_configured(self, name: str, settings: FrontSettings, known: Mapping[str, Served]) -> None:
        one = settings.models[name]
        targets = [
            Target(target.service, target.model or _name_at(name, known[target.service]), target.weight)
            for target in (*one.to, *one.fallbacks)
            if target.service in known
        ]
        self.missing += [
            target.service for target in (*one.to, *one.fallbacks) if target.service not in known
        ]
        count = sum(target.service in known for target in one.to)
        chosen = tuple(target for target in targets[:count] if target.weight > 0)
        rest = tuple(targets[count:])
        if not chosen and rest:
            chosen, rest = rest[:1], rest[1:]
        if chosen:
            self._by_name[name] = _model(name, chosen, rest, one.price, one.owned_by)

    def _add_served(self, served: Served, listed: bool) -> None:
        names = served.models or served.endpoint_models
        self.knows_names = self.knows_names or bool(names)
        for name in names:
            model = _model(name, (Target(served.service, name),), price=served.price, listed=listed)
            self._by_name.setdefault(name, model)
        # The service's own name stands for its first model; without known names the engine sees what the client wrote.
        inner = names[0] if names else ""
        own = _model(served.service, (Target(served.service, inner),), price=served.price,
                     listed=listed and not names and not served.external)  # fmt: skip
        self._by_name.setdefault(served.service, own)
        self.first[served.service] = self._by_name[names[0]] if names else own

    def find(self, name: str) -> Model | None:
        """The model of that name; with one service and nothing configured, every name is that service's."""
        if not name and self.default is not None:
            return self.default
        return self._by_name.get(name) or self.any

    @property
    def takes_any(self) -> bool:
        """One service and nothing configured: whatever a request names is meant for it."""
        return self.any is not None

    def names(self) -> Iterable[Model]:
        """Each listed model once, by name."""
        return [model for name, model in sorted(self._by_name.items()) if model.listed and model.name == name]

    def by_alias(self) -> dict[str, Model]:
        """Each listed model under each of its other names."""
        return {
            name: model
            for name, model in self._by_name.items()
            if model.listed and model.name not in ("", name)
        }


def _name_at(name: str, served: Served) -> str:
    """Without a name of its own at the service: this one when the service knows it, else the service's first."""
    names = served.models or served.endpoint_models
    return name if not names or name in names else names[0]


def _model(
    name: str,
    chosen: tuple[Target, ...],
    fallbacks: tuple[Target, ...] = (),
    price: Price | None = None,
    owned_by: str = "skyloom",
    listed: bool = True,
) -> Model:
    sums = tuple(accumulate(one.weight for one in chosen))
    return Model(name, chosen, sums, fallbacks, price, owned_by, listed)
