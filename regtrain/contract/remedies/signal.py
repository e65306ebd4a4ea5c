"""Changes by which signals and their gradients get through a net: theory's ranking, inits, activations, normalization, recurrent cells, the scale of what enters."""

import json
from collections.abc import Iterator, Mapping
from math import exp, isfinite
from typing import Any

from regtrain.contract.base import is_object
from regtrain.contract.checks import shape_of
from regtrain.contract.losses import HalfSquaredError, SquaredError
from regtrain.contract.models import Cnn, HeNormal, LinearModel, Lsuv, Mlp, Orthogonal, Rnn, Zeros
from regtrain.contract.ranges import concrete
from regtrain.contract.regularizers import VanishingGradient
from regtrain.contract.remedies.remedy import DEEP, Case, Direction, Remedy, added, times
from regtrain.contract.theory import log_ratio, ranking
from regtrain.contract.theory.field import SCALES

FROM_THEORY = 3
"""At most so many are what theory ranks: what it cannot see should have its chance."""
TRAINABLE = exp(SCALES / 2)
"""Ratio of the signal gradients of first and last hidden layer up to which theory expects a net to train, about 20."""


def theory(case: Case) -> Iterator[Remedy]:
    """What mean-field theory ranks, of every kind of change the best before the second best of any. In deep nets the identity comes before all: theory is that of
    infinite width, and what it expects of a net of width n and depth L scatters the more the larger L/n is, but for residual paths (Hanin & Rolnick 2018)."""
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
    if len(shape) > DEEP:
        best.sort(key=lambda remedy: "model.residual" not in remedy.set)
    yield from best
    if len(first) > 1:
        together: dict[str, Any] = {path: value for remedy in reversed(first) for path, value in remedy.set.items()}
        yield Remedy(_label(together), together, {"signal/backward": "even"}, "theory's best change of each kind, together")
    if best and not spec.dataset.standardize:
        both = {**best[0].set, "dataset.standardize": True}
        yield Remedy(f"{best[0].label}, standardize", both, best[0].expects, f"{best[0].why}; theory expects inputs of deviation 1")


def recurrent(case: Case) -> Iterator[Remedy]:
    if not isinstance(model := case.spec.model, Rnn):
        return
    expects: dict[str, Direction] = {"signal/time": "even"}
    if not isinstance(model.init, Orthogonal):
        yield Remedy("init orthogonal", {"model.init": {"kind": "orthogonal"}}, expects, "an orthogonal matrix keeps the length of what it multiplies (Saxe et al. 2014)")
    if model.cell not in ("lstm", "gru") and not any(isinstance(r, VanishingGradient) for r in case.spec.regularizers):
        yield added(case, "Ω 1", {"kind": "vanishing_gradient", "lambda": 1.0}, expects, "keeps the gradient's length from step to step (Pascanu et al. 2013)")
    if model.cell not in ("lstm", "gru"):
        yield Remedy("cell lstm", {"model.cell": "lstm"}, expects, "a gated cell carries the gradient past the multiplication (Hochreiter & Schmidhuber 1997)")
        yield Remedy("cell gru", {"model.cell": "gru"}, expects, "a gated cell carries the gradient past the multiplication (Cho et al. 2014)")
        irnn = {"model.cell": "relu", "model.init": {"kind": "identity"}}
        yield Remedy("cell relu, init identity", irnn, expects, "the recurrent matrix begins as the identity (Le et al. 2015)")


def smaller_weights(case: Case) -> Iterator[Remedy]:
    """Inits that look at the width, for those that do not."""
    model = case.spec.model
    if isinstance(model, Mlp | Cnn) and not isinstance(model.init, Lsuv):
        yield Remedy("init lsuv", {"model.init": {"kind": "lsuv"}}, {"signal/forward": "even"}, "every layer begins with outputs of deviation 1 (Mishkin & Matas 2016)")
    if isinstance(model, Mlp | Cnn) and not isinstance(model.init, HeNormal):
        yield Remedy("init he_normal", {"model.init": {"kind": "he_normal"}}, {"signal/forward": "even"}, "weights scaled by the width of what they read (He et al. 2015)")
    if not isinstance(model, LinearModel) and not isinstance(model.init, Lsuv) and concrete(model.init.scale) > 0.1:
        yield Remedy("init scale ÷ 10", {"model.init.scale": times(concrete(model.init.scale), 0.1)}, {"signal/forward": "down"}, "smaller weights give smaller first outputs")


def drawn_weights(case: Case) -> Iterator[Remedy]:
    model = case.spec.model
    if not isinstance(model, LinearModel) and isinstance(model.init, Zeros):
        yield Remedy("init he_normal", {"model.init": {"kind": "he_normal"}}, {"gradient/norm": "up"}, "with all weights 0 no layer but the last has a gradient")


def open_units(case: Case) -> Iterator[Remedy]:
    """Activations that are nowhere flat, and inits that keep units alive."""
    model = case.spec.model
    if isinstance(model, Mlp | Cnn) and model.activation != "leaky_relu":
        both = {"model.activation": "leaky_relu", "model.init": {"kind": "he_normal"}}
        yield Remedy("activation leaky_relu, init he_normal", both, {"activation/dead": "down"}, "its slope is nowhere 0 (Maas et al. 2013)")
    if isinstance(model, Mlp | Cnn) and model.activation != "elu":
        yield Remedy("activation elu, init he_normal", {"model.activation": "elu", "model.init": {"kind": "he_normal"}}, {"activation/dead": "down"}, "Clevert et al. 2016")


def normalizations(case: Case) -> Iterator[Remedy]:
    model = case.spec.model
    if isinstance(model, Mlp | Cnn) and model.normalization is None:
        for kind, source in (("layer", "Ba et al. 2016"), ("batch", "Ioffe & Szegedy 2015")):
            why = f"what enters an activation is centred and scaled at every step ({source})"
            yield Remedy(f"normalization {kind}", {"model.normalization": {"kind": kind}}, {"activation/dead": "down", "signal/backward": "even"}, why)


def standardized(case: Case) -> Iterator[Remedy]:
    if not case.spec.dataset.standardize:
        yield Remedy("standardize", {"dataset.standardize": True}, {"signal/forward": "even"}, "columns of one size let one learning rate fit all weights (LeCun et al. 1998)")


def classes(case: Case) -> Iterator[Remedy]:
    if isinstance(case.spec.loss, SquaredError | HalfSquaredError) and (case.facts.classes or 0) > 1:
        why = "numbers of classes have no order and no distances: one output a class says which (no trial can compare the two losses)"
        yield Remedy("loss cross_entropy", {"loss": {"kind": "cross_entropy"}}, {"accuracy/val": "up"}, why)


def bias(case: Case) -> Iterator[Remedy]:
    if not case.spec.model.bias:
        yield Remedy("bias", {"model.bias": True}, {"loss/train": "down"}, "without an intercept the outputs cannot reach the targets' mean")


def _label(changes: Mapping[str, Any]) -> str:
    """`activation selu, init lecun_normal`: the changes of a model in a few words."""
    words = [f"{path.removeprefix('model.')} {_word(value)}" if value is not True else path.removeprefix("model.") for path, value in changes.items()]
    return ", ".join(words)


def _word(value: Any) -> str:
    if not is_object(value):
        return value if isinstance(value, str) else json.dumps(value)
    rest = ", ".join(f"{name} {_word(inner)}" for name, inner in value.items() if name != "kind")
    return str(value.get("kind", "")) + (f" ({rest})" if rest else "")
