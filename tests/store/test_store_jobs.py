"""The verbs on jobs, the same on SQLite and PostgreSQL: what each does in each state, and that stale workers change nothing."""

import json
import threading
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import store_acting as act
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import IntegrityError

from regtrain.contract.datasets import Facts
from regtrain.contract.errors import Conflict, NotFound, SpecRefused, StaleAttempt, Warned
from regtrain.contract.events import Checkpointed, Failed, Finished, Log, Noticed, RunFinished
from regtrain.contract.job import given_of, parse, resolved
from regtrain.contract.states import FINAL, TRANSITIONS, Failure, Intent, RunState, State, StopReason
from regtrain.store import datasets, files, jobs, runs, series, workers
from regtrain.store.database import Database
from regtrain.store.jobs.moves import move
from regtrain.store.tables import MOST_CRASHES
from regtrain.store.tables import jobs as jobs_table


def test_what_is_submitted_is_what_is_read(db: Database) -> None:
    body = json.dumps(act.SPEC | {"name": "émile", "metadata": {"team": "vision"}})
    job = jobs.submit(db, parse(body), given=given_of(body), warnings=[Warned("loss", "hm")], retry_of="job_1")
    assert jobs.get(db, job.id) == job
    assert job.state is State.QUEUED
    assert job.spec == resolved(parse(body))
    assert job.given == json.loads(body)
    assert job.warnings == [{"path": "loss", "message": "hm", "source": "spec"}]
    assert (job.attempt, job.crashes, job.version, job.runs, job.terminal, job.retry_of) == (0, 0, 1, 1, False, "job_1")
    assert job.created_at.tzinfo is UTC


def test_runs_are_stored_with_the_job_and_come_in_any_order(db: Database) -> None:
    job = act.submit(db, regularizers=[{"kind": "l2", "lambda": {"values": [0.1, 1.0, 10.0]}}], selection={"seeds": 2})
    found, cursor = runs.listing(db, job.id)
    assert cursor is None
    assert [(run.index, run.values, run.seed, run.state) for run in found] == [
        (2 * i + seed, {"regularizers.0.lambda": lam}, seed, RunState.QUEUED) for i, lam in enumerate((0.1, 1.0, 10.0)) for seed in (0, 1)
    ]
    held = act.claim(db)
    given = [run.values for run in found]
    jobs.report(db, held, [act.started([[0, 1, 2, 3, 4, 5]]), act.begun(0, [0, 1, 2, 3, 4, 5], values=given), act.points(loss_train=([0], [[3.0, 1.0, 2.0, np.nan, 5.0, 4.0]]))])
    by_loss, cursor = runs.listing(db, job.id, sort="loss/train", limit=4)
    assert [run.index for run in by_loss] == [1, 2, 0, 5]
    rest, cursor = runs.listing(db, job.id, sort="loss/train", limit=4, cursor=cursor)
    assert ([run.index for run in rest], cursor) == ([4, 3], None)
    assert rest[1].metrics == {"loss/train": None, "nonfinite": {"loss/train": "NaN"}}
    assert [run.index for run in runs.listing(db, job.id, sort="-regularizers.0.lambda")[0]] == [4, 5, 2, 3, 0, 1]
    assert {run.state for run in rest} == {RunState.RUNNING}
    with pytest.raises(NotFound):
        runs.listing(db, "job_none")


def test_values_that_training_finds_and_packs_that_differ_are_stored_as_they_begin(db: Database) -> None:
    body = {"variants": [{"label": "as it is", "set": {}}, {"label": "other", "set": {"optimizer.lr": 0.5}}], "selection": {"seeds": 2}}
    job = act.submit(db, **body)
    held = act.claim(db)
    jobs.report(db, held, [act.started([[0, 1], [2, 3]]), act.begun(0, [0, 1], variant="as it is")])
    jobs.report(db, held, [act.begun(1, [3], values=[{"optimizer.lr": 0.25}], variant="renamed", layers=["deep", "head"])])
    found, _ = runs.listing(db, job.id)
    assert [(run.variant, run.point, run.state, run.values) for run in found] == [
        ("as it is", 0, RunState.RUNNING, {}),
        ("as it is", 0, RunState.RUNNING, {}),
        ("other", 1, RunState.QUEUED, {}),
        ("renamed", 1, RunState.RUNNING, {"optimizer.lr": 0.25}),
    ]
    jobs.report(db, held, [act.points(pack=1, gradient_norm=([0], [[[1.0, 2.0], [3.0, 4.0]]]))])
    (curve,) = series.read(db, job.id, series=["gradient/norm"], runs=[3], layers=["head", "layers.0"])
    assert (curve.layers, curve.y is not None and curve.y.tolist()) == (["head"], [[4.0]])
    assert jobs.get(db, job.id).layers == ["layers.0", "head", "deep"]


def test_the_same_idempotency_key_gives_the_same_job(db: Database) -> None:
    first = act.submit(db, idempotency=("key", "digest"))
    before = act.everything(db)
    assert act.submit(db, idempotency=("key", "digest")) == first
    with pytest.raises(SpecRefused) as refused:
        act.submit(db, idempotency=("key", "another"))
    assert refused.value.problems[0].path == "Idempotency-Key"
    assert act.everything(db) == before
    assert act.submit(db, idempotency=("other key", "digest")).id != first.id


def test_submissions_that_share_a_transaction_stand_for_themselves(db: Database) -> None:
    """Sixteen at once: good ones, one with a dataset that does not exist, and four with the same key."""
    results: list[Any] = [None] * 16
    start = threading.Barrier(16)

    def ask(place: int) -> None:
        start.wait()
        changes: dict[str, Any] = {0: {"dataset": {"kind": "upload", "id": "ds_0"}}}.get(place, {})
        if place >= 12:
            changes = {"idempotency": ("key", "digest")}
        for _ in range(5):
            try:
                results[place] = act.submit(db, name=f"n{place}", **changes).id
            except SpecRefused as refused:
                results[place] = refused.problems[0].path

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == "dataset.id"
    assert len(set(results[12:])) == 1
    found, _ = jobs.summaries(db, limit=1000)
    times = Counter(job.name for job in found)
    assert [times[f"n{place}"] for place in range(12)] == [0] + [5] * 11
    assert len(found) == 56
    assert all(len(runs.listing(db, job.id)[0]) == 1 for job in found)


def test_a_job_needs_its_dataset(db: Database) -> None:
    before = act.everything(db)
    with pytest.raises(SpecRefused) as refused:
        act.submit(db, dataset={"kind": "upload", "id": "ds_0"})
    assert refused.value.problems[0].path == "dataset.id"
    assert act.everything(db) == before


def test_lists_filter_and_page(db: Database) -> None:
    ids = [act.submit(db, name=f"n{i % 2}", metadata={"team": "vision", "place": str(i)}).id for i in range(7)]
    jobs.cancel(db, ids[0])

    def pages(**filters: Any) -> list[str]:
        found: list[str] = []
        cursor = None
        while True:
            page, cursor = jobs.summaries(db, limit=2, cursor=cursor, **filters)
            found += [job.id for job in page]
            if cursor is None:
                return found

    assert pages() == ids[::-1]
    assert pages(order="oldest") == ids
    assert pages(state=State.QUEUED) == ids[:0:-1]
    assert pages(state=[State.QUEUED, State.CANCELLED]) == ids[::-1]
    assert pages(name="n0") == ids[::2][::-1]
    assert pages(metadata={"team": "vision", "place": "3"}) == [ids[3]]
    assert pages(metadata={"team": "sound"}) == pages(metadata={"absent": "x"}) == []
    assert pages(created_after=jobs.get(db, ids[4]).created_at) == ids[:4:-1]
    assert pages(created_after=datetime.now(UTC) + timedelta(hours=1)) == []
    _, cursor = jobs.summaries(db, limit=2)
    for wrong in (cursor, "nonsense", "W10", "é"):
        with pytest.raises(SpecRefused):
            jobs.summaries(db, limit=2, cursor=wrong, name="n0")


def test_claims_go_by_priority_and_then_age(db: Database) -> None:
    ids = [act.submit(db).id for _ in range(4)]
    with db.write() as connection:
        connection.execute(update(jobs_table).where(jobs_table.c.id == ids[2]).values(priority=5))
    claims = [act.claim(db, f"w{i}") for i in range(4)]
    assert [held.job for held in claims] == [ids[2], ids[0], ids[1], ids[3]]
    assert jobs.claim(db, worker="w9") is None
    assert [(held.attempt, held.packs, held.resume, held.upload) for held in claims] == [(1, None, {}, None)] * 4
    assert claims[0].spec == parse(json.dumps(act.SPEC))
    assert [(r.job, r.attempt, r.beat, r.worker) for r in jobs.running(db)] == sorted((c.job, 1, 0, c.worker) for c in claims)


def test_a_spec_that_is_no_longer_understood_fails_and_the_next_is_claimed(db: Database) -> None:
    old, good = act.submit(db), act.submit(db)
    with db.write() as connection:
        connection.execute(update(jobs_table).where(jobs_table.c.id == old.id).values(spec={"kind": "of yore"}))
    assert act.claim(db).job == good.id
    job = jobs.get(db, old.id)
    assert (job.state, job.reason) == (State.FAILED, Failure.SPEC)


def test_a_job_from_submission_to_result(db: Database) -> None:
    job = act.submit(db, selection={"seeds": 3})
    held = act.claim(db)
    begin = act.started([[0, 1], [2]], steps=100)
    jobs.report(db, held, [begin, Log("info", "hello"), Log("warning", "hm")])
    assert [(line.number, line.level, line.message) for line in jobs.logs(db, job.id)] == [(1, "info", "hello"), (2, "warning", "hm")]
    assert [line.number for line in jobs.logs(db, job.id, after=1)] == [2]
    jobs.report(db, held, [act.points(loss_train=([0, 1], [[1.0, 3.0], [0.9, 2.0]]), loss_val=([0], [[5.0, 4.0]]))])
    shown = jobs.get(db, job.id)
    assert shown.progress | {"eta_seconds": 0} == {"step": 2, "steps": 200, "epoch": 0, "runs": 3, "eta_seconds": 0}
    assert shown.progress["eta_seconds"] > 0
    assert shown.metrics == {"run": 1, "loss/train": 2.0, "loss/val": 4.0}
    assert (shown.packs, shown.layers) == ([[0, 1], [2]], ["layers.0", "head"])
    assert jobs.heartbeat(db, held, step=2) is None
    assert [(r.beat, r.step) for r in jobs.running(db)] == [(1, 2)]
    jobs.report(db, held, [act.points(pack=1, loss_train=([0], [[7.0]]), loss_val=([0], [[0.5]]), step=1)])
    assert jobs.get(db, job.id).metrics == {"run": 2, "loss/train": 7.0, "loss/val": 0.5}
    assert jobs.get(db, job.id).progress["step"] == 101
    ends = [RunFinished(run=r, state=RunState.SUCCEEDED, stop_reason=StopReason.BUDGET, steps=100, metrics={"loss/val": r / 10, "loss/train": float("inf")}) for r in range(3)]
    ends[1] = replace(ends[1], certificate={"duality_gap": 1e-15, "closed_form_distance": None}, adaptation={"strength": 0.1, "gradient": None})
    jobs.report(db, held, list(ends))
    act.finish(db, held, chosen_run=0, zeros=[1, float("-inf")])
    done = jobs.get(db, job.id)
    assert (done.state, done.terminal, done.worker, done.intent) == (State.SUCCEEDED, True, None, None)
    assert done.result == {"chosen_run": 0, "zeros": [1, None], "nonfinite": {"zeros.1": "-Infinity"}}
    assert done.metrics == {"run": 0, "loss/val": 0.0, "loss/train": None, "nonfinite": {"loss/train": "Infinity"}}
    assert done.progress == {"step": 200, "steps": 200, "epoch": 0, "runs": 3, "eta_seconds": 0.0}
    assert jobs.model(db, job.id) == (f"jobs/{job.id}/1/model.safetensors", "sha-model")
    assert done.created_at <= done.started_at <= done.finished_at  # type: ignore[operator]
    assert {run.state for run in runs.listing(db, job.id)[0]} == {RunState.SUCCEEDED}
    assert [run.certificate for run in runs.listing(db, job.id)[0]] == [None, {"duality_gap": 1e-15, "closed_form_distance": None}, None]
    assert [run.adaptation for run in runs.listing(db, job.id)[0]] == [None, {"strength": 0.1, "gradient": None}, None]
    assert jobs.glances(db, [job.id, "job_none"]) == {job.id: (State.SUCCEEDED, done.metrics)}
    assert jobs.model(db, act.submit(db).id) is None


@pytest.mark.parametrize("state", State)
def test_cancel_in_each_state(db: Database, state: State) -> None:
    job_id, held = act.job_in(db, state)
    before = jobs.get(db, job_id)
    after = jobs.cancel(db, job_id)
    assert after == jobs.get(db, job_id) == jobs.cancel(db, job_id)
    if state in FINAL:
        assert after == before
    elif state is State.RUNNING:
        assert (after.state, after.intent) == (State.RUNNING, Intent.CANCELLING)
        assert jobs.heartbeat(db, held, step=0) is Intent.CANCELLING
    else:
        assert (after.state, after.intent) == (State.CANCELLED, None)
        assert {run.state for run in runs.listing(db, job_id)[0]} == {RunState.CANCELLED}
        assert jobs.claim(db, worker="w2") is None


@pytest.mark.parametrize("state", State)
def test_delete_in_each_state(db: Database, state: State) -> None:
    other, _ = act.job_in(db, State.SUCCEEDED)
    before = act.everything(db)
    job_id, held = act.job_in(db, state)
    if state not in FINAL:
        full = act.everything(db)
        with pytest.raises(Conflict):
            jobs.delete(db, job_id)
        assert act.everything(db) == full
        return
    jobs.delete(db, job_id)
    assert act.everything(db) == before
    assert not (db.data / "jobs" / job_id).exists()
    assert (db.data / "jobs" / other).exists()
    for verb in (jobs.get, jobs.cancel, jobs.delete, jobs.logs, jobs.model, series.names):
        with pytest.raises(NotFound):
            verb(db, job_id)
    with pytest.raises(StaleAttempt):
        jobs.heartbeat(db, held, step=1)


def test_delete_takes_every_row_and_file_of_a_rich_job(db: Database) -> None:
    origin = jobs.cancel(db, act.submit(db).id).id
    before = act.everything(db)
    job = act.submit(db, idempotency=("key", "digest"), metadata={"team": "vision"}, begin={"job": origin})
    held = act.claim(db)
    report = act.points(loss_train=(range(600), np.arange(600.0)), gradient_norm=(range(600), np.ones((600, 1, 2))))
    jobs.report(db, held, [act.started(), report, Noticed(0, "plateau", None, 128, 0.99, 0.9, "warning", 0.5), Log("info", "hello")])
    act.checkpoint(db, held, step=600)
    act.finish(db, held)
    assert all(rows for name, rows in act.everything(db).items() if name not in ("datasets", "workers", "rates"))
    jobs.delete(db, job.id)
    assert act.everything(db) == before
    assert list((db.data / "jobs").iterdir()) == []


def worker_verbs(db: Database, held: jobs.Claim) -> dict[str, Any]:
    """Every verb with which a worker writes, ready to be called."""
    path = db.data / "jobs" / held.job / str(held.attempt) / "late"
    return {
        "heartbeat": lambda: jobs.heartbeat(db, held, step=9),
        "report nothing": lambda: jobs.report(db, held, []),
        "report": lambda: jobs.report(db, held, [act.started(), act.points(loss_train=([0], [1.0])), Log("info", "late")]),
        "run": lambda: jobs.report(db, held, [RunFinished(run=0, state=RunState.FAILED, stop_reason=StopReason.DIVERGED, steps=1, metrics={})]),
        "checkpointed": lambda: jobs.checkpointed(db, held, Checkpointed(0, 9, "", "late"), path),
        "finish": lambda: jobs.finish(db, held, Finished({}, "", "late"), path),
        "fail": lambda: jobs.fail(db, held, Failure.SPEC, "late"),
        "cancelled": lambda: jobs.cancelled(db, held),
        "release": lambda: jobs.release(db, held),
        "crashed": lambda: jobs.crashed(db, held, "late"),
    }


@pytest.mark.parametrize("state", [state for state in State if state is not State.RUNNING])
def test_a_worker_writes_only_while_its_job_runs(db: Database, state: State) -> None:
    _, held = act.job_in(db, state)
    before = act.everything(db)
    for name, verb in worker_verbs(db, held).items():
        with pytest.raises(StaleAttempt):
            verb()
        assert act.everything(db) == before, name


def test_a_stale_attempt_changes_nothing(db: Database) -> None:
    job = act.submit(db)
    stale = act.claim(db, "w1")
    jobs.report(db, stale, [act.started(), act.points(loss_train=([0, 1], [1.0, 0.5]))])
    [seen] = jobs.running(db)
    assert jobs.rescue(db, seen.job, seen.attempt, seen.beat) is State.QUEUED
    fresh = act.claim(db, "w2")
    assert (fresh.job, fresh.attempt) == (job.id, 2)
    jobs.report(db, fresh, [act.started(), act.points(loss_train=([0], [2.0]))])
    before = act.everything(db)
    for name, verb in worker_verbs(db, stale).items():
        with pytest.raises(StaleAttempt):
            verb()
        assert act.everything(db) == before, name
    assert jobs.rescue(db, seen.job, seen.attempt, seen.beat) is None
    assert act.everything(db) == before


def test_each_worker_verb_does_its_move(db: Database) -> None:
    for name, target in {"finish": "succeeded", "fail": "failed", "cancelled": "cancelled", "release": "queued", "crashed": "queued", "heartbeat": "running"}.items():
        job = act.submit(db)
        held = next(c for c in iter(lambda: act.claim(db), None) if c.job == job.id)
        worker_verbs(db, held)[name]()
        assert jobs.get(db, job.id).state == target, name
        if target == "queued":
            jobs.cancel(db, job.id)


def test_a_report_is_stored_whole_or_not_at_all(db: Database) -> None:
    act.submit(db)
    held = act.claim(db)
    jobs.report(db, held, [act.started()])
    before = act.everything(db)
    with pytest.raises(NotFound):
        jobs.report(db, held, [act.points(loss_train=([0], [1.0])), RunFinished(run=7, state=RunState.SUCCEEDED, stop_reason=StopReason.BUDGET, steps=1, metrics={})])
    with pytest.raises(TypeError):
        jobs.report(db, held, [Log("info", "a"), Failed(Failure.DATA, "b")])
    assert act.everything(db) == before


def test_a_rescue_waits_for_a_beat_that_stands_still(db: Database) -> None:
    job = act.submit(db)
    held = act.claim(db)
    [seen] = jobs.running(db)
    jobs.heartbeat(db, held, step=1)
    assert jobs.rescue(db, seen.job, seen.attempt, seen.beat) is None
    assert jobs.get(db, job.id).state is State.RUNNING
    [seen] = jobs.running(db)
    assert jobs.rescue(db, seen.job, seen.attempt, seen.beat) is State.QUEUED
    assert (jobs.get(db, job.id).crashes, jobs.get(db, job.id).attempt) == (1, 1)


@pytest.mark.parametrize("how", ["crashed", "rescue"])
def test_three_crashes_without_a_newer_checkpoint_are_a_crash_loop(db: Database, how: str) -> None:
    job = act.submit(db)

    def crash() -> State | None:
        held = act.claim(db)
        return jobs.crashed(db, held, "Segmentation fault") if how == "crashed" else jobs.rescue(db, held.job, held.attempt, 0)

    assert [crash(), crash()] == [State.QUEUED, State.QUEUED]
    held = act.claim(db)
    act.checkpoint(db, held, step=5)
    assert jobs.get(db, job.id).crashes == 0
    assert jobs.crashed(db, held, "") is State.QUEUED
    assert crash() is State.QUEUED
    held = act.claim(db)
    act.checkpoint(db, held, step=5)  # written again, not newer
    assert jobs.crashed(db, held, "Segmentation fault") is State.FAILED
    failed = jobs.get(db, job.id)
    assert (failed.state, failed.reason, failed.crashes, failed.attempt) == (State.FAILED, Failure.CRASH_LOOP, MOST_CRASHES, 5)
    assert failed.error is not None
    assert failed.error["detail"] == "Segmentation fault"


def test_a_release_is_no_crash(db: Database) -> None:
    job = act.submit(db)
    for attempt in range(1, 6):
        held = act.claim(db)
        assert held.attempt == attempt
        assert jobs.release(db, held) is State.QUEUED
    assert jobs.get(db, job.id).crashes == 0


@pytest.mark.parametrize("how", ["rescue", "crashed", "release"])
def test_a_cancel_that_meets_a_dead_worker_is_finished_by_whoever_notices(db: Database, how: str) -> None:
    job = act.submit(db)
    held = act.claim(db)
    jobs.cancel(db, job.id)
    ends = {"rescue": lambda: jobs.rescue(db, held.job, 1, 0), "crashed": lambda: jobs.crashed(db, held, ""), "release": lambda: jobs.release(db, held)}
    assert ends[how]() is State.CANCELLED
    assert jobs.claim(db, worker="w2") is None


def test_a_claim_resumes_from_the_newest_checkpoints_and_removes_what_lies_beyond(db: Database) -> None:
    job = act.submit(db, selection={"seeds": 3})
    held = act.claim(db)
    jobs.report(db, held, [act.started([[0], [1], [2]])])
    for pack, last in ((0, 40), (1, 30)):
        report = act.points(pack=pack, loss_train=(range(last), np.arange(float(last))), loss_val=(range(0, last + 1, 10), np.arange(0.0, last + 1, 10)))
        jobs.report(db, held, [report])
        act.checkpoint(db, held, pack=pack, step=10)
        act.checkpoint(db, held, pack=pack, step=20)
    newest = act.checkpoint(db, held, pack=0, step=40)
    assert sorted(p.name for p in newest.parent.glob("*.safetensors")) == [f"checkpoint-{p}-{s}.safetensors" for p, s in ((0, 20), (0, 40), (1, 10), (1, 20))]
    jobs.report(db, held, [act.points(pack=2, loss_train=([0], [1.0]))])
    jobs.crashed(db, held, "")
    again = act.claim(db)
    assert again.packs == [[0], [1], [2]]
    assert {pack: path.name for pack, path in again.resume.items()} == {0: "checkpoint-0-40.safetensors", 1: "checkpoint-1-20.safetensors"}
    assert all(path.is_file() for path in again.resume.values())
    kept = {(c.series, c.run): c.x.tolist() for c in series.read(db, job.id, series=["loss/train", "loss/val"])}
    assert kept == {
        ("loss/train", 0): list(range(40)),
        ("loss/train", 1): list(range(20)),
        ("loss/val", 0): [0, 10, 20, 30, 40],
        ("loss/val", 1): [0, 10, 20],
    }


def test_states_that_the_contract_does_not_know_cannot_be_stored(db: Database) -> None:
    job = act.submit(db)
    for column, value in [
        ("state", "lost"), ("intent", "cancelling"), ("worker", "w1"), ("finished_at", datetime.now(UTC)), ("state", "succeeded"), ("crashes", 4), ("attempt", -1), ("runs", 0),
    ]:  # fmt: skip
        with pytest.raises(IntegrityError), db.write() as connection:
            connection.execute(update(jobs_table).where(jobs_table.c.id == job.id).values(**{column: value}))
    assert jobs.get(db, job.id) == job


@pytest.mark.parametrize("source", State)
@pytest.mark.parametrize("target", State)
def test_only_the_moves_of_the_contract_exist(db: Database, source: State, target: State) -> None:
    job_id, _ = act.job_in(db, source)
    needs: dict[State, dict[str, Any]] = {
        State.RUNNING: {"worker": "w9"},
        State.FAILED: {"reason": "spec", "error": {}},
        State.SUCCEEDED: {"result": {}},
    }
    if target in TRANSITIONS[source]:
        with db.write() as connection:
            move(connection, job_id, target, **needs.get(target, {}))
        assert jobs.get(db, job_id).state is target
    else:
        with pytest.raises(Conflict), db.write() as connection:
            move(connection, job_id, target, **needs.get(target, {}))
        assert jobs.get(db, job_id).state is source


def dataset(db: Database, content: bytes = b"rows") -> datasets.Dataset:
    fresh = datasets.fresh_id()
    path = files.dataset_folder(db.data, fresh) / "rows.safetensors"
    path.write_bytes(content)
    facts = Facts(rows=4, features=2, target="either", classes=2, class_names=("0", "1"))
    return datasets.create(db, id=fresh, name="mine", sha256="abc", path=path, facts=facts, preview=[[1.0, 2.0]])


def test_datasets_are_kept_while_a_job_needs_them(db: Database) -> None:
    first, second = dataset(db), dataset(db, b"more rows")
    assert datasets.get(db, first.id) == first
    assert first.facts.class_names == ("0", "1")
    page, cursor = datasets.listing(db, limit=1)
    assert page == [second]
    assert datasets.listing(db, limit=1, cursor=cursor) == ([first], None)
    job = act.submit(db, dataset={"kind": "upload", "id": first.id})
    held = act.claim(db)
    assert held.upload is not None
    assert held.upload.read_bytes() == b"rows"
    with pytest.raises(Conflict):
        datasets.delete(db, first.id)
    act.finish(db, held)
    datasets.delete(db, first.id)
    assert jobs.get(db, job.id).spec["dataset"]["id"] == first.id
    assert not (db.data / "datasets" / first.id).exists()
    for verb in (datasets.get, datasets.delete):
        with pytest.raises(NotFound):
            verb(db, first.id)


def test_workers_come_and_go(db: Database) -> None:
    with workers.register(db, "w-1", device="cpu", versions={"torch": "2"}), workers.register(db, "w-2", device="cuda", versions={}):
        first, second = workers.listing(db)
        assert (first.id, first.device, first.job, second.id) == ("w-1", "cpu", None, "w-2")
        workers.beat(db, "w-1", job="job_1")
        assert workers.listing(db)[0].job == "job_1"
        assert workers.gone(db) == []
        with pytest.raises(BlockingIOError), workers.register(db, "w-1", device="cpu", versions={}):
            pass
    assert workers.listing(db) == []
    with pytest.raises(ValueError, match="no worker id"):
        workers.forget(db, "../w")


def test_a_worker_that_died_is_known_by_its_lock(db: Database) -> None:
    with workers.register(db, "w-1", device="cpu", versions={}):
        row = workers.listing(db)[0]
    from regtrain.store.tables import workers as table

    (db.data / "workers").mkdir(exist_ok=True)
    (db.data / "workers" / "w-1.lock").touch()
    with db.write() as connection:
        connection.execute(insert(table).values(**row.__dict__))
    assert workers.gone(db) == ["w-1"]
    workers.forget(db, "w-1")
    assert (workers.listing(db), workers.gone(db)) == ([], [])


def test_tidying_removes_what_no_row_points_to(db: Database) -> None:
    job = act.submit(db)
    first = act.claim(db)
    kept = act.checkpoint(db, first, step=3)
    act.file_of(db, first, files.checkpoint_name(0, 7))  # renamed, but its process died before the row was written
    (files.scratch(db.data, job.id, 1) / "half").touch()
    jobs.crashed(db, first, "")
    jobs.tidy(db, first)
    second = act.claim(db)
    act.finish(db, second)
    jobs.tidy(db, second)
    left = {p.relative_to(db.data / "jobs" / job.id).as_posix() for p in (db.data / "jobs" / job.id).rglob("*") if p.is_file()}
    assert left == {f"1/{kept.name}", "2/model.safetensors"}


def test_a_reader_cannot_write(db: Database) -> None:
    job = act.submit(db)
    with pytest.raises(Exception, match=r"readonly|read-only"), db.read() as connection:
        connection.execute(update(jobs_table).values(name="x"))
    with db.read() as connection:
        assert connection.execute(select(jobs_table.c.name)).scalar() == job.name
        assert connection.execute(text("SELECT 1")).scalar() == 1
