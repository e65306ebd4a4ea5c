"""The instruments beside slow, obvious versions of themselves: the same net written with torch.nn.functional, one run at a time, differentiated by autograd."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_recurrent import slowly
from torch import Tensor
from torch.nn import functional as F
from training_jobs import FROZEN, Outcome, inline, run, sgd, spec

from regtrain.contract.job import parse
from regtrain.contract.series import BINS
from worker.training import datasets
from worker.training.probes import histogram

DRAW = np.random.default_rng(3)
X, Y = DRAW.standard_normal((40, 18)), DRAW.integers(0, 3, 40)
PHI: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "leaky_relu": F.leaky_relu, "elu": F.elu, "selu": F.selu, "gelu": F.gelu, "silu": F.silu,
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "softsign": F.softsign,
}  # fmt: skip
Weights = dict[str, Tensor]


def mlp(activation: str = "tanh", **more: Any) -> dict[str, Any]:
    return {"kind": "mlp", "hidden": [9, 7], "activation": activation, "init": {"kind": "normal", "std": 0.8}, **more}


def trained(model: dict[str, Any], *regularizers: dict[str, Any], rows: Any = None, loss: str = "cross_entropy", optimizer: Any = None, **rest: Any) -> Outcome:
    rest = {"diagnostics": "full", "selection": {"seeds": 3}, **rest}
    return run(spec(rows or inline(X, Y), model, loss, optimizer or sgd(0.05), *regularizers, **rest))


def at(found: Outcome, r: int) -> Weights:
    """The weights of one run."""
    return {name: w[r] for name, w in found.weights.items() if "running" not in name}


def hidden(w: Weights, x: Tensor, phi: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The activations of every hidden layer, (B, units) each."""
    found = [x]
    while f"layers.{len(found) - 1}.weight" in w:
        name = f"layers.{len(found) - 1}"
        found.append(phi(found[-1] @ w[f"{name}.weight"].T + w[f"{name}.bias"]))
    return found[1:]


def loss_of(w: Weights, x: Tensor, y: Tensor, phi: Callable[[Tensor], Tensor] = torch.tanh) -> Tensor:
    last = hidden(w, x, phi)
    return F.cross_entropy((last[-1] if last else x) @ w["head.weight"].T + w["head.bias"], y)


def derivatives(w: Weights, x: Tensor, y: Tensor, *, loss: Callable[..., Tensor] = loss_of) -> tuple[Tensor, Tensor]:
    """Gradient (P,) and Hessian (P, P) of the mean loss over these rows, with all tensors in a row."""
    names, sizes = list(w), [t.numel() for t in w.values()]

    def flat(point: Tensor) -> Tensor:
        return loss({name: part.view(w[name].shape) for name, part in zip(names, point.split(sizes), strict=True)}, x, y)

    point = in_a_row(w)
    return torch.autograd.functional.jacobian(flat, point), torch.autograd.functional.hessian(flat, point)  # pyright: ignore[reportReturnType]


def in_a_row(w: Weights) -> Tensor:
    return torch.cat([t.flatten() for t in w.values()])


# ---------------------------------------------------------------- activations


def shares(kind: str, a: Tensor, units: Tensor, slope: Tensor) -> dict[str, float]:
    """What one layer's activations (B, …) say. units: the same as (unit, rows and pixels); slope: |φ′| over its maximum."""
    if kind in ("tanh", "sigmoid", "softsign"):
        return {"activation/saturated": float((slope < 0.01).double().mean())}
    return {"activation/firing": float((a > 0).double().mean()), **({"activation/dead": float((units == 0).all(1).double().mean())} if kind == "relu" else {})}


def slope_of(kind: str, z: Tensor) -> Tensor:
    """φ′(z) over φ′(0), which is its maximum, by autograd."""
    z = z.detach().requires_grad_()
    slope = torch.autograd.grad(PHI[kind](z).sum(), z)[0]
    zero = torch.zeros((), dtype=z.dtype, requires_grad=True)
    return slope.abs() / torch.autograd.grad(PHI[kind](zero), zero)[0]


@pytest.mark.parametrize("kind", PHI)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_activations_of_dense_layers(kind, accumulate):
    found = trained(mlp(kind, init={"kind": "torch", "scale": 20.0}), optimizer=sgd(FROZEN), accumulate=accumulate)
    told: set[float] = set()
    for r in range(3):
        w, x = at(found, r), torch.tensor(X)
        for place in range(2):
            name = f"layers.{place}"
            z = x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
            x = PHI[kind](z)
            for series, share in shares(kind, x, x.T, slope_of(kind, z)).items():
                assert found.curve(series, r)[0, place] == share
                told.add(share)
        assert all(found.curve(series, r)[0, 2] == 0 for series in shares(kind, x, x.T, x))
    assert len(told) > 2


def test_activations_behind_batch_norm_and_in_front_of_pooling_and_dropout():
    """A channel is a unit: dead if it is 0 on every row and pixel."""
    model = {"kind": "cnn", "channels": [5], "image": [2, 3, 3], "pool": "max", "activation": "relu", "normalization": {"kind": "batch", "eps": 0.1}}
    found = trained(model, {"kind": "dropout", "rate": 0.4}, optimizer=sgd(FROZEN))
    for r in range(3):
        w = at(found, r)
        z = F.conv2d(torch.tensor(X).view(-1, 2, 3, 3), w["layers.0.weight"], w["layers.0.bias"], padding=1)
        a = F.relu(F.batch_norm(z, None, None, training=True, eps=0.1))
        assert found.curve("activation/firing", r)[0, 0] == float((a > 0).double().mean())
        assert found.curve("activation/dead", r)[0, 0] == 0.0


def test_dead_units_and_dead_channels():
    """A constant input of −1 in front of positive weights: every unit that has no negative weight is dead."""
    found = trained(mlp("relu", init={"kind": "uniform", "bound": 1.0}), rows=inline(-np.ones((40, 2)), Y), optimizer=sgd(FROZEN))
    image = {"kind": "cnn", "channels": [6], "image": [2, 3, 3], "kernel": 1, "pool": "none", "activation": "relu", "init": {"kind": "normal"}}
    pixels = trained(image, rows=inline(-np.ones((40, 18)), Y), optimizer=sgd(FROZEN))
    assert [found.curve("activation/dead", r)[0, 0] for r in range(3)] == [float((found.weights["layers.0.weight"][r].sum(1) >= 0).double().mean()) for r in range(3)]
    assert [pixels.curve("activation/dead", r)[0, 0] for r in range(3)] == [float((pixels.weights["layers.0.weight"][r].flatten(1).sum(1) >= 0).double().mean()) for r in range(3)]
    assert 0 < sum(pixels.curve("activation/dead", r)[0, 0] for r in range(3)) < 3


def test_series_that_mean_nothing_are_not_recorded():
    for kind, there in (("relu", {"dead", "firing"}), ("gelu", {"firing"}), ("tanh", {"saturated"}), ("softplus", set()), ("identity", set())):
        found = trained(mlp(kind))
        there = there | ({"silent"} if kind == "relu" else set())
        assert ("histogram/firing" in found.curves) is ("histogram/firing" in found.started.series) is ("firing" in there)
        assert {name.removeprefix("activation/") for name in found.curves if name.startswith("activation/")} == there
        assert {name.removeprefix("activation/") for name in found.started.series if name.startswith("activation/")} == there


# ---------------------------------------------------------------- probes

LONG = 256
"""Updates after which the probes look again."""


def looked(**rest: Any) -> tuple[Outcome, Outcome]:
    """The same job just before the update behind which the probes look, and just after."""
    return tuple(trained(mlp(), rows=inline(X, Y, validation=0.25), epochs=epochs, **rest) for epochs in (LONG - 1, LONG))  # pyright: ignore[reportReturnType]


@pytest.fixture(scope="module")
def pair() -> tuple[Outcome, Outcome]:
    return looked(batch_size="all")


def parts_of(*, val: bool = False) -> tuple[Tensor, Tensor]:
    """The training (or held-out) rows of `pair`, in the order of its split."""
    job = parse(json.dumps(spec(inline(X, Y, validation=0.25), mlp(), "cross_entropy", sgd(0.05))))
    split = datasets.split(job.dataset, datasets.load(job.dataset, data=Path(), upload=None, classify=True), seed=job.seed)
    which = split.val if val else split.train
    return torch.tensor(X[which]), torch.tensor(Y[which])


def test_probes_look_at_the_start_behind_every_multiple_and_at_the_end(pair):
    _, after = pair
    assert after.curves["curvature/sharpness"][0][0].tolist() == [0, LONG]
    assert after.curves["decrease/actual"][0][0].tolist() == [LONG]
    uneven = trained(mlp(), batch_size=7, epochs=100)  # 6 updates an epoch: the first evaluation behind 256 is at 258, behind 512 at 516
    assert uneven.curves["curvature/sharpness"][0][0].tolist() == [0, 258, 516, 600]


def test_sharpness_is_the_largest_eigenvalue(pair):
    """Of the dense Hessian, after training. Ten products in a space of 265 dimensions do not reach it to all digits, and never exceed it."""
    _, after = pair
    x, y = parts_of()
    for r in range(3):
        x_probe, y_probe = x[torch.arange(24) * len(x) // 24], y[torch.arange(24) * len(x) // 24]
        assert len(x) == 30
        largest = torch.linalg.eigvalsh(derivatives(at(after, r), x_probe, y_probe)[1])[-1].item()
        found = after.curve("curvature/sharpness", r)[-1]
        assert largest * (1 - 0.01) < found < largest * (1 + 1e-9)


def test_sharpness_of_a_quadratic_is_exact():
    """Curvatures 4, 1 and 1/16: three products span the whole space. Zero weights on zero targets have no gradient to start from, and it is found all the same."""
    columns = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1]]).T * np.array([2.0, 1.0, 0.25])
    for init in ({"kind": "normal", "std": 1.0}, {"kind": "zeros"}):
        found = run(spec(inline(columns, np.zeros(4)), {"kind": "linear", "bias": False, "init": init}, "half_squared_error", sgd(0.1), diagnostics="full"))
        assert found.curve("curvature/sharpness")[0] == pytest.approx(4.0, rel=1e-12)


@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_curvature_of_recurrent_nets(cell):
    """By differences of gradients: the same numbers as from autograd's second derivative of the net written step by step."""
    x, y = torch.tensor(X), torch.tensor(Y)
    model = {"kind": "rnn", "cell": cell, "hidden": [3, 2], "sequence": [9, 2]}

    def loss(w: Weights, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(slowly(cell, x, {name: t if t.requires_grad else t.clone().requires_grad_() for name, t in w.items()}, {}), y)

    before, after = (trained(model, epochs=epochs, optimizer=sgd(0.3), selection={"seeds": 1}) for epochs in (2, 3))
    old, new = at(before, 0), at(after, 0)
    largest = torch.linalg.eigvalsh(derivatives(new, x, y, loss=loss)[1])[-1].item()
    gradient, hessian = derivatives(old, x, y, loss=loss)
    moved = in_a_row(new) - in_a_row(old)
    assert after.curve("curvature/sharpness")[-1] == pytest.approx(largest, rel=0.01)
    assert after.curve("decrease/quadratic")[-1] == pytest.approx((-(gradient @ moved) - moved @ hessian @ moved / 2).item(), rel=1e-6)
    assert after.curve("decrease/actual")[-1] == pytest.approx((loss(old, x, y) - loss(new, x, y)).item(), rel=1e-9)


def test_noise_scale_from_gradients_row_by_row(pair):
    """The variance between the means of micro-batches of 3 rows, times 3, is that of one row; the mean gradient's square has a 24th of it too much."""
    _, after = pair
    x, y = parts_of()
    places = torch.arange(24) * len(x) // 24
    for r in range(3):
        w = at(after, r)
        singles = torch.stack([derivatives(w, x[i : i + 1], y[i : i + 1])[0] for i in places])
        means = singles.view(8, 3, -1).mean(1)
        trace = 3 * means.var(0, correction=1).sum().item()
        squared = means.mean(0).square().sum().item() - trace / 24
        assert after.curve("noise/trace", r)[-1] == pytest.approx(trace, rel=1e-9)
        assert after.curve("noise/gradient", r)[-1] == pytest.approx(squared, rel=1e-9)
        assert after.curve("noise/scale", r)[-1] == (pytest.approx(trace / squared, rel=1e-9) if squared > 0 else math.inf)


def test_noise_scale_of_known_rows():
    """Linear model at 0, half squared error, x = 1: a row's gradient is −y. With y = 1 ± 2 the variance is 4·n/(n − 1) and the gradient 1."""
    rows, signs = 256, np.tile([1.0, -1.0, -1.0, 1.0, 1.0, 1.0, -1.0, -1.0], 32)
    found = run(spec(inline(np.ones((rows, 1)), 1 + 2 * signs), {"kind": "linear", "bias": False, "init": {"kind": "zeros"}}, "half_squared_error", sgd(0.1), diagnostics="full"))
    assert found.curve("noise/trace")[0] == pytest.approx(0.0, abs=1e-12)  # micro-batches of 32 rows have all the same mean
    assert found.curve("noise/gradient")[0] == pytest.approx(1.0, rel=1e-12)


def test_validation_cosine(pair):
    _, after = pair
    x, y = parts_of()
    x_val, y_val = parts_of(val=True)
    places, val_places = torch.arange(24) * len(x) // 24, torch.arange(8) * len(x_val) // 8
    for r in range(3):
        g, v = derivatives(at(after, r), x[places], y[places])[0], derivatives(at(after, r), x_val[val_places], y_val[val_places])[0]
        assert after.curve("gradient/validation_cosine", r)[-1] == pytest.approx(F.cosine_similarity(g, v, dim=0).item(), rel=1e-9)
    assert "gradient/validation_cosine" not in trained(mlp()).curves


def test_decrease_of_the_loss(pair):
    """Of the batch of the last update, at the weights before and after it; the quadratic is closer by an order of the step."""
    before, after = pair
    x, y = parts_of()
    for r in range(3):
        old, new = at(before, r), at(after, r)
        gradient, hessian = derivatives(old, x, y)
        moved = in_a_row(new) - in_a_row(old)
        actual = (loss_of(old, x, y) - loss_of(new, x, y)).item()
        assert after.curve("decrease/actual", r)[-1] == pytest.approx(actual, rel=1e-9)
        assert after.curve("decrease/expected", r)[-1] == pytest.approx(-(gradient @ moved).item(), rel=1e-9)
        assert after.curve("decrease/quadratic", r)[-1] == pytest.approx((-(gradient @ moved) - moved @ hessian @ moved / 2).item(), rel=1e-9)
        assert abs(after.curve("decrease/quadratic", r)[-1] - actual) < 0.1 * abs(after.curve("decrease/expected", r)[-1] - actual)


def test_successive_gradients_of_a_quadratic_go_one_way_or_to_and_fro():
    """Gradient descent with rate η on L = (w − 1)²/2 multiplies the gradient by 1 − η at every step; at the minimum there is none."""
    for lr, cosine in ((0.01, 1.0), (1.99, -1.0), (1.0, 0.0)):
        found = run(spec(inline([[1.0]], [1.0]), {"kind": "linear", "bias": False}, "half_squared_error", sgd(lr), diagnostics="full", epochs=300))
        steps, values = found.curves["gradient/successive_cosine"][0]
        assert (steps.tolist(), values.tolist()) == ([256], [[pytest.approx(cosine, abs=1e-12)]])


def test_successive_gradients_by_layer():
    """On the whole batch, by autograd at the weights after 255 and after 256 updates."""
    found = trained(mlp(), optimizer=sgd(0.2, 0.99), epochs=260)
    before, after = (trained(mlp(), optimizer=sgd(0.2, 0.99), epochs=epochs) for epochs in (255, 256))
    x, y = torch.tensor(X), torch.tensor(Y)
    for r in range(3):
        one, other = (derivatives(at(w, r), x, y)[0] for w in (before, after))
        sizes = [t.numel() for t in at(after, r).values()]
        parts = dict(zip(at(after, r), zip(one.split(sizes), other.split(sizes), strict=True), strict=True))
        expected = [F.cosine_similarity(*parts[name], dim=0).item() for name in ("layers.0.weight", "layers.1.weight", "head.weight")]
        assert found.curve("gradient/successive_cosine", r)[0].tolist() == pytest.approx(expected, rel=1e-9)
    assert found.curve("gradient/successive_cosine", 2)[0].min() < 0


@pytest.mark.parametrize("optimizer", [{"kind": "adam", "lr": 0.01}, {"kind": "lbfgs"}, sgd(0.05, 0.9, nesterov=True)], ids=lambda o: o["kind"])
def test_decrease_of_every_optimizer(optimizer):
    """The loss before and after the last update is on the curve of the loss too."""
    found = trained(mlp("sigmoid"), {"kind": "l2", "lambda": 0.3}, optimizer=optimizer, epochs=LONG + 1)
    for r in range(3):
        loss = found.curve("loss/train", r)
        assert found.curve("decrease/actual", r)[0] == pytest.approx(loss[LONG - 1] - loss[LONG], abs=1e-12)


def test_decrease_sees_the_dropout_and_the_batch_of_its_update():
    """With lr frozen nothing is gained; with dropout the loss before the update is that of the same mask."""
    model = mlp(normalization={"kind": "batch"})
    found = trained(model, {"kind": "dropout", "rate": 0.3}, epochs=LONG)
    for r in range(3):
        expected, quadratic, actual = (found.curve(f"decrease/{name}", r)[0] for name in ("expected", "quadratic", "actual"))
        assert abs(quadratic - actual) < 0.1 * abs(expected - actual)
        assert abs(expected - actual) < 0.5 * abs(actual)


def counted(numbers: Tensor) -> list[int]:
    """A histogram, one number at a time, by the words of its bins."""
    found = dict.fromkeys(BINS, 0)
    for x in numbers.flatten().tolist():
        power = 0 if x == 0 or not math.isfinite(x) else min(8, max(-40, math.floor(math.log2(abs(x)))))
        found["nonfinite" if not math.isfinite(x) else "0" if x == 0 else f"{'-' if x < 0 else ''}2^{power}"] += 1
    return list(found.values())


def test_histograms(pair):
    before, after = pair
    x, y = parts_of()
    places = torch.arange(24) * len(x) // 24
    for r in range(3):
        old, new = at(before, r), at(after, r)
        leaves = {name: w.clone().requires_grad_() for name, w in new.items()}
        slopes = dict(zip(leaves, torch.autograd.grad(loss_of(leaves, x[places], y[places]), list(leaves.values())), strict=True))
        for place, name in enumerate(f"{layer}.weight" for layer in after.started.layers):
            for series, numbers in (("weight", new[name]), ("gradient", slopes[name]), ("update", new[name] - old[name])):
                own = after.curve(f"histogram/{series}", r)[-1].reshape(3, len(BINS))[place]
                assert own.tolist() == counted(numbers)


def test_bins_of_edge_numbers():
    """Powers of two begin their bin; zeros, subnormals, giants and what is not finite have their place."""
    tiny = 2.0**-1074
    numbers = torch.tensor([[0.0, -0.0, 1.0, 1.9999, 2.0, -1.0, -8.0, tiny, -tiny, 1e300, -1e300, math.nan, math.inf, -math.inf, 2.0**-40, 511.9]], dtype=torch.float64)
    assert histogram(numbers)[0].tolist() == counted(numbers)


# ---------------------------------------------------------------- what they must not do

STRANGE = [
    (mlp("relu", normalization={"kind": "batch"}), [{"kind": "dropout", "rate": 0.3}, {"kind": "l1", "lambda": 0.01}]),
    ({"kind": "cnn", "channels": [4], "image": [2, 3, 3], "activation": "tanh", "hidden": [5]}, [{"kind": "dropout", "on": "inputs", "rate": 0.2}]),
]


@pytest.mark.parametrize(("model", "regularizers"), STRANGE, ids=["mlp", "cnn"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_weight_changes_by_a_bit(model, regularizers, dtype):
    seen, blind = (trained(model, *regularizers, rows=inline(X, Y, validation=0.25), batch_size=8, epochs=LONG // 3, dtype=dtype, diagnostics=preset) for preset in ("full", "off"))
    assert "histogram/update" in seen.curves
    assert all(torch.equal(seen.weights[name], blind.weights[name]) for name in blind.weights)


@pytest.mark.parametrize(("model", "regularizers"), STRANGE, ids=["mlp", "cnn"])
def test_a_run_alone_reads_what_it_reads_in_a_pack(model, regularizers):
    how = {"rows": inline(X, Y, validation=0.25), "batch_size": 8, "epochs": LONG // 3}
    together = trained(model, *regularizers, optimizer=sgd({"values": [0.01, 0.05]}), selection={}, **how)
    for r, lr in enumerate((0.01, 0.05)):
        alone = trained(model, *regularizers, optimizer=sgd(lr), selection={}, **how)
        for series in alone.curves.keys() - {"identity/excess"}:  # rounding itself, in units of rounding
            np.testing.assert_allclose(together.curve(series, r), alone.curve(series), rtol=1e-8, atol=1e-13, err_msg=series)


def test_the_generators_of_the_process_are_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trained(mlp(), {"kind": "dropout", "rate": 0.3}, epochs=LONG)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_that_diverges_leaves_the_others_their_numbers():
    """Non-finite weights have a non-finite sharpness and fill the last bin; its neighbour in the pack reads what it reads alone."""
    how = {"rows": inline(X, Y), "epochs": LONG, "selection": {}, "on_nonfinite": "skip_step", "loss": "squared_error"}
    model = mlp("relu")
    both = trained(model, optimizer=sgd({"values": [0.001, 1e200]}), **how)
    alone = trained(model, optimizer=sgd(0.001), **how)
    assert both.curve("curvature/sharpness", 0)[-1] == pytest.approx(alone.curve("curvature/sharpness")[-1], rel=1e-6)
    assert not np.isfinite(both.curve("curvature/sharpness", 1)[-1])
