"""From a spec to its signal: what every layer is to theory, what follows, and which changes of init, activation and normalization would do better."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, assert_never

from regtrain.contract.base import Part
from regtrain.contract.datasets import Facts, counts
from regtrain.contract.job import JobSpec
from regtrain.contract.models import (
    Activation,
    BatchNorm,
    Cnn,
    HeNormal,
    HeUniform,
    Identity,
    Image,
    Init,
    Layer,
    LayerNorm,
    LecunNormal,
    LecunUniform,
    LinearModel,
    Lsuv,
    Mlp,
    Normal,
    Orthogonal,
    Rnn,
    SpectralNorm,
    TorchInit,
    Uniform,
    XavierNormal,
    XavierUniform,
    Zeros,
    layers,
)
from regtrain.contract.ranges import values_of
from regtrain.contract.regularizers import Dropout
from regtrain.contract.theory.field import SCALES, Passage, Rows, Stage, depth_scale, limit, passages, steps_back
from regtrain.contract.theory.loss import initial_loss
from regtrain.contract.theory.scales import entering, target


@dataclass(frozen=True)
class LayerSignal:
    """Predictions for one layer before the first update; None where theory does not know."""

    name: str
    forward: float | None
    """rms of the linear output: `signal/forward`."""
    backward: float | None
    """rms of the signal gradient, over that of the head: of `signal/backward`."""
    chi: float | None
    """E‖δ‖² of this layer over that of the next one; none for the head."""
    dead: float | None
    """Share of units that are 0 for all training rows; none for activations whose units cannot die."""


@dataclass(frozen=True)
class Change:
    """A change to the spec, and the gradient ratio that theory predicts with it."""

    set: dict[str, Any]
    """Path → whole value."""
    gradient_ratio: float


@dataclass(frozen=True)
class Signal:
    """What mean-field theory predicts for the first run of a spec before its first update; None where it does not know."""

    input_rms: float | None
    """Of the numbers that enter the net."""
    layers: list[LayerSignal]
    gradient_ratio: float | None
    """‖δ‖ of the first hidden layer over that of the last one, by the recursion at this depth."""
    chi: float | None
    """χ far behind many hidden layers like the last one."""
    depth_scale: float | None
    """Layers in which ‖δ‖² changes by e, 1/|ln χ|; none without a limit (χ = 1)."""
    trainable_depth: float | None
    """Six depth scales; none without a limit."""
    initial_loss: float | None
    dead: float | None
    """Share of all relu units."""
    remedies: list[Change]
    """Changes whose predicted ratio is nearer to 1 than this one's, the best first."""


def signal(spec: JobSpec, facts: Facts, shape: list[Layer]) -> Signal:
    """Predictions for a spec that `check` has accepted. Where ranges stand, for its first run."""
    stages, inputs = stages_of(spec, facts, shape), inputs_of(spec)
    train = counts(spec.dataset, facts, seed=spec.seed).train
    passed = passages(stages, inputs, rows=train)
    back = steps_back(stages, passed)
    chi = limit(_repeated(spec, shape[-2], stages[-2]), passed[-3].rows if len(passed) > 2 else inputs) if len(stages) > 1 else math.nan
    loss = initial_loss(spec.loss, variance=passed[-1].q, outputs=shape[-1].weight[0], target=target(spec.dataset))
    return Signal(
        input_rms=_root(inputs.square),
        layers=list(_layers(shape, passed, back)),
        gradient_ratio=_exp(sum(back[:-1]) / 2) if back else None,
        chi=_known(chi),
        depth_scale=_known(depth_scale(chi)),
        trainable_depth=_known(SCALES * depth_scale(chi)),
        initial_loss=_known(loss),
        dead=_known(_dead(shape, passed)),
        remedies=ranking(spec, facts, shape),
    )


def log_ratio(spec: JobSpec, facts: Facts, shape: list[Layer]) -> float:
    """ln E‖δ‖² of the first hidden layer over that of the last one; NaN where theory does not know, and without hidden layers."""
    stages = stages_of(spec, facts, shape)
    back = steps_back(stages, passages(stages, inputs_of(spec), rows=0))
    return sum(back[:-1]) if back else math.nan


def warning(spec: JobSpec, facts: Facts, shape: list[Layer]) -> str | None:
    """What is said of a net that is deeper than its signal gradient reaches by theory: ‖δ‖² changes by more than e⁶ between its hidden layers."""
    model, away = spec.model, log_ratio(spec, facts, shape)
    if isinstance(model, LinearModel | Rnn) or not abs(away) > SCALES:
        return None
    hidden, normalized = len(shape) - 1, "" if model.normalization is None else f" with {model.normalization.kind} normalization"
    best = next(iter(ranking(spec, facts, shape)), None)
    cure = (
        ""
        if best is None
        else "; best by theory: " + " and ".join(f"{path} = {json.dumps(value)}" for path, value in best.set.items()) + f", which makes it {best.gradient_ratio:.2g}"
    )
    way = "vanish" if away < 0 else "explode"
    return (
        f"{hidden} layers of {model.activation} with {model.init.kind} init{normalized} are deeper than a signal gradient can be expected to pass: theory lets it {way}, "
        f"{shape[0].name} gets {_exp(away / 2):.2g} of what {shape[-2].name} gets (trainable: between 1/20 and 20){cure}"
    )


def _layers(shape: list[Layer], passed: list[Passage], back: list[float]) -> Iterator[LayerSignal]:
    sizes = [prod(layer.signal) for layer in shape]
    for index, (layer, this) in enumerate(zip(shape, passed, strict=True)):
        away = (sum(back[index:]) + math.log(sizes[-1] / sizes[index])) / 2
        yield LayerSignal(layer.name, _root(this.q), _exp(away), _exp(back[index]) if index < len(back) else None, _known(this.dead))


def _dead(shape: list[Layer], passed: list[Passage]) -> float:
    units = [(layer.weight[0], this.dead) for layer, this in zip(shape, passed, strict=True) if layer.activation == "relu"]
    return sum(n * dead for n, dead in units) / sum(n for n, _ in units) if units else math.nan


# ---------------------------------------------------------------- from words to numbers


def stages_of(spec: JobSpec, facts: Facts, shape: list[Layer]) -> list[Stage]:
    """The layers as theory sees them, the head last."""
    model, batch = spec.model, _rows_at_once(spec, facts)
    size = model.image or facts.image if isinstance(model, Cnn) else None
    found: list[Stage] = []
    alike: dict[Any, Stage] = {}  # deep nets repeat a few layers
    for layer in shape:
        kept = _kept(spec, layer.name)
        key = layer.weight, layer.activation, layer.residual, layer.signal, layer.pool, layer.recurrence, kept, size
        if key not in alike:
            alike[key] = _stage(spec, layer, kept=kept, size=size, batch=batch)
        found.append(alike[key])
        if len(layer.output) == 3:
            size = (layer.output[0], layer.output[1], layer.output[2])
    return found


def _stage(spec: JobSpec, layer: Layer, *, kept: float, size: Image | None, batch: int) -> Stage:
    """One layer. `size`: of the image that enters it."""
    model, image = spec.model, len(layer.weight) == 4
    weights, biases = variances(model.init, layer)
    if layer.recurrence is not None:
        weights = math.nan  # one matrix at every time step: another theory
    if isinstance(layer.reparametrization, SpectralNorm):
        weights = math.nan  # divided by the largest singular value, which is no mean
    if isinstance(model, Cnn) and image and size is not None:
        weights *= _taps(size[1], layer.weight[2], model.stride) * _taps(size[2], layer.weight[3], model.stride)
    match layer.normalization:
        case None:
            norm, eps, count = None, 0.0, math.inf
        case BatchNorm(eps=eps):
            norm, count = "batch", math.nan if image else float(batch)
        case LayerNorm(eps=eps):
            norm, count = "layer", float(prod(layer.signal))
    scale = values_of(model.init.scale)[0]
    variance = scale * scale if isinstance(model.init, Lsuv) else None
    return Stage(weights, biases, layer.activation, norm, eps, count, kept, image=image, residual=layer.residual, pooled=layer.pool != "none", variance=variance)


def _rows_at_once(spec: JobSpec, facts: Facts) -> int:
    """Of a micro-batch, over which batch norm takes its statistics."""
    size = spec.budget.batch_size
    return (counts(spec.dataset, facts, seed=spec.seed).train if size == "all" else size) // spec.budget.accumulate


def _repeated(spec: JobSpec, layer: Layer, stage: Stage) -> Stage:
    """A layer that reads as many units as it has, so that it can follow itself; of images, far from their borders."""
    units, _, *kernel = layer.weight
    weights, biases = variances(spec.model.init, replace(layer, weight=(units, units, *kernel)))
    return replace(stage, weights=weights, biases=biases)


def inputs_of(spec: JobSpec) -> Rows:
    """What enters the first layer: standardized rows or raw ones, behind dropout of the inputs."""
    rows = entering(spec.dataset)
    return Rows(rows.square / _kept(spec, "inputs"), rows.product, rows.mean)


def variances(init: Init, layer: Layer) -> tuple[float, float]:
    """σ_w² = fan_in·Var w and σ_b² = Var b of a layer as it is drawn; `scale` multiplies weights, not biases."""
    pixels = prod(layer.weight[2:])
    fan_in, fan_out = layer.weight[1] * pixels, layer.weight[0] * pixels
    scale = values_of(init.scale)[0]
    match init:
        case TorchInit():
            weights = 1 / 3
        case Uniform(bound=bound):
            weights = fan_in * bound * bound / 3
        case Normal(std=std):
            weights = fan_in * std * std
        case XavierUniform() | XavierNormal():
            weights = 2 * fan_in / (fan_in + fan_out)
        case HeUniform() | HeNormal():
            weights = 2.0
        case LecunUniform() | LecunNormal():
            weights = 1.0
        case Orthogonal():  # entries of variance 1/max(rows, columns)
            weights = fan_in / max(fan_in, layer.weight[0])
        case Identity(std=std):  # a square one is not drawn: its outputs are its inputs, which no Gaussian describes
            weights = math.nan if layer.weight[0] == layer.weight[1] and pixels == 1 else fan_in * std * std
        case Lsuv():
            weights = math.nan  # follows from the variance that it makes
        case Zeros():
            weights = 0.0
        case _:
            assert_never(init)
    return weights * scale * scale, 1 / (3 * fan_in) if isinstance(init, TorchInit) and layer.bias else 0.0


def _kept(spec: JobSpec, place: str) -> float:
    """Share of activations that all dropouts together keep at the `inputs` or behind a layer."""
    behind = place not in ("inputs", "head")
    rates = [
        values_of(r.rate)[0]
        for r in spec.regularizers
        if isinstance(r, Dropout) and (r.on == place or (r.on == "hidden" and behind) or (isinstance(r.on, tuple) and place in r.on))
    ]
    return prod((1 - rate for rate in rates), start=1.0)


def _taps(side: int, kernel: int, stride: int) -> float:
    """Share of a filter's taps along one side that lie inside the image, on average over the places where it is put."""
    pad = kernel // 2
    firsts = range(-pad, side + pad - kernel + 1, stride)
    return sum(min(first + kernel, side) - max(first, 0) for first in firsts) / (kernel * len(firsts))


# ---------------------------------------------------------------- remedies, ranked

INITS: tuple[Init, ...] = (HeNormal(kind="he_normal"), LecunNormal(kind="lecun_normal"), XavierNormal(kind="xavier_normal"), Orthogonal(kind="orthogonal"))
PAIRS: tuple[tuple[Activation, Init], ...] = (
    ("relu", HeNormal(kind="he_normal")),
    ("selu", LecunNormal(kind="lecun_normal")),
    ("tanh", HeNormal(kind="he_normal")),
    ("tanh", LecunNormal(kind="lecun_normal")),
)
"""Activations with the init that is made for them, or that theory finds near χ = 1."""
NORMALIZATIONS: tuple[BatchNorm | LayerNorm, ...] = (BatchNorm(kind="batch"), LayerNorm(kind="layer"))
LARGEST = 4.0
"""σ_w² up to which a scale is advised: twice He's. Sigmoids could keep ‖δ‖ at 90, with every unit saturated."""
LEAST = 0.1
"""By how much ln of the ratio must be nearer to 0 for a change to be named."""


def ranking(spec: JobSpec, facts: Facts, shape: list[Layer]) -> list[Change]:
    """Changes of init, activation, normalization and residual paths whose predicted ratio is nearer to 1, the best first."""
    model = spec.model
    if isinstance(model, LinearModel | Rnn) or len(shape) < 3:
        return []
    outputs, now = shape[-1].weight[0], abs(log_ratio(spec, facts, shape))

    def after(changes: dict[str, Any]) -> float:
        changed = model.model_copy(update=changes)
        return log_ratio(spec.model_copy(update={"model": changed}), facts, layers(changed, features=facts.features, outputs=outputs, image=facts.image))

    scaled = [] if model.normalization is not None or now < 2 * LEAST else _critical(model.init, lambda init: after({"init": init}))
    mild = (changes for changes in scaled if variances(changes["init"], shape[-2])[0] <= LARGEST)
    found = [(after(changes) / 2, changes) for changes in (*_candidates(model), *mild)]
    better = [(ratio, changes) for ratio, changes in found if math.isfinite(ratio) and not abs(ratio) > now / 2 - LEAST]
    return [Change({f"model.{name}": _plain(value) for name, value in changes.items()}, _exp(ratio) or 0.0) for ratio, changes in sorted(better, key=lambda each: abs(each[0]))]


def _candidates(model: Mlp | Cnn) -> Iterator[dict[str, Any]]:
    yield from ({"init": init} for init in INITS if init != model.init)
    yield from ({"activation": activation, "init": init} for activation, init in PAIRS if activation != model.activation)
    yield from ({"normalization": normalization} for normalization in NORMALIZATIONS if type(normalization) is not type(model.normalization))
    if isinstance(model, Mlp) and not model.residual:
        yield {"residual": True}


def _critical(init: Init, away: Callable[[Init], float]) -> list[dict[str, Any]]:
    """The init at the scale at which the ratio is 1, where there is one: doubled or halved until the sign of ln changes, then by false position (Illinois)."""
    x, y = values_of(init.scale)[0], away(init)
    factor, last = (2.0 if y < 0 else 0.5), (x, y)
    for _ in range(6):
        last = (x, y)
        x *= factor
        y = away(init.model_copy(update={"scale": x}))
        if not math.isfinite(y) or (y < 0) != (last[1] < 0):
            break
    if not math.isfinite(y * last[1]) or (y < 0) == (last[1] < 0):
        return []
    (a, fa), (b, fb) = last, (x, y)
    for _ in range(12):
        x = (a * fb - b * fa) / (fb - fa)
        y = away(init.model_copy(update={"scale": x}))
        if abs(y) < 1e-3 or not math.isfinite(y):
            break
        (a, fa), fb = ((b, fb), fb) if (y < 0) != (fb < 0) else ((a, fa / 2), fb)
        b, fb = x, y
    return [{"init": init.model_copy(update={"scale": float(f"{x:.3g}")})}]


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json", exclude_defaults=True) if isinstance(value, Part) else value


# ---------------------------------------------------------------- from numbers to answers


def _known(x: float) -> float | None:
    """None for what is not known, and for what has no limit."""
    return x if math.isfinite(x) else None


def _root(x: float) -> float | None:
    return math.sqrt(x) if math.isfinite(x) else None


def _exp(x: float) -> float | None:
    """e^x, at most the largest float."""
    return None if math.isnan(x) else math.exp(min(x, 709.0)) if x > -math.inf else 0.0
