"""Resources and sizes in the words that tables use."""

from __future__ import annotations

from skyloom_common.contracts.plan import Offer


def resources_text(offer: Offer | None, num_nodes: int) -> str:
    """2x(cpus=4, mem=16GB, A100:1, n1-standard-4)"""
    if offer is None:
        return f"{num_nodes}x(-)"
    parts = [
        f"cpus={offer.vcpus:g}" if offer.vcpus else "",
        f"mem={offer.memory_gib:g}GB" if offer.memory_gib else "",
        f"{offer.accelerator}:{offer.accelerator_count:g}" if offer.accelerator else "",
        offer.instance_type if offer.instance_type != offer.cloud else "",
        "[spot]" if offer.use_spot else "",
    ]
    return f"{num_nodes}x({', '.join(part for part in parts if part)})"


def offer_text(offer: Offer) -> str:
    """aws us-east-1a (m6i.xlarge)"""
    place = " ".join(part for part in (offer.cloud, offer.zone or offer.region) if part)
    kind = offer.instance_type if offer.instance_type != offer.cloud else "this machine"
    return f"{place} ({kind}{', spot' if offer.use_spot else ''})"


def size_text(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def counted(number: int, noun: str) -> str:
    """1 node, 2 nodes"""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
