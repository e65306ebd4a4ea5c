"""What is wrong with a job: its symptoms in causal order, with the figures behind them. As JSON, JSON Lines, CSV or text."""

from collections.abc import Iterator
from math import inf
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from regtrain.contract.diagnosis import Diagnosis, Found, diagnose
from regtrain.contract.symptoms import BY_NAME
from regtrain.store import jobs, runs, symptoms
from regtrain.store.database import Database
from service.faces import Format, Record, columns_of, contents, face_of, json_answer, printable, short, table_answer, text_answer
from service.problems import responses
from service.requests import JobId, Store

router = APIRouter(tags=["diagnosis"])
MOST_RUNS = 8
"""Runs that the text shows one by one, and whose failures are told."""
BACK = (31, 15, 7, 3, 1, 0)
"""So many updates before a failure the text shows."""
COLUMNS = ["run", "symptom", "under", "layer", "step", "value", "bound", "severity", "confidence", "cause", "sentence"]


class FoundAnswer(BaseModel):
    symptom: str
    sentence: str
    severity: str = Field(description="note, warning or critical; a note makes no verdict.")
    layer: str | None
    step: int = Field(description="Where the criterion was met first.")
    value: float
    bound: float
    confidence: float = Field(description="How sure the criterion is, from 0 to 1; not how likely a cause.")
    cause: str | None = Field(description="`suspected` where symptoms are listed under it; null elsewhere.")
    criterion: str
    source: str
    evidence: dict[str, Any]
    under: list["FoundAnswer"]


class OfRunAnswer(BaseModel):
    run: int
    verdict: str
    roots: list[FoundAnswer]
    first_nonfinite: dict[str, Any] | None = Field(
        description="Of a run that failed: where it first met a number that is not finite, and the `last` updates that led there. Of the first eight runs here; with `run`, of that one."
    )


class KindAnswer(BaseModel):
    symptom: str
    severity: str
    runs: list[int]
    root_of: int = Field(description="In how many of them it is a root.")
    layers: list[str]
    sentence: str


class DiagnosisAnswer(BaseModel):
    job: str
    verdict: str | None = Field(description="healthy or symptoms; null before training has begun.")
    root: str | None
    summary: str
    judged: list[str] = Field(description="What could be found with the job's diagnostics.")
    not_judged: list[str]
    symptoms: list[KindAnswer]
    runs: list[OfRunAnswer] = Field(description="Those that have any.")


EXAMPLE: dict[str, Any] = {
    "job": "job_01JD3QZ7M8XK5T2V9R4C6B1N0P", "verdict": "symptoms", "root": "vanishing_signal",
    "summary": "The gradient that reaches layers.0 is 1e-05 of that at layers.33: it falls by a factor of 0.707 a layer (χ = 0.5, 95 % interval 0.495 to 0.506, 34 layers).",
    "judged": ["vanishing_signal"], "not_judged": ["dead_units"],
    "symptoms": [{"symptom": "vanishing_signal", "severity": "critical", "runs": [0], "root_of": 1, "layers": ["layers.0"], "sentence": "…"}],
    "runs": [
        {
            "run": 0, "verdict": "symptoms", "roots": [
                {
                    "symptom": "vanishing_signal", "sentence": "…", "severity": "critical", "layer": "layers.0", "step": 0, "value": 1e-5, "bound": 0.05, "confidence": 1.0, "cause": None,
                    "criterion": "…", "source": "Poole et al. 2016; Schoenholz et al. 2017", "evidence": {"chi": 0.5}, "under": [],
                }
            ],
            "first_nonfinite": None,
        }
    ],
}  # fmt: skip


@router.get(
    "/v1/jobs/{id}/diagnosis",
    summary="What is wrong with a job",
    responses={
        200: {"model": DiagnosisAnswer, "description": "The diagnosis so far.", "content": {"application/json": {"example": EXAMPLE}, **contents(",".join(COLUMNS))}},
        **responses(404, 422),
    },
)
def diagnosis(
    request: Request,
    db: Store,
    id: JobId,
    run: Annotated[int | None, Query(ge=0, le=2**53, description="This run alone.", examples=[0])] = None,
    format: Format = None,
) -> Response:
    """Roots first, what they may have brought about under them. A cause is `suspected` until a trial of a remedy shows it. It grows while the job trains: `?wait=60&until=symptom` of the job waits for the first symptom."""
    job = jobs.get(db, id)
    found = of_job(db, job, run=run)
    match face_of(request, format):
        case "json":
            return json_answer(shown(job, found, _failures(db, job, found)), Vary="Accept")
        case "text":
            return text_answer(as_text(job, found, _failures(db, job, found)))
        case face:
            return table_answer(face, list(records(found)), columns=COLUMNS)


def of_job(db: Database, job: jobs.Job, *, run: int | None = None) -> Diagnosis:
    """From everything that has been noticed so far."""
    noticed = [one for one in symptoms.every(db, job.id) if run is None or one.run == run]
    return diagnose(noticed, runs=1 if run is not None else job.runs, preset=job.spec["diagnostics"])


def _failures(db: Database, job: jobs.Job, found: Diagnosis) -> dict[int, dict[str, Any]]:
    return runs.failures(db, job.id, [one.run for one in found.runs[:MOST_RUNS]])


def brief(db: Database, job: jobs.Job) -> dict[str, Any] | None:
    """What a job's own answer says of it."""
    if job.started is None:
        return None
    found = of_job(db, job)
    return {"verdict": found.verdict, "root": found.root, "symptoms": len(found.symptoms)}


def shown(job: jobs.Job, found: Diagnosis, failures: dict[int, dict[str, Any]]) -> dict[str, Any]:
    return {
        "job": job.id,
        "verdict": found.verdict if job.started is not None else None,
        "root": found.root,
        "summary": found.summary if job.started is not None else NOT_YET,
        "judged": list(found.judged),
        "not_judged": [name for name in BY_NAME if name not in found.judged],
        "symptoms": [
            {"symptom": kind.symptom, "severity": kind.severity, "runs": list(kind.runs), "root_of": kind.root_of, "layers": list(kind.layers), "sentence": kind.sentence}
            for kind in found.symptoms
        ],
        "runs": [{"run": one.run, "verdict": one.verdict, "roots": [_found(root) for root in one.roots], "first_nonfinite": failures.get(one.run)} for one in found.runs],
    }


NOT_YET = "The job has not begun to train."


def as_text(job: jobs.Job, found: Diagnosis, failures: dict[int, dict[str, Any]]) -> str:
    """For a terminal: the verdict, each kind once, and the runs as trees, with what led to a failure."""
    if job.started is None:
        return NOT_YET + "\n"
    lines = [f"{found.verdict}{f', root {found.root}' if found.root else ''}", found.summary]
    if job.runs > 1 and found.symptoms:
        lines += ["", *(f"{kind.symptom} ({kind.severity}, in {len(kind.runs)} runs, root in {kind.root_of})" for kind in found.symptoms)]
    for one in found.runs[:MOST_RUNS]:
        lines += ["", f"run {one.run}: {one.verdict}", *(line for root in one.roots for line in _tree(root, "  ")), *_led(failures.get(one.run, {}))]
    if len(found.runs) > MOST_RUNS:
        lines += ["", f"and {len(found.runs) - MOST_RUNS} more runs: ask for one with ?run="]
    if len(found.judged) < len(BY_NAME):
        lines += ["", f"not judged: {', '.join(name for name in BY_NAME if name not in found.judged)}"]
    return "\n".join(printable(line) for line in lines) + "\n"


def records(found: Diagnosis) -> Iterator[Record]:
    """One line a symptom and run, in causal order; `under` is the symptom that may have brought it about."""
    for one in found.runs:
        for root in one.roots:
            yield from _records(root, None)


def _records(found: Found, parent: str | None) -> Iterator[Record]:
    noticed = found.noticed
    own = {name: getattr(noticed, name) for name in COLUMNS if hasattr(noticed, name)}
    yield {**own, "under": parent, "cause": found.cause, "sentence": found.sentence}
    for inner in found.under:
        yield from _records(inner, noticed.symptom)


def _found(found: Found) -> dict[str, Any]:
    noticed, kind = found.noticed, BY_NAME[found.noticed.symptom]
    return {
        "symptom": noticed.symptom,
        "sentence": found.sentence,
        "severity": noticed.severity,
        "layer": noticed.layer,
        "step": noticed.step,
        "value": noticed.value,
        "bound": noticed.bound,
        "confidence": noticed.confidence,
        "cause": found.cause,
        "criterion": kind.criterion,
        "source": kind.source,
        "evidence": noticed.evidence,
        "under": [_found(inner) for inner in found.under],
    }


def _tree(found: Found, indent: str) -> Iterator[str]:
    noticed = found.noticed
    suspected = ", suspected cause of what follows" if found.cause else ""
    yield f"{indent}{noticed.symptom} ({noticed.severity}, step {noticed.step}, confidence {noticed.confidence:.2f}{suspected})"
    yield f"{indent}  {found.sentence}"
    for inner in found.under:
        yield from _tree(inner, indent + "    ")


def _led(failure: dict[str, Any]) -> Iterator[str]:
    """Where a run failed, and what led there: the loss, the gradient, and the layer that moved most."""
    if "in_words" in failure:
        yield f"  {failure['in_words']}"
    if last := failure.get("last"):
        shown = [len(last["steps"]) - 1 - back for back in BACK if back < len(last["steps"])]
        rows = [[str(last["steps"][at]), _number(last, f"loss/train.{at}"), _number(last, f"gradient/total.{at}"), *_most_moved(last, at)] for at in shown]
        yield from (f"  {line}" for line in columns_of([["step", "loss/train", "gradient/total", "update/ratio", "of layer"], *rows]))


def _most_moved(last: dict[str, Any], at: int) -> tuple[str, str]:
    ratios: list[float | None] = last["update/ratio"][at]
    place = max(range(len(ratios)), key=lambda layer: inf if (ratio := ratios[layer]) is None else ratio)
    return ("-", "-") if ratios[place] == 0 else (_number(last, f"update/ratio.{at}.{place}"), last["layers"][place])


def _number(last: dict[str, Any], path: str) -> str:
    """One number of the last updates, by its name where it is not finite."""
    name, *places = path.split(".")
    number: Any = last[name]
    for place in places:
        number = number[int(place)]
    return last["nonfinite"][path] if number is None else short(number)
