"""The laws that gradients obey exactly, measured by every worker on its device: when it has nothing to do for the first time, and whenever it is asked."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel

from regtrain.store import workers
from service.faces import json_answer
from service.jobs import moment
from service.problems import responses
from service.requests import Store

router = APIRouter(prefix="/v1/selftest", tags=["workers"])
ANEW = "POST /v1/selftest, or `regtrain selftest`"


class LawAnswer(BaseModel):
    name: str
    formula: str
    error: float | None
    """Relative to the size of the quantity; null where it is not finite."""
    tolerance: float
    ok: bool
    seconds: float


class MeasuredAnswer(BaseModel):
    worker: str
    host: str
    device: str
    ok: bool | None
    """Whether every law holds; null where nothing has been measured."""
    measured_at: datetime | None
    asked_at: datetime | None
    """It was asked to measure anew, and has not done so yet."""
    environment: dict[str, Any]
    """Versions, device and threads with which it was measured."""
    laws: list[LawAnswer]
    """Each is measured by training small jobs on the device of the worker."""
    error: str | None
    """Why nothing could be measured."""


class SelftestAnswer(BaseModel):
    ok: bool | None
    """False if a law does not hold somewhere; true if all hold everywhere; null as long as nobody, or not everybody, has measured."""
    anew: str
    """How to have them measured anew."""
    workers: list[MeasuredAnswer]


EXAMPLE = {
    "ok": True,
    "anew": ANEW,
    "workers": [
        {
            "worker": "worker_01K",
            "host": "box",
            "device": "cpu",
            "ok": True,
            "measured_at": "2026-11-21T12:00:00Z",
            "asked_at": None,
            "environment": {"torch": "2.13.0+cpu", "device": "x86_64 CPU", "device_kind": "cpu", "threads": 2},
            "laws": [
                {
                    "name": "class_sum",
                    "formula": "Σ_c g_c = 0 in the head of softmax cross-entropy",
                    "error": 1.8e-16,
                    "tolerance": 1e-12,
                    "ok": True,
                    "seconds": 0.05,
                },
            ],
            "error": None,
        }
    ],
}


@router.get(
    "",
    summary="Selftest: exact laws of gradients, as each worker measured them last",
    responses={
        200: {"model": SelftestAnswer, "description": "Every worker with every law.", "content": {"application/json": {"example": EXAMPLE}}},
        **responses(422),
    },
)
def selftest(db: Store) -> Response:
    """A worker measures by itself after its first five idle seconds (`REGTRAIN_SELFTEST_SECONDS`), and when it is asked."""
    return json_answer(_answer(db))


@router.post(
    "",
    status_code=202,
    summary="Ask every worker to measure anew",
    responses={
        202: {
            "model": SelftestAnswer,
            "description": "What was measured last; `asked_at` is null again when a worker has answered.",
            "content": {"application/json": {"example": EXAMPLE}},
        },
        **responses(422),
    },
)
def measure(db: Store) -> Response:
    """It takes a worker about ten seconds, beside the job that it trains. Without any worker `workers` is empty."""
    workers.ask_for_selftests(db)
    return json_answer(_answer(db), 202)


def _answer(db: Store) -> dict[str, Any]:
    found = [_measured(worker) for worker in workers.listing(db)]
    verdicts = {one["ok"] for one in found}
    return {"ok": False if False in verdicts else True if verdicts == {True} else None, "anew": ANEW, "workers": found}


def _measured(worker: workers.Worker) -> dict[str, Any]:
    outcome = worker.selftest or {"ok": None, "environment": {}, "laws": [], "error": None}
    times = {"measured_at": moment(worker.selftest_at), "asked_at": moment(worker.selftest_asked_at)}
    return {"worker": worker.id, "host": worker.host, "device": worker.device, **times, **outcome}
