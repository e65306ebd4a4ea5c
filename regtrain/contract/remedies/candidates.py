"""For every symptom the changes to a spec that may cure it, the most promising first, each with what it is expected to do and why. They are guesses until a trial."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import exp, isfinite
from typing import Any, Literal, assert_never

from pydantic import ValidationError

from regtrain.contract.base import is_object
from regtrain.contract.checks import check, shape_of
from regtrain.contract.datasets import Facts
from regtrain.contract.errors import SpecRefused
from regtrain.contract.job import JobSpec
from regtrain.contract.losses import Binary, CrossEntropy, HalfSquaredError, SquaredError
from regtrain.contract.models import Cnn, HeNormal, LinearModel, Lsuv, Mlp, Orthogonal, Rnn, Zeros
from regtrain.contract.optimizers import Adam, GlobalNorm, Lbfgs, Proximal, Sgd
from regtrain.contract.ranges import concrete
from regtrain.contract.regularizers import Dropout, EarlyStopping, StepPenalty, VanishingGradient
from regtrain.contract.symptoms import SymptomName
from regtrain.contract.theory import log_ratio, ranking
from regtrain.contract.theory.field import SCALES
from regtrain.contract.variants import Variant, spec_of

Direction = Literal["up", "down", "even"]
"""What becomes of a quantity; `even`: its values in all layers come nearer to each other."""
MOST = 6
"""Remedies of one symptom: with six, Holm's correction still leaves a remedy that wins all but the smallest of eight pairs at p < 0.05 (6·2/2⁸ = 0.047)."""
FROM_THEORY = 3
"""Of those at most so many are what theory ranks: what it cannot see should have its chance."""
TRAINABLE = exp(SCALES / 2)
"""Ratio of the signal gradients of first and last hidden layer up to which theory expects a net to train, about 20."""
WIDEST = 4096


@dataclass(frozen=True)
class Remedy:
    """A change to the spec that may cure a symptom."""

    label: str
    set: dict[str, Any]
    """Path → whole value, as in variants."""
    expects: dict[str, Direction] = field(default_factory=dict[str, Direction])
    """Series or symptom's quantity → what should become of it."""
    why: str = ""


@dataclass(frozen=True)
class Evidence:
    """What was measured where the symptom was noticed."""

    value: float
    bound: float
    """What the value is beyond."""


def remedies(
    spec: JobSpec, facts: Facts, symptom: SymptomName | None, *, evidence: Evidence | None = None, before: Mapping[str, int] | None = None, most: int = MOST
) -> list[Remedy]:
    """Candidates for a spec without ranges and variants that `check` has accepted; so are all that come back. None where no change of a spec is known to help.

    `symptom`: None asks for what helps most nets, where nothing is known to be wrong. `before`: label → how often that remedy has been confirmed for this symptom; what
    helped more often comes first.
    """
    found: list[Remedy] = []
    for remedy in sorted(_of(symptom, _Case(spec, facts, evidence)), key=lambda remedy: -(before or {}).get(remedy.label, 0)):
        if len(found) == most:
            break
        if remedy.set not in [known.set for known in found] and accepted(spec, facts, remedy.set):
            found.append(remedy)
    return found


def accepted(spec: JobSpec, facts: Facts, changes: Mapping[str, Any]) -> bool:
    """Whether a spec with these changes can be trained, and is another one."""
    try:
        other = spec_of(spec, Variant(label="-", set=dict(changes)))
        check(other, facts)
    except (ValidationError, ValueError, SpecRefused):
        return False
    return other != spec


@dataclass(frozen=True)
class _Case:
    spec: JobSpec
    facts: Facts
    evidence: Evidence | None


def _of(symptom: SymptomName | None, case: _Case) -> Iterable[Remedy]:
    """Candidates, the most promising first; some may be none for this spec."""
    match symptom:
        case "unscaled_inputs":
            return _each(case, _standardized, _rates(0.1), _adam, _normalizations)
        case "wrong_output":
            return _each(case, _classes, _bias)
        case "poor_first_loss":
            return _each(case, _smaller_weights, _theory, _rates(1 / 3), _clipped)
        case "saturated" | "vanishing_signal" | "vanishing_gradient":
            return _each(case, _theory, _recurrent, _standardized, _smaller_weights, _open_units, _adam, _rates(10))
        case "exploding_signal" | "exploding_gradient":
            return _each(case, _theory, _clipped, _recurrent, _standardized, _rates(0.1, 1 / 30), _smaller_weights)
        case "class_imbalance":
            return _each(case, _balanced, _wider, _longer)
        case "penalty_dominates" | "penalty_fights":
            return _each(case, _penalties(0.1, 0.01, 0.001))
        case "penalty_invisible":
            return _each(case, _penalties(10, 100, 1000))
        case "penalty_wasted":
            return _each(case, _without_penalties, _penalties(0.1))
        case "rate_too_high" | "oscillating":
            return _each(case, _measured_rate, _rates(1 / 3, 0.1, 1 / 30), _calmer, _clipped, _larger_batches, _standardized)
        case "rate_too_low":
            return _each(case, _measured_rate, _rates(3, 10, 30), _adam, _momentum, _longer)
        case "non_finite":
            return _each(case, _rates(0.1, 1 / 30), _clipped, _standardized, _theory, _smaller_weights)
        case "dead_units":
            return _each(case, _rates(0.1), _open_units, _normalizations, _theory, _standardized, _clipped)
        case "no_gradient":
            return _each(case, _drawn_weights, _open_units, _theory, _normalizations, _rates(0.1), _standardized, _weaker_dropout)
        case "no_change":
            return _each(case, _rates(10, 100), _epsilon, _adam, _step_penalties, _double)
        case "clip_always":
            return _each(case, _wider_clip, _rates(1 / 3, 0.1), _standardized)
        case "plateau":
            return _each(case, _rates(10, 0.1), _adam, _momentum, _theory, _standardized, _wider, _cosine)
        case "label_noise":
            return _each(case, _smoothed, _early, _dropout, _l2, _penalties(10))
        case "overfitting":
            return _each(case, _early, _dropout, _l2, _penalties(10, 100), _narrower)
        case "underfitting":
            return _each(case, _rates(10, 3), _adam, _penalties(0.01), _weaker_dropout, _wider, _longer, _theory, _deeper)
        case None:
            return _each(case, _rates(3, 1 / 3), _adam, _standardized, _dropout, _l2, _theory)
        case _:
            assert_never(symptom)


Maker = Callable[[_Case], Iterator[Remedy]]


def _each(case: _Case, *makers: Maker) -> Iterator[Remedy]:
    for make in makers:
        yield from make(case)


# ---------------------------------------------------------------- signal


def _theory(case: _Case) -> Iterator[Remedy]:
    """What mean-field theory ranks, of every kind of change the best before the second best of any."""
    spec, facts = case.spec, case.facts
    if isinstance(spec.model, LinearModel | Rnn):
        return
    shape, seen, first, others = shape_of(spec, facts), set[frozenset[str]](), list[Remedy](), list[Remedy]()
    now = exp(max(-700.0, min(700.0, log_ratio(spec, facts, shape) / 2)))
    ranked = ranking(spec, facts, shape)
    enough = [change for change in ranked if 1 / TRAINABLE <= change.gradient_ratio <= TRAINABLE]
    for change in enough or ranked[:1]:
        why = f"theory: the first hidden layer then gets {change.gradient_ratio:.2g} of the last one's signal gradient" + (f", now {now:.2g}" if isfinite(now) else "")
        remedy = Remedy(_label(change.set), change.set, {"signal/backward": "even"}, why)
        (others if frozenset(change.set) in seen else first).append(remedy)
        seen.add(frozenset(change.set))
    best = [*first, *others][:FROM_THEORY]
    yield from best
    if len(first) > 1:
        together: dict[str, Any] = {path: value for remedy in reversed(first) for path, value in remedy.set.items()}
        yield Remedy(_label(together), together, {"signal/backward": "even"}, "theory's best change of each kind, together")
    if best and not spec.dataset.standardize:
        both = {**best[0].set, "dataset.standardize": True}
        yield Remedy(f"{best[0].label}, standardize", both, best[0].expects, f"{best[0].why}; theory expects inputs of deviation 1")


def _recurrent(case: _Case) -> Iterator[Remedy]:
    if not isinstance(model := case.spec.model, Rnn):
        return
    expects: dict[str, Direction] = {"signal/time": "even"}
    if not isinstance(model.init, Orthogonal):
        yield Remedy("init orthogonal", {"model.init": {"kind": "orthogonal"}}, expects, "an orthogonal matrix keeps the length of what it multiplies (Saxe et al. 2014)")
    if model.cell not in ("lstm", "gru") and not any(isinstance(r, VanishingGradient) for r in case.spec.regularizers):
        yield _added(case, "Ω 1", {"kind": "vanishing_gradient", "lambda": 1.0}, expects, "keeps the gradient's length from step to step (Pascanu et al. 2013)")
    if model.cell not in ("lstm", "gru"):
        yield Remedy("cell lstm", {"model.cell": "lstm"}, expects, "a gated cell carries the gradient past the multiplication (Hochreiter & Schmidhuber 1997)")
        yield Remedy("cell gru", {"model.cell": "gru"}, expects, "a gated cell carries the gradient past the multiplication (Cho et al. 2014)")
        irnn = {"model.cell": "relu", "model.init": {"kind": "identity"}}
        yield Remedy("cell relu, init identity", irnn, expects, "the recurrent matrix begins as the identity (Le et al. 2015)")


def _smaller_weights(case: _Case) -> Iterator[Remedy]:
    """Inits that look at the width, for those that do not."""
    model = case.spec.model
    if isinstance(model, Mlp | Cnn) and not isinstance(model.init, Lsuv):
        yield Remedy("init lsuv", {"model.init": {"kind": "lsuv"}}, {"signal/forward": "even"}, "every layer begins with outputs of deviation 1 (Mishkin & Matas 2016)")
    if isinstance(model, Mlp | Cnn) and not isinstance(model.init, HeNormal):
        yield Remedy("init he_normal", {"model.init": {"kind": "he_normal"}}, {"signal/forward": "even"}, "weights scaled by the width of what they read (He et al. 2015)")
    if not isinstance(model, LinearModel) and not isinstance(model.init, Lsuv) and concrete(model.init.scale) > 0.1:
        yield Remedy("init scale ÷ 10", {"model.init.scale": _times(concrete(model.init.scale), 0.1)}, {"signal/forward": "down"}, "smaller weights give smaller first outputs")


def _drawn_weights(case: _Case) -> Iterator[Remedy]:
    model = case.spec.model
    if not isinstance(model, LinearModel) and isinstance(model.init, Zeros):
        yield Remedy("init he_normal", {"model.init": {"kind": "he_normal"}}, {"gradient/norm": "up"}, "with all weights 0 no layer but the last has a gradient")


def _open_units(case: _Case) -> Iterator[Remedy]:
    """Activations that are nowhere flat, and inits that keep units alive."""
    model = case.spec.model
    if isinstance(model, Mlp | Cnn) and model.activation != "leaky_relu":
        both = {"model.activation": "leaky_relu", "model.init": {"kind": "he_normal"}}
        yield Remedy("activation leaky_relu, init he_normal", both, {"activation/dead": "down"}, "its slope is nowhere 0 (Maas et al. 2013)")
    if isinstance(model, Mlp | Cnn) and model.activation != "elu":
        yield Remedy("activation elu, init he_normal", {"model.activation": "elu", "model.init": {"kind": "he_normal"}}, {"activation/dead": "down"}, "Clevert et al. 2016")


def _normalizations(case: _Case) -> Iterator[Remedy]:
    model = case.spec.model
    if isinstance(model, Mlp | Cnn) and model.normalization is None:
        for kind, source in (("layer", "Ba et al. 2016"), ("batch", "Ioffe & Szegedy 2015")):
            why = f"what enters an activation is centred and scaled at every step ({source})"
            yield Remedy(f"normalization {kind}", {"model.normalization": {"kind": kind}}, {"activation/dead": "down", "signal/backward": "even"}, why)


def _standardized(case: _Case) -> Iterator[Remedy]:
    if not case.spec.dataset.standardize:
        yield Remedy("standardize", {"dataset.standardize": True}, {"signal/forward": "even"}, "columns of one size let one learning rate fit all weights (LeCun et al. 1998)")


def _classes(case: _Case) -> Iterator[Remedy]:
    if isinstance(case.spec.loss, SquaredError | HalfSquaredError) and (case.facts.classes or 0) > 1:
        why = "numbers of classes have no order and no distances: one output a class says which (no trial can compare the two losses)"
        yield Remedy("loss cross_entropy", {"loss": {"kind": "cross_entropy"}}, {"accuracy/val": "up"}, why)


def _bias(case: _Case) -> Iterator[Remedy]:
    if not case.spec.model.bias:
        yield Remedy("bias", {"model.bias": True}, {"loss/train": "down"}, "without an intercept the outputs cannot reach the targets' mean")


# ---------------------------------------------------------------- steps


def _rates(*factors: float) -> Maker:
    def make(case: _Case) -> Iterator[Remedy]:
        optimizer = case.spec.optimizer
        if isinstance(optimizer, Sgd | Adam):
            for factor in factors:
                yield _rate(concrete(optimizer.lr), factor)

    return make


def _rate(lr: float, factor: float) -> Remedy:
    words = f"lr × {factor:.3g}" if factor > 1 else f"lr ÷ {1 / factor:.3g}"
    expects: Direction = "up" if factor > 1 else "down"
    return Remedy(words, {"optimizer.lr": _times(lr, factor)}, {"update/ratio": expects}, "larger steps" if factor > 1 else "smaller steps, inside the bound of stability")


def _measured_rate(case: _Case) -> Iterator[Remedy]:
    """The rate at which what was measured would be at half of its bound, or twice it from below."""
    optimizer, evidence = case.spec.optimizer, case.evidence
    if evidence is None or not isinstance(optimizer, Sgd | Adam) or not evidence.value > 0 or not evidence.bound > 0:
        return
    factor = evidence.bound / evidence.value * (0.5 if evidence.value > evidence.bound else 2.0)
    if isfinite(factor) and 1e-6 < factor < 1e6:
        yield _rate(concrete(optimizer.lr), float(f"{factor:.3g}"))


def _clipped(case: _Case) -> Iterator[Remedy]:
    if case.spec.clip is None and not isinstance(case.spec.optimizer, Proximal | Lbfgs):
        why = "no step is longer than lr (Pascanu et al. 2013)"
        yield Remedy("clip at norm 1", {"clip": {"kind": "global_norm", "max": 1.0}}, {"gradient/clipped": "up", "update/ratio": "down"}, why)


def _wider_clip(case: _Case) -> Iterator[Remedy]:
    if (clip := case.spec.clip) is not None:
        what = "norm" if isinstance(clip, GlobalNorm) else "value"
        for factor in (10, 100):
            yield Remedy(f"clip at {what} × {factor}", {"clip.max": _times(concrete(clip.max), factor)}, {"gradient/clipped": "down"}, "most gradients pass unchanged")
        yield Remedy("no clip", {"clip": None}, {"gradient/clipped": "down"}, "the gradient's own length says how far to go")


def _adam(case: _Case) -> Iterator[Remedy]:
    if not isinstance(case.spec.optimizer, Adam):
        why = "steps of one size for every weight, whatever the size of its gradient (Kingma & Ba 2015)"
        yield Remedy("adam", {"optimizer": {"kind": "adam", "lr": 0.001}}, {"update/ratio": "even"}, why)


def _momentum(case: _Case) -> Iterator[Remedy]:
    optimizer = case.spec.optimizer
    if isinstance(optimizer, Sgd) and concrete(optimizer.momentum) == 0:
        yield Remedy("momentum 0.9", {"optimizer.momentum": 0.9}, {"loss/train": "down"}, "steps add up along slopes that stay (Polyak 1964)")


def _calmer(case: _Case) -> Iterator[Remedy]:
    optimizer = case.spec.optimizer
    if isinstance(optimizer, Sgd) and concrete(optimizer.momentum) > 0.5:
        why = "less momentum oscillates less"
        yield Remedy("momentum 0.5", {"optimizer.momentum": 0.5}, {"update/ratio": "down"}, why)
    yield from _cosine(case)


def _cosine(case: _Case) -> Iterator[Remedy]:
    if isinstance(case.spec.optimizer, Sgd | Adam) and case.spec.optimizer.schedule.kind != "cosine":
        why = "the steps shrink to 0 by the end of the budget (Loshchilov & Hutter 2017)"
        yield Remedy("cosine schedule", {"optimizer.schedule": {"kind": "cosine"}}, {"learning_rate": "down"}, why)


def _larger_batches(case: _Case) -> Iterator[Remedy]:
    size = case.spec.budget.batch_size
    if size != "all":
        yield Remedy("batches × 4", {"budget.batch_size": size * 4}, {"noise/gradient": "down"}, "the noise of a batch falls with the root of its rows")


def _epsilon(case: _Case) -> Iterator[Remedy]:
    optimizer = case.spec.optimizer
    if isinstance(optimizer, Adam) and concrete(optimizer.eps) > 1e-8:
        yield Remedy("eps 1e-8", {"optimizer.eps": 1e-8}, {"update/ratio": "up"}, "an ε above √v̂ makes every step as small as the gradient")


def _step_penalties(case: _Case) -> Iterator[Remedy]:
    for index, regularizer in enumerate(case.spec.regularizers):
        if isinstance(regularizer, StepPenalty) and concrete(regularizer.lam) > 0:
            path = f"regularizers.{index}.lambda"
            yield Remedy(f"λ of step_penalty ÷ 100 ({index})", {path: _times(concrete(regularizer.lam), 0.01)}, {"update/ratio": "up"}, "nothing moves while ‖g‖ ≤ α")


def _double(case: _Case) -> Iterator[Remedy]:
    if case.spec.dtype == "float32":
        yield Remedy("float64", {"dtype": "float64"}, {"update/ratio": "up"}, "an update below 6e-8 of a weight is lost in float32")


# ---------------------------------------------------------------- regularization, rows, capacity


def _penalties(*factors: float) -> Maker:
    """All penalties together: which of them is to blame is what the ledger says, and they are traded against the same loss."""

    def make(case: _Case) -> Iterator[Remedy]:
        found = {f"regularizers.{i}.lambda": concrete(lam) for i, r in enumerate(case.spec.regularizers) if (lam := getattr(r, "lam", None)) is not None}
        found = {path: lam for path, lam in found.items() if lam > 0}
        for factor in factors if found else ():
            words = f"λ × {factor:g}" if factor > 1 else f"λ ÷ {1 / factor:g}"
            expects: Direction = "up" if factor > 1 else "down"
            why = "a stronger pull towards small weights" if factor > 1 else "the loss leads again"
            yield Remedy(words, {path: _times(lam, factor) for path, lam in found.items()}, {"penalty_gradient/norm": expects}, why)

    return make


def _without_penalties(case: _Case) -> Iterator[Remedy]:
    kept = [r for r in case.spec.regularizers if not hasattr(r, "lam")]
    if len(kept) < len(case.spec.regularizers):
        plain = [r.model_dump(mode="json", by_alias=True) for r in kept]
        yield Remedy("no penalties", {"regularizers": plain}, {"penalty_gradient/norm": "down"}, "in front of a normalization a penalty only changes the effective learning rate")


def _early(case: _Case) -> Iterator[Remedy]:
    if not any(isinstance(r, EarlyStopping) for r in case.spec.regularizers):
        patience = max(1, min(10, case.spec.budget.epochs // 5))
        yield _added(case, "early stopping", {"kind": "early_stopping", "patience": patience}, {"loss/val": "down"}, "ends with the best evaluation (Prechelt 1998)")


def _dropout(case: _Case) -> Iterator[Remedy]:
    if isinstance(case.spec.model, LinearModel) or any(isinstance(r, Dropout) for r in case.spec.regularizers):
        return
    for rate in (0.2, 0.5):
        yield _added(case, f"dropout {rate}", {"kind": "dropout", "rate": rate}, {"loss/val": "down"}, "units cannot rely on each other (Srivastava et al. 2014)")


def _weaker_dropout(case: _Case) -> Iterator[Remedy]:
    rates = {f"regularizers.{i}.rate": concrete(r.rate) for i, r in enumerate(case.spec.regularizers) if isinstance(r, Dropout)}
    if any(rate > 0 for rate in rates.values()):
        yield Remedy("dropout ÷ 4", {path: _times(rate, 0.25) for path, rate in rates.items()}, {"loss/train": "down"}, "more of each layer's signal is left")


def _l2(case: _Case) -> Iterator[Remedy]:
    if any(r.kind in ("l2", "weight_decay") for r in case.spec.regularizers):
        return
    if isinstance(case.spec.optimizer, Adam):
        yield _added(case, "weight decay 0.01", {"kind": "weight_decay", "lambda": 0.01}, {"weight/norm": "down"}, "decoupled decay (Loshchilov & Hutter 2019)")
    yield _added(case, "l2 0.001", {"kind": "l2", "lambda": 0.001}, {"weight/norm": "down"}, "smaller weights make a smoother function (Krogh & Hertz 1991)")


def _balanced(case: _Case) -> Iterator[Remedy]:
    loss = case.spec.loss
    if isinstance(loss, CrossEntropy | Binary) and loss.class_weights != "balanced":
        yield Remedy("balanced class weights", {"loss.class_weights": "balanced"}, {"accuracy/val": "up"}, "every class counts alike (King & Zeng 2001)")


def _smoothed(case: _Case) -> Iterator[Remedy]:
    loss = case.spec.loss
    if isinstance(loss, CrossEntropy) and concrete(loss.label_smoothing) == 0:
        yield Remedy("label smoothing 0.1", {"loss.label_smoothing": 0.1}, {"accuracy/val": "up"}, "no label is believed fully (Szegedy et al. 2016)")


def _wider(case: _Case) -> Iterator[Remedy]:
    yield from _width(case, 2, {"loss/train": "down"}, "more units can say more")


def _narrower(case: _Case) -> Iterator[Remedy]:
    yield from _width(case, 0.5, {"loss/val": "down"}, "fewer units can learn less by heart")


def _width(case: _Case, factor: float, expects: dict[str, Direction], why: str) -> Iterator[Remedy]:
    model = case.spec.model
    if isinstance(model, Mlp | Rnn) and max(model.hidden) * factor <= WIDEST:
        yield Remedy("width × 2" if factor > 1 else "width ÷ 2", {"model.hidden": [max(1, int(width * factor)) for width in model.hidden]}, expects, why)
    if isinstance(model, Cnn) and max(model.channels) * factor <= WIDEST:
        yield Remedy("filters × 2" if factor > 1 else "filters ÷ 2", {"model.channels": [max(1, int(n * factor)) for n in model.channels]}, expects, why)


def _deeper(case: _Case) -> Iterator[Remedy]:
    if isinstance(case.spec.model, LinearModel):
        hidden = {"kind": "mlp", "hidden": [32], "init": {"kind": "he_normal"}}
        yield Remedy("a hidden layer of 32", {"model": hidden}, {"loss/train": "down"}, "a linear model cannot follow a curve")


def _longer(case: _Case) -> Iterator[Remedy]:
    yield Remedy("epochs × 3", {"budget.epochs": case.spec.budget.epochs * 3}, {"loss/train": "down"}, "the loss may still be falling; costs three times as much")


def _added(case: _Case, label: str, regularizer: dict[str, Any], expects: dict[str, Direction], why: str) -> Remedy:
    return Remedy(label, {f"regularizers.{len(case.spec.regularizers)}": regularizer}, expects, why)


def _times(number: float, factor: float) -> float:
    return float(f"{number * factor:.4g}")


def _label(changes: Mapping[str, Any]) -> str:
    """`activation selu, init lecun_normal`: the changes of a model in a few words."""
    words = [f"{path.removeprefix('model.')} {_word(value)}" if value is not True else path.removeprefix("model.") for path, value in changes.items()]
    return ", ".join(words)


def _word(value: Any) -> str:
    if not is_object(value):
        return value if isinstance(value, str) else json.dumps(value)
    rest = ", ".join(f"{name} {_word(inner)}" for name, inner in value.items() if name != "kind")
    return str(value.get("kind", "")) + (f" ({rest})" if rest else "")
