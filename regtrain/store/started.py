"""What a job said when it began, pack by pack: packs of other variants or folds may have other layers, steps and epochs than the first."""

from typing import Any

from regtrain.contract.series import Shape, places

OF_PACKS = ("layers", "times", "steps", "steps_per_epoch")
"""What may differ from pack to pack."""


def of_pack(started: dict[str, Any], pack: int, key: str) -> Any:
    """One of `OF_PACKS`."""
    return started.get("packs", {}).get(str(pack), {}).get(key, started.get(key))


def places_of(started: dict[str, Any] | None, shape: Shape, pack: int | None = None) -> list[str]:
    """The names of a series' columns: of one pack, or of all of them; none before the job has started."""
    if not started:
        return []
    packs = [pack] if pack is not None else [-1, *map(int, started.get("packs", {}))]
    return list(dict.fromkeys(name for at in packs for name in places(shape, layers=of_pack(started, at, "layers"), times=of_pack(started, at, "times") or {})))
