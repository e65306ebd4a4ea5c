"""Where a job and a run may be, and which moves between those places exist. Data, not behaviour: the store's CHECKs are built from it."""

from enum import StrEnum


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
"""States that no job leaves."""

TRANSITIONS: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.PAUSED, State.FAILED, State.CANCELLED}),
    State.RUNNING: frozenset({State.QUEUED, State.PAUSED, State.SUCCEEDED, State.FAILED, State.CANCELLED}),
    State.PAUSED: frozenset({State.QUEUED, State.CANCELLED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


class Intent(StrEnum):
    """What has been asked of a running job and has not happened yet."""

    CANCELLING = "cancelling"
    PAUSING = "pausing"


class Failure(StrEnum):
    """Why a job failed: says who can mend it, and whether trying again can help."""

    SPEC = "spec"
    DATA = "data"
    DIVERGED = "diverged"
    RESOURCE = "resource"
    CRASH_LOOP = "crash_loop"
    STALLED = "stalled"
    DEADLINE = "deadline"
    INFRASTRUCTURE = "infrastructure"


class RunState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StopReason(StrEnum):
    """Why a run made its last step."""

    BUDGET = "budget"
    CONVERGED = "converged"
    EARLY_STOPPING = "early_stopping"
    PRUNED = "pruned"
    SYMPTOM = "symptom"
    DIVERGED = "diverged"
    CANCELLED = "cancelled"
