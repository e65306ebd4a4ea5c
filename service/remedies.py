"""Remedies for what is wrong with a job: the candidates with what they are expected to do, the job that tries them, and its verdicts. As JSON, JSON Lines, CSV or text."""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from regtrain.contract.errors import Conflict
from regtrain.contract.given import given_of
from regtrain.contract.job import JobSpec, resolved
from regtrain.contract.remedies import Patient, remedies, request_of, trial_of
from regtrain.contract.states import FINAL
from regtrain.contract.symptoms import SymptomName
from regtrain.store import jobs
from regtrain.store.database import Database
from regtrain.store.tables import dumps
from service.faces import Format, Record, columns_of, contents, face_of, json_answer, printable, short, table_answer, text_answer
from service.jobs import EXAMPLE_ID, facts_of_spec, job_responses, shown
from service.problems import responses
from service.requests import JobId, Store, json_body

router = APIRouter(tags=["jobs"])
Direction = Literal["up", "down", "even"]
COLUMNS = ["label", "set", "expects", "trial", "verdict", "pairs", "shown", "difference", "p"]


class RemedyAnswer(BaseModel):
    label: str
    set: dict[str, Any] = Field(description="Path → whole value, as in `variants`.")
    expects: dict[str, Direction] = Field(description="Series → what should become of it; `even`: of one size in all layers.")
    why: str


class VerdictAnswer(BaseModel):
    label: str
    verdict: str = Field(description="confirmed, left_out, symptom_stays, undecided, not_better; more may come.")
    pairs: int = Field(description="Seeds that it and the control were both trained with.")
    shown: float | None = Field(description="Share of its runs that show the symptom.")
    symptom_p: float | None
    metric: float | None
    difference: float | None = Field(description="Mean over the pairs, positive where it is better than the control.")
    p: float = Field(description="One-sided exact signed-rank test, adjusted by Holm.")
    confidence: float


class TrialAnswer(BaseModel):
    job: str
    state: str
    terminal: bool
    symptom: str | None
    confirmed: str | None = Field(description="Label of the best remedy that is confirmed; null before the end, and where no remedy helps.")
    in_words: str | None
    verdicts: list[VerdictAnswer]


class RemediesAnswer(BaseModel):
    job: str
    symptom: str | None = Field(description="What the remedies are for; null where nothing is known to be wrong.")
    remedies: list[RemedyAnswer]
    trials: list[TrialAnswer] = Field(description="Newest first.")


EXAMPLE: dict[str, Any] = {
    "job": EXAMPLE_ID,
    "symptom": "vanishing_signal",
    "remedies": [
        {
            "label": "residual", "set": {"model.residual": True}, "expects": {"signal/backward": "even"},
            "why": "theory: the first hidden layer then gets 1 of the last one's signal gradient, now 4.5e-21",
        }
    ],
    "trials": [
        {
            "job": "job_01JD3QZ7M8XK5T2V9R4C6B1N0Q", "state": "succeeded", "terminal": True, "symptom": "vanishing_signal", "confirmed": "residual",
            "in_words": "residual is confirmed: vanishing_signal is gone and loss/val is better than the control's by 1.04 on average over 8 paired seeds (p = 0.0039).",
            "verdicts": [
                {
                    "label": "residual", "verdict": "confirmed", "pairs": 8, "shown": 0.0, "symptom_p": 0.00390625, "metric": 0.058, "difference": 1.04, "p": 0.00390625,
                    "confidence": 0.99609375,
                }
            ],
        }
    ],
}  # fmt: skip
EXAMPLE_REQUEST: dict[str, Any] = {"seeds": 8}
EXAMPLE_OWN: dict[str, Any] = {"remedies": [{"label": "slower", "set": {"optimizer.lr": 0.01}}], "seeds": 10}

Symptom = Annotated[SymptomName | None, Query(description="Remedies for another symptom than the job's own.", examples=["plateau"])]


@router.get(
    "/v1/jobs/{id}/remedies",
    summary="What may cure a job, and what has been tried",
    responses={
        200: {"model": RemediesAnswer, "description": "Candidates and trials.", "content": {"application/json": {"example": EXAMPLE}, **contents(",".join(COLUMNS))}},
        **responses(404, 422),
    },
)
def list_remedies(request: Request, db: Store, id: JobId, symptom: Symptom = None, format: Format = None) -> Response:
    """Changes to the spec, the most promising first: by theory, and by what trials have confirmed in this installation. They are guesses until a trial."""
    answer = _answer(db, id, symptom)
    match face_of(request, format):
        case "json":
            return json_answer(answer, Vary="Accept")
        case "text":
            return text_answer(as_text(answer))
        case face:
            return table_answer(face, _records(answer), columns=COLUMNS)


@router.post(
    "/v1/jobs/{id}/remedies",
    status_code=201,
    summary="Try remedies against an untouched control",
    responses={**job_responses(201, "The trial, a job of its own, queued. Repeated with the same body, the same job."), **responses(404, 408, 409, 413, 415, 422)},
    openapi_extra={
        "requestBody": {
            "required": False,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "description": "`symptom`: default the job's own. `remedies`: [{label, set}] in place of the candidates. `seeds`: at least 8. `epochs`: of each run.",
                    },
                    "examples": {"plain": {"value": EXAMPLE_REQUEST}, "own": {"summary": "A remedy of your own", "value": EXAMPLE_OWN}},
                }
            },
        }
    },
)
async def try_remedies(request: Request, db: Store, id: JobId) -> Response:
    """A new job: the control, the candidates and as many random changes from the same space, over the same seeds and held-out rows; the worse half leaves after a quarter
    of the seeds, and again after half of them. A remedy is confirmed if the symptom is gone and the held-out metric beats the control's (p < 0.05 over all pairs, exact,
    corrected for their number). `result.trial` has the verdicts. 409 unless the job has ended."""
    body = b"{}" if _is_empty(request) else await json_body(request)
    return await run_in_threadpool(_try, db, id, body)


def _is_empty(request: Request) -> bool:
    return request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers


def _try(db: Database, id: str, body: bytes) -> Response:
    asked, given = request_of(body), given_of(body)
    job = jobs.get(db, id)
    if job.state not in FINAL:
        raise Conflict(f"job {id} is {job.state}: what is wrong with it is known when it has ended")
    of, facts = _patient(db, job, asked.symptom)
    made, warnings = trial_of(of, facts, asked, before=jobs.confirmed_before(db, of.symptom))
    trial = jobs.submit(db, made, given=resolved(made), warnings=warnings, idempotency=jobs.key_of(id, given))
    return json_answer(shown(db, trial), 201, Location=f"/v1/jobs/{trial.id}")


def _patient(db: Database, job: jobs.Job, symptom: SymptomName | None) -> tuple[Patient, Any]:
    spec = JobSpec.model_validate_json(dumps(job.spec))
    return jobs.patient_of(db, job.id, spec, symptom), facts_of_spec(db, spec)


def _answer(db: Database, id: str, symptom: SymptomName | None) -> dict[str, Any]:
    of, facts = _patient(db, jobs.get(db, id), symptom)
    found = remedies(of.spec, facts, of.symptom, evidence=of.evidence, before=jobs.confirmed_before(db, of.symptom))
    return {"job": id, "symptom": of.symptom, "remedies": [asdict(remedy) for remedy in found], "trials": [_trial(job) for job in jobs.trials_of(db, id)]}


def _trial(job: jobs.Job) -> dict[str, Any]:
    said: dict[str, Any] = (job.result or {}).get("trial") or {}
    symptom = (job.spec.get("trial") or {}).get("symptom")
    told = {"symptom": symptom, "confirmed": said.get("confirmed"), "in_words": said.get("in_words"), "verdicts": said.get("verdicts", [])}
    return {"job": job.id, "state": job.state, "terminal": job.terminal, **told}


def _records(answer: dict[str, Any]) -> list[Record]:
    """A line each: the candidates with the verdict of the newest trial that tried them, then what else was tried."""
    tried: dict[str, Record] = {}
    for trial in reversed(answer["trials"]):
        tried |= {verdict["label"]: {"trial": trial["job"], **{name: verdict[name] for name in COLUMNS[4:]}} for verdict in trial["verdicts"]}
    lines = [{"label": one["label"], "set": one["set"], "expects": one["expects"], **tried.pop(one["label"], {})} for one in answer["remedies"]]
    return [*lines, *({"label": label, **verdict} for label, verdict in tried.items())]


def as_text(answer: dict[str, Any]) -> str:
    head = f"remedies for {answer['symptom'] or 'a job in which nothing is known to be wrong'}"
    names = ["label", *COLUMNS[4:]]
    records = _records(answer)
    lines = columns_of([names, *([printable(short(one.get(name))) for name in names] for one in records)]) if records else ["no change of the spec is known to help"]
    whys = [f"  {printable(one['label'])}: {printable(one['why'])}" for one in answer["remedies"]]
    said = [f"{trial['job']} ({trial['state']})" + (f": {printable(trial['in_words'])}" if trial["in_words"] else "") for trial in answer["trials"]]
    return "\n".join([head, *lines, *whys, *(said or ["not tried yet"])]) + "\n"
