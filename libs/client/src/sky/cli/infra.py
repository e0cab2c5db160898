"""sky check, sky gpus list: what can be used, and what it offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sky.cli import options
from sky.cli.output import money, number, paint, print_json, say, show, table

if TYPE_CHECKING:
    from skyloom_common.contracts.clusters import InfraStatus
    from skyloom_common.contracts.plan import AcceleratorList, AcceleratorOffer, AcceleratorSummary

FAMILIES = (("common", "COMMON_GPU"), ("google_tpu", "GOOGLE_TPU"), ("other", "OTHER_GPU"))
DETAILS = [
    "GPU",
    "QTY",
    "CLOUD",
    "INSTANCE_TYPE",
    "DEVICE_MEM",
    "vCPUs",
    "HOST_MEM",
    "HOURLY_PRICE",
    "HOURLY_SPOT_PRICE",
]


@click.command(
    help="Show which infrastructure can be used, and why not. INFRA: names; all when none is given."
)
@click.argument("infra", nargs=-1)
@click.option("-v", "--verbose", is_flag=True, help="Capabilities and features too.")
@click.option("-w", "--workspace", default=None, help="Workspace.")
@options.OUTPUT
@options.CONFIG
def check(
    infra: tuple[str, ...], verbose: bool, workspace: str | None, output: str, config: tuple[str, ...]
) -> int:
    from sky.cli.session import gateway

    found = gateway(config).infra([name.lower() for name in infra])
    if output == "json":
        print_json({workspace or "default": [item.name for item in found if item.enabled]})
    else:
        _print_infra(found, verbose)
    return 0 if any(item.enabled for item in found) else 1


def _print_infra(found: tuple[InfraStatus, ...], verbose: bool) -> None:
    from sky.cli.plan_table import cloud_name

    enabled = [item for item in found if item.enabled]
    disabled = [item for item in found if not item.enabled]
    show(paint("Enabled infra:", "bold") + ("" if enabled else " none"))
    for item in enabled:
        able = f" [{', '.join(item.capabilities)}]" if item.capabilities else ""
        show(
            f"  {paint('✔', 'green')} {cloud_name(item.name)}{able}"
            + (f": {item.reason}" if item.reason else "")
        )
        if verbose and item.features:
            show(f"      features: {', '.join(item.features)}")
    if disabled:
        show(paint("Disabled infra:", "bold"))
    for item in disabled:
        show(f"  {paint('✘', 'red')} {cloud_name(item.name)}: {item.reason or 'not set up'}")
        if item.hint:
            show(f"      Hint: {item.hint}")


def _list_options(function: Any) -> Any:
    return options.options(
        click.argument("accelerator", required=False, metavar="[ACCELERATOR[:COUNT]]"),
        click.option("-a", "--all", "all_", is_flag=True, help="All accelerators, also uncommon ones."),
        click.option("--infra", default=None, help="Only here: cloud[/region]."),
        click.option("--cloud", default=None, hidden=True),
        click.option("--region", default=None, hidden=True),
        click.option("--all-regions", is_flag=True, help="Every region, not only the cheapest."),
        click.option("-v", "--verbose", is_flag=True, help="Where prices come from, too."),
    )(function)


@click.command("list", help="List accelerators, or the offers of one (A100, A100:8).")
@_list_options
@options.OUTPUT
@options.CONFIG
def gpus_list(output: str, **flags: Any) -> int:
    return _list(flags, output)


@click.command("show-gpus", help="Old name of `sky gpus list`.")
@_list_options
@options.CONFIG
def show_gpus(**flags: Any) -> int:
    say("`sky show-gpus` is deprecated: its name is `sky gpus list` now.")
    return _list(flags, "table")


def _list(flags: dict[str, Any], output: str) -> int:
    from sky.cli.session import gateway

    if flags["infra"] and (flags["cloud"] or flags["region"]):
        raise click.UsageError("--infra and --cloud/--region say the same thing; give one of them.")
    if flags["all_regions"] and not flags["accelerator"]:
        raise click.UsageError("--all-regions needs an accelerator: sky gpus list A100 --all-regions")
    if flags["all_"] and flags["accelerator"]:
        raise click.UsageError("--all lists every accelerator; it takes no name.")
    found = gateway(flags["config"]).accelerators(**_query(flags))
    if output == "json":
        print_json(found.offers if flags["accelerator"] else found.summaries)
        return 0 if found.offers or found.summaries else 1
    shown = _print_offers(found, flags) if flags["accelerator"] else _print_summaries(found, flags["all_"])
    for hint in found.hints:
        say(hint)
    if not shown and not found.hints:
        say(
            f"No offer of {flags['accelerator'] or 'any accelerator'} is known here; sky gpus list --all shows all names."
        )
    return 0 if shown else 1


def _query(flags: dict[str, Any]) -> dict[str, Any]:
    name, _, count = (flags["accelerator"] or "").partition(":")
    if "gb" in count.lower():  # nvidia:80GB:4
        size, _, count = count.partition(":")
        name = f"{name}:{size}"
    if count and not count.replace(".", "", 1).isdigit():
        raise click.UsageError(
            f"{flags['accelerator']!r}: the count {count!r} is not a number; for example A100:8"
        )
    cloud, _, region = (flags["infra"] or "").partition("/")
    cloud = {"k8s": "kubernetes"}.get((flags["cloud"] or cloud).lower(), (flags["cloud"] or cloud).lower())
    return {
        "name": name or None,
        "count": count or None,
        "cloud": cloud if cloud and cloud != "*" else None,
        "region": flags["region"] or region or None,
        "all": flags["all_"] or None,
        "all_regions": flags["all_regions"] or None,
    }


def _print_summaries(found: AcceleratorList, everything: bool) -> bool:
    blocks = []
    for family, title in FAMILIES:
        rows = [item for item in found.summaries if item.family == family]
        if rows and (family != "other" or everything):
            blocks.append(table([title, "AVAILABLE_QUANTITIES"], [[r.accelerator, _counts(r)] for r in rows]))
    if blocks:
        show("\n\n".join(blocks))
    if not everything and any(item.family == "other" for item in found.summaries):
        say("More: sky gpus list --all.  Prices of one: sky gpus list NAME")
    return bool(blocks)


def _counts(row: AcceleratorSummary) -> str:
    return ", ".join(dict.fromkeys(number(count) for count in sorted(row.counts)))


def _print_offers(found: AcceleratorList, flags: dict[str, Any]) -> bool:
    if not found.offers:
        return False
    header = [*DETAILS, "REGION"] + (["AS_OF", "AGE", "SOURCE"] if flags["verbose"] else [])
    show(table(header, [_offer(offer, flags["verbose"]) for offer in found.offers]))
    return True


def _offer(offer: AcceleratorOffer, verbose: bool) -> list[str]:
    from sky.cli.plan_table import cloud_name

    def gigabytes(value: float | None) -> str:
        return "-" if value is None else f"{number(value)}GB"

    def price(value: float | None) -> str:
        return (
            "-" if value is None else f"$ {money(value) if value >= 0.01 or value == 0 else f'{value:.4f}'}"
        )

    line = [
        offer.accelerator,
        number(offer.count),
        cloud_name(offer.cloud),
        offer.instance_type,
        gigabytes(offer.accelerator_memory_gib),
        number(offer.vcpus),
        gigabytes(offer.memory_gib),
        price(offer.price_per_hour),
        price(offer.spot_price_per_hour),
        offer.region,
    ]
    age = "-" if offer.age_days is None else f"{offer.age_days}d"
    return [*line, offer.as_of, age, offer.source] if verbose else line
