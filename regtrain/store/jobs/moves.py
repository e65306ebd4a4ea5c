"""The moves of a job from state to state: only those that the contract's TRANSITIONS name exist."""

from typing import Any

from sqlalchemy import Connection, update

from regtrain.contract.errors import Conflict
from regtrain.contract.states import FINAL, TRANSITIONS, RunState, State
from regtrain.store.tables import jobs, now, runs

_RUNS = {State.CANCELLED: RunState.CANCELLED, State.FAILED: RunState.FAILED, State.QUEUED: RunState.QUEUED, State.PAUSED: RunState.QUEUED}
"""What becomes of runs that are not done when their job goes there."""


def sources(target: State) -> list[State]:
    """The states from which this one can be reached."""
    return [state for state, targets in TRANSITIONS.items() if target in targets]


def move(connection: Connection, job_id: str, target: State, **columns: Any) -> None:
    """Puts a job into a state and its unfinished runs with it. The job must be locked and the caller allowed.

    Raises:
        Conflict: there is no such move from the state in which it is.
    """
    end = {"finished_at": now()} if target in FINAL else {}
    moved = connection.execute(
        update(jobs).where(jobs.c.id == job_id, jobs.c.state.in_(sources(target))).values(state=target, **{"intent": None, "worker": None, "reason": None, **end, **columns})
    )
    if moved.rowcount != 1:
        raise Conflict(f"job {job_id} cannot become {target} from the state in which it is")
    if target in _RUNS:
        unfinished = (RunState.RUNNING,) if target is State.QUEUED else (RunState.QUEUED, RunState.RUNNING)
        connection.execute(update(runs).where(runs.c.job == job_id, runs.c.state.in_(unfinished)).values(state=_RUNS[target]))
