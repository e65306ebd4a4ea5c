"""Remedies for what is wrong with a job: the candidates with what they are expected to do, the job that tries them, and its verdicts. As JSON, JSON Lines, CSV or text."""

from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from regtrain.contract.datasets import Facts
from regtrain.contract.errors import Conflict, SpecRefused
from regtrain.contract.given import given_of
from regtrain.contract.job import JobSpec, resolved
from regtrain.contract.remedies import Patient, Remedy, candidates_for, going_on, request_of, trial_of
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
COLUMNS = ["label", "set", "expects", "trial", "verdict", "pairs", "shown", "difference", "p", "continues"]
JUDGED = ["verdict", "pairs", "shown", "difference", "p"]
SURGERY = "begin.surgery"


class RemedyAnswer(BaseModel):
    label: str
    set: dict[str, Any] = Field(description="Path → whole value, as in `variants`.")
    expects: dict[str, Direction] = Field(description="Series → what should become of it; `even`: of one size in all layers.")
    why: str
    continues: bool = Field(description="Whether it goes on from the weights with which the run has ended, and keeps what was learned; `POST` with `continue` tries it.")


class VerdictAnswer(BaseModel):
    label: str
    verdict: str = Field(description="confirmed, helps, left_out, not_tried, symptom_stays, undecided, not_better; more may come.")
    pairs: int = Field(description="Seeds that it and the control were both trained with.")
    shown: float | None = Field(description="Share of its runs that show the symptom; with fewer than 8 seeds, or what it may bring about.")
    symptom_p: float | None
    metric: float | None
    difference: float | None = Field(description="Mean over the pairs, positive where it is better than the control.")
    p: float = Field(description="One-sided exact signed-rank test, adjusted by Holm.")
    confidence: float


class TrialAnswer(BaseModel):
    job: str
    state: str
    terminal: bool
    continues: bool = Field(description="Whether its contestants go on from the job's trained weights.")
    order: str = Field(description="together, or in_turn.")
    symptom: str | None
    confirmed: str | None = Field(description="Label of the best remedy that is confirmed; null before the end, and where none is.")
    helps: str | None = Field(description="Label of the remedy that a trial in turn with fewer than 8 seeds has ended with.")
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
            "why": "theory: the first hidden layer then gets 1 of the last one's signal gradient, now 4.5e-21", "continues": False,
        }
    ],
    "trials": [
        {
            "job": "job_01JD3QZ7M8XK5T2V9R4C6B1N0Q", "state": "succeeded", "terminal": True, "continues": False, "order": "together",
            "symptom": "vanishing_signal", "confirmed": "residual", "helps": None,
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
EXAMPLE_QUICK: dict[str, Any] = {"order": "in_turn", "seeds": 1}
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
                        "description": "`symptom`: default the job's own. `remedies`: [{label, set}] in place of the candidates. `order`: `together`, or `in_turn` until one is confirmed. `seeds`: at least 8; in turn fewer, where the first that helps is taken. `epochs`: of each run. `continue`: all contestants go on from the weights with which the run has ended.",
                    },
                    "examples": {
                        "plain": {"value": EXAMPLE_REQUEST},
                        "quick": {"summary": "The first remedy that helps one net", "value": EXAMPLE_QUICK},
                        "own": {"summary": "A remedy of your own", "value": EXAMPLE_OWN},
                    },
                }
            },
        }
    },
)
async def try_remedies(request: Request, db: Store, id: JobId) -> Response:
    """A new job: the control, the candidates and as many random changes from the same space, over the same seeds and held-out rows; the worse half leaves after a quarter
    of the seeds, and again after half of them. A remedy is confirmed if the symptom is gone and the held-out metric beats the control's (p < 0.05 over all pairs, exact,
    corrected for their number). `result.trial` has the verdicts. With `"order": "in_turn"` they train one after the other until one is confirmed. With `continue` the control is the job's own weights trained on, the candidates are surgery and what changes
    no shape, and the seeds differ in row order and dropout. 409 unless the job has ended."""
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
    if asked.goes_on:
        of = going_on(of, asked.symptom)
    made, warnings = trial_of(of, facts, asked, before=jobs.confirmed_before(db, of.symptom, goes_on=asked.goes_on))
    try:
        made, more = jobs.completed(db, made, facts)
    except SpecRefused as refusal:
        raise SpecRefused([replace(problem, path="continue" if asked.goes_on else problem.path) for problem in refusal.problems]) from None
    trial = jobs.submit(db, made, given=resolved(made), warnings=[*warnings, *more], idempotency=jobs.key_of(id, given))
    return json_answer(shown(db, trial), 201, Location=f"/v1/jobs/{trial.id}")


def _patient(db: Database, job: jobs.Job, symptom: SymptomName | None) -> tuple[Patient, Facts]:
    spec = JobSpec.model_validate_json(dumps(job.spec))
    return jobs.patient_of(db, job.id, spec, symptom), facts_of_spec(db, spec)


def _answer(db: Database, id: str, symptom: SymptomName | None) -> dict[str, Any]:
    of, facts = _patient(db, jobs.get(db, id), symptom)
    found = candidates_for(of, facts, before=jobs.confirmed_before(db, of.symptom))
    return {
        "job": id,
        "symptom": of.symptom,
        "remedies": [asdict(remedy) for remedy in [*found, *_surgery(db, of, facts)]],
        "trials": [_trial(job) for job in jobs.trials_of(db, id)],
    }


def _surgery(db: Database, of: Patient, facts: Facts) -> list[Remedy]:
    """What goes on from the run's weights, each with all that a spec needs for it; nothing where there are no weights, or no rows that they have not seen."""
    try:
        later = going_on(of)
        jobs.completed(db, later.spec, facts)
    except SpecRefused:
        return []
    found = candidates_for(later, facts, before=jobs.confirmed_before(db, later.symptom, goes_on=True))
    return [_whole(remedy, of) for remedy in found if remedy.continues]


def _whole(remedy: Remedy, of: Patient) -> Remedy:
    """The values that the job's own spec needs for surgery: it does not begin from its own weights yet."""
    others = {path: value for path, value in remedy.set.items() if path != SURGERY}
    return replace(remedy, set={"begin": {"job": of.job, "run": of.run, "surgery": remedy.set[SURGERY]}, **others})


def _trial(job: jobs.Job) -> dict[str, Any]:
    said: dict[str, Any] = (job.result or {}).get("trial") or {}
    of: dict[str, Any] = job.spec.get("trial") or {}
    continues = (job.spec.get("begin") or {}).get("job") == of.get("of")
    asked = {"order": of.get("order", "together"), "symptom": of.get("symptom")}
    told = {name: said.get(name) for name in ("confirmed", "helps", "in_words")}
    return {"job": job.id, "state": job.state, "terminal": job.terminal, "continues": continues, **asked, **told, "verdicts": said.get("verdicts", [])}


def _records(answer: dict[str, Any]) -> list[Record]:
    """A line each: the candidates with the verdict over the most pairs, the newest of those, then what else was tried. What goes on from trained weights is tried by itself."""
    tried: dict[tuple[str, bool], Record] = {}
    for trial in reversed(answer["trials"]):
        said = {(verdict["label"], trial["continues"]): {"trial": trial["job"], **{name: verdict[name] for name in JUDGED}} for verdict in trial["verdicts"]}
        tried |= {key: verdict for key, verdict in said.items() if key not in tried or verdict["pairs"] >= tried[key]["pairs"]}
    lines = [{**{name: one[name] for name in ("label", "set", "expects", "continues")}, **tried.pop((one["label"], one["continues"]), {})} for one in answer["remedies"]]
    return [*lines, *({"label": label, "continues": continues, **verdict} for (label, continues), verdict in tried.items())]


def as_text(answer: dict[str, Any]) -> str:
    head = f"remedies for {answer['symptom'] or 'a job in which nothing is known to be wrong'}"
    names = ["label", *JUDGED]
    records = _records(answer)
    lines = (
        columns_of([names, *([printable(_named(one)), *(printable(short(one.get(name))) for name in JUDGED)] for one in records)])
        if records
        else ["no change of the spec is known to help"]
    )
    whys = [f"  {printable(_named(one))}: {printable(one['why'])}" for one in answer["remedies"]]
    said = [
        f"{trial['job']} ({trial['state']}{', continued' if trial['continues'] else ''})" + (f": {printable(trial['in_words'])}" if trial["in_words"] else "")
        for trial in answer["trials"]
    ]
    return "\n".join([head, *lines, *whys, *(said or ["not tried yet"])]) + "\n"


def _named(one: Record) -> str:
    return f"continued: {one['label']}" if one["continues"] else str(one["label"])
