"""`"remedy": "try"`: the trial of remedies is submitted by what ends a job with a symptom, once, whatever dies in between."""

import json
import math
from typing import Any

import pytest
from sqlalchemy import select

from regtrain.contract.errors import StaleAttempt
from regtrain.contract.events import Finished, Noticed, RunFinished, Started
from regtrain.contract.job import parse
from regtrain.contract.states import Failure, RunState, State, StopReason
from regtrain.contract.symptoms import Severity, SymptomName
from regtrain.store import jobs
from regtrain.store.database import Database
from regtrain.store.tables import jobs as table

DEEP: dict[str, Any] = {
    "dataset": {"kind": "digits"},
    "model": {"kind": "mlp", "hidden": [16] * 10, "activation": "sigmoid"},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "sgd", "lr": 0.1},
    "budget": {"epochs": 1, "batch_size": 64},
    "remedy": "try",
}


def claimed(db: Database, body: dict[str, Any]) -> jobs.Claim:
    jobs.submit(db, parse(json.dumps(body)), given=body, warnings=[])
    claim = jobs.claim(db, worker="hand")
    assert claim is not None
    runs = 1 if "variants" not in body else len(body["variants"])
    packs = [[run] for run in range(runs)]
    jobs.report(db, claim, [Started(runs=runs, packs=packs, steps=1, steps_per_epoch=1, layers=["head"], series=[], penalised={}, step_order=[], environment={})])
    return claim


def notice(db: Database, claim: jobs.Claim, symptom: SymptomName = "vanishing_signal", *, run: int = 0, severity: Severity = "critical") -> None:
    jobs.report(db, claim, [Noticed(run=run, symptom=symptom, layer="layers.0", step=0, value=1e-9, bound=0.05, severity=severity, confidence=0.9, pack=run)])


def finish(db: Database, claim: jobs.Claim, **result: Any) -> None:
    jobs.finish(db, claim, Finished(result={"chosen_run": 0, **result}, path="", sha256=""), db.data / "model")


def waiting(db: Database) -> list[jobs.Job]:
    with db.read() as connection:
        ids = connection.execute(select(table.c.id).where(table.c.state == State.QUEUED)).scalars().all()
    return [jobs.get(db, id) for id in ids]


def test_a_job_that_ends_with_a_symptom_is_followed_by_its_trial(db: Database) -> None:
    claim = claimed(db, DEEP)
    notice(db, claim)
    finish(db, claim)
    (trial,) = waiting(db)
    assert trial.spec["trial"] == {"of": claim.job, "symptom": "vanishing_signal", "control": "as it is", "order": "together", "known": None}
    assert trial.spec["remedy"] is None
    assert [job.id for job in jobs.trials_of(db, claim.job)] == [trial.id]
    assert trial.runs == 8 * len(trial.spec["variants"])


def test_asked_for_again_it_is_the_same_trial(db: Database) -> None:
    claim = claimed(db, DEEP)
    notice(db, claim)
    finish(db, claim)
    (trial,) = waiting(db)
    spec = parse(json.dumps(trial.spec))
    assert jobs.submit(db, spec, given={}, warnings=[], idempotency=jobs.key_of(claim.job, {})).id == trial.id


def reached(db: Database, claim: jobs.Claim, loss: float, *, run: int = 0) -> None:
    jobs.report(db, claim, [RunFinished(run=run, state=RunState.SUCCEEDED, stop_reason=StopReason.BUDGET, steps=1, metrics={"loss/val": loss})])


HELD: dict[str, Any] = {**DEEP, "dataset": {"kind": "digits", "validation": 0.2}, "remedy": "quick"}


def test_quick_asks_for_one_seed_in_turn_beside_the_run_of_the_job_itself(db: Database) -> None:
    claim = claimed(db, HELD)
    notice(db, claim)
    reached(db, claim, 2.5)
    finish(db, claim)
    (trial,) = waiting(db)
    assert trial.spec["trial"]["order"] == "in_turn"
    assert trial.spec["trial"]["known"] == {"metric": 2.5, "shown": True}
    assert trial.spec["selection"]["seeds"] == 1
    again = jobs.key_of(claim.job, {"order": "in_turn", "seeds": 1})
    assert jobs.submit(db, parse(json.dumps(trial.spec)), given={}, warnings=[], idempotency=again).id == trial.id


@pytest.mark.parametrize(
    ("changes", "run"),
    [
        ({"dataset": {"kind": "digits"}}, 0),  # the trial holds rows out, and trains on fewer
        ({"selection": {"seeds": 2}}, 1),  # seed 1
        ({"dataset": {"kind": "digits"}, "selection": {"folds": 2}}, 0),
        ({"regularizers": [{"kind": "l1", "lambda": {"path": 2}}], "model": {"kind": "linear"}}, 1),  # from the weights of the stronger λ
    ],
)
def test_where_a_control_would_be_another_run_it_is_trained(db: Database, changes: dict[str, Any], run: int) -> None:
    body = {**HELD, **changes}
    jobs.submit(db, parse(json.dumps(body)), given=body, warnings=[])
    claim = jobs.claim(db, worker="hand")
    assert claim is not None
    jobs.report(db, claim, [Started(runs=3, packs=[[0, 1]], steps=1, steps_per_epoch=1, layers=["head"], series=[], penalised={}, step_order=[], environment={})])
    notice(db, claim, "plateau", run=run)
    reached(db, claim, 2.5, run=run)
    finish(db, claim, chosen_run=run)
    (trial,) = waiting(db)
    assert trial.spec["trial"]["known"] is None


def test_a_run_that_diverged_is_known_to_be_worse_than_any_that_did_not(db: Database) -> None:
    claim = claimed(db, HELD)
    notice(db, claim, "non_finite")
    jobs.report(db, claim, [RunFinished(run=0, state=RunState.FAILED, stop_reason=StopReason.DIVERGED, steps=1, metrics={"loss/val": math.nan})])
    jobs.fail(db, claim, Failure.DIVERGED, "every run became non-finite")
    (trial,) = waiting(db)
    assert trial.spec["trial"]["known"] == {"metric": None, "shown": True}


def test_a_job_that_diverged_is_followed_too_and_one_that_failed_otherwise_is_not(db: Database) -> None:
    claim = claimed(db, DEEP)
    notice(db, claim, "non_finite")
    jobs.fail(db, claim, Failure.DIVERGED, "every run became non-finite")
    (trial,) = waiting(db)
    assert trial.spec["trial"]["symptom"] == "non_finite"
    jobs.cancel(db, trial.id)
    claim = claimed(db, DEEP)
    notice(db, claim, "non_finite")
    jobs.fail(db, claim, Failure.RESOURCE, "no memory")
    assert waiting(db) == []


def test_without_a_symptom_or_without_asking_nothing_follows(db: Database) -> None:
    finish(db, claimed(db, DEEP))
    claim = claimed(db, DEEP)
    notice(db, claim, "penalty_wasted", severity="note")
    finish(db, claim)
    claim = claimed(db, {**DEEP, "remedy": None})
    notice(db, claim)
    finish(db, claim)
    assert waiting(db) == []


def test_where_no_remedy_is_known_the_log_says_so(db: Database) -> None:
    claim = claimed(db, {**DEEP, "regularizers": []})
    notice(db, claim, "penalty_dominates")
    finish(db, claim)
    assert waiting(db) == []
    assert "remedies for penalty_dominates cannot be tried: remedies: no change of the spec is known" in jobs.logs(db, claim.job)[-1].message


def test_a_stale_worker_submits_nothing(db: Database) -> None:
    claim = claimed(db, DEEP)
    notice(db, claim)
    jobs.release(db, claim)
    again = jobs.claim(db, worker="other")
    assert again is not None
    with pytest.raises(StaleAttempt):
        finish(db, claim)
    assert waiting(db) == []


def test_the_variant_that_shows_the_symptom_is_the_control(db: Database) -> None:
    variants = [{"label": "relu", "set": {"model.activation": "relu"}}, {"label": "tanh", "set": {"model.activation": "tanh"}}]
    claim = claimed(db, {**DEEP, "variants": variants})
    notice(db, claim, run=1)
    finish(db, claim)
    (trial,) = waiting(db)
    assert trial.spec["model"]["activation"] == "tanh"
