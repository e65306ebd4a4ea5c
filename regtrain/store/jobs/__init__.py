"""Jobs: what callers ask of them (`asking`), what workers do with them (`working`), and how they are read (`reading`)."""

from regtrain.store.jobs.asking import cancel, delete, submit
from regtrain.store.jobs.origins import completed
from regtrain.store.jobs.reading import Job, LogLine, Summary, get, glances, logs, model, summaries
from regtrain.store.jobs.tidying import tidy
from regtrain.store.jobs.trials import confirmed_before, key_of, patient_of, trials_of
from regtrain.store.jobs.working import (
    Claim,
    Running,
    cancelled,
    checkpointed,
    claim,
    crashed,
    fail,
    finish,
    heartbeat,
    release,
    report,
    rescue,
    running,
)

__all__ = [
    "Claim",
    "Job",
    "LogLine",
    "Running",
    "Summary",
    "cancel",
    "cancelled",
    "checkpointed",
    "claim",
    "completed",
    "confirmed_before",
    "crashed",
    "delete",
    "fail",
    "finish",
    "get",
    "glances",
    "heartbeat",
    "key_of",
    "logs",
    "model",
    "patient_of",
    "release",
    "report",
    "rescue",
    "running",
    "submit",
    "summaries",
    "tidy",
    "trials_of",
]
