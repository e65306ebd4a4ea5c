"""What a spec would come to, without storing it: validated, warned about, counted, and timed where workers have trained the like."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from regtrain.contract import job as contract
from regtrain.contract.plan import pace_key
from regtrain.contract.plan import plan as plan_of
from regtrain.store import rates
from regtrain.store.database import Database
from service.faces import json_answer
from service.jobs import EXAMPLE_SWEEP, checked, facts_of_spec
from service.problems import responses
from service.requests import Store, json_body

router = APIRouter(tags=["jobs"])


class LayerAnswer(BaseModel):
    name: str
    output: list[int]
    """Shape of what it gives on, for one row."""


class LayerSignalAnswer(BaseModel):
    name: str
    forward: float | None = Field(description="rms of the linear output: signal/forward.")
    backward: float | None = Field(description="rms of the signal gradient over that of the head: of signal/backward.")
    chi: float | None = Field(description="E‖δ‖² of this layer over that of the next one; null for the head.")
    dead: float | None = Field(description="Share of relu units that are 0 for all training rows.")


class ChangeAnswer(BaseModel):
    set: dict[str, Any] = Field(description="Path → whole value.")
    gradient_ratio: float = Field(description="What it is predicted to be with this change.")


class SignalAnswer(BaseModel):
    """What mean-field theory predicts for the first run before its first update; null where it does not know."""

    input_rms: float | None = Field(description="Of the numbers that enter the net.")
    layers: list[LayerSignalAnswer]
    gradient_ratio: float | None = Field(description="‖δ‖ of the first hidden layer over that of the last one, by the recursion at this depth.")
    chi: float | None = Field(description="Behind many hidden layers like the last one.")
    depth_scale: float | None = Field(description="Layers in which ‖δ‖² changes by e: 1/|ln χ|; null without a limit.")
    trainable_depth: float | None = Field(description="Six depth scales; null without a limit.")
    initial_loss: float | None
    dead: float | None = Field(description="Share of all relu units.")
    remedies: list[ChangeAnswer] = Field(description="Changes whose predicted ratio is nearer to 1, the best first.")


class VariantAnswer(BaseModel):
    label: str
    layers: list[LayerAnswer]
    parameters: int
    steps: int


class PlanAnswer(BaseModel):
    spec: dict[str, Any] = Field(description="With every default filled in.")
    origin: dict[str, str] = Field(description="Path → given, default or searched.")
    digest: str = Field(description="sha256 over all that determines the numbers.")
    warnings: list[dict[str, Any]] = Field(description="Known from the spec; what the rows show is added when the job starts.")
    runs: int
    packs: dict[str, list[int]] = Field(description="Device kind → how many runs each pack has.")
    rows: dict[str, int]
    layers: list[LayerAnswer]
    parameters: int = Field(description="Of one run.")
    steps: int = Field(description="Updates of one run that uses its whole budget.")
    steps_per_epoch: int
    run_bytes: int = Field(description="Memory of one run while it trains, from the shapes.")
    pack_bytes: dict[str, int] = Field(description="Device kind → memory of its largest pack.")
    rows_bytes: int
    variants: list[VariantAnswer] = Field(description="What each variant comes to; layers, parameters and steps above are those of the spec as it stands.")
    signal: SignalAnswer | None = Field(description="Null for a job that begins from trained weights: theory knows initial ones.")
    expected_seconds: dict[str, float | None] = Field(description="Device kind → wall time of the whole job; null until a worker has finished one of this shape and these packs.")


EXAMPLE = {
    "spec": {"name": ""}, "origin": {"optimizer.lr": "given", "clip": "default"}, "digest": "9f2c", "warnings": [], "runs": 3, "packs": {"cpu": [3], "cuda": [3]},
    "rows": {"train": 5, "val": 0, "test": 0}, "layers": [{"name": "head", "output": [1]}], "parameters": 2, "steps": 100, "steps_per_epoch": 1, "run_bytes": 108,
    "pack_bytes": {"cpu": 324, "cuda": 324}, "rows_bytes": 40, "variants": [],
    "signal": {
        "input_rms": 3.32, "layers": [{"name": "head", "forward": 0, "backward": 1, "chi": None, "dead": None}], "gradient_ratio": None, "chi": None, "depth_scale": None,
        "trainable_depth": None, "initial_loss": 39.6, "dead": None, "remedies": [],
    }, "expected_seconds": {"cpu": 0.07, "cuda": None},
}  # fmt: skip


@router.post(
    "/v1/plan",
    summary="What a job would come to",
    responses={200: {"model": PlanAnswer, "description": "The plan.", "content": {"application/json": {"example": EXAMPLE}}}, **responses(408, 413, 415, 422)},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object", "description": "The spec: its JSON Schema is at /v1/schema/job."}, "example": EXAMPLE_SWEEP}},
        }
    },
)
async def plan(request: Request, db: Store) -> Response:
    """The same checks as a submission, and the same refusals; nothing is stored."""
    body = await json_body(request)
    return json_answer(await run_in_threadpool(planned, db, body))


def planned(db: Database, body: bytes) -> dict[str, Any]:
    """The answer for a JSON text.

    Raises:
        SpecRefused: with every problem found.
    """
    given, spec = contract.given_of(body), contract.parse(body)
    facts = facts_of_spec(db, spec)
    spec, warnings = checked(db, spec)
    found, resolved = plan_of(spec, facts), contract.resolved(spec)
    paces = {device: rates.seconds_a_step(db, pace_key(spec, facts, sizes), device=device) for device, sizes in found.packs.items()}
    seconds = {device: None if pace is None else pace * found.steps * len(found.packs[device]) for device, pace in paces.items()}
    head = {"spec": resolved, "origin": contract.origin(given, resolved), "digest": contract.digest(spec), "warnings": [asdict(warning) for warning in warnings]}
    return {**head, **asdict(found), "expected_seconds": seconds}
