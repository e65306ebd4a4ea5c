"""Jobs: what callers ask of them (`asking`), what workers do with them (`working`), and how they are read (`reading`)."""

from regtrain.store.jobs.asking import cancel, delete, submit
from regtrain.store.jobs.reading import Job, LogLine, Summary, get, glances, logs, model, summaries
from regtrain.store.jobs.tidying import tidy
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
    "crashed",
    "delete",
    "fail",
    "finish",
    "get",
    "glances",
    "heartbeat",
    "logs",
    "model",
    "release",
    "report",
    "rescue",
    "running",
    "submit",
    "summaries",
    "tidy",
]
