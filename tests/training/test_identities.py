"""Exact laws of gradients, read from the points that the engine's own instruments report, and mutants of those instruments that each law must catch."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from training_jobs import FROZEN, Outcome, inline, run, sgd, spec

from regtrain.contract.optimizers import GlobalNorm
from worker.training import diagnostics, points, step
from worker.training.norms import beside
from worker.training.pack import Pack

TOLERANCE = 1e-12
DRAW = np.random.default_rng(11)
X, Y = DRAW.standard_normal((20, 18)), DRAW.integers(0, 3, 20)
REGULARIZED = ({"kind": "l2", "lambda": 0.05}, {"kind": "l1", "lambda": 0.001})
CLIP = {"kind": "value", "max": 0.01}
LIMIT = 0.27
"""Some of the gradients' norms are above it and some below."""


def job(model: dict[str, Any], *regularizers: dict[str, Any], loss: Any = "cross_entropy", **rest: Any) -> Outcome:
    """Five updates of three seeds with every instrument on."""
    return run(spec(inline(X, Y), model, loss, rest.pop("optimizer", sgd(0.1, 0.5)), *regularizers, epochs=5, diagnostics="full", selection={"seeds": 3}, **rest))


def stacked(found: Outcome, series: str) -> np.ndarray:
    """(R, n) or (R, n, L)"""
    return np.stack([found.curve(series, r) for r in sorted(found.runs)])


def close(a: np.ndarray | float, b: np.ndarray | float, size: np.ndarray | float | None = None, *, tolerance: float = TOLERANCE) -> None:
    """|a − b| ≤ tolerance · size of the quantity."""
    size = np.maximum(np.abs(a), np.abs(b)) if size is None else size
    assert np.isfinite(a).all()
    assert np.isfinite(b).all()
    assert (np.abs(np.asarray(a) - b) <= tolerance * np.asarray(size)).all()


def sizes(found: Outcome) -> np.ndarray:
    """‖W_l‖·‖∇W_l‖, the largest that their product can be."""
    return stacked(found, "weight/norm") * stacked(found, "gradient/norm")


# ---------------------------------------------------------------- the laws

HOMOGENEOUS = [{"kind": "mlp", "hidden": [9, 14, 6, 11], "activation": activation, "init": {"kind": "he_normal"}} for activation in ("relu", "leaky_relu", "identity")] + [
    {"kind": "cnn", "channels": [4, 3], "image": [2, 3, 3], "pool": pool, "hidden": [7], "activation": "relu"} for pool in ("max", "average", "none")
]


def equal_products_without_biases() -> None:
    """⟨W_l, ∇W_l⟩ is the same for every layer of a homogeneous net."""
    for model in HOMOGENEOUS:
        found = job({**model, "bias": False}, *REGULARIZED, clip=CLIP)
        products = stacked(found, "identity/weight_product")
        assert (np.abs(products) > 1e-4 * sizes(found)).all()
        close(products, products[..., :1])


def equal_products_with_biases() -> None:
    """⟨W_{l+1}, ∇⟩ = ⟨W_l, ∇⟩ + ⟨b_l, ∇b_l⟩."""
    for model in HOMOGENEOUS:
        found = job(model, *REGULARIZED, clip=CLIP)
        weights, biases = stacked(found, "identity/weight_product"), stacked(found, "identity/bias_product")
        assert (np.abs(biases[:, -1]) > 1e-8).any(1).all()
        close(weights[..., 1:], (weights + biases)[..., :-1], sizes(found).max(2, keepdims=True))


def no_gradient_summed_over_classes() -> None:
    """Softmax cross-entropy: the head's gradient summed over classes is 0, with label smoothing too."""
    for loss in ({"kind": "cross_entropy"}, {"kind": "cross_entropy", "label_smoothing": 0.1}):
        found = job({"kind": "mlp", "hidden": [9], "activation": "tanh"}, *REGULARIZED, loss=loss, clip=CLIP)
        close(stacked(found, "identity/class_sum"), 0.0, stacked(found, "gradient/norm")[..., -1])


def scale_invariance_before_batch_norm() -> None:
    """⟨w_i, ∇w_i⟩ = ε/(var_i + ε)·γ_i∇γ_i for each unit, which is 0 at ε = 0."""
    for base in ({"kind": "mlp", "hidden": [9, 7], "activation": "tanh"}, {"kind": "cnn", "channels": [4, 3], "image": [2, 3, 3], "hidden": [5], "activation": "tanh"}):
        for eps in (0.0, 1e-5, 0.3):
            found = job({**base, "normalization": {"kind": "batch", "eps": eps}}, *REGULARIZED, clip=CLIP)
            close(stacked(found, "identity/batch_norm"), 0.0, sizes(found))
            hidden = stacked(found, "identity/weight_product")[..., :-1]
            if eps == 0:
                close(hidden, 0.0, sizes(found)[..., :-1])
            elif eps == 0.3:
                assert (np.abs(hidden) > 1e-6 * sizes(found)[..., :-1]).any()


def scale_invariance_before_layer_norm() -> None:
    """⟨W, ∇W⟩ + ⟨b, ∇b⟩ = 0 at ε = 0: only the total vanishes."""
    for base in ({"kind": "mlp", "hidden": [9, 7], "activation": "tanh"}, {"kind": "cnn", "channels": [4, 3], "image": [2, 3, 3], "hidden": [5], "activation": "tanh"}):
        found = job({**base, "normalization": {"kind": "layer", "eps": 0.0}}, *REGULARIZED, clip=CLIP)
        weights, biases = (stacked(found, f"identity/{side}_product")[..., :-1] for side in ("weight", "bias"))
        assert (np.abs(weights) > 1e-6 * sizes(found)[..., :-1]).any()
        close(weights, -biases, sizes(found)[..., :-1])


def orthogonal_chains_keep_the_signal() -> None:
    """‖δ_0‖ = ‖δ_L‖ and ‖h_0‖ = ‖h_L‖ through twenty orthogonal linear layers; the head's rows are orthonormal too. Rows are a batch of 20."""
    found = run(spec(
        inline(X, Y), {"kind": "mlp", "hidden": [18] * 20, "activation": "identity", "bias": False, "init": {"kind": "orthogonal"}}, "cross_entropy", sgd(FROZEN),
        diagnostics="full", selection={"seeds": 3},
    ))  # fmt: skip
    numbers = 20 * np.array([18] * 20 + [3])
    backward, forward = (stacked(found, f"signal/{way}") * np.sqrt(numbers) for way in ("backward", "forward"))
    close(backward, backward[..., -1:])
    close(forward[..., :-1], float(np.linalg.norm(X)))
    first = found.weights["layers.0.weight"]
    p = torch.softmax(torch.tensor(X) @ _chain(found).mT, 2)
    delta = (p - torch.nn.functional.one_hot(torch.tensor(Y), 3)) / 20
    close(backward[:, 0, 0], delta.flatten(1).norm(dim=1).numpy())
    assert first.shape == (3, 18, 18)


def _chain(found: Outcome) -> Tensor:
    """The product of all layers, (R, 3, 18)."""
    product = found.weights["head.weight"]
    for layer in reversed(range(20)):
        product = product @ found.weights[f"layers.{layer}.weight"]
    return product


def norms_add_up() -> None:
    """Σ‖g_l‖² = ‖g‖², which the update shows too: with lr 1 and nothing else it is the distance that all weights move."""
    for bias in (False, True):
        model = {"kind": "mlp", "hidden": [9, 7], "activation": "tanh", "bias": bias}
        rows = spec(inline(X, Y), model, "cross_entropy", sgd(FROZEN), diagnostics="full", selection={"seeds": 3})
        found, moved = run(rows), run({**rows, "optimizer": sgd(1.0)})
        norms, total = stacked(found, "gradient/norm")[:, 0], stacked(found, "gradient/total")[:, 0]
        if not bias:
            close(np.square(norms).sum(1), np.square(total))
        close(total, np.array([(found.flat(r) - moved.flat(r)).norm().item() for r in range(3)]))
        of_layers = np.array([[(found.weights[f"{name}.weight"][r] - moved.weights[f"{name}.weight"][r]).norm().item() for name in found.started.layers] for r in range(3)])
        close(norms, of_layers)
        numbers = np.array([w[0].numel() for name in found.started.layers for w in [found.weights[f"{name}.weight"]]])
        close(stacked(found, "gradient/rms")[:, 0] * np.sqrt(numbers), norms)
        close((stacked(moved, "update/ratio") * stacked(moved, "weight/norm"))[:, 0], of_layers)


def norms_are_homogeneous() -> None:
    """norm(2g) = 2 norm(g): squared error has twice the gradient of its half, and the same signals forward."""
    one, two = (job({"kind": "mlp", "hidden": [9, 7], "activation": "tanh"}, loss=loss, optimizer=sgd(FROZEN)) for loss in ("half_squared_error", "squared_error"))
    for series in ("gradient/norm", "gradient/rms", "gradient/total", "signal/backward", "identity/weight_product", "identity/bias_product"):
        close(stacked(two, series), 2 * stacked(one, series))
    close(stacked(two, "signal/forward"), stacked(one, "signal/forward"))
    full = np.square(stacked(one, "gradient/rms")) * np.array([9 * 18, 7 * 9, 7])
    close(full, np.square(stacked(one, "gradient/norm")))


def accumulated_is_the_mean() -> None:
    """Micro-batches of 7, 7 and 6 rows: every instrument reads what it reads on the whole batch of 20."""
    for model in ({"kind": "mlp", "hidden": [9, 7], "activation": "tanh"}, {"kind": "cnn", "channels": [4, 3], "image": [2, 3, 3], "activation": "tanh"}):
        whole, parts = (job(model, *REGULARIZED, accumulate=accumulate, optimizer=sgd(0.1)) for accumulate in (1, 3))
        for series in ("gradient/norm", "gradient/total", "gradient/rms", "signal/backward", "signal/forward", "penalty_gradient/norm", "weight/norm", "update/ratio"):
            close(stacked(parts, series), stacked(whole, series))
        close(stacked(parts, "identity/weight_product"), stacked(whole, "identity/weight_product"), sizes(whole))


def quadratics_diverge_beyond_two_over_curvature() -> None:
    """Orthogonal columns with curvatures 4, 1 and 1/16: with lr a billionth above 2/4 the loss rises at every step, below it falls."""
    columns = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1]]).T * np.array([2.0, 1.0, 0.25])
    model = {"kind": "linear", "bias": False, "init": {"kind": "normal", "std": 1.0}}
    for excess in (1e-9, -1e-9, 0.1, -0.1):
        lr = 0.5 * (1 + excess)
        found = run(spec(inline(columns, np.zeros(4)), model, "half_squared_error", sgd(lr), epochs=1200, diagnostics="full", selection={"seeds": 3}))
        loss, length = stacked(found, "loss/train"), stacked(found, "weight/norm")[..., 0]
        late = slice(1000, None)  # the components of curvature 1 and 1/16 have died out
        assert (np.diff(loss[:, late]) > 0).all() if excess > 0 else (np.diff(loss[:, late]) < 0).all()
        if excess > -0.1:  # the component of curvature 4 is what is left
            close(stacked(found, "update/ratio")[:, late, 0], lr * 4)
            close(length[:, 1001:], length[:, 1000:-1] * abs(1 - lr * 4))
            close(np.square(length[:, late]) * 2, loss[:, late])


def loss_at_uniform_logits() -> None:
    """ln C, and ln 2 for the binary loss: no matter the rows."""
    for loss, labels, want in (("cross_entropy", Y, math.log(3)), ("cross_entropy", np.arange(20) % 7, math.log(7)), ("binary", Y > 0, math.log(2))):
        found = run(spec(inline(X, labels), {"kind": "linear"}, loss, sgd(0.1), *REGULARIZED, diagnostics="full", selection={"seeds": 3}))
        close(stacked(found, "loss/train")[:, 0], want)
        close(stacked(found, "objective/train")[:, 0], want)


def clipping_shortens_and_keeps_the_direction() -> None:
    """The update has the norm lr·min(‖g‖, c), and every layer is shortened alike. The gradient itself is reported as it was."""
    model, limit = {"kind": "mlp", "hidden": [9, 7], "activation": "tanh", "bias": False}, LIMIT
    clipped, free = (job(model, clip={"kind": "global_norm", "max": c}, optimizer=sgd(0.2)) for c in (limit, 1e9))
    total = stacked(clipped, "gradient/total")
    assert (total > limit).any()
    assert (total < limit).any()
    moved = stacked(clipped, "update/ratio") * stacked(clipped, "weight/norm")
    close(np.sqrt(np.square(moved).sum(2)), 0.2 * np.minimum(total, limit))
    close(moved / stacked(clipped, "gradient/norm"), (0.2 * np.minimum(1, limit / total))[..., None])
    assert ((total > limit) == stacked(clipped, "gradient/clipped").astype(bool)).all()
    close(stacked(clipped, "gradient/norm")[:, 0], stacked(free, "gradient/norm")[:, 0])
    assert not stacked(free, "gradient/clipped").any()


def deep_signals_do_not_underflow() -> None:
    """Twenty-four sigmoid layers: signals near 1e-29, whose squares are 0 in float32. A float32 job reports what a float64 job does."""
    model = {"kind": "mlp", "hidden": [32] * 24, "activation": "sigmoid", "init": {"kind": "normal", "std": 0.05}}
    single, double = (run(spec(inline(X, Y), model, "cross_entropy", sgd(FROZEN), dtype=dtype)) for dtype in ("float32", "float64"))
    assert 1e-31 < double.curve("signal/backward")[0, 0] < 1e-27
    assert (single.curve("signal/backward")[0] > 0).all()
    for series in ("signal/backward", "gradient/norm", "signal/forward"):
        close(single.curve(series)[0], double.curve(series)[0], tolerance=1e-3)


LAWS: dict[str, Callable[[], None]] = {
    law.__name__: law
    for law in (
        equal_products_without_biases, equal_products_with_biases, no_gradient_summed_over_classes, scale_invariance_before_batch_norm, scale_invariance_before_layer_norm,
        orthogonal_chains_keep_the_signal, norms_add_up, norms_are_homogeneous, accumulated_is_the_mean, quadratics_diverge_beyond_two_over_curvature, loss_at_uniform_logits,
        clipping_shortens_and_keeps_the_direction, deep_signals_do_not_underflow,
    )
}  # fmt: skip


@pytest.mark.parametrize("law", LAWS)
def test_law(law):
    LAWS[law]()


# ---------------------------------------------------------------- the mutants

Patch = Callable[[pytest.MonkeyPatch], None]
_squares, _product, _identities, _read, _residual, _finish, _clipped = (
    diagnostics.squares, diagnostics.product, diagnostics.of_identities, diagnostics.read, diagnostics._scale_residual, diagnostics.finish, step.clipped,
)  # fmt: skip


def replaced(name: str, function: Any, *, module: Any = diagnostics) -> Patch:
    return lambda patch: patch.setattr(module, name, function)


def squared_as(change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Patch:
    """Every sum of squares is another.  change: of the numbers (updates, R, …, n) or (updates, 2, R, layers, n), and their sums along the last axis"""
    return replaced("squares", lambda parts: beside([change(part, _squares([part]).reshape(part.shape[:-1])) for part in parts]))


def changed_gradient(change: Callable[[Any], None]) -> Patch:
    """The instruments of the gradient look after something has changed it."""

    def looking(original: Callable[..., Any]) -> Callable[..., Any]:
        def late(*given: Any) -> Any:
            pack = next(each for each in given if isinstance(each, Pack))
            before = pack.gradient.clone()
            change(pack)
            found = original(*given)
            pack.gradient.copy_(before)
            return found

        return late

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(diagnostics, "of_identities", looking(_identities))
        monkeypatch.setattr(diagnostics, "read", looking(_read))

    return patch


def _to_norm(pack: Any) -> None:
    pack.gradient.mul_((LIMIT / pack.gradient.norm(dim=1, keepdim=True)).clamp(max=1))


after_value_clip = changed_gradient(lambda pack: pack.gradient.clamp_(-0.01, 0.01))
after_norm_clip = changed_gradient(_to_norm)
after_penalties = changed_gradient(lambda pack: pack.gradient.add_(0.05 * pack.flat))
times_learning_rate = changed_gradient(lambda pack: pack.gradient.mul_(0.1))


def identities_with(**changes: Callable[[Any, Any], Any]) -> Patch:
    """One of the identities' series is computed from the others and the pack."""

    def mutant(preset: Any, pack: Any, moments: Any) -> Any:
        found = _identities(preset, pack, moments)
        return {name: changes[name.split("/")[1]](pack, value) if name.split("/")[1] in changes else value for name, value in found.items()}

    return replaced("of_identities", mutant)


def finished_with(change: Callable[[dict[str, Any]], None]) -> Patch:
    """Something goes wrong where numbers are finished on the host."""

    def mutant(pack: Any, values: Any, *rest: Any) -> None:
        _finish(pack, values, *rest)
        change(values)

    return replaced("finish", mutant, module=points)


def _update_over_new_weights(values: dict[str, Any]) -> None:
    values["update/ratio"] = values["update/ratio"] / (1 + values["update/ratio"])


def _no_root_of_signals(values: dict[str, Any]) -> None:
    for name in ("signal/forward", "signal/backward"):
        values[name] = np.square(values[name])


def _reversed_signals(values: dict[str, Any]) -> None:
    for name in ("signal/forward", "signal/backward"):
        values[name] = values[name][..., ::-1]


def _total_is_a_sum(values: dict[str, Any]) -> None:
    values["gradient/total"] = values["gradient/norm"].sum(2)


def _rms_without_root(values: dict[str, Any]) -> None:
    values["gradient/rms"] = values["gradient/rms"] ** 2


def _unbiased_variance(layer: Any, moments: Any, w: Any, g: Any) -> Tensor:
    mean, variance, count = moments[layer.name]
    return _residual(layer, {layer.name: (mean, variance * count / (count - 1), count)}, w, g)


def _without_epsilon(layer: Any, moments: Any, w: Any, g: Any) -> Tensor:
    name = f"{layer.name}.weight"
    return (w[name] * g[name]).flatten(2).sum(2).abs().amax(1)


def _without_gamma(layer: Any, moments: Any, w: Any, g: Any) -> Tensor:
    return _residual(layer, moments, {**w, f"{layer.name}.norm.weight": torch.ones_like(w[f"{layer.name}.norm.weight"])}, g)


def _as_torch_clips(spec: Any, gradient: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(spec, GlobalNorm):
        return _clipped(spec, gradient, limit)
    norm = gradient.norm(dim=1, keepdim=True)
    return gradient * (limit / (norm + 1e-6)).clamp(max=1), (norm > limit).squeeze(1)


def _each_layer_clipped(spec: Any, gradient: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    found, changed = _clipped(spec, gradient, limit)
    half = gradient.shape[1] // 2
    return torch.cat([gradient[:, :half], found[:, half:]], 1), changed


def _loss_of_the_sum(spec: Any, outputs: Tensor, y: Tensor, **of: Any) -> tuple[Tensor, Tensor]:
    value, slope = _loss(spec, outputs, y, **of)
    return value * outputs.shape[1], slope


_loss = step.loss_of
NORMS = {
    "norm without square root": squared_as(lambda x, found: np.square(found)),
    "mean for sum": squared_as(lambda x, found: found / x.shape[-1]),
    "over all runs": squared_as(lambda x, found: np.broadcast_to(found.sum(2 if found.ndim == 4 else 1, keepdims=True), found.shape)),
    "sum of absolute values": squared_as(lambda x, found: np.square(np.abs(x).sum(-1))),
    "float32": squared_as(lambda x, found: np.square(x.astype(np.float32)).sum(-1).astype(np.float64)),
}

MUTANTS: list[tuple[str, str, Patch]] = [
    ("equal_products_without_biases", "mean for sum", replaced("product", lambda a, b: _product(a, b) / a[0].numel())),
    ("equal_products_without_biases", "float32", replaced("product", lambda a, b: (a.float() * b.float()).sum(1).double())),
    ("equal_products_without_biases", "absolute values", replaced("product", lambda a, b: _product(a.abs(), b.abs()))),
    ("equal_products_without_biases", "gradient after clipping", after_value_clip),
    ("equal_products_without_biases", "gradient after penalties", after_penalties),
    ("equal_products_without_biases", "of a gradient with itself", identities_with(weight_product=lambda pack, _: [_product(g, g) for g in pack.weight_gradients])),
    ("equal_products_with_biases", "wrong layer order", identities_with(weight_product=lambda _, value: value[::-1])),
    ("equal_products_with_biases", "wrong layer order of biases", identities_with(bias_product=lambda _, value: value[::-1])),
    ("equal_products_with_biases", "biases forgotten", identities_with(bias_product=lambda _, value: [torch.zeros_like(v) for v in value])),
    ("equal_products_with_biases", "gradient after clipping", after_value_clip),
    ("equal_products_with_biases", "gradient after penalties", after_penalties),
    ("no_gradient_summed_over_classes", "summed over features", identities_with(class_sum=lambda pack, _: pack.net.gradients["head.weight"].sum(2).abs().amax(1))),
    ("no_gradient_summed_over_classes", "gradient after clipping", after_value_clip),
    ("no_gradient_summed_over_classes", "gradient after penalties", after_penalties),
    ("no_gradient_summed_over_classes", "of the weights", identities_with(class_sum=lambda pack, _: pack.net.tensors["head.weight"].sum(1).abs().amax(1))),
    ("scale_invariance_before_batch_norm", "missing ε term", replaced("_scale_residual", _without_epsilon)),
    ("scale_invariance_before_batch_norm", "unbiased variance", replaced("_scale_residual", _unbiased_variance)),
    ("scale_invariance_before_batch_norm", "γ forgotten", replaced("_scale_residual", _without_gamma)),
    ("scale_invariance_before_batch_norm", "gradient after clipping", after_value_clip),
    ("scale_invariance_before_batch_norm", "gradient after penalties", after_penalties),
    ("scale_invariance_before_batch_norm", "wrong layer order", identities_with(weight_product=lambda _, value: value[::-1])),
    ("scale_invariance_before_layer_norm", "biases forgotten", identities_with(bias_product=lambda _, value: [torch.zeros_like(v) for v in value])),
    ("scale_invariance_before_layer_norm", "wrong layer order", identities_with(bias_product=lambda _, value: value[::-1])),
    ("scale_invariance_before_layer_norm", "mean for sum", replaced("product", lambda a, b: _product(a, b) / a[0].numel())),
    ("scale_invariance_before_layer_norm", "gradient after clipping", after_value_clip),
    ("scale_invariance_before_layer_norm", "gradient after penalties", after_penalties),
    *[("orthogonal_chains_keep_the_signal", name, mutant) for name, mutant in NORMS.items()],
    ("orthogonal_chains_keep_the_signal", "rms without root", finished_with(_no_root_of_signals)),
    ("orthogonal_chains_keep_the_signal", "wrong layer order", finished_with(_reversed_signals)),
    ("orthogonal_chains_keep_the_signal", "norm for rms", finished_with(lambda values: values.update({"signal/backward": values["signal/backward"] * 18**0.5}))),
    *[("norms_add_up", name, mutant) for name, mutant in NORMS.items()],
    ("norms_add_up", "total is a sum of norms", finished_with(_total_is_a_sum)),
    ("norms_add_up", "rms without root", finished_with(_rms_without_root)),
    ("norms_add_up", "update over the new weights", finished_with(_update_over_new_weights)),
    ("norms_add_up", "gradient after clipping", after_value_clip),
    ("norms_add_up", "gradient times learning rate", times_learning_rate),
    ("norms_are_homogeneous", "norm without square root", NORMS["norm without square root"]),
    ("norms_are_homogeneous", "gradient after clipping", after_value_clip),
    ("norms_are_homogeneous", "gradient after penalties", after_penalties),
    ("norms_are_homogeneous", "rms without root", finished_with(_rms_without_root)),
    ("accumulated_is_the_mean", "signals of the first micro-batch", replaced("_whole", lambda parts: parts[0], module=step)),
    ("accumulated_is_the_mean", "micro-batches in another order of weight", replaced("_whole", lambda parts: [torch.cat([part] * len(parts), 1 if part.dim() == 3 else 0) for part in parts[0]], module=step)),
    ("quadratics_diverge_beyond_two_over_curvature", "norm without square root", NORMS["norm without square root"]),
    ("quadratics_diverge_beyond_two_over_curvature", "float32", NORMS["float32"]),
    ("quadratics_diverge_beyond_two_over_curvature", "mean for sum", NORMS["mean for sum"]),
    ("quadratics_diverge_beyond_two_over_curvature", "update over the new weights", finished_with(_update_over_new_weights)),
    ("loss_at_uniform_logits", "sum for mean", replaced("loss_of", _loss_of_the_sum, module=step)),
    ("clipping_shortens_and_keeps_the_direction", "gradient after clipping", after_norm_clip),
    ("clipping_shortens_and_keeps_the_direction", "torch's 1e-6 in the denominator", replaced("clipped", _as_torch_clips, module=step)),
    ("clipping_shortens_and_keeps_the_direction", "half of the layers clipped", replaced("clipped", _each_layer_clipped, module=step)),
    ("clipping_shortens_and_keeps_the_direction", "norm without square root", NORMS["norm without square root"]),
    ("clipping_shortens_and_keeps_the_direction", "mean for sum", NORMS["mean for sum"]),
    ("deep_signals_do_not_underflow", "float32", NORMS["float32"]),
    ("deep_signals_do_not_underflow", "norm without square root", NORMS["norm without square root"]),
]  # fmt: skip


@pytest.mark.parametrize(("law", "mutant"), [pytest.param(law, patch, id=f"{law}: {name}") for law, name, patch in MUTANTS])
def test_law_catches_the_mutant(law, mutant, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        LAWS[law]()


def test_every_law_has_mutants():
    assert {law for law, _, _ in MUTANTS} == set(LAWS)
