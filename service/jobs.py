"""Jobs: submit, look, wait, list, cancel, retry, delete, and the trained model."""

import hashlib
import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from regtrain.contract import job as contract
from regtrain.contract.checks import check
from regtrain.contract.datasets import Facts, Upload, facts_of
from regtrain.contract.errors import Conflict, NotFound, Problem, SpecRefused, Warned
from regtrain.contract.job import JobSpec
from regtrain.contract.states import FINAL, State
from regtrain.store import datasets, files, jobs
from regtrain.store.database import Database
from service import lam
from service.diagnosis import brief
from service.faces import dumps, json_answer
from service.names import nearest
from service.problems import responses
from service.requests import JobId, Store, json_body, settings
from service.waiting import until as read_until

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
CHUNK_BYTES = 256 * 1024

Wait = Annotated[
    float, Query(ge=0, le=3600, description="Hold the answer back for up to so many seconds (the server may cap it), until the condition in `until` holds.", examples=[1])
]
Key = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="Sent again with the same body, it gives the job of the first time; with another body 422.", examples=["3f1c-first-job"]),
]

EXAMPLE_SPEC: dict[str, Any] = {
    "name": "digits, a little L1",
    "dataset": {"kind": "digits", "test": 0.2, "validation": 0.1, "standardize": True},
    "model": {"kind": "mlp", "hidden": [32], "activation": "relu", "init": {"kind": "he_normal"}},
    "loss": {"kind": "cross_entropy"},
    "regularizers": [{"kind": "l1", "lambda": 1e-4}, {"kind": "dropout", "rate": 0.2}],
    "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True},
    "budget": {"epochs": 3, "batch_size": 64},
    "metadata": {"team": "vision"},
}
EXAMPLE_SWEEP: dict[str, Any] = {
    "dataset": {"kind": "inline", "x": [[1], [2], [3], [4], [5]], "y": [2, 4, 7, 11, 16]},
    "model": {"kind": "linear"},
    "loss": {"kind": "half_squared_error"},
    "regularizers": [{"kind": "l2", "lambda": {"values": [0, 0.1, 1]}}],
    "optimizer": {"kind": "sgd", "lr": 0.05},
    "budget": {"epochs": 100, "batch_size": "all"},
}
EXAMPLE_ID = "job_01JD3QZ7M8XK5T2V9R4C6B1N0P"
EXAMPLE_JOB: dict[str, Any] = {
    "id": EXAMPLE_ID, "name": "digits, a little L1", "state": "running", "terminal": False, "intent": None, "reason": None, "attempt": 1, "runs": 1, "version": 1, "priority": 0,
    "spec": {"name": "digits, a little L1"}, "origin": {"optimizer.lr": "given", "clip": "default"}, "warnings": [], "metadata": {"team": "vision"},
    "progress": {"step": 40, "steps": 63, "epoch": 1, "runs": 1, "eta_seconds": 0.4}, "metrics": {"loss/train": 0.41, "loss/val": 0.48},
    "diagnosis": {"verdict": "symptoms", "root": "vanishing_signal", "symptoms": 2}, "result": None, "error": None, "retry_of": None,
    "created_at": "2026-11-20T22:00:00Z", "started_at": "2026-11-20T22:00:01Z", "finished_at": None, "links": {"self": f"/v1/jobs/{EXAMPLE_ID}"},
}  # fmt: skip


class JobSummary(BaseModel):
    """A job without its spec."""

    id: str
    name: str
    state: str = Field(description="queued, running, paused, succeeded, failed, cancelled; more may come.")
    terminal: bool = Field(description="Nothing will change any more.")
    intent: str | None = Field(description="What has been asked of a running job and has not happened yet: cancelling, pausing.")
    reason: str | None = Field(description="Why a job failed: spec, data, diverged, resource, crash_loop, stalled, deadline, infrastructure; more may come.")
    attempt: int
    runs: int
    metadata: dict[str, str]
    progress: dict[str, Any]
    metrics: dict[str, Any] = Field(description="Latest values, of the best (or only) run.")
    retry_of: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    links: dict[str, str]


class JobAnswer(JobSummary):
    version: int
    priority: int
    spec: dict[str, Any] = Field(description="With every default filled in.")
    origin: dict[str, str] = Field(description="Path → given, default or searched.")
    warnings: list[dict[str, Any]]
    diagnosis: dict[str, Any] | None = Field(description="verdict, root and the number of kinds of symptoms so far; null before training begins. All of it is at /diagnosis.")
    result: dict[str, Any] | None
    error: dict[str, Any] | None


class JobList(BaseModel):
    jobs: list[JobSummary]
    next_cursor: str | None = Field(description="Send it as `cursor`, with the same filter, for what follows; null at the end.")


def job_responses(status: int, description: str) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": JobAnswer, "description": description, "content": {"application/json": {"example": EXAMPLE_JOB}}}}


@router.post(
    "",
    status_code=201,
    summary="Submit a job",
    responses={**job_responses(201, "The job, queued."), **responses(408, 409, 413, 415, 422)},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"type": "object", "description": "The spec: its JSON Schema is at /v1/schema/job."},
                    "examples": {
                        "digits": {"summary": "A net on bundled data", "value": EXAMPLE_SPEC},
                        "sweep": {"summary": "Ridge over three strengths, as one job", "value": EXAMPLE_SWEEP},
                    },
                }
            },
        }
    },
)
async def submit(request: Request, db: Store, wait: Wait = 0, key: Key = None) -> Response:
    """`curl --json @job.json http://127.0.0.1:8321/v1/jobs`. Validates, warns, stores and queues; `wait` holds the answer back until the job has ended."""
    body = await json_body(request)
    job, answer = await run_in_threadpool(_submit, db, body, key)
    if wait:
        await _wait(request, job, "terminal", wait)
        return await run_in_threadpool(lambda: _created(db, jobs.get(db, job)))
    return answer


@router.get(
    "",
    summary="List jobs",
    responses={200: {"model": JobList, "description": "A page of jobs.", "content": {"application/json": {"example": {"jobs": [], "next_cursor": None}}}}, **responses(422)},
    openapi_extra={"x-metadata-filter": True},
)
def list_jobs(
    request: Request,
    db: Store,
    state: Annotated[str | None, Query(max_length=200, description="A state, or several separated by commas.", examples=["queued,running,succeeded"])] = None,
    name: Annotated[str | None, Query(max_length=200, description="The exact name.")] = None,
    created_after: Annotated[datetime | None, Query(description="A moment in ISO 8601; without a zone it is UTC.", examples=["2020-01-01T00:00:00Z"])] = None,
    order: Annotated[Literal["newest", "oldest"], Query(examples=["newest"])] = "newest",
    limit: Annotated[int, Query(ge=1, le=500, examples=[20])] = 50,
    cursor: Annotated[str | None, Query(max_length=1000, description="`next_cursor` of the page before, with the same filter.")] = None,
) -> Response:
    """Summaries, newest first. Jobs are also found by their metadata: `metadata.team=vision`."""
    metadata = {key.removeprefix("metadata."): value for key, value in request.query_params.items() if key.startswith("metadata.")}
    after = created_after.replace(tzinfo=created_after.tzinfo or UTC) if created_after else None
    found, following = jobs.summaries(db, state=_states(state), name=name, metadata=metadata, created_after=after, order=order, limit=limit, cursor=cursor)
    return json_answer({"jobs": [summary(job) for job in found], "next_cursor": following})


@router.get(
    "/{id}",
    summary="One job, now or when something has happened",
    responses={**job_responses(200, "The job."), 304: {"description": "It is still as the ETag in If-None-Match says."}, **responses(404, 422)},
)
async def get(
    request: Request,
    db: Store,
    id: JobId,
    wait: Wait = 0,
    until: Annotated[
        str,
        Query(max_length=200, description="`terminal`, `symptom`, or `<metric>:lt:<number>`, `<metric>:gt:<number>`. The end of the job ends every wait.", examples=["terminal"]),
    ] = "terminal",
    known: Annotated[str | None, Header(alias="If-None-Match", description="ETag of an earlier answer.")] = None,
) -> Response:
    """`?wait=60&until=loss/val:lt:0.2` answers as soon as the validation loss falls below 0.2, the job ends, or the time is over."""
    read_until(until)
    if wait:
        await run_in_threadpool(jobs.get, db, id)
        await _wait(request, id, until, wait)
    return await run_in_threadpool(lambda: tagged(dumps(shown(db, jobs.get(db, id))), known))


@router.delete("/{id}", status_code=204, summary="Delete a finished job with its curves and files", responses={204: {"description": "It is gone."}, **responses(404, 409, 422)})
def delete(request: Request, db: Store, id: JobId) -> Response:
    """409 unless the job is terminal: cancel it first."""
    jobs.delete(db, id)
    request.app.state.nudge()
    return Response(status_code=204)


@router.post("/{id}/cancel", summary="Cancel a job", responses={**job_responses(200, "The job, as it is now."), **responses(404, 422)})
def cancel(request: Request, db: Store, id: JobId) -> Response:
    """A queued job is cancelled at once, a running one soon; a finished one stays as it is. Can be repeated."""
    job = jobs.cancel(db, id)
    request.app.state.nudge()
    return json_answer(shown(db, job))


@router.post("/{id}/retry", status_code=201, summary="Submit the same spec again", responses={**job_responses(201, "The new job."), **responses(404, 409, 422)})
def retry(db: Store, id: JobId) -> Response:
    """A new job with `retry_of`. 409 unless the job is terminal."""
    old = jobs.get(db, id)
    if old.state not in FINAL:
        raise Conflict(f"job {id} is {old.state}: only a finished job can be tried again")
    job = _store(db, json.dumps(old.given), old.given, retry_of=id, idempotency=None)
    return _created(db, job)


@router.get(
    "/{id}/model",
    summary="The trained model",
    responses={
        200: {
            "description": "A safetensors file: every tensor with the runs on its first axis; the spec and the fitted preprocessing in its metadata.",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
        **responses(404, 409, 422),
    },
)
def model(db: Store, id: JobId) -> Response:
    """409 as long as the job has none."""
    stored = jobs.model(db, id)
    if stored is None:
        raise Conflict(f"job {id} has no model: it is {jobs.get(db, id).state}, and a model is written when a job succeeds")
    path, sha256 = stored
    file = files.open_file(db.data, path)

    def pieces() -> Any:
        with file:
            while piece := file.read(CHUNK_BYTES):
                yield piece

    size = file.seek(0, 2)
    file.seek(0)
    headers = {"Content-Disposition": f'attachment; filename="{id}.safetensors"', "Content-Length": str(size), "ETag": f'"{sha256}"'}
    return StreamingResponse(pieces(), media_type="application/octet-stream", headers=headers)


def shown(db: Database, job: jobs.Job) -> dict[str, Any]:
    """The full answer about a job."""
    return {
        **summary(job),
        "version": job.version,
        "priority": job.priority,
        "spec": job.spec,
        "origin": contract.origin(job.given, job.spec),
        "warnings": job.warnings,
        "diagnosis": brief(db, job),
        "result": _result(db, job),
        "error": _error(job),
    }


def summary(job: Any) -> dict[str, Any]:
    """What lists show of a job."""
    own = f"/v1/jobs/{job.id}"
    return {
        "id": job.id,
        "name": job.name,
        "state": job.state,
        "terminal": job.state in FINAL,
        "intent": job.intent,
        "reason": job.reason,
        "attempt": job.attempt,
        "runs": job.runs,
        "metadata": job.metadata,
        "progress": {"step": 0, "steps": None, "epoch": 0, "runs": job.runs, "eta_seconds": None, **job.progress},
        "metrics": job.metrics,
        "retry_of": job.retry_of,
        "created_at": moment(job.created_at),
        "started_at": moment(job.started_at),
        "finished_at": moment(job.finished_at),
        "links": {"self": own, **{name: f"{own}/{name}" for name in ("curves", "gradients", "diagnosis", "runs", "path", "model")}},
    }


def moment(at: datetime | None) -> str | None:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z") if at else None


def tagged(body: str, known: str | None) -> Response:
    """The body with its weak ETag, or 304 where the client has it already."""
    tag = f'W/"{hashlib.sha256(body.encode()).hexdigest()[:32]}"'
    if known is not None and ({part.strip().removeprefix("W/") for part in known.split(",")} & {tag.removeprefix("W/"), "*"}):
        return Response(status_code=304, headers={"ETag": tag})
    return Response(body, media_type="application/json", headers={"ETag": tag})


async def _wait(request: Request, job: str, until: str, seconds: float) -> None:
    await request.app.state.poller.wait(job, read_until(until), seconds=min(seconds, settings(request).wait_seconds))


def _submit(db: Database, body: bytes, key: str | None) -> tuple[str, Response]:
    """Stores the job. Its ID, and the answer to who does not wait, in one go: every change of thread costs a third of a millisecond."""
    if key is not None and not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
        raise SpecRefused([Problem("Idempotency-Key", "expected 1 to 255 printable ASCII characters", "use a UUID")])
    given = contract.given_of(body)
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()
    job = _store(db, body, given, retry_of=None, idempotency=(key, digest) if key else None)
    return job.id, _created(db, job)


def _created(db: Database, job: jobs.Job) -> Response:
    return json_answer(shown(db, job), 201, Location=f"/v1/jobs/{job.id}")


def _store(db: Database, body: bytes | str, given: dict[str, Any], *, retry_of: str | None, idempotency: tuple[str, str] | None) -> jobs.Job:
    spec = contract.parse(body)
    spec, warnings = checked(db, spec)
    return jobs.submit(db, spec, given=given, warnings=warnings, retry_of=retry_of, idempotency=idempotency)


def checked(db: Database, spec: JobSpec) -> tuple[JobSpec, list[Warned]]:
    """The spec with what the store knows of the weights that it begins from, and what is accepted and probably not meant.

    Raises:
        SpecRefused: with every problem found.
    """
    facts = facts_of_spec(db, spec)
    warnings = check(spec, facts)
    spec, more = jobs.completed(db, spec, facts)
    return spec, [*warnings, *more]


def _result(db: Database, job: jobs.Job) -> dict[str, Any] | None:
    """The stored result, and the chosen strengths in every convention."""
    if job.result is None:
        return None
    spec = JobSpec.model_validate_json(json.dumps(job.spec))
    try:
        facts = facts_of_spec(db, spec)
    except SpecRefused:  # an upload that has been deleted
        facts = None
    return {**job.result, "lambda": lam.of_result(spec, facts, job.result)}


def facts_of_spec(db: Database, spec: JobSpec) -> Facts:
    """What is known of the dataset that a spec names.

    Raises:
        SpecRefused: it names an upload that there is not.
    """
    if not isinstance(spec.dataset, Upload):
        facts = facts_of(spec.dataset)
        assert facts is not None
        return facts
    try:
        return datasets.get(db, spec.dataset.id).facts
    except NotFound:
        raise SpecRefused([Problem("dataset.id", f"there is no dataset {spec.dataset.id!r}", "upload one to /v1/datasets, and use the id in the answer")]) from None


def _states(text: str | None) -> list[State] | None:
    if text is None:
        return None
    names = [part.strip() for part in text.split(",")]
    unknown = [Problem("state", f"there is no state {name[:60]!r}", nearest(name, [state.value for state in State])) for name in names if name not in set(State)]
    if unknown:
        raise SpecRefused(unknown)
    return [State(name) for name in names]


def _error(job: jobs.Job) -> dict[str, Any] | None:
    """Why a job failed, as a problem; `trace` is what a program said about it."""
    if job.error is None:
        return None
    return {
        "type": f"urn:regtrain:failure:{job.reason}",
        "title": f"the job failed: {job.reason}",
        "detail": job.error.get("message", ""),
        "trace": job.error.get("detail", ""),
    }
