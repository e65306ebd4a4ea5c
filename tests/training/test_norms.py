"""Norms beside numpy's in float64, whatever rows stand beside a row; and curves that do not tell how many updates were reduced together."""

from typing import Any

import numpy as np
import pytest
import torch
from training_jobs import inline, run, sgd, spec

from worker.training import diagnostics, norms, pack

DRAW = np.random.default_rng(7)
SIZES = [1, 2, 31, 193, 4096, 4097, 20_000]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
def test_norms_of_every_length_and_scale(dtype, size):
    """Squares of 1e-30 underflow in float32, squares of 1e30 overflow; a row of zeros is 0."""
    rows = DRAW.standard_normal((8, size)).astype(dtype) * np.array([[1, 1e-30, 1e30, 0, 1e-12, 1e-44, 1e15, 1e18]], dtype).T
    exact = np.array([np.linalg.norm(row.astype(np.longdouble)) for row in rows], np.float64)
    np.testing.assert_allclose(norms.norm(torch.tensor(rows)).numpy(), exact, rtol=2e-7 if dtype == np.float32 else 1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
def test_a_row_says_the_same_bits_in_any_company(dtype, size):
    """Alone, among others, and in columns of a wider matrix that begin at odd addresses."""
    rows = DRAW.standard_normal((70, size)).astype(dtype)
    rows[::7] *= 1e-25
    wide = np.zeros((70, size + 5), dtype)
    wide[:, 3 : 3 + size] = rows
    together = norms.squares([rows, wide[:, 3 : 3 + size]])
    alone = np.concatenate([norms.squares([row[None].copy()]) for row in rows])
    assert np.array_equal(together, np.concatenate([alone, alone], 1))
    in_pairs = [norms.products([a[None]], [b[None]]) for a, b in zip(rows, rows[::-1], strict=True)]
    assert np.array_equal(norms.products([rows], [rows[::-1]]), np.concatenate(in_pairs))


def test_what_is_not_finite_stays_so():
    for dtype in (torch.float32, torch.float64):
        found = norms.norm(torch.tensor([[1.0, np.nan], [np.inf, 1.0], [3.0, 4.0]], dtype=dtype))
        assert torch.isnan(found[0])
        assert torch.isinf(found[1])
        assert found[2] == 5


X, Y = DRAW.standard_normal((40, 18)), DRAW.integers(0, 3, 40)
MLP = {"kind": "mlp", "hidden": [9, 7], "activation": "relu", "init": {"kind": "normal", "std": 0.8}}
CNN = {"kind": "cnn", "channels": [4, 3], "image": [2, 3, 3], "activation": "tanh", "hidden": [5], "normalization": {"kind": "batch"}}
RNN = {"kind": "rnn", "cell": "tanh", "hidden": [4], "sequence": [9, 2]}
PENALTIES = [{"kind": "l2", "lambda": 0.05}, {"kind": "l1", "lambda": 0.001}]
JOBS: dict[str, dict[str, Any]] = {
    "mlp": spec(inline(X, Y), MLP, "cross_entropy", sgd(0.1, 0.5), *PENALTIES, {"kind": "dropout", "rate": 0.3}, batch_size=7, clip={"kind": "value", "max": 0.01}),
    "cnn": spec(inline(X, Y), CNN, "cross_entropy", {"kind": "adam", "lr": 0.01}, *PENALTIES, batch_size=8, accumulate=3),
    "rnn": spec(inline(X, Y), RNN, "cross_entropy", sgd(0.1), batch_size=16),
    "proximal": spec(inline(X, Y), MLP, "cross_entropy", {"kind": "proximal"}, PENALTIES[1]),
    "lbfgs": spec(inline(X, Y), MLP, "cross_entropy", {"kind": "lbfgs"}, PENALTIES[0]),
    "skipped": spec(inline(X, Y), MLP, "squared_error", sgd({"values": [0.001, 1e200, 1e30]}), batch_size=7, on_nonfinite="skip_step"),
}


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_curves_do_not_tell_how_many_updates_were_reduced_together(name, dtype, monkeypatch):
    job = {**JOBS[name], "dtype": dtype, "diagnostics": "full", "budget": {**JOBS[name]["budget"], "epochs": 6}}
    if name != "skipped":
        job["selection"] = {"seeds": 3}
    many = run(job)
    for together in (1, 3):
        monkeypatch.setattr(pack, "TOGETHER", together)
        few = run(job)
        assert few.curves.keys() == many.curves.keys()
        for series in many.curves:
            for r in many.runs:
                assert few.curve(series, r).tobytes() == many.curve(series, r).tobytes(), (series, together)
        assert all(few.weights[tensor].numpy().tobytes() == w.numpy().tobytes() for tensor, w in many.weights.items())


def test_tensors_that_are_too_large_to_wait_say_the_same(monkeypatch):
    job = spec(inline(X, Y), MLP, "cross_entropy", sgd(0.1), *PENALTIES, batch_size=8, epochs=3, dtype="float32")
    waited = run(job)
    monkeypatch.setattr(pack, "LARGE", 0)
    at_once = run(job)
    assert all(at_once.curve(series).tobytes() == waited.curve(series).tobytes() for series in waited.curves)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_tensors_are_reduced_to_what_arrays_are(name, monkeypatch):
    """What a GPU does, on the CPU: in float64, by torch."""
    job = {**JOBS[name], "diagnostics": "full"}
    arrays = run(job)
    for module in (diagnostics, norms):
        monkeypatch.setattr(module, "array", lambda x: x)
    tensors = run(job)
    assert tensors.curves.keys() == arrays.curves.keys()
    for series in arrays.curves.keys() - {"identity/excess"}:  # rounding itself, in units of rounding
        np.testing.assert_allclose(tensors.curve(series), arrays.curve(series), rtol=1e-9, atol=1e-13, err_msg=series)
