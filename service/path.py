"""The regularization path of a job as one resource: every set of values from the strongest λ down, what each rule takes, what is left of the weights."""

import json
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from regtrain.contract.errors import SpecRefused
from regtrain.contract.job import JobSpec
from regtrain.contract.path import Entry, Path, RegularizationPath, path_of
from regtrain.store import jobs, runs
from service.faces import Format, Record, contents, face_of, json_answer, table_answer, text_answer
from service.jobs import facts_of_spec
from service.path_text import as_text
from service.problems import responses
from service.requests import JobId, Store

router = APIRouter(tags=["runs"])


class PathAnswer(BaseModel):
    job: str
    name: str
    state: str
    complete: bool = Field(description="Every run has ended; until then scores and choices are those of the runs that have.")
    metric: str
    higher_is_better: bool
    rule: str
    choice: dict[str, int | None] = Field(description="What each rule takes, and `chosen`, as `place`s.")
    in_words: str | None = Field(description="What the data cannot tell apart, as a sentence.")
    features: list[str] | None = Field(description="Names of the columns, in the order of the coefficients.")
    certificates: dict[str, Any] | None = Field(description="Convex jobs: how many runs have one, and the largest `relative_gap` and `kkt_violation` of them.")
    spread: dict[str, Any] | None = Field(description="Folds that were cut more than once: what the rule takes from each cut alone.")
    nested: dict[str, Any] | None = Field(description="Nested folds: what the whole choice is worth on rows that it knows nothing of.")
    closed: dict[str, Any] | None = Field(description="Ridge: what leave-one-out, generalized cross-validation and evidence would take.")
    paths: list[Path] = Field(description="One for each variant and each set of the other searched values, entries from the strongest λ down.")


EXAMPLE: dict[str, Any] = {
    "job": "job_01JD3QZ7M8XK5T2V9R4C6B1N0P", "name": "lasso", "state": "succeeded", "complete": True, "metric": "loss/val", "higher_is_better": False, "rule": "best",
    "choice": {"best": 0, "one_standard_error": 0, "median": 0, "chosen": 0}, "in_words": None, "features": ["bmi", "bp"],
    "certificates": {"runs": 6, "relative_gap": 3e-13, "kkt_violation": 2e-12},
    "spread": None, "nested": None, "closed": None,
    "paths": [
        {
            "variant": None, "fixed": {}, "ordered_by": "regularizers.0.lambda", "reason": None,
            "entries": [
                {
                    "place": 0, "variant": None, "values": {"regularizers.0.lambda": 9.2}, "strength": 9.2, "adapted": [], "score": 1673.0, "standard_error": 110.0, "median": 1650.0,
                    "n": 5, "of": 5, "state": "done", "taken_by": ["best", "one_standard_error", "median"], "chosen": True,
                    "weights": {
                        "of": "refit", "runs": [5], "zeros": {"head.weight": 1.0}, "zeros_in_all": 1.0, "penalties": {"penalty/l1": 1.2}, "surviving": ["bmi"],
                        "coefficients": {"weights": [0.12, 0.0], "intercept": 152.1}, "reason": None,
                    },
                    "relative_gap": 3e-13, "conventions": {"regularizers.0.lambda": {"sklearn_lasso": 9.2}},
                }
            ],
            "conventions": {"regularizers.0.lambda": [{"convention": "sklearn_lasso", "title": "scikit-learn Lasso", "parameter": "alpha", "formula": "alpha = λ", "objective": "Σ(y − f)²/2n + alpha·Σ|w|"}]},
            "entry_order": [{"feature": "bmi", "strength": 9.2, "leaves": [], "returns": []}],
        }
    ],
}  # fmt: skip


@router.get(
    "/v1/jobs/{id}/path",
    summary="The regularization path of a job",
    responses={
        200: {"model": PathAnswer, "description": "The path.", "content": {"application/json": {"example": EXAMPLE}, **contents("place,variant,strength,score,standard_error,…")}},
        **responses(404, 422),
    },
)
def path(request: Request, db: Store, id: JobId, format: Format = None) -> Response:
    """Score ± standard error, exact zeros, surviving features and coefficients of every λ, the strongest first; what each rule takes; λ in every convention.

    Answers while the job trains, too: then from the runs that have ended, with `complete: false`. Without one searched strength it is the table as it stands.
    """
    job = jobs.get(db, id)
    spec = JobSpec.model_validate_json(json.dumps(job.spec))
    try:
        facts = facts_of_spec(db, spec)
    except SpecRefused:  # an upload that has been deleted
        facts = None
    found = path_of(spec, runs.every(db, id), facts)
    told: dict[str, Any] = (job.result or {}).get("selection") or {}
    answer = {"job": id, "name": job.name, "state": str(job.state), **shown(found), **{name: told.get(name) for name in ("spread", "nested", "closed")}}
    match face_of(request, format):
        case "json":
            return json_answer(answer, Vary="Accept")
        case "text":
            return text_answer(as_text(answer, found))
        case face:
            records = [record(entry, found) for entry in found.entries]
            return table_answer(face, records, columns=list(dict.fromkeys(name for one in records for name in one)))


def shown(found: RegularizationPath) -> dict[str, Any]:
    """As JSON. By hand, since `asdict` would copy every coefficient."""

    def entry(of: Entry) -> dict[str, Any]:
        return {**vars(of), "weights": None if of.weights is None else vars(of.weights)}

    def one(of: Path) -> dict[str, Any]:
        return {**vars(of), "entries": [entry(inner) for inner in of.entries], "entry_order": None if of.entry_order is None else [vars(feature) for feature in of.entry_order]}

    return {**vars(found), "paths": [one(inner) for inner in found.paths]}


def record(entry: Entry, found: RegularizationPath) -> Record:
    """One line of a table: values, zeros, coefficients and conventions as columns."""
    weights = entry.weights
    left: Record = {} if weights is None else {"weights_of": weights.of, "zeros": weights.zeros_in_all, **weights.penalties}
    if weights is not None and weights.coefficients is not None and weights.surviving is not None:
        names, numbers = found.features or (), weights.coefficients["weights"]
        left |= {"features": len(weights.surviving), "surviving": " ".join(weights.surviving)}
        left |= {"intercept": weights.coefficients["intercept"]} if not isinstance(weights.coefficients["intercept"], list) else {}
        left |= {f"weight/{name}": number for name, number in zip(names, numbers, strict=True)} if len(numbers) == len(names) and not isinstance(numbers[0], list) else {}
    return {
        "place": entry.place,
        "variant": entry.variant,
        "strength": entry.strength,
        **{name: value for name, value in entry.values.items()},
        **{name: getattr(entry, name) for name in ("score", "standard_error", "median", "n", "of", "state")},
        "taken_by": " ".join(entry.taken_by),
        "chosen": entry.chosen,
        **left,
        "relative_gap": entry.relative_gap,
        **{f"{path}/{name}": value for path, known in entry.conventions.items() for name, value in known.items()},
    }
