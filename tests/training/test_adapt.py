"""Strengths that adapt: exact where there is a closed form, against scikit-learn and refits elsewhere, the same alone, in company and resumed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import BayesianRidge, LogisticRegression
from training_jobs import events, inline, outcome, run, sgd, spec

from regtrain.contract.events import Checkpointed, Event, Points
from regtrain.contract.job import parse
from worker.training import points, running
from worker.training.followed import ImplicitGradient, LaplaceEvidence, decomposed, followed
from worker.training.prepare import prepare
from worker.training.running import pack_of
from worker.training.train import train

FLAT = dict.fromkeys(("alpha_1", "alpha_2", "lambda_1", "lambda_2"), 0.0)
LINEAR = {"kind": "linear"}
FISTA = {"kind": "proximal"}
SCALED = {"kind": "diabetes", "standardize": True}
HOLD_OUT = {"kind": "diabetes", "validation": 142 / 442, "split": "last"}
"""The first 300 rows against the last 142, in columns as they are."""


def adaptive(method: str, start: Any, **rest: Any) -> dict[str, Any]:
    return {"kind": "l2", "lambda": {"adapt": method, "start": start}, **rest}


def pack_for(job: dict[str, Any]):
    made = prepare(parse(json.dumps(job)), device="cpu", data=Path(), upload=None, scratch=None)
    return made, pack_of(made, made.runs)


# ---------------------------------------------------------------- evidence


@pytest.mark.parametrize(("loss", "per_alpha"), [("half_squared_error", 1 / 442), ("squared_error", 2 / 442)])
@pytest.mark.parametrize("bias", [True, False])
def test_evidence_of_a_ridge_is_bayesian_ridge(loss, per_alpha, bias):
    """With flat hyperpriors, to 1e-6 after 18 epochs from anywhere; the weights follow."""
    x, y = load_diabetes(return_X_y=True)
    theirs = BayesianRidge(tol=1e-12, max_iter=1000, fit_intercept=bias, **FLAT).fit((x - x.mean(0)) / x.std(0), y)
    job = spec(SCALED, {"kind": "linear", "bias": bias}, loss, FISTA, adaptive("evidence", [1e-4, 1.0, 100.0]), epochs=18, diagnostics="off")
    found = run(job)
    for ended in found.runs.values():
        of = ended.adaptation
        assert of is not None
        assert of["strength"] == pytest.approx(theirs.lambda_ / theirs.alpha_ * per_alpha, rel=1e-6)
        assert of["strength"] == ended.metrics["strength/l2"]
        assert (of["verdict"], of["iterations"], of["path"], of["method"]) == ("settled", 18, "regularizers.0.lambda", "evidence")
        assert abs(of["gradient"]) < 1e-6
        assert of["finite_difference"] == pytest.approx(of["gradient"], abs=1e-7)
    longer = run({**job, "budget": {"epochs": 300, "batch_size": "all"}})
    for ended in longer.runs.values():
        assert ended.coefficients is not None
        np.testing.assert_allclose(ended.coefficients["trained"]["weights"], theirs.coef_, rtol=1e-6)
        assert ended.certificate is not None
        assert ended.certificate["closed_form_distance"] < 1e-8  # of the ridge with the strength that it has come to


def test_the_reference_value_of_diabetes_is_reached_in_10_to_18_epochs():
    found = run(spec({"kind": "diabetes"}, LINEAR, "half_squared_error", sgd(0.1), adaptive("evidence", [1e-4, 1.0, 9.0]), epochs=18))
    for r in range(3):
        far = np.abs(found.curve("strength/l2", r) * 442 / 0.03361184070580649 - 1)
        assert far[10] < 1e-6
        assert far[18] < 1e-12


def test_the_curve_begins_at_the_start_and_follows_macKays_iteration_written_out():
    x, y = load_diabetes(return_X_y=True)
    x, y = x - x.mean(0), y - y.mean()
    found = run(spec({"kind": "diabetes"}, LINEAR, "half_squared_error", sgd(0.1), adaptive("evidence", 0.5), epochs=4, batch_size=100))
    steps, values = found.curves["strength/l2"][0]
    assert steps.tolist() == [0, 5, 10, 15, 20]
    alpha = 0.5 * 442
    for value in values:
        assert value * 442 == pytest.approx(alpha, rel=1e-9)
        w = np.linalg.solve(x.T @ x + alpha * np.eye(10), x.T @ y)
        gamma = 10 - alpha * np.trace(np.linalg.inv(x.T @ x + alpha * np.eye(10)))
        alpha = (gamma / (w @ w)) / ((442 - gamma) / ((y - x @ w) @ (y - x @ w)))


def test_laplace_of_a_ridge_with_orthogonal_columns_is_exact():
    """There the diagonal is the whole matrix. At the minimum the next strength and the slope are those of the closed form."""
    x = np.linalg.qr(np.random.default_rng(0).standard_normal((60, 4)) - 0.0)[0] * [1.0, 2.0, 3.0, 4.0]
    y = x @ [1.0, -1.0, 0.5, 2.0] + 0.3 * np.random.default_rng(1).standard_normal(60)
    for loss in ("half_squared_error", "squared_error"):
        job, pack = pack_for(spec(inline(x, y), {"kind": "linear", "bias": False}, loss, sgd(0.1), adaptive("evidence", [0.001, 0.1])))
        exact, near = (followed(job, pack, pack.penalties[0], of) for of in (decomposed(job, pack), None))
        assert isinstance(near, LaplaceEvidence)
        log = pack.penalties[0].lam.squeeze(1).log()
        pack.flat.copy_(exact.of.weights((log + exact.shift).exp()))
        ours, theirs = near.look(log, list), exact.look(log, list)  # neither makes another pack
        torch.testing.assert_close(ours.slope, theirs.slope, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.difference, ours.slope, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(ours.held, theirs.held)
        for _ in range(100):  # both have the same fixed point
            log = near.following(log)
            pack.flat.copy_(exact.of.weights((log + exact.shift).exp()))
            pack.penalties[0].lam.copy_(log.exp().unsqueeze(1))
        torch.testing.assert_close(exact.following(log), log, rtol=0, atol=1e-7)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary"])
def test_laplace_of_a_logistic_regression_is_mackays_update_with_its_hessian(loss):
    """α ← Σ h/(h + α)/‖w‖² with h the diagonal of the summed loss's second derivative, by autograd."""
    from torch.autograd.functional import hessian
    from torch.nn import functional as F

    draw = np.random.default_rng(2)
    x, labels = draw.standard_normal((40, 3)), (draw.random(40) < 0.5).astype(float)
    job, pack = pack_for(spec(inline(x, labels), LINEAR, loss, sgd(0.1), adaptive("evidence", 0.05)))
    pack.flat.copy_(torch.from_numpy(draw.standard_normal(pack.flat.shape)))
    outputs, y = (2, job.train.y) if loss == "cross_entropy" else (1, job.train.y)

    def summed(flat):
        f = job.train.x @ flat[: 3 * outputs].view(outputs, 3).T + flat[3 * outputs :]
        return F.cross_entropy(f, y, reduction="sum") if outputs == 2 else F.softplus(-y * f[:, 0]).sum()

    h, w = hessian(summed, pack.flat[0]).diagonal()[: 3 * outputs], pack.flat[0, : 3 * outputs]
    want = float((h / (h + 40 * 0.05)).sum() / (w @ w)) / 40
    rule = followed(job, pack, pack.penalties[0], None)
    assert isinstance(rule, LaplaceEvidence)
    log = torch.tensor([0.05], dtype=torch.float64).log()
    assert float(rule.following(log).exp()) == pytest.approx(want, rel=1e-9)
    look = rule.look(log, lambda runs: pack_of(job, runs))
    assert float(look.difference) == pytest.approx(float(look.slope), rel=1e-7)


@pytest.mark.parametrize("model", [{"kind": "mlp", "hidden": [8], "activation": "tanh"}, LINEAR])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_evidence_settles_in_nets_and_is_larger_where_there_is_more_noise(model, dtype):
    draw = np.random.default_rng(3)
    x = draw.standard_normal((120, 5))
    strengths = []
    for noise in (0.5, 3.0):
        y = (x[:, 0] + noise * draw.standard_normal(120) > 0).astype(float)
        found = run(spec(inline(x, y), model, "cross_entropy", {"kind": "adam", "lr": 0.02}, adaptive("evidence", 0.01), epochs=400, dtype=dtype, diagnostics="off"))
        of = found.runs[0].adaptation
        assert of is not None
        assert of["verdict"] == "settled", of
        assert of["finite_difference"] == pytest.approx(of["gradient"], rel=1e-4, abs=1e-4)
        strengths.append(of["strength"])
    assert strengths[1] > 1.5 * strengths[0]


def test_targets_without_a_signal_run_away_to_infinity_and_are_held_at_one_over_the_learning_rate():
    draw = np.random.default_rng(4)
    x = draw.standard_normal((50, 3))
    noise = np.linalg.qr(np.column_stack([np.ones(50), x, draw.standard_normal(50)]))[0][:, -1]
    found = run(spec(inline(x, noise + 1e-3 * x[:, 0]), LINEAR, "half_squared_error", sgd(0.1), adaptive("evidence", 0.1), epochs=100))
    of = found.runs[0].adaptation
    assert of is not None
    assert of["verdict"] == "ran away to infinity"
    assert of["strength"] == pytest.approx(10, rel=1e-9)
    assert "no signal" in of["in_words"]
    free = run(spec(inline(x, noise + 1e-3 * x[:, 0]), LINEAR, "half_squared_error", FISTA, adaptive("evidence", 0.1), epochs=100))
    assert free.runs[0].adaptation is not None
    assert free.runs[0].adaptation["strength"] > 100


def test_targets_without_noise_run_away_to_zero():
    x = np.random.default_rng(5).standard_normal((50, 3))
    found = run(spec(inline(x, x @ [1.0, 2.0, 3.0]), LINEAR, "half_squared_error", FISTA, adaptive("evidence", 0.1), epochs=5))
    of = found.runs[0].adaptation
    assert of is not None
    assert of["verdict"] == "ran away to 0"


# ---------------------------------------------------------------- validation gradient


@pytest.mark.parametrize(("loss", "per_alpha"), [("half_squared_error", 1 / 300), ("squared_error", 2 / 300)])
def test_the_hold_out_of_diabetes_from_three_starts(loss, per_alpha):
    """In scikit-learn's alpha: 0.1351470503 from 1 and 30; from 0.001, below the maximum at 0.01145, it runs away to 0, to where the same Adam goes in numpy."""
    starts = [alpha * per_alpha for alpha in (1.0, 30.0, 0.001)]
    found = run(spec(HOLD_OUT, LINEAR, loss, sgd(0.1), adaptive("validation_gradient", starts), epochs=1000, diagnostics="off"))
    ends = [found.runs[r].adaptation for r in range(3)]
    assert all(of is not None for of in ends)
    assert [of["verdict"] for of in ends if of] == ["settled", "settled", "ran away to 0"]
    for of, want in zip(ends, (0.13514705030122098, 0.13514705031222587, 2.1297475199106674e-06), strict=True):
        assert of is not None
        assert of["strength"] / per_alpha == pytest.approx(want, rel=1e-6)
        assert of["finite_difference"] == pytest.approx(of["gradient"], rel=1e-6, abs=1e-8)
    assert "start larger" in (ends[2] or {})["in_words"]


def test_the_basin_ends_at_the_maximum():
    found = run(spec(HOLD_OUT, LINEAR, "half_squared_error", sgd(0.1), adaptive("validation_gradient", [0.0114 / 300, 0.0115 / 300]), epochs=1000, diagnostics="off"))
    below, above = (found.runs[r].adaptation for r in range(2))
    assert below is not None
    assert above is not None
    assert below["strength"] * 300 < 0.01
    assert above["strength"] * 300 == pytest.approx(0.1351470503, rel=1e-3)


def test_few_epochs_have_not_settled_and_say_so():
    found = run(spec(HOLD_OUT, LINEAR, "half_squared_error", sgd(0.1), adaptive("validation_gradient", 0.1), epochs=5))
    of = found.runs[0].adaptation
    assert of is not None
    assert of["verdict"] == "not settled"
    assert "more epochs" in of["in_words"]


def test_conjugate_gradients_find_the_closed_form_at_its_weights():
    job, pack = pack_for(spec({**HOLD_OUT, "standardize": True}, LINEAR, "squared_error", sgd(0.1), adaptive("validation_gradient", [0.001, 0.1, 10.0])))
    exact = followed(job, pack, pack.penalties[0], decomposed(job, pack))
    near = followed(job, pack, pack.penalties[0], None)
    assert isinstance(near, ImplicitGradient)
    log = pack.penalties[0].lam.squeeze(1).log()
    ridge = exact.held_out.of
    weights = ridge.weights((log + exact.shift).exp())
    pack.flat.copy_(torch.cat([weights, (ridge.mean_y - weights @ ridge.mean_x).unsqueeze(1)], 1))
    ours, theirs = (rule.look(log, lambda runs: pack_of(job, runs)) for rule in (near, exact))
    torch.testing.assert_close(ours.slope, theirs.slope, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.difference, theirs.slope, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.held, theirs.held, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(near.slope(log), theirs.slope, rtol=1e-2, atol=1e-2)


def test_the_gradient_of_a_logistic_regression_is_that_of_refits():
    """scikit-learn's minima at λ·e^±h."""
    x, y = load_breast_cancer(return_X_y=True)
    rows = inline(x, y, standardize=True, validation=0.3, split="last")
    job, pack = pack_for(spec(rows, LINEAR, "binary", sgd(0.1), adaptive("validation_gradient", 0.02)))
    train, val = job.train, job.val

    def fitted(lam):
        made = LogisticRegression(C=1 / (lam * len(train)), tol=1e-12, max_iter=10000).fit(train.x.numpy(), train.y.numpy())
        loss = np.log1p(np.exp(-val.y.numpy() * (val.x.numpy() @ made.coef_[0] + made.intercept_[0]))).mean()
        return np.append(made.coef_[0], made.intercept_), loss

    h = 1e-2
    want = (fitted(0.02 * np.exp(h))[1] - fitted(0.02 * np.exp(-h))[1]) / (2 * h)
    pack.flat.copy_(torch.from_numpy(fitted(0.02)[0]).unsqueeze(0))
    look = followed(job, pack, pack.penalties[0], None).look(torch.tensor([0.02], dtype=torch.float64).log(), lambda runs: pack_of(job, runs))
    assert float(look.slope) == pytest.approx(want, rel=1e-3)
    assert float(look.difference) == pytest.approx(float(look.slope), rel=1e-5)


@pytest.mark.parametrize("on", ["weights", "all", ["layers.0"]])
@pytest.mark.parametrize("normalization", [None, {"kind": "batch"}])
def test_a_net_follows_its_validation_loss_and_its_gradient_is_checked_by_differences(on, normalization):
    model = {"kind": "mlp", "hidden": [6], "activation": "tanh", "normalization": normalization}
    optimizer = {"kind": "adam", "lr": 0.02}
    found = run(spec({"kind": "iris", "validation": 0.4}, model, "cross_entropy", optimizer, adaptive("validation_gradient", [0.3, 0.01], on=on), epochs=30, dtype="float32"))
    for ended in found.runs.values():
        of = ended.adaptation
        assert of is not None
        assert of["finite_difference"] == pytest.approx(of["gradient"], rel=1e-3, abs=1e-7)
    if normalization is None:
        assert found.runs[0].adaptation is not None
        assert found.runs[0].adaptation["gradient"] > 0
        assert found.curve("strength/l2", 0)[-1] < 0.15  # far too strong at first


# ---------------------------------------------------------------- the engine


FOLLOWING = [
    (LINEAR, "half_squared_error", "evidence"),
    (LINEAR, "half_squared_error", "validation_gradient"),
    ({"kind": "mlp", "hidden": [4], "activation": "tanh"}, "half_squared_error", "evidence"),
    ({"kind": "mlp", "hidden": [4], "activation": "tanh"}, "half_squared_error", "validation_gradient"),
]


def noisy(model: dict[str, Any], loss: str, method: str, *, epochs: int = 40, lr: Any = 0.1) -> dict[str, Any]:
    rows = {"kind": "linear", "rows": 40, "coefficients": [1.0, -2.0], "validation": 0.25}
    return spec(rows, model, loss, sgd(lr), adaptive(method, [1e-3, 0.1, 1.0]), epochs=epochs, batch_size=10)


@pytest.mark.parametrize(("model", "loss", "method"), FOLLOWING)
def test_a_run_adapts_alone_as_in_company(model, loss, method, tmp_path):
    together, alone = (outcome(events(noisy(model, loss, method), scratch=tmp_path, packs=packs)) for packs in (None, [[0], [1], [2]]))
    for r in range(3):
        np.testing.assert_allclose(together.curve("strength/l2", r), alone.curve("strength/l2", r), rtol=1e-9)
        assert torch.allclose(together.flat(r), alone.flat(r), rtol=1e-9)
    assert len({round(float(together.curve("strength/l2", r)[-1]), 12) for r in range(3)}) == (1 if method == "evidence" and model is LINEAR else 3)


@pytest.mark.parametrize("diagnostics", ["off", "full"])
def test_the_ledger_counts_the_strength_of_the_step(diagnostics):
    """penalty/l2 at step t is λ_t/2·‖w_t‖², λ_t the newest point of strength/l2."""
    job = {**noisy(LINEAR, "half_squared_error", "evidence", epochs=3), "diagnostics": diagnostics, "optimizer": sgd(1e-12)}
    found = run({**job, "model": {"kind": "linear", "init": {"kind": "normal", "std": 1.0}}})
    lam, penalty = found.curve("strength/l2", 1), found.curve("penalty/l2", 1)
    np.testing.assert_allclose(penalty / penalty[0], np.repeat(lam[:-1], 3) / lam[0], rtol=1e-9)


@pytest.mark.parametrize(("model", "loss", "method"), FOLLOWING)
def test_a_run_that_diverges_takes_nothing_with_it_and_a_pack_that_has_shrunk_goes_on_bit_for_bit(model, loss, method, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "COMPACT", 16)
    monkeypatch.setattr(points, "MOST_STEPS", 8)
    job = noisy(model, loss, method, epochs=40, lr={"values": [1e30, 1e30, 0.1]})
    folders = [tmp_path / name for name in ("whole", "first", "second")]
    for folder in folders:
        folder.mkdir()
    whole = outcome(events(job, scratch=folders[0]))
    before = until(job, folders[1], shrunk)
    checkpoint = before[-1]
    assert isinstance(checkpoint, Checkpointed)
    resumed = outcome([*before, *events(job, scratch=folders[2], resume={0: Path(checkpoint.path)})[1:]])
    assert sum(ended.state == "failed" for ended in whole.runs.values()) == 6
    for name, of in whole.curves.items():
        for r, (steps, values) in of.items():
            np.testing.assert_array_equal(resumed.curves[name][r][0], steps)
            np.testing.assert_array_equal(resumed.curves[name][r][1], values)
    assert all(torch.equal(resumed.weights[name], tensor) for name, tensor in whole.weights.items())
    assert {r: ended.adaptation for r, ended in whole.runs.items()} == {r: ended.adaptation for r, ended in resumed.runs.items()}


def test_a_job_that_is_resumed_in_the_middle_of_an_epoch_is_the_same(tmp_path):
    job = noisy(LINEAR, "half_squared_error", "validation_gradient", epochs=6)
    folders = [tmp_path / name for name in ("whole", "first", "second")]
    for folder in folders:
        folder.mkdir()
    whole = outcome(events(job, scratch=folders[0]))
    before = until(job, folders[1], lambda found: any(isinstance(event, Points) for event in found))
    checkpoint = before[-1]
    assert isinstance(checkpoint, Checkpointed)
    assert checkpoint.step < 18
    resumed = outcome([*before, *events(job, scratch=folders[2], resume={0: Path(checkpoint.path)})[1:]])
    for r in range(3):
        np.testing.assert_array_equal(resumed.curve("strength/l2", r), whole.curve("strength/l2", r))
    assert all(torch.equal(resumed.weights[name], tensor) for name, tensor in whole.weights.items())


def shrunk(found: list[Event]) -> bool:
    blocks = [event for event in found if isinstance(event, Points) and "learning_rate" in event.values]
    return any(np.isnan(block.values["learning_rate"]).any() for block in blocks)


def until(job: dict[str, Any], scratch: Path, ready) -> list[Event]:
    """The events up to the first checkpoint after which `ready` holds."""
    found: list[Event] = []
    for event in train(parse(json.dumps(job)), data=scratch, scratch=scratch, wants_checkpoint=lambda: ready(found), checkpoint_seconds=1e9):
        found.append(event)
        if isinstance(event, Checkpointed):
            break
    return found


def test_each_fold_adapts_on_its_own_rows():
    found = run(spec(SCALED, LINEAR, "half_squared_error", FISTA, adaptive("evidence", 1.0), epochs=20, selection={"folds": 3, "shuffle": False}, diagnostics="off"))
    x, y = load_diabetes(return_X_y=True)
    for fold, held in enumerate(np.array_split(np.arange(442), 3)):
        rows = np.setdiff1d(np.arange(442), held)
        scaled = (x[rows] - x[rows].mean(0)) / x[rows].std(0)
        theirs = BayesianRidge(tol=1e-12, max_iter=1000, **FLAT).fit(scaled, y[rows])
        of = found.runs[fold].adaptation
        assert of is not None
        assert of["strength"] == pytest.approx(theirs.lambda_ / theirs.alpha_ / len(rows), rel=1e-6)
    refit = found.runs[3].adaptation
    theirs = BayesianRidge(tol=1e-12, max_iter=1000, **FLAT).fit((x - x.mean(0)) / x.std(0), y)
    assert refit is not None
    assert refit["strength"] == pytest.approx(theirs.lambda_ / theirs.alpha_ / 442, rel=1e-6)


def test_jobs_whose_strength_is_a_number_say_nothing():
    found = run(spec(SCALED, LINEAR, "half_squared_error", FISTA, {"kind": "l2", "lambda": 0.1}, epochs=3))
    assert found.runs[0].adaptation is None
    assert "strength/l2" not in found.started.series


def test_the_refit_of_a_strength_that_followed_the_validation_loss_has_the_geometric_mean_of_what_the_folds_found():
    found = run(spec(SCALED, LINEAR, "half_squared_error", FISTA, adaptive("validation_gradient", [0.5, 0.05]), epochs=150, selection={"folds": 3}, diagnostics="off"))
    result = found.finished.result
    of_choice = result["selection"]["table"][result["selection"]["chosen"]]["runs"]
    strengths = [found.runs[r].adaptation["strength"] for r in of_choice]
    lam = float(np.exp(np.log(strengths).mean()))
    assert result["values"] == {"regularizers.0.lambda": pytest.approx(lam, rel=1e-12)}
    assert result["adaptation"] is None
    x, y = load_diabetes(return_X_y=True)
    scaled = (x - x.mean(0)) / x.std(0)
    want = np.linalg.solve(scaled.T @ scaled / 442 + lam * np.eye(10), scaled.T @ (y - y.mean()) / 442)
    np.testing.assert_allclose(result["coefficients"]["trained"]["weights"], want, rtol=1e-5)
