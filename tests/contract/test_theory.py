"""Mean-field theory against closed forms, integrals, draws of numpy's and published figures; never against itself."""

import json
import math
from dataclasses import asdict
from typing import Any, get_args

import numpy as np
import pytest
from contract_specs import GOOD, accept, changed

from regtrain.contract.checks import shape_of
from regtrain.contract.datasets import Facts, facts_of
from regtrain.contract.job import parse
from regtrain.contract.losses import Binary, CrossEntropy, HalfSquaredError, SquaredError
from regtrain.contract.models import Activation
from regtrain.contract.theory import Signal, signal
from regtrain.contract.theory.field import Rows, Stage, depth_scale, limit, passages, silent, steps_back
from regtrain.contract.theory.loss import initial_loss, log_sum_exp
from regtrain.contract.theory.moments import moments, product

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
ONE = Rows(1, 0, 0)


# ---------------------------------------------------------------- moments


def by_panels(q: float, activation: str) -> list[float]:
    """E φ, E φ², E φ′, E φ′² by Gauss–Legendre panels that narrow towards the kink at 0, with φ as it is usually written."""
    edges = np.concatenate([[0], np.geomspace(1e-9, 12, 300)])
    x, w = np.polynomial.legendre.leggauss(8)
    half = np.diff(edges)[:, None] / 2
    z, weights = (half * x + edges[:-1, None] + half).ravel(), (half * w).ravel()
    z, weights = np.concatenate([-z, z]), np.tile(weights, 2) * np.tile(np.exp(-(z**2) / 2), 2) / math.sqrt(2 * math.pi)
    phi, slope = written(activation, math.sqrt(q) * z)
    return [float(weights @ f) for f in (phi, phi**2, slope, slope**2)]


def written(activation: str, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """φ and φ′"""
    up, expm1 = h > 0, np.expm1(np.minimum(h, 0))
    s = 1 / (1 + np.exp(-np.clip(h, -700, 700)))
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    cdf = np.array([math.erfc(-x / math.sqrt(2)) / 2 for x in h]) if activation == "gelu" else h
    return {
        "identity": (h, np.ones_like(h)),
        "relu": (h * up, 1.0 * up),
        "leaky_relu": (np.where(up, h, 0.01 * h), np.where(up, 1, 0.01)),
        "elu": (np.where(up, h, expm1), np.where(up, 1, expm1 + 1)),
        "selu": (scale * np.where(up, h, alpha * expm1), scale * np.where(up, 1, alpha * (expm1 + 1))),
        "gelu": (h * cdf, cdf + h * np.exp(-(h**2) / 2) / math.sqrt(2 * math.pi)),
        "tanh": (np.tanh(h), np.cosh(np.clip(h, -300, 300)) ** -2.0),
        "sigmoid": (s, s * (1 - s)),
        "silu": (h * s, s + h * s * (1 - s)),
        "softsign": (h / (1 + abs(h)), (1 + abs(h)) ** -2.0),
        "softplus": (np.maximum(h, 0) + np.log1p(np.exp(-abs(h))), s),
    }[activation]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_moments_are_the_integrals(activation: Activation) -> None:
    for q in (1e-8, 3e-4, 0.0123, 0.3, 1.0, 2.7, 40.0, 9e3, 3e7):
        found, wanted = moments(activation, q), by_panels(q, activation)
        size = [math.sqrt(wanted[1]), wanted[1], math.sqrt(wanted[3]), wanted[3]]  # a mean may be 0: relative to the rms
        for value, right, of in zip((found.mean, found.square, found.gain, found.slope), wanted, size, strict=True):
            assert value == pytest.approx(right, abs=1e-8 * of), (q, value, right)


def test_moments_at_nothing_and_of_what_is_not_known() -> None:
    for activation in ACTIVATIONS:
        at_zero, slope_at_zero = written(activation, np.array([0.0]))
        assert moments(activation, 0.0).square == pytest.approx(float(at_zero[0]) ** 2, abs=1e-11)
        if activation not in ("relu", "leaky_relu", "elu", "selu"):
            assert moments(activation, 0.0).slope == pytest.approx(float(slope_at_zero[0]) ** 2, abs=1e-11)
        assert math.isnan(moments(activation, math.nan).square)
    assert moments("relu", math.nan).slope == 0.5
    assert math.isnan(moments("tanh", math.nan).slope)


@pytest.mark.parametrize(("activation", "leak"), [("relu", 0.0), ("leaky_relu", 0.01), ("identity", 1.0)])
@pytest.mark.parametrize("cosine", [-0.9, 0.0, 0.3, 0.99])
def test_products_of_two_rows(activation: Activation, leak: float, cosine: float) -> None:
    """E φ(a)φ(b), the inner mean given a in closed form: b|a ~ N(ρa, q(1 − ρ²)), and E relu of N(m, s²) is mΦ(m/s) + sϕ(m/s)."""
    q, a = 1.7, np.linspace(-12, 12, 200_001)
    spread = math.sqrt(q * (1 - cosine**2))
    h = math.sqrt(q) * a
    m = cosine * h
    relu = np.array([x * math.erfc(-x / spread / math.sqrt(2)) / 2 for x in m]) + spread * np.exp(-((m / spread) ** 2) / 2) / math.sqrt(2 * math.pi)
    weights = np.exp(-(a**2) / 2) / math.sqrt(2 * math.pi) * (a[1] - a[0])
    wanted = float(weights @ (np.where(h > 0, h, leak * h) * (leak * m + (1 - leak) * relu)))
    assert product(activation, q, cosine * q) == pytest.approx(wanted, abs=1e-6)


def test_products_near_independence() -> None:
    """Mehler's series to first order: E φφ′ = (E φ)² + p·(E φ′)² + O(p²). Tanh has no second-order term."""
    draw = np.random.default_rng(0)
    a, b = draw.standard_normal((2, 4_000_000))
    p = 0.1
    assert product("tanh", 1.0, p) == pytest.approx(float((np.tanh(a) * np.tanh(p * a + math.sqrt(1 - p * p) * b)).mean()), abs=5e-4)


# ---------------------------------------------------------------- χ

TABLE = {
    "relu": (".1667", ".5000", "1.0000"),
    "leaky_relu": (".1667", ".5000", "1.0001"),
    "elu": (".322", ".967", "1.061"),
    "selu": (".6525", "1.0716", "1.118"),
    "tanh": (".332", ".9835", "1.1055"),
    "sigmoid": (".0200", ".0557", ".1010"),
    "gelu": (".0836", ".25", ".50"),
    "silu": (".0835", ".25", ".50"),
    "identity": (".333", "1", "2"),
}
"""χ after 60 layers from q = 1, square layers of width 256 without bias but torch's own; integrated on a dense grid by others.

tanh with LeCun is .98349 there, printed as .9835, and as .984 where that was rounded again."""
INITS = ((1 / 3, 1 / (3 * 256)), (1.0, 0.0), (2.0, 0.0))
"""σ_w², σ_b² of torch's default, LeCun and Glorot, He."""


@pytest.mark.parametrize("activation", TABLE)
def test_chi_of_activations_and_inits(activation: Activation) -> None:
    for (weights, biases), printed in zip(INITS, TABLE[activation], strict=True):
        hidden = Stage(weights, biases, activation)
        passed = passages([Stage(1.0, 0.0, activation), *[hidden] * 60], Rows(1, 0, 0), rows=0)  # the first layer has q = 1
        chi = weights * passed[-1].gain
        digits = len(printed.partition(".")[2])
        assert f"{chi:.{digits}f}".lstrip("0") == printed.lstrip("0"), chi


@pytest.mark.parametrize(("activation", "weights", "chi"), [("tanh", 1, 1), ("elu", 1, 1), ("elu", 2, 1), ("selu", 2, 1.104), ("selu", 1, 1.0716), ("tanh", 2, 1.1055)])
def test_where_chi_tends_to(activation: Activation, weights: float, chi: float) -> None:
    assert limit(Stage(weights, 0, activation), ONE) == pytest.approx(chi, abs=5e-4 if chi != 1 else 1e-6)


def test_chi_of_a_tanh_net_on_its_edge_of_chaos() -> None:
    """Poole et al. 2016: without bias σ_w² = 1 is critical; below, q falls to 0 and χ to σ_w²."""
    assert limit(Stage(0.8, 0, "tanh"), ONE) == pytest.approx(0.8, abs=1e-9)


def test_depth_scales() -> None:
    assert depth_scale(0.5) == pytest.approx(1 / math.log(2))
    assert depth_scale(2.0) == pytest.approx(1 / math.log(2))
    assert (depth_scale(1.0), depth_scale(0.0)) == (math.inf, 0.0)
    assert math.isnan(depth_scale(math.nan))


def ratio(stage: Stage, *, inputs: Rows = ONE, hidden: int = 34) -> float:
    """‖δ‖ of the first over the last of equal hidden layers."""
    stages = [stage] * hidden + [Stage(1.0, 0.0)]
    return math.exp(sum(steps_back(stages, passages(stages, inputs, rows=0))[:-1]) / 2)


def test_thirty_four_layers() -> None:
    """Glorot relu: 2^(−33/2). Remedies measured at width 128: ×1.0, ×3.2, ×3.7, ×324, of which widths of 128 explain the rest; asymptotic χ gives 1, 3.1, 5.2, 560."""
    relu, selu, tanh, batch = Stage(2, 0, "relu"), Stage(1, 0, "selu"), Stage(2, 0, "tanh"), Stage(2, 0, "relu", "batch")
    assert ratio(Stage(1, 0, "relu")) == pytest.approx(2 ** (-33 / 2))
    assert ratio(relu) == pytest.approx(1)
    assert ratio(selu) == pytest.approx(3.2, rel=0.05)
    assert ratio(tanh) == pytest.approx(3.7, rel=0.1)
    assert ratio(batch) == pytest.approx(324, rel=0.01)
    assert [round(limit(stage, ONE) ** 16.5, 1) for stage in (relu, selu, tanh)] == [1.0, 3.1, 5.2]
    assert limit(batch, ONE) ** 16.5 == pytest.approx(560, rel=0.01)


def test_batch_norm_explodes_by_a_known_factor() -> None:
    """Yang et al. 2019: π/(π − 1) in vanilla relu nets; linear nets (B − 2)/(B − 3). The first layer divides by the deviation of the inputs, √2 with He."""
    assert limit(Stage(2, 0, "relu", "batch"), ONE) == pytest.approx(math.pi / (math.pi - 1))
    stages = [Stage(2, 0, "relu", "batch", 1e-5, 256)] * 9 + [Stage(1, 0)]
    assert math.exp(sum(steps_back(stages, passages(stages, ONE, rows=0))[:8]) / 8) == pytest.approx(1.29, abs=0.005)
    for rows in (8, 20, 256):
        assert limit(Stage(3, 0, "identity", "batch", 0.0, rows), ONE) == pytest.approx((rows - 2) / (rows - 3), rel=1e-9)
    assert math.isnan(limit(Stage(1, 0, "relu", "batch", 0.0, 3), ONE))  # 1/variance of three rows has no mean


def test_batch_norm_takes_out_what_rows_share_and_layer_norm_does_not() -> None:
    shifted = Rows(5.0, 4.0, 2.0)
    for first, chi in ((Stage(2, 0, "relu", "batch"), 0.5 / (5 - 4)), (Stage(2, 0, "relu", "layer"), 0.5 / 5)):
        stages = [first, first, Stage(1, 0)]
        assert math.exp(steps_back(stages, passages(stages, shifted, rows=0))[0]) == pytest.approx(chi)


def test_layer_norm_of_relu_keeps_the_gradient() -> None:
    """χ = E φ′²/E φ² = (1/2)/(1/2), whatever σ_w."""
    for weights in (0.01, 1, 30):
        assert limit(Stage(weights, 0, "relu", "layer"), ONE) == pytest.approx(1)


def test_dropout_divides_by_what_it_keeps() -> None:
    """Schoenholz et al. 2017, section 5: relu with σ_w² = 2(1 − rate) keeps forward and backward signals."""
    stages = [Stage(2 * 0.7, 0, "relu", kept=0.7)] * 5 + [Stage(1, 0)]
    passed = passages(stages, ONE, rows=0)
    assert [p.q for p in passed[:5]] == pytest.approx([1.4] * 5)
    assert steps_back(stages, passed)[:4] == pytest.approx([0] * 4, abs=1e-12)


def test_residual_paths_add() -> None:
    """Identity branches: s_l = s + W s, so E s² and E‖∂/∂s‖² grow by 1 + σ_w² a layer (Yang & Schoenholz 2017)."""
    stages = [Stage(0.3, 0, "identity", residual=True)] * 6 + [Stage(1, 0)]
    passed = passages(stages, Rows(1, 0, 0), rows=0)
    assert [p.rows.square for p in passed[:6]] == pytest.approx([1.3**n for n in range(1, 7)])
    assert steps_back(stages, passed)[:5] == pytest.approx([math.log(1.3)] * 5)


def test_a_residual_stream_accumulates_means() -> None:
    """Two branches of relu at N(0, q): E s² = Σ E φ² + 2·E φ₁·E φ₂."""
    stages = [Stage(1, 0, "relu", residual=True)] * 2
    first, second = passages(stages, ONE, rows=0)
    q1, q2 = 1.0, first.rows.square
    assert q2 == pytest.approx(1 + q1 / 2)
    assert second.rows.square == pytest.approx(q2 + q2 / 2 + 2 * math.sqrt(q1 / 2 / math.pi) * math.sqrt(q2 / 2 / math.pi))


# ---------------------------------------------------------------- dead units


def test_dead_units_of_a_drawn_net() -> None:
    """Relu nets of numpy's, He, with and without bias: units that are 0 for all of 100 Gaussian rows."""
    draw, rows, width, layers = np.random.default_rng(3), 100, 300, 12
    for deviation in (0.0, 0.5):
        counted = np.zeros(layers)
        for _ in range(20):
            h = draw.standard_normal((rows, width))
            for layer in range(layers):
                h = np.maximum(h @ draw.normal(0, math.sqrt(2 / width), (width, width)) + draw.normal(0, 1, width) * deviation, 0)
                counted[layer] += (h == 0).all(0).mean() / 20
        predicted = [p.dead for p in passages([Stage(2, deviation**2, "relu")] * layers, ONE, rows=rows)]
        assert predicted == pytest.approx(counted.tolist(), abs=0.02)
        assert predicted[-1] > 0.1


def test_dead_units_at_the_ends() -> None:
    assert silent(1.0, 0.0, 3) == 1 / 8  # three independent signs
    assert silent(1.0, 1.0, 1000) == 0.5  # all rows the same
    assert silent(1.0, 0.5, 2) == pytest.approx(1 / 4 + math.asin(0.5) / (2 * math.pi), abs=1e-4)  # the quadrant's probability
    assert silent(0.0, 0.0, 10) == 1.0
    assert silent(1.0, -0.1, 10) == 0.0  # batch norm: the mean over the rows is 0
    assert math.isnan(silent(1.0, math.nan, 10))


# ---------------------------------------------------------------- the first loss


@pytest.mark.parametrize(("deviation", "count"), [(0.3, 10), (1.5, 3), (5.9, 10), (6.1, 10), (12.0, 4), (40.0, 1000)])
def test_the_loss_of_outputs_that_know_nothing(deviation: float, count: int) -> None:
    z = deviation * np.random.default_rng(1).standard_normal((4_000_000 // count, count))
    drawn = z.max(1) + np.log(np.exp(z - z.max(1, keepdims=True)).sum(1))
    assert log_sum_exp(deviation, count) == pytest.approx(float(drawn.mean()), abs=4 * float(drawn.std()) / math.sqrt(len(drawn)) + 1e-3)


def test_the_first_loss_in_closed_form() -> None:
    softmax, small = CrossEntropy(kind="cross_entropy", label_smoothing=0.1), 1e-4
    assert initial_loss(softmax, variance=0.0, outputs=10, target=math.nan) == pytest.approx(math.log(10), abs=1e-12)
    assert initial_loss(softmax, variance=small, outputs=10, target=math.nan) - math.log(10) == pytest.approx(small / 2 * 0.9, rel=1e-3)
    assert initial_loss(Binary(kind="binary"), variance=0.0, outputs=1, target=math.nan) == pytest.approx(math.log(2), abs=1e-11)
    assert initial_loss(Binary(kind="binary"), variance=small, outputs=1, target=math.nan) - math.log(2) == pytest.approx(small / 8, rel=1e-3)  # ½v·s′(0)
    assert initial_loss(SquaredError(kind="squared_error"), variance=2.0, outputs=3, target=5.0) == 21
    assert initial_loss(HalfSquaredError(kind="half_squared_error"), variance=2.0, outputs=3, target=5.0) == 10.5
    assert log_sum_exp(5.0, 1) == pytest.approx(0, abs=1e-9)
    assert math.isnan(log_sum_exp(math.nan, 3))


# ---------------------------------------------------------------- from a spec


def of(changes: dict[str, Any]) -> Signal:
    spec = parse(json.dumps(changed(changes)))
    facts = facts_of(spec.dataset) or Facts(rows=100, features=8, target="class", classes=3)
    return signal(spec, facts, shape_of(spec, facts))


DEEP = {"regularizers": [], "model.hidden": [128] * 34, "model.bias": False}
INIT_OF = {
    "torch": ({}, 1 / 3), "uniform": ({"bound": 0.1}, 64 * 0.01 / 3), "normal": ({"std": 0.2}, 64 * 0.04), "xavier_uniform": ({}, 2 * 64 / 96), "xavier_normal": ({}, 2 * 64 / 96),
    "he_uniform": ({}, 2), "he_normal": ({}, 2), "lecun_uniform": ({}, 1), "lecun_normal": ({}, 1), "orthogonal": ({}, 1), "identity": ({"std": 0.1}, 64 * 0.01), "zeros": ({}, 0),
}  # fmt: skip
"""Kind → fields, σ_w² of a layer of 32 units on 64."""


@pytest.mark.parametrize("kind", INIT_OF)
def test_every_init_by_its_formula(kind: str) -> None:
    fields, weights = INIT_OF[kind]
    found = of({"regularizers": [], "dataset": {"kind": "digits", "standardize": True}, "model": {"kind": "mlp", "hidden": [32], "init": {"kind": kind, "scale": 3.0, **fields}}})
    biases = 1 / (3 * 64) if kind == "torch" else 0  # `scale` is for weights
    assert found.layers[0].forward == pytest.approx(math.sqrt(9 * weights * 61 / 64 + biases))  # 3 of 64 pixels are always white


def test_orthogonal_columns() -> None:
    """More units than inputs: entries of variance 1/units."""
    found = of({"regularizers": [], "dataset": {"kind": "digits", "standardize": True}, "model": {"kind": "mlp", "hidden": [256], "init": {"kind": "orthogonal"}}})
    assert found.layers[0].forward == pytest.approx(math.sqrt(64 / 256 * 61 / 64))


def test_weights_that_are_not_drawn() -> None:
    """Square identities are not Gaussian; LSUV makes every variance scale², whatever enters: χ = scale²·E φ′²/E φ²."""
    assert of({**DEEP, "model.init": {"kind": "identity"}}).gradient_ratio is None
    found = of({**DEEP, "model.activation": "tanh", "model.init": {"kind": "lsuv", "scale": 1.5}})
    assert [layer.forward for layer in found.layers] == pytest.approx([1.5] * 35)
    _, square, _, slope = by_panels(1.5**2, "tanh")
    assert found.chi == pytest.approx(1.5**2 * slope / square)
    assert found.gradient_ratio == pytest.approx((1.5**2 * slope / square) ** (33 / 2))


def test_the_blind_spot_of_weight_gradients() -> None:
    found = of({**DEEP, "model.init": {"kind": "xavier_normal"}})
    assert found.gradient_ratio == pytest.approx(1.08e-5, rel=0.005)
    assert (found.chi, found.trainable_depth) == (pytest.approx(0.5), pytest.approx(6 / math.log(2)))
    assert [layer.name for layer in found.layers][::34] == ["layers.0", "head"]
    assert found.layers[-1].chi is None


def test_remedies_are_ranked_and_do_what_they_say() -> None:
    start = {**DEEP, "model.init": {"kind": "xavier_normal"}}
    found = of(start)
    away = [abs(math.log(change.gradient_ratio)) for change in found.remedies]
    assert away == sorted(away)
    assert away[-1] < abs(math.log(found.gradient_ratio or 0))
    sets = [change.set for change in found.remedies]
    assert sets[0] == {"model.init": {"kind": "he_normal"}}
    assert {"model.normalization": {"kind": "batch"}} in sets
    assert {"model.residual": True} in sets
    for change in found.remedies:
        assert of({**start, **change.set}).gradient_ratio == pytest.approx(change.gradient_ratio)


def test_a_scale_at_which_the_gradient_stays() -> None:
    """Relu with LeCun: √2, which is He."""
    found = of({"regularizers": [], "model.hidden": [64] * 20, "model.init": {"kind": "lecun_normal"}})
    (scale,) = [change.set["model.init"]["scale"] for change in found.remedies if "scale" in change.set.get("model.init", {})]
    assert scale == pytest.approx(math.sqrt(2), abs=0.005)
    saturated = of({"regularizers": [], "model.hidden": [64] * 20, "model.activation": "sigmoid"})  # would need σ_w² = 90
    assert [change for change in saturated.remedies if "scale" in change.set.get("model.init", {})] == []


def test_a_net_at_its_best_gets_no_advice() -> None:
    assert of({**DEEP, "model.init": {"kind": "he_normal"}}).remedies == []
    assert of({"regularizers": [], "model": {"kind": "mlp", "hidden": [8]}}).remedies == []
    assert of({"regularizers": [], "model": {"kind": "linear"}}).remedies == []


def test_what_theory_does_not_know_is_null() -> None:
    upload = {"kind": "upload", "id": "ds_1"}
    relu = of({**DEEP, "dataset": upload})
    assert (relu.input_rms, relu.layers[0].forward, relu.initial_loss) == (None, None, None)
    assert relu.gradient_ratio == pytest.approx(6 ** (-33 / 2))  # homogeneous: the scale does not matter
    tanh = of({**DEEP, "dataset": upload, "model.activation": "tanh"})
    assert (tanh.gradient_ratio, tanh.layers[0].chi) == (None, None)
    assert tanh.chi == pytest.approx(1 / 3, abs=1e-6)  # the limit does not depend on what enters
    known = of({**DEEP, "dataset": {**upload, "standardize": True}})
    assert (known.input_rms, known.initial_loss) == (1.0, pytest.approx(math.log(3), abs=1e-6))
    linear = of({"regularizers": [], "model": {"kind": "linear"}})
    assert (linear.gradient_ratio, linear.chi, linear.dead, linear.initial_loss) == (None, None, None, pytest.approx(math.log(10)))
    edge = of({**DEEP, "model.init": {"kind": "he_normal"}})
    assert (edge.chi, edge.depth_scale, edge.trainable_depth) == (pytest.approx(1), None, None)


def test_of_recurrent_nets_nothing_is_said() -> None:
    found = of({"dataset": {"kind": "temporal_order"}, "regularizers": [], "model": {"kind": "rnn", "hidden": [8, 8]}})
    assert (found.gradient_ratio, found.chi, found.initial_loss, found.dead, found.remedies) == (None, None, None, None, [])
    assert [(layer.forward, layer.chi) for layer in found.layers] == [(None, None)] * 5
    assert found.input_rms == pytest.approx(math.sqrt(1 / 6))


def test_images_without_pooling_are_the_same_recursion() -> None:
    """He by fan-in over pixels; a 3 × 3 filter on 8 × 8 has 22 of 24 taps inside along each side."""
    cnn = {"kind": "cnn", "channels": [16, 16, 16], "pool": "none", "init": {"kind": "he_normal"}, "bias": False}
    found = of({"regularizers": [], "model": cnn})
    inside = (22 / 24) ** 2
    assert [layer.chi for layer in found.layers] == [pytest.approx(inside), pytest.approx(inside), pytest.approx(1.0), None]  # the head has no border
    assert found.layers[1].forward == pytest.approx((found.layers[0].forward or 0) * math.sqrt(inside))
    pooled = of({"regularizers": [], "model": {**cnn, "pool": "max", "hidden": [8, 8]}})
    assert pooled.gradient_ratio is None
    assert [layer.chi is None for layer in pooled.layers] == [True, True, True, False, False, True]
    assert pooled.layers[3].chi == pytest.approx(1.0)  # relu needs no scale
    normalised = of({"regularizers": [], "model": {**cnn, "normalization": {"kind": "batch"}}})
    assert normalised.layers[0].chi is None  # what pixels share is not known
    assert normalised.layers[1].forward == pytest.approx(math.sqrt(inside))  # but behind the normalization all is


def test_dropout_where_it_acts() -> None:
    base = of({"regularizers": [], "model.hidden": [64, 64], "model.init": {"kind": "he_normal"}, "model.bias": False})
    for on, first, second in (("inputs", 2.0, 2.0), ("hidden", 1.0, 2.0), (["layers.1"], 1.0, 1.0)):
        found = of(
            {"regularizers": [{"kind": "dropout", "rate": {"values": [0.5, 0.1]}, "on": on}], "model.hidden": [64, 64], "model.init": {"kind": "he_normal"}, "model.bias": False}
        )
        grown = [(a.forward or 0) ** 2 / (b.forward or 1) ** 2 for a, b in zip(found.layers, base.layers, strict=True)]
        assert grown[:2] == pytest.approx([first, second]), on


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_answer_is_a_number_or_null(activation: Activation) -> None:
    """Specs at their extremes: nothing overflows, nothing warns, nothing is NaN."""
    inits = ({"kind": "zeros"}, {"kind": "torch"}, {"kind": "normal", "std": 1e200}, {"kind": "uniform", "bound": 1e-200}, {"kind": "he_normal", "scale": {"values": [1e6]}})
    norms: tuple[Any, ...] = (None, {"kind": "batch", "eps": 0.0}, {"kind": "layer"})
    rows = {"kind": "inline", "x": [[1e300, 0.0], [1e300, 1.0], [-1e300, 2.0], [0.0, 0.0]], "y": [0, 1, 0, 1], "validation": 0.0}
    for dataset in ({"kind": "digits"}, rows):
        for init in inits:
            for norm in norms:
                model = {"kind": "mlp", "hidden": [3, 3, 1, 3], "activation": activation, "init": init, "normalization": norm, "residual": norm is None}
                found = of({"dataset": dataset, "regularizers": [], "model": model, "budget.batch_size": "all"})
                json.dumps(asdict(found), allow_nan=False)
                assert found.gradient_ratio is None or found.gradient_ratio >= 0
    json.dumps(asdict(of({**DEEP, "model.activation": activation, "model.hidden": [2] * 512})), allow_nan=False)


# ---------------------------------------------------------------- warnings


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"model.hidden": [32] * 8, "model.activation": "sigmoid"}, "model.activation", "8 layers of sigmoid with torch init"),
        ({**DEEP, "model.init": {"kind": "xavier_normal"}}, "model.activation", 'vanish, layers.0 gets 1.1e-05 of what layers.33 gets (trainable: between 1/20 and 20); best by theory: model.init = {"kind": "he_normal"}'),
        ({"model.hidden": [32] * 8, "model.init": {"kind": "normal", "std": 1.0}}, "model.activation", "explode"),
        ({"model.hidden": [32] * 30, "model.normalization": {"kind": "batch"}, "regularizers": []}, "model.normalization", "with batch normalization"),
    ],
)  # fmt: skip
def test_a_net_beyond_its_trainable_depth_is_warned_of(changes: dict[str, Any], path: str, message: str) -> None:
    warned = [w for w in accept(json.dumps(changed(changes, GOOD))) if w.path == path and "layers of" in w.message]
    assert [message in w.message and w.source == "spec" for w in warned] == [True], warned


@pytest.mark.parametrize(
    "model",
    [
        {"kind": "linear"},
        {"kind": "mlp", "hidden": [32, 32], "activation": "sigmoid"},
        {"kind": "mlp", "hidden": [1024, 8], "activation": "relu"},
        {"kind": "mlp", "hidden": [32] * 4},
        {"kind": "mlp", "hidden": [128] * 34, "init": {"kind": "he_normal"}},
        {"kind": "mlp", "hidden": [128] * 34, "activation": "tanh", "init": {"kind": "he_normal"}},
        {"kind": "mlp", "hidden": [32] * 12, "activation": "sigmoid", "residual": True},
        {"kind": "mlp", "hidden": [32] * 10, "normalization": {"kind": "batch"}},
        {"kind": "cnn", "channels": [8] * 3},
    ],
    ids=json.dumps,
)
def test_a_net_within_its_trainable_depth_is_not(model: dict[str, Any]) -> None:
    assert [w for w in accept(json.dumps(changed({"regularizers": [], "model": model}))) if w.path in ("model.activation", "model.normalization")] == []


# ---------------------------------------------------------------- weights that are functions of what is learned


def test_weight_norm_starts_like_the_plain_net_and_of_spectral_norm_theory_says_nothing() -> None:
    def of(kind: str | None) -> Signal:
        spec = parse(json.dumps(changed({"model.hidden": [16, 16, 16], **({"model.reparametrization": {"kind": kind}} if kind else {})})))
        facts = facts_of(spec.dataset)
        assert facts is not None
        return signal(spec, facts, shape_of(spec, facts))

    assert of("weight_norm") == of(None)
    assert (of("spectral_norm").gradient_ratio, of("spectral_norm").initial_loss) == (None, None)
