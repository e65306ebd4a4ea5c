"""The closed forms on a job's own rows and in its own λ: against scikit-learn on the same rows."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import RidgeCV
from training_jobs import inline, run, sgd, spec

from regtrain.contract.job import parse
from worker.training.prepare import prepare
from worker.training.selectors import selectors

LINEAR = {"kind": "linear"}
DIABETES = {"kind": "diabetes"}
L2 = {"kind": "l2", "lambda": {"log": [1e-5, 1e-1], "points": 5}}
LAMS = [1e-5, 1e-3, 1e-1]
ALPHA = {"leave_one_out": 0.004151, "gcv": 0.007387, "evidence": 0.03361184}


def asked(*regularizers, dataset=DIABETES, model=LINEAR, loss="half_squared_error", lams=LAMS, **rest):
    job = spec(dataset, model, loss, sgd(0.1), *regularizers, **rest)
    return selectors(prepare(parse(json.dumps(job)), device="cpu", data=Path(), upload=None, scratch=None), lams)


@pytest.mark.parametrize(("loss", "per_alpha"), [("half_squared_error", 1 / 442), ("squared_error", 2 / 442)])
def test_the_strengths_of_diabetes_in_our_lambda(loss, per_alpha):
    found = asked(L2, loss=loss)
    for name, alpha in ALPHA.items():
        assert found[name]["lambda"] == pytest.approx(alpha * per_alpha, rel=2e-4)


@pytest.mark.parametrize(("loss", "unit"), [("half_squared_error", 0.5), ("squared_error", 1.0)])
@pytest.mark.parametrize("bias", [True, False])
def test_every_lambda_has_the_score_that_scikit_learn_gives_it(loss, unit, bias):
    x, y = load_diabetes(return_X_y=True)
    alphas = [lam * 442 / (2 * unit) for lam in LAMS]
    theirs = RidgeCV(alphas=alphas, fit_intercept=bias, store_cv_results=True).fit((x - x.mean(0)) / x.std(0), y)
    found = asked(L2, dataset={**DIABETES, "standardize": True}, model={"kind": "linear", "bias": bias}, loss=loss)
    np.testing.assert_allclose([row["leave_one_out"] for row in found["table"]], theirs.cv_results_.mean(0) * unit, rtol=1e-8)
    assert [row["lambda"] for row in found["table"]] == LAMS
    for row in found["table"]:
        assert row["leave_one_out"] >= found["leave_one_out"]["score"]
        assert row["gcv"] >= found["gcv"]["score"]
        assert row["log_evidence"] <= found["evidence"]["log_evidence"]


def test_held_out_rows_are_not_looked_at():
    with_rest, alone = asked(L2, dataset={**DIABETES, "test": 0.5, "split": "last"}), load_diabetes(return_X_y=True)
    assert with_rest == asked(L2, dataset=inline(alone[0][:221], alone[1][:221]))


def test_other_jobs_have_none():
    assert asked(L2, model={"kind": "mlp", "hidden": [2]}) is None
    assert asked(L2, dataset={"kind": "iris"}, loss="cross_entropy") is None
    assert asked() is None
    assert asked({"kind": "l1", "lambda": 0.1}) is None
    assert asked({**L2, "on": "all"}) is None
    assert asked(L2, {"kind": "dropout", "rate": 0.5, "on": "inputs"}) is None
    assert asked(L2, {"kind": "non_negative"}) is None
    assert asked(L2, dataset=inline(np.ones((4, 1)), range(4))) is None


def test_targets_that_are_all_signal_and_all_noise():
    """Without noise the best λ is 0; where nothing can be predicted it is infinite, which JSON has as null."""
    x = np.random.default_rng(0).standard_normal((30, 2))
    assert asked(L2, dataset=inline(x, x @ [1.0, 2.0]))["leave_one_out"]["lambda"] == 0
    noise = np.linalg.qr(np.column_stack([np.ones(30), x, np.arange(30)]))[0][:, -1]
    assert asked(L2, dataset=inline(x, noise))["gcv"]["lambda"] is None
    assert asked(L2, lams=[])["table"] == []


def test_they_stand_beside_the_choice_of_a_job_for_each_of_its_strengths():
    job = spec(DIABETES, LINEAR, "half_squared_error", {"kind": "lbfgs"}, L2, epochs=60, selection={"folds": 5}, diagnostics="off")
    found = run(job).finished.result["selection"]
    assert found["closed"] == asked(L2, lams=sorted(score["values"]["regularizers.0.lambda"] for score in found["table"]))
    assert found["closed"]["leave_one_out"]["lambda"] == pytest.approx(0.004151 / 442, rel=2e-4)
    assert run({**job, "regularizers": [{"kind": "l1", "lambda": {"values": [0.1, 1.0]}}], "optimizer": {"kind": "proximal"}}).finished.result["selection"]["closed"] is None
