"""How much a job measures while it trains: presets by cost. Measured in worker/training/diagnostics.py."""

from typing import Literal

Diagnostics = Literal["off", "light", "standard", "full"]
"""`off`: losses and metrics. `light`: and gradient norms. `standard`: and signals, weights, updates, penalty ledger. `full`: all of it in every update, and activations, the exact identities with their watch, and about every 256 updates curvature, noise scale, expected decrease and histograms."""

ORDER: tuple[Diagnostics, ...] = ("off", "light", "standard", "full")


SPACING, LATER = ((32, 1), (256, 8)), 32
"""Up to which update the layers are read in one update of how many, and later: what goes wrong at once is seen at once, and looking costs little after that."""

_RANK = {preset: rank for rank, preset in enumerate(ORDER)}


def includes(preset: Diagnostics, needed: Diagnostics) -> bool:
    """Whether `preset` measures what `needed` names."""
    return _RANK[preset] >= _RANK[needed]


def reads(preset: Diagnostics, t: int) -> bool:
    """Whether the layers are read in update t: with `full` in all, with `standard` and `light` ever more rarely."""
    return preset == "full" or (preset != "off" and t % next((every for before, every in SPACING if t < before), LATER) == 0)
