"""Changes of how closely a net fits its rows: penalties, dropout, early stopping, the weight of classes, width, depth, epochs."""

from collections.abc import Iterator

from regtrain.contract.losses import Binary, CrossEntropy
from regtrain.contract.models import Cnn, LinearModel, Mlp, Rnn
from regtrain.contract.optimizers import Adam
from regtrain.contract.ranges import concrete
from regtrain.contract.regularizers import Box, Dropout, EarlyStopping, L2Ball, MaxNorm
from regtrain.contract.remedies.remedy import Case, Direction, Maker, Remedy, added, times

WIDEST = 4096


def penalties(*factors: float) -> Maker:
    """All penalties together: which of them is to blame is what the ledger says, and they are traded against the same loss."""

    def make(case: Case) -> Iterator[Remedy]:
        found = {f"regularizers.{i}.lambda": concrete(lam) for i, r in enumerate(case.spec.regularizers) if (lam := getattr(r, "lam", None)) is not None}
        found = {path: lam for path, lam in found.items() if lam > 0}
        for factor in factors if found else ():
            words = f"λ × {factor:g}" if factor > 1 else f"λ ÷ {1 / factor:g}"
            expects: Direction = "up" if factor > 1 else "down"
            why = "a stronger pull towards small weights" if factor > 1 else "the loss leads again"
            yield Remedy(words, {path: times(lam, factor) for path, lam in found.items()}, {"penalty_gradient/norm": expects}, why)

    return make


def without_penalties(case: Case) -> Iterator[Remedy]:
    kept = [r for r in case.spec.regularizers if not hasattr(r, "lam")]
    if len(kept) < len(case.spec.regularizers):
        plain = [r.model_dump(mode="json", by_alias=True) for r in kept]
        yield Remedy("no penalties", {"regularizers": plain}, {"penalty_gradient/norm": "down"}, "in front of a normalization a penalty only changes the effective learning rate")


def without_constraints(case: Case) -> Iterator[Remedy]:
    free = [r for r in case.spec.regularizers if not isinstance(r, Box | L2Ball | MaxNorm)]
    if len(free) < len(case.spec.regularizers):
        plain = [r.model_dump(mode="json", by_alias=True) for r in free]
        yield Remedy("no bounds on weights", {"regularizers": plain}, {"weight/norm": "up"}, "the constraint leaves nothing of what they begin with")


def early(case: Case) -> Iterator[Remedy]:
    if not any(isinstance(r, EarlyStopping) for r in case.spec.regularizers):
        patience = max(1, min(10, case.spec.budget.epochs // 5))
        yield added(case, "early stopping", {"kind": "early_stopping", "patience": patience}, {"loss/val": "down"}, "ends with the best evaluation (Prechelt 1998)")


def dropout(case: Case) -> Iterator[Remedy]:
    if isinstance(case.spec.model, LinearModel) or any(isinstance(r, Dropout) for r in case.spec.regularizers):
        return
    for rate in (0.2, 0.5):
        yield added(case, f"dropout {rate}", {"kind": "dropout", "rate": rate}, {"loss/val": "down"}, "units cannot rely on each other (Srivastava et al. 2014)")


def weaker_dropout(case: Case) -> Iterator[Remedy]:
    rates = {f"regularizers.{i}.rate": concrete(r.rate) for i, r in enumerate(case.spec.regularizers) if isinstance(r, Dropout)}
    if any(rate > 0 for rate in rates.values()):
        yield Remedy("dropout ÷ 4", {path: times(rate, 0.25) for path, rate in rates.items()}, {"loss/train": "down"}, "more of each layer's signal is left")


def l2(case: Case) -> Iterator[Remedy]:
    if any(r.kind in ("l2", "weight_decay") for r in case.spec.regularizers):
        return
    if isinstance(case.spec.optimizer, Adam):
        yield added(case, "weight decay 0.01", {"kind": "weight_decay", "lambda": 0.01}, {"weight/norm": "down"}, "decoupled decay (Loshchilov & Hutter 2019)")
    yield added(case, "l2 0.001", {"kind": "l2", "lambda": 0.001}, {"weight/norm": "down"}, "smaller weights make a smoother function (Krogh & Hertz 1991)")


def balanced(case: Case) -> Iterator[Remedy]:
    loss = case.spec.loss
    if isinstance(loss, CrossEntropy | Binary) and loss.class_weights != "balanced":
        yield Remedy("balanced class weights", {"loss.class_weights": "balanced"}, {"accuracy/val": "up"}, "every class counts alike (King & Zeng 2001)")


def smoothed(case: Case) -> Iterator[Remedy]:
    loss = case.spec.loss
    if isinstance(loss, CrossEntropy) and concrete(loss.label_smoothing) == 0:
        yield Remedy("label smoothing 0.1", {"loss.label_smoothing": 0.1}, {"accuracy/val": "up"}, "no label is believed fully (Szegedy et al. 2016)")


def wider(case: Case) -> Iterator[Remedy]:
    yield from _width(case, 2, {"loss/train": "down"}, "more units can say more")


def narrower(case: Case) -> Iterator[Remedy]:
    yield from _width(case, 0.5, {"loss/val": "down"}, "fewer units can learn less by heart")


def _width(case: Case, factor: float, expects: dict[str, Direction], why: str) -> Iterator[Remedy]:
    model = case.spec.model
    if isinstance(model, Mlp | Rnn) and max(model.hidden) * factor <= WIDEST:
        yield Remedy("width × 2" if factor > 1 else "width ÷ 2", {"model.hidden": [max(1, int(width * factor)) for width in model.hidden]}, expects, why)
    if isinstance(model, Cnn) and max(model.channels) * factor <= WIDEST:
        yield Remedy("filters × 2" if factor > 1 else "filters ÷ 2", {"model.channels": [max(1, int(n * factor)) for n in model.channels]}, expects, why)


def deeper(case: Case) -> Iterator[Remedy]:
    if isinstance(case.spec.model, LinearModel):
        hidden = {"kind": "mlp", "hidden": [32], "init": {"kind": "he_normal"}}
        yield Remedy("a hidden layer of 32", {"model": hidden}, {"loss/train": "down"}, "a linear model cannot follow a curve")


def longer(case: Case) -> Iterator[Remedy]:
    yield Remedy("epochs × 3", {"budget.epochs": case.spec.budget.epochs * 3}, {"loss/train": "down"}, "the loss may still be falling; costs three times as much")
