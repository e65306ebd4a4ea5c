"""Who trains, and on what."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel

from regtrain.store import workers
from service.faces import json_answer
from service.jobs import moment
from service.problems import responses
from service.requests import Store

router = APIRouter(prefix="/v1/workers", tags=["workers"])


class WorkerAnswer(BaseModel):
    id: str
    host: str
    pid: int
    device: str
    versions: dict[str, Any]
    job: str | None
    """The job that it trains."""
    started_at: datetime
    seen_at: datetime
    """When it last said that it lives."""


class WorkerList(BaseModel):
    workers: list[WorkerAnswer]


EXAMPLE = {
    "workers": [
        {
            "id": "w1",
            "host": "box",
            "pid": 4242,
            "device": "cpu",
            "versions": {"torch": "2.13.0"},
            "job": None,
            "started_at": "2026-11-20T22:00:00Z",
            "seen_at": "2026-11-20T22:00:05Z",
        }
    ]
}


@router.get(
    "",
    summary="The workers",
    responses={200: {"model": WorkerList, "description": "All workers that have not left.", "content": {"application/json": {"example": EXAMPLE}}}, **responses(422)},
)
def list_workers(db: Store) -> Response:
    """Each worker has one device and trains one job at a time."""
    return json_answer(
        {
            "workers": [
                {**{name: getattr(w, name) for name in ("id", "host", "pid", "device", "versions", "job")}, "started_at": moment(w.started_at), "seen_at": moment(w.seen_at)}
                for w in workers.listing(db)
            ]
        }
    )
