"""Any order of verbs against a model that is a handful of dictionaries; the same on both databases."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import store_acting as act
from conftest import empty
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule, run_state_machine_as_test

from regtrain.contract.errors import Conflict, NotFound, StaleAttempt
from regtrain.contract.states import FINAL, Failure, Intent, State
from regtrain.store import jobs, series
from regtrain.store.database import Database, open_database
from regtrain.store.tables import MOST_CRASHES


@dataclass
class Modelled:
    """What a job ought to be."""

    state: State = State.QUEUED
    intent: Intent | None = None
    attempt: int = 0
    crashes: int = 0
    beat: int = 0
    checkpoint: int | None = None
    points: list[float] = field(default_factory=list)

    def leave(self, state: State) -> State:
        self.state, self.intent = state, None
        return state

    def back(self) -> State:
        return self.leave(State.CANCELLED if self.intent is Intent.CANCELLING else State.QUEUED)

    def crash(self) -> State:
        self.crashes += 1
        if self.intent is None and self.crashes == MOST_CRASHES:
            return self.leave(State.FAILED)
        return self.back()


class Verbs(RuleBasedStateMachine):
    db: Database
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, Modelled] = {}
        self.gone: list[str] = []

    @initialize()
    def begin(self) -> None:
        empty(self.db)

    @rule()
    def submit(self) -> None:
        self.model[act.submit(self.db).id] = Modelled()

    @rule(target=claims)
    def claim(self) -> Any:
        waiting = sorted(job for job, modelled in self.model.items() if modelled.state is State.QUEUED)
        claim = jobs.claim(self.db, worker="w")
        if not waiting:
            assert claim is None
            return multiple()
        assert claim is not None
        modelled = self.model[waiting[0]]
        modelled.attempt += 1
        modelled.beat = 0
        modelled.state = State.RUNNING
        modelled.points = modelled.points[: modelled.checkpoint or 0]
        assert (claim.job, claim.attempt) == (waiting[0], modelled.attempt)
        assert [path.name for path in claim.resume.values()] == ([f"checkpoint-0-{modelled.checkpoint}.safetensors"] if modelled.checkpoint else [])
        return claim

    def held(self, claim: jobs.Claim) -> Modelled | None:
        """The model of the claim's job, if the claim still holds it."""
        modelled = self.model.get(claim.job)
        return modelled if modelled and modelled.state is State.RUNNING and modelled.attempt == claim.attempt else None

    def does(self, claim: jobs.Claim, verb: Any, *arguments: Any) -> Any:
        """The verb's answer; for a stale claim it must refuse and change nothing."""
        if self.held(claim) is not None:
            return verb(self.db, claim, *arguments)
        before = act.everything(self.db)
        with pytest.raises(StaleAttempt):
            verb(self.db, claim, *arguments)
        assert act.everything(self.db) == before
        return None

    @rule(claim=claims)
    def heartbeat(self, claim: jobs.Claim) -> None:
        intent = self.does(claim, lambda db, held: jobs.heartbeat(db, held, step=1))
        if modelled := self.held(claim):
            assert intent is modelled.intent
            modelled.beat += 1

    @rule(claim=claims, n=st.sampled_from([1, 3, 255, 256, 300]))
    def report(self, claim: jobs.Claim, n: int) -> None:
        modelled = self.held(claim)
        first = len(modelled.points) if modelled else 0
        values = np.random.default_rng(first).normal(size=n)
        events = [act.started(), act.points(loss_train=(range(first, first + n), values))]
        self.does(claim, jobs.report, events)
        if modelled:
            modelled.points += values.tolist()

    @rule(claim=claims)
    def checkpoint(self, claim: jobs.Claim) -> None:
        modelled = self.held(claim)
        if modelled is None or not modelled.points:
            return
        step = len(modelled.points)
        act.checkpoint(self.db, claim, step=step)
        if modelled.checkpoint is None or step > modelled.checkpoint:
            modelled.checkpoint, modelled.crashes = step, 0

    @rule(claim=claims)
    def finish(self, claim: jobs.Claim) -> None:
        modelled = self.held(claim)
        if modelled is not None:
            act.finish(self.db, claim)
            modelled.leave(State.SUCCEEDED)
            modelled.crashes = 0

    @rule(claim=claims)
    def fail(self, claim: jobs.Claim) -> None:
        modelled = self.held(claim)
        self.does(claim, jobs.fail, Failure.DATA, "no rows")
        if modelled:
            modelled.leave(State.FAILED)

    @rule(claim=claims)
    def cancelled(self, claim: jobs.Claim) -> None:
        modelled = self.held(claim)
        self.does(claim, jobs.cancelled)
        if modelled:
            modelled.leave(State.CANCELLED)

    @rule(claim=claims)
    def release(self, claim: jobs.Claim) -> None:
        modelled = self.held(claim)
        answer = self.does(claim, jobs.release)
        if modelled:
            assert answer is modelled.back()

    @rule(claim=claims)
    def crashed(self, claim: jobs.Claim) -> None:
        modelled = self.held(claim)
        answer = self.does(claim, jobs.crashed, "boom")
        if modelled:
            assert answer is modelled.crash()

    @rule(claim=claims, late=st.integers(0, 1))
    def rescue(self, claim: jobs.Claim, late: int) -> None:
        modelled = self.held(claim)
        beat = modelled.beat - late if modelled else 0
        answer = jobs.rescue(self.db, claim.job, claim.attempt, beat)
        assert answer is (modelled.crash() if modelled and not late else None)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if not self.model:
            return
        job_id = data.draw(st.sampled_from(sorted(self.model)))
        jobs.cancel(self.db, job_id)
        modelled = self.model[job_id]
        if modelled.state is State.QUEUED:
            modelled.leave(State.CANCELLED)
        elif modelled.state is State.RUNNING:
            modelled.intent = Intent.CANCELLING

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        if not self.model:
            return
        job_id = data.draw(st.sampled_from(sorted(self.model)))
        if self.model[job_id].state in FINAL:
            jobs.delete(self.db, job_id)
            del self.model[job_id]
            self.gone.append(job_id)
        else:
            with pytest.raises(Conflict):
                jobs.delete(self.db, job_id)

    @rule(claim=consumes(claims))
    def forget(self, claim: jobs.Claim) -> None:
        """A worker that is never heard of again."""

    @invariant()
    def the_store_is_as_the_model(self) -> None:
        found, _ = jobs.summaries(self.db, limit=1000, order="oldest")
        assert [(j.id, j.state, j.intent, j.attempt, j.crashes, j.terminal) for j in found] == [
            (job, m.state, m.intent, m.attempt, m.crashes, m.state in FINAL) for job, m in sorted(self.model.items())
        ]
        assert [(r.job, r.attempt, r.beat) for r in jobs.running(self.db)] == [(job, m.attempt, m.beat) for job, m in sorted(self.model.items()) if m.state is State.RUNNING]
        for job, modelled in self.model.items():
            curves = series.read(self.db, job, series=["loss/train"])
            assert [value for curve in curves for value in curve.y.tolist()] == modelled.points  # type: ignore[union-attr]
        for job in self.gone:
            with pytest.raises(NotFound):
                jobs.get(self.db, job)
            assert not (self.db.data / "jobs" / job).exists()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_any_order_of_verbs(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    opened = open_database(request.getfixturevalue("postgresql_url") if kind == "postgresql" else None, tmp_path)

    class OnThis(Verbs):
        db = opened

    examples = 25 if kind == "sqlite" else 8
    try:
        run_state_machine_as_test(
            OnThis, settings=settings(max_examples=examples, stateful_step_count=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        )
    finally:
        opened.close()
