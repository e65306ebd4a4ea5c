"""Changes of the step: learning rate, clip, optimizer, momentum, schedule, batches, precision."""

from collections.abc import Iterator
from math import isfinite

from regtrain.contract.optimizers import Adam, GlobalNorm, Lbfgs, Proximal, Sgd
from regtrain.contract.ranges import concrete
from regtrain.contract.regularizers import StepPenalty
from regtrain.contract.remedies.remedy import Case, Direction, Maker, Remedy, times
from regtrain.contract.remedies.unusual import adam_rate

UPDATE = 1e-3
"""‖Δw‖/‖w‖ of an update of a net that learns, by order of magnitude."""


def rates(*factors: float) -> Maker:
    def make(case: Case) -> Iterator[Remedy]:
        optimizer = case.spec.optimizer
        if isinstance(optimizer, Sgd | Adam):
            for factor in factors:
                yield _rate(concrete(optimizer.lr), factor)

    return make


def _rate(lr: float, factor: float) -> Remedy:
    words = f"lr × {factor:.3g}" if factor > 1 else f"lr ÷ {1 / factor:.3g}"
    expects: Direction = "up" if factor > 1 else "down"
    return Remedy(words, {"optimizer.lr": times(lr, factor)}, {"update/ratio": expects}, "larger steps" if factor > 1 else "smaller steps, inside the bound of stability")


def measured_rate(case: Case) -> Iterator[Remedy]:
    """The rate at which what was measured would be at half of its bound, or twice it from below."""
    optimizer, evidence = case.spec.optimizer, case.evidence
    if evidence is None or not isinstance(optimizer, Sgd | Adam) or not evidence.value > 0 or not evidence.bound > 0:
        return
    factor = evidence.bound / evidence.value * (0.5 if evidence.value > evidence.bound else 2.0)
    if isfinite(factor) and 1e-6 < factor < 1e6:
        yield _rate(concrete(optimizer.lr), float(f"{factor:.3g}"))


def moving(case: Case) -> Iterator[Remedy]:
    """The rate at which ‖Δw‖/‖w‖, measured below what changes a weight, would be 1/1000 (Bottou 2012; Karpathy 2019)."""
    if case.evidence is not None and case.evidence.value > 0:
        yield from _times(case, UPDATE / case.evidence.value)


def travelled(case: Case) -> Iterator[Remedy]:
    """The rate at which all updates of the budget together, measured in lengths of the weights, would be as long as the weights."""
    if case.evidence is not None and case.evidence.value > 0:
        yield from _times(case, 1 / case.evidence.value)


def _times(case: Case, factor: float) -> Iterator[Remedy]:
    if isinstance(case.spec.optimizer, Sgd | Adam) and isfinite(factor) and factor > 1:
        yield _rate(concrete(case.spec.optimizer.lr), float(f"{factor:.3g}"))


def clipped(case: Case) -> Iterator[Remedy]:
    if case.spec.clip is None and not isinstance(case.spec.optimizer, Proximal | Lbfgs):
        why = "no step is longer than lr (Pascanu et al. 2013)"
        yield Remedy("clip at norm 1", {"clip": {"kind": "global_norm", "max": 1.0}}, {"gradient/clipped": "up", "update/ratio": "down"}, why)


def wider_clip(case: Case) -> Iterator[Remedy]:
    if (clip := case.spec.clip) is not None:
        what = "norm" if isinstance(clip, GlobalNorm) else "value"
        for factor in (10, 100):
            yield Remedy(f"clip at {what} × {factor}", {"clip.max": times(concrete(clip.max), factor)}, {"gradient/clipped": "down"}, "most gradients pass unchanged")
        yield Remedy("no clip", {"clip": None}, {"gradient/clipped": "down"}, "the gradient's own length says how far to go")


def adam(case: Case) -> Iterator[Remedy]:
    if not isinstance(case.spec.optimizer, Adam):
        why = "steps of one size for every weight, whatever the size of its gradient (Kingma & Ba 2015)"
        yield Remedy("adam", {"optimizer": {"kind": "adam", "lr": adam_rate(case)}}, {"update/ratio": "even"}, why)


def momentum(case: Case) -> Iterator[Remedy]:
    optimizer = case.spec.optimizer
    if isinstance(optimizer, Sgd) and concrete(optimizer.momentum) == 0:
        yield Remedy("momentum 0.9", {"optimizer.momentum": 0.9}, {"loss/train": "down"}, "steps add up along slopes that stay (Polyak 1964)")


def calmer(case: Case) -> Iterator[Remedy]:
    optimizer = case.spec.optimizer
    if isinstance(optimizer, Sgd) and concrete(optimizer.momentum) > 0.5:
        why = "less momentum oscillates less"
        yield Remedy("momentum 0.5", {"optimizer.momentum": 0.5}, {"update/ratio": "down"}, why)
    yield from cosine(case)


def cosine(case: Case) -> Iterator[Remedy]:
    if isinstance(case.spec.optimizer, Sgd | Adam) and case.spec.optimizer.schedule.kind != "cosine":
        why = "the steps shrink to 0 by the end of the budget (Loshchilov & Hutter 2017)"
        yield Remedy("cosine schedule", {"optimizer.schedule": {"kind": "cosine"}}, {"learning_rate": "down"}, why)


def larger_batches(case: Case) -> Iterator[Remedy]:
    size = case.spec.budget.batch_size
    if size != "all":
        yield Remedy("batches × 4", {"budget.batch_size": size * 4}, {"noise/gradient": "down"}, "the noise of a batch falls with the root of its rows")


def epsilon(case: Case) -> Iterator[Remedy]:
    optimizer = case.spec.optimizer
    if isinstance(optimizer, Adam) and concrete(optimizer.eps) > 1e-8:
        yield Remedy("eps 1e-8", {"optimizer.eps": 1e-8}, {"update/ratio": "up"}, "an ε above √v̂ makes every step as small as the gradient")


def step_penalties(case: Case) -> Iterator[Remedy]:
    for index, regularizer in enumerate(case.spec.regularizers):
        if isinstance(regularizer, StepPenalty) and concrete(regularizer.lam) > 0:
            path = f"regularizers.{index}.lambda"
            yield Remedy(f"λ of step_penalty ÷ 100 ({index})", {path: times(concrete(regularizer.lam), 0.01)}, {"update/ratio": "up"}, "nothing moves while ‖g‖ ≤ α")


def double(case: Case) -> Iterator[Remedy]:
    if case.spec.dtype == "float32":
        yield Remedy("float64", {"dtype": "float64"}, {"update/ratio": "up"}, "an update below 6e-8 of a weight is lost in float32")
