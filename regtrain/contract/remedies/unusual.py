"""What a spec says that hardly any net is trained with, given back: each such part its usual value, all of them together, and the recipe that trains most nets.

It asks nothing of the diagnosis, so it helps where a cause was named wrongly: the smallest change that matters is looked for between the spec and its defaults (Zeller
& Hildebrandt 2002). Ranges are those of textbooks and of the papers that introduced a part, and wide: within them nothing is called unusual.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf, log10
from typing import Any

from regtrain.contract.datasets import counts
from regtrain.contract.models import Activation, Cnn, LinearModel, Lsuv, Mlp, Normal, Rnn, Zeros
from regtrain.contract.optimizers import Adam, GlobalNorm, Sgd, Step
from regtrain.contract.ranges import concrete
from regtrain.contract.regularizers import Box, Dropout, EarlyStopping, L2Ball, MaxNorm, Regularizer, StepPenalty, VanishingGradient
from regtrain.contract.remedies.remedy import DEEP, Case, Direction, Remedy

BATCH = 32
"""Rows a batch: good for most nets (Bengio 2012; Masters & Luschi 2018)."""
LEAST_RATE, MOST_RATE = 1e-3, 1e-2
SGD_RATE = 0.01
"""For standardized inputs (Bengio 2012, 3.2)."""


@dataclass(frozen=True)
class Unusual:
    """A part of a spec that is outside of what is usual."""

    words: str
    off: float
    """By how many orders of magnitude it is outside."""
    why: str
    set: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What gives it back; of a regularizer that is left out nothing."""
    left_out: int | None = None
    """The regularizer's place."""
    expects: Mapping[str, Direction] = field(default_factory=lambda: {"loss/train": "down"})


def given_back(case: Case) -> Iterator[Remedy]:
    """All that is unusual at once, then one by one, what is furthest off first."""
    found = sorted([*_step(case), *_rows(case), *_weights(case), *_held(case)], key=lambda one: -one.off)
    if len(found) > 1:
        yield _remedy(case, found)
    for one in found:
        yield _remedy(case, [one])


def recipe(case: Case) -> Iterator[Remedy]:
    """The whole of what trains most nets, in one change: whatever was named wrongly, this one has it right."""
    optimizer = {"kind": "adam", "lr": adam_rate(case)}
    changes: dict[str, Any] = {"optimizer": optimizer, "clip": {"kind": "global_norm", "max": 1.0}, **_model(case), **_batches(case)}
    kept = [r for r in case.spec.regularizers if isinstance(r, EarlyStopping)]
    if len(kept) < len(case.spec.regularizers):
        changes["regularizers"] = _plain(kept)
    if not case.spec.dataset.standardize:
        changes["dataset.standardize"] = True
    why = "init for the activation, normalization, Adam, a clip, batches of some rows and nothing that holds weights: whatever the cause is, little of it is left"
    yield Remedy("recipe", changes, {"loss/train": "down", "signal/backward": "even"}, why)


def adam_rate(case: Case) -> float:
    """An update of Adam moves a weight by lr at most (Kingma & Ba 2015, 2.1): 0.001 where there are thousands of updates, and more where there are few, so
    that all together could move it by 4."""
    return float(f"{max(LEAST_RATE, min(MOST_RATE, 4 / updates(case))):.2g}")


def updates(case: Case) -> int:
    """Of the whole budget."""
    rows, size = counts(case.spec.dataset, case.facts, seed=case.spec.seed).train, case.spec.budget.batch_size
    return case.spec.budget.epochs * (1 if size == "all" else ceil(rows / size))


def init_for(activation: Activation) -> dict[str, Any]:
    """He et al. 2015 for what is 0 on one side, LeCun et al. 1998 for selu (Klambauer et al. 2017), Glorot & Bengio 2010 for what is odd around 0."""
    match activation:
        case "selu":
            return {"kind": "lecun_normal"}
        case "tanh" | "sigmoid" | "softsign" | "identity":
            return {"kind": "xavier_normal"}
        case _:
            return {"kind": "he_normal"}


# ---------------------------------------------------------------- what is unusual


def _off(value: float, low: float, high: float) -> float:
    """Orders of magnitude between a value and an interval; 0 inside of it."""
    if value < low:
        return log10(low / value) if value > 0 else inf
    return log10(value / high) if value > high else 0.0


def _step(case: Case) -> Iterator[Unusual]:
    optimizer = case.spec.optimizer
    if isinstance(optimizer, Sgd | Adam):
        high, back = (1.0, SGD_RATE) if isinstance(optimizer, Sgd) else (0.1, adam_rate(case))
        if (off := _off(lr := concrete(optimizer.lr), 1e-6, high)) > 0:
            why = f"learning rates of nets are below {high:g} and above 1e-06 (Bengio 2012)"
            yield Unusual(f"lr {back:g}", off, why, {"optimizer.lr": back}, expects={"update/ratio": "down" if lr > back else "up"})
        yield from _schedule(case)
    memories = {"momentum": (optimizer.momentum, 0.9)} if isinstance(optimizer, Sgd) else {"beta1": (optimizer.beta1, 0.9)} if isinstance(optimizer, Adam) else {}
    for name, (memory, back) in memories.items():
        if (off := _off(1 / (1 - concrete(memory)), 0, min(1000, updates(case)))) > 0:
            yield Unusual(f"{name} {back:g}", off, f"it averages over {1 / (1 - concrete(memory)):.3g} updates", {f"optimizer.{name}": back})
    if isinstance(optimizer, Adam) and (off := _off(concrete(optimizer.eps), 0, 1.0)) > 0:
        yield Unusual("eps 1e-08", off, "an ε above √v̂ makes every step as small as the gradient", {"optimizer.eps": 1e-8}, expects={"update/ratio": "up"})
    clip = case.spec.clip
    if clip is not None and (off := _off(concrete(clip.max), 1e-2 if isinstance(clip, GlobalNorm) else 1e-4, inf)) > 0:
        yield Unusual("no clip", off, "clips are set where only the longest gradients reach them (Pascanu et al. 2013)", {"clip": None}, expects={"gradient/clipped": "down"})


def _schedule(case: Case) -> Iterator[Unusual]:
    """Schedules that leave less than a thousandth of the rate for the second half of the budget, and warm-ups that last for half of it."""
    optimizer = case.spec.optimizer
    assert isinstance(optimizer, Sgd | Adam)
    schedule, half = optimizer.schedule, updates(case) // 2
    left = log10(concrete(schedule.factor)) * (max(0, half - schedule.warmup_steps) // schedule.every) if isinstance(schedule, Step) else 0.0
    if left < -3 or schedule.warmup_steps > half:
        off = max(-3 - left, log10(max(1, schedule.warmup_steps) / max(1, half)))
        yield Unusual("constant lr", off, "half of the budget has hardly any learning rate", {"optimizer.schedule": {"kind": "constant"}}, expects={"learning_rate": "up"})


def _rows(case: Case) -> Iterator[Unusual]:
    if changes := _batches(case):
        yield Unusual(
            f"batches of {BATCH}, as many updates", log10(2), "the gradient of one row is mostly noise (Masters & Luschi 2018)", changes, expects={"noise/gradient": "down"}
        )


def _batches(case: Case) -> dict[str, Any]:
    """For single rows a batch: usual batches, and the epochs in which they make as many updates."""
    size, rows = case.spec.budget.batch_size, counts(case.spec.dataset, case.facts, seed=case.spec.seed).train
    if size != 1 or rows < 2:
        return {}
    taken = min(BATCH, rows)
    return {"budget.batch_size": taken, "budget.epochs": max(1, round(updates(case) / ceil(rows / taken)))}


def _weights(case: Case) -> Iterator[Unusual]:
    model = case.spec.model
    if isinstance(model, LinearModel):
        return
    sound = init_for(model.activation) if not isinstance(model, Rnn) else {"kind": "orthogonal"}
    expects: dict[str, Direction] = {"signal/forward": "even", "signal/backward": "even"}
    if isinstance(model.init, Zeros):
        yield Unusual(f"init {sound['kind']}", inf, "with all weights 0 no layer but the last has a gradient", {"model.init": sound}, expects={"gradient/norm": "up"})
    elif not isinstance(model.init, Lsuv) and (off := _off(concrete(model.init.scale), 0.1, 10)) > 0:
        yield Unusual("init scale 1", off, "inits are made for a scale of 1 (Glorot & Bengio 2010)", {"model.init.scale": 1.0}, expects=expects)
    if isinstance(model.init, Normal) and (off := _off(model.init.std, 1e-3, 1.0)) > 0:
        yield Unusual(f"init {sound['kind']}", off, "weights scaled by the width of what they read", {"model.init": sound}, expects=expects)


def _held(case: Case) -> Iterator[Unusual]:
    """Penalties, constraints and dropout that leave nothing of a weight or a signal."""
    for place, regularizer in enumerate(case.spec.regularizers):
        off, why = _too_tight(regularizer)
        if off > 0 and not (isinstance(case.spec.model, LinearModel) and hasattr(regularizer, "lam")):
            twin = f" ({place})" if sum(other.kind == regularizer.kind for other in case.spec.regularizers) > 1 else ""
            yield Unusual(f"no {regularizer.kind}{twin}", off, why, left_out=place)


def _too_tight(regularizer: Regularizer) -> tuple[float, str]:
    match regularizer:
        case Dropout():
            return _off(1 - concrete(regularizer.rate), 0.5, inf), "dropout keeps half of the units or more (Srivastava et al. 2014)"
        case MaxNorm():
            return _off(concrete(regularizer.max), 0.1, inf), "norms of units are held below 3 or 4 (Srivastava et al. 2014), not below what carries a signal"
        case L2Ball():
            return _off(concrete(regularizer.radius), 0.1, inf), "weights of so small a norm carry no signal"
        case Box():
            return _off(max(abs(concrete(regularizer.low)), abs(concrete(regularizer.high))), 0.01, inf), "weights of so small a size carry no signal"
        case StepPenalty() | VanishingGradient():
            return 0.0, ""
        case _:
            lam = getattr(regularizer, "lam", None)
            return (0.0, "") if lam is None else (_off(concrete(lam), 0, 1.0), "strengths of nets are far below 1: the loss should lead")


# ---------------------------------------------------------------- what is usual


def _model(case: Case) -> dict[str, Any]:
    model = case.spec.model
    if isinstance(model, Rnn):
        return {"model.init": {"kind": "orthogonal"}}
    if not isinstance(model, Mlp | Cnn):
        return {}
    activation: Activation = "tanh" if model.activation == "sigmoid" else model.activation  # what is odd around 0 is faster (LeCun et al. 1998, 4.4)
    changes: dict[str, Any] = {"model.init": init_for(activation), "model.normalization": {"kind": "batch"}}
    if activation != model.activation:
        changes["model.activation"] = activation
    if isinstance(model, Mlp) and len(model.hidden) >= DEEP and not model.residual:
        changes["model.residual"] = True
    return changes


def _plain(regularizers: Sequence[Regularizer]) -> list[Any]:
    return [r.model_dump(mode="json", by_alias=True) for r in regularizers]


def _remedy(case: Case, parts: list[Unusual]) -> Remedy:
    changes = {path: value for part in parts for path, value in part.set.items()}
    left_out = {part.left_out for part in parts} - {None}
    if left_out:
        changes["regularizers"] = _plain([r for place, r in enumerate(case.spec.regularizers) if place not in left_out])
    expects: dict[str, Direction] = {series: direction for part in parts for series, direction in part.expects.items()}
    return Remedy(", ".join(dict.fromkeys(part.words for part in parts)), changes, expects, "; ".join(dict.fromkeys(part.why for part in parts)))
