"""The runs of a job: what each was given, how far it came, how well it did. As JSON, JSON Lines, CSV or text."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from regtrain.store import runs
from regtrain.store.runs import Run
from service.faces import Format, Record, columns_of, contents, face_of, json_answer, printable, short, table_answer, text_answer
from service.problems import responses
from service.requests import JobId, Store

router = APIRouter(tags=["runs"])


class RunAnswer(BaseModel):
    index: int
    values: dict[str, float]
    """Path → value of everything that was searched."""
    seed: int
    variant: str | None
    """Label of its variant."""
    point: int | None
    """Place of its values in the table of scores; null for the refit of the choice."""
    fold: int | None
    """The fold that it was trained without."""
    outer: int | None
    """Nested folds: the outer fold that it knows nothing of."""
    refit: bool
    """Trained on all training rows."""
    state: str
    steps: int
    stop_reason: str | None
    metrics: dict[str, Any]
    """Final values, or the latest while it trains; null where not finite, then named in `nonfinite`."""
    best: dict[str, Any]
    zeros: dict[str, int]
    """Exact zeros of each penalised tensor."""
    coefficients: dict[str, Any] | None
    first_nonfinite: dict[str, Any] | None
    """Of a run that failed: the `step` and `series` of the first number that is not finite, the `layer`, `operation` and `rows` that show it, the same `in_words`, and the
    `last` 32 updates up to it, of each series a list by step, and by layer (`layers`) where it has any; null where not finite, then named in `nonfinite`."""
    certificate: dict[str, float | None] | None
    """Convex jobs: how far the run is from the minimum of its objective (`duality_gap`, `relative_gap`, `kkt_violation`, `closed_form_distance`; null where not known)."""
    adaptation: dict[str, Any] | None
    """A strength that adapts: its `start`, the `strength` that it has come to, the `verdict` (`settled`, `ran away to 0`, `ran away to infinity`, `not settled`), the same
    `in_words`, `gradient` and `finite_difference` of what it follows in ln λ, `iterations`."""


class RunList(BaseModel):
    runs: list[RunAnswer]
    next_cursor: str | None


EXAMPLE = {
    "runs": [
        {
            "index": 0, "values": {"regularizers.0.lambda": 0.001}, "seed": 0, "variant": None, "point": 0, "fold": None, "outer": None, "refit": False, "state": "succeeded",
            "steps": 400, "stop_reason": "budget", "metrics": {"loss/val": 0.41}, "best": {"step": 380, "loss/val": 0.4}, "zeros": {"head.weight": 12}, "coefficients": None, "first_nonfinite": None,
            "certificate": {"objective": 0.52, "duality_gap": 3e-13, "relative_gap": 5.8e-13, "kkt_violation": 2e-12, "closed_form_distance": None},
            "adaptation": None,
        }
    ],
    "next_cursor": None,
}  # fmt: skip


@router.get(
    "/v1/jobs/{id}/runs",
    summary="The runs of a job",
    responses={
        200: {"model": RunList, "description": "A page of runs.", "content": {"application/json": {"example": EXAMPLE}, **contents("index,seed,state,steps,stop_reason,…")}},
        **responses(404, 422),
    },
)
def list_runs(
    request: Request,
    db: Store,
    id: JobId,
    sort: Annotated[
        str, Query(max_length=300, description="`index`, `steps`, a metric, or the path of a searched value; `-` before it turns it round.", examples=["index"])
    ] = "index",
    limit: Annotated[int, Query(ge=1, le=5000, examples=[100])] = 100,
    cursor: Annotated[str | None, Query(max_length=1000, description="`next_cursor` of the page before, with the same sort.")] = None,
    format: Format = None,
) -> Response:
    """A plain job has one run; ranges and seeds make many. Runs without the number by which they are sorted come last."""
    found, following = runs.listing(db, id, sort=sort, limit=limit, cursor=cursor)
    match face_of(request, format):
        case "json":
            return json_answer({"runs": [shown(run) for run in found], "next_cursor": following}, Vary="Accept")
        case "text":
            return text_answer(as_text(found, following))
        case face:
            records = [record(run) for run in found]
            return table_answer(face, records, columns=list(dict.fromkeys(name for one in records for name in one)))


def shown(run: Run) -> dict[str, Any]:
    return {
        "index": run.index,
        "values": run.values,
        "seed": run.seed,
        "variant": run.variant,
        "point": run.point,
        "fold": run.fold,
        "outer": run.outer,
        "refit": run.refit,
        "state": run.state,
        "steps": run.steps,
        "stop_reason": run.stop_reason,
        "metrics": run.metrics,
        "best": run.best,
        "zeros": run.zeros,
        "coefficients": run.coefficients,
        "first_nonfinite": run.first_nonfinite,
        "certificate": run.certificate,
        "adaptation": run.adaptation,
    }


def record(run: Run) -> Record:
    """One line of a table: the values and metrics as columns."""
    metrics = {name: value for name, value in run.metrics.items() if name != "nonfinite"} | run.metrics.get("nonfinite", {})
    return {
        "index": run.index,
        **{name: value for name in ("variant", "fold", "outer") if (value := getattr(run, name)) is not None},
        "seed": run.seed,
        "state": run.state,
        "steps": run.steps,
        "stop_reason": run.stop_reason,
        **run.values,
        **metrics,
        **{f"zeros/{name}": count for name, count in run.zeros.items()},
        **{f"certificate/{name}": value for name, value in (run.certificate or {}).items() if value is not None},
    }


def as_text(found: list[Run], following: str | None) -> str:
    records = [record(run) for run in found]
    names = list(dict.fromkeys(name for one in records for name in one))
    lines = columns_of([names, *([printable(short(one.get(name))) for name in names] for one in records)])
    return "\n".join([*lines, *([f"more: cursor={following}"] if following else [])]) + "\n"
