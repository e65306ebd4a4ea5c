"""How much a job measures while it trains: presets by cost. Measured in worker/training/diagnostics.py."""

from typing import Literal

Diagnostics = Literal["off", "light", "standard", "full"]
"""`off`: losses and metrics. `light`: and gradient norms. `standard`: and signals, weights, updates, penalty ledger. `full`: and activations, the exact identities with their watch, and about every 256 updates curvature, noise scale, expected decrease and histograms."""

ORDER: tuple[Diagnostics, ...] = ("off", "light", "standard", "full")


_RANK = {preset: rank for rank, preset in enumerate(ORDER)}


def includes(preset: Diagnostics, needed: Diagnostics) -> bool:
    """Whether `preset` measures what `needed` names."""
    return _RANK[preset] >= _RANK[needed]
