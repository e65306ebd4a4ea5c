"""Whether the process lives, and whether it can do its work."""

import os

from fastapi import APIRouter, Response
from pydantic import BaseModel
from sqlalchemy import text

from regtrain.store.database import Database
from service.faces import json_answer
from service.problems import problem, responses
from service.requests import Store

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: str


@router.get(
    "/healthz",
    summary="Liveness",
    responses={200: {"model": Health, "description": "The process answers.", "content": {"application/json": {"example": {"status": "ok"}}}}, **responses(422)},
)
async def healthz() -> Response:
    """Looks at nothing: for a supervisor that restarts the process."""
    return json_answer({"status": "ok"})


@router.get(
    "/readyz",
    summary="Readiness",
    responses={
        200: {"model": Health, "description": "The database answers and the data folder can be written.", "content": {"application/json": {"example": {"status": "ok"}}}},
        **responses(422, 503),
    },
)
def readyz(db: Store) -> Response:
    """For a balancer, and for a script that waits until the service can take jobs."""
    wrong = unready(db)
    return problem(503, wrong, headers={"Retry-After": "1"}) if wrong else json_answer({"status": "ok"})


def unready(db: Database) -> str:
    """What is in the way of work; empty if nothing is."""
    with db.read() as connection:
        connection.execute(text("SELECT 1"))
    return "" if os.access(db.data, os.W_OK | os.X_OK) else "the data folder cannot be written"
