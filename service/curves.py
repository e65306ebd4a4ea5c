"""Curves of a job: losses, objective, penalties, metrics, each a number a step. What is longer than `points` comes in buckets.

A bucket has its last, least and greatest value and its count: nothing is averaged away, no spike is lost. Per-layer
series have the same answer, at /gradients.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from regtrain.contract.errors import Problem, SpecRefused
from regtrain.contract.series import BINS, BY_NAME, Shape, places, series_named
from regtrain.store import jobs, runs, series
from regtrain.store.database import Database
from regtrain.store.series import Curve
from regtrain.store.started import places_of
from service import over as across
from service.faces import Format, Record, chart, columns_of, contents, face_of, json_answer, nullable, printable, short, table_answer, text_answer, word
from service.names import nearest
from service.problems import responses
from service.requests import JobId, Store

router = APIRouter(tags=["curves"])
MOST_NUMBERS = 2_000_000
"""Points × runs × series × layers in one answer."""
USUAL_NUMBERS = 200_000
USUAL_POINTS = 1000
FEWEST_POINTS = 20
TABLE_ROWS = 8
COLUMNS = ["series", "run", "layer", "step", "epoch", "value", "min", "max", "count", "nonfinite"]

Names = Annotated[str | None, Query(max_length=4000, description="Names of series, separated by commas; default: all of this shape.", examples=["loss/train"])]
Runs = Annotated[str | None, Query(max_length=4000, description="Indices of runs, separated by commas, or `first-last`; default: all.", examples=["0"])]
First = Annotated[int | None, Query(alias="from", ge=0, le=2**53, description="First step, included.", examples=[0])]
Last = Annotated[int | None, Query(alias="to", ge=0, le=2**53, description="Last step, included.", examples=[1000])]
Count = Annotated[
    int | None,
    Query(
        alias="points",
        ge=1,
        le=1_000_000,
        description="The most points of one curve: a longer one comes in buckets. Default: 1,000, or fewer where there are many curves.",
        examples=[500],
    ),
]
Over = Annotated[
    across.Across | None,
    Query(
        description="`seeds`: the runs that share all searched values (and the fold) become one curve, with mean, min, max, standard error and n. "
        "`folds`: those of all folds, too; folds share training rows, so their standard error is too small rather than too large.",
        examples=["seeds"],
    ),
]
Axis = Annotated[Literal["step", "epoch"], Query(alias="x", description="The unit of `x`.", examples=["step"])]


class CurveAnswer(BaseModel):
    """One series of one run: `exact` with `y`, or buckets with `last`, `min`, `max`, `count`, `nonfinite`."""

    series: str
    run: int
    unit: str
    exact: bool
    x: list[float]
    """Of a bucket: its first step."""
    y: list[Any] | None = None
    """null where the value is not finite; of a per-layer series one list a point."""
    last: list[Any] | None = None
    min: list[Any] | None = None
    max: list[Any] | None = None
    count: list[int] | None = None
    nonfinite: list[Any] = Field(description="Exact: the places of values that are not finite, {x, value, layer}. Buckets: how many each has.")
    first_nonfinite: int | None = Field(description="The first step of the whole series with a value that is not finite.")
    layers: list[str] | None = Field(None, description="The layers of this run's points, where its variant does not have those of the whole answer.")


class SpreadAnswer(BaseModel):
    """One series of all runs that share the searched values, with `over=`: of exact points, or of the buckets' last values."""

    series: str
    values: dict[str, float]
    """Path → value of everything that was searched."""
    variant: str | None
    fold: int | None
    """The fold that all of them are of; null with `over=folds`."""
    runs: list[int]
    unit: str
    exact: bool
    x: list[float]
    """Of a bucket: its first step."""
    mean: list[Any]
    """Of the finite values; null without any. Of a per-layer series one list a point, as all that follow."""
    min: list[Any]
    max: list[Any]
    standard_error: list[Any]
    """Sample deviation (n − 1) over √n; null where n is below 2."""
    n: list[Any]
    """Runs with a finite value at this step: a run that has stopped drops out."""
    nonfinite: list[Any]
    """Runs whose value at this step is not finite."""
    first_nonfinite: int | None
    layers: list[str] | None = None
    """As for single runs."""


class CurvesAnswer(BaseModel):
    job: str
    x: str
    over: str | None = Field(None, description="`seeds` or `folds` where the series are spreads over them.")
    recorded: list[str] = Field(description="The series of this shape that the job has recorded so far.")
    bins: list[str] | None = Field(None, description="Of histograms alone, whose `y` has a list of counts for each layer: `2^-3` counts 1/8 ≤ x < 1/4, `-2^-3` −1/4 < x ≤ −1/8.")
    layers: list[str] | None = Field(None, description="The layers, in the order of the numbers of a point; null for curves without layers.")
    series: list[CurveAnswer | SpreadAnswer]


EXAMPLE = {
    "job": "job_01JD3QZ7M8XK5T2V9R4C6B1N0P",
    "x": "step",
    "over": None,
    "recorded": ["loss/train", "objective/train"],
    "layers": None,
    "series": [
        {"series": "loss/train", "run": 0, "unit": "loss", "exact": True, "x": [0, 1, 2], "y": [2.31, 2.2, None], "nonfinite": [{"x": 2, "value": "NaN"}], "first_nonfinite": 2}
    ],
}
EXAMPLE_OVER = {
    **EXAMPLE,
    "over": "seeds",
    "series": [
        {
            "series": "loss/train", "values": {"regularizers.0.lambda": 0.1}, "variant": None, "fold": None, "runs": [0, 1], "unit": "loss", "exact": True, "x": [0, 1], "mean": [2.3, 1.8], "min": [2.2, 1.8],
            "max": [2.4, 1.8], "standard_error": [0.1, None], "n": [2, 1], "nonfinite": [0, 0], "first_nonfinite": None,
        }
    ],
}  # fmt: skip


@router.get(
    "/v1/jobs/{id}/curves",
    summary="Curves: losses, penalties, metrics",
    responses={
        200: {
            "model": CurvesAnswer,
            "description": "The curves.",
            "content": {
                "application/json": {"examples": {"runs": {"summary": "Each run", "value": EXAMPLE}, "seeds": {"summary": "over=seeds", "value": EXAMPLE_OVER}}},
                **contents("series,run,layer,step,epoch,value,min,max,count,nonfinite"),
            },
        },
        **responses(404, 422),
    },
)
def curves(
    request: Request,
    db: Store,
    id: JobId,
    series: Names = None,
    runs: Runs = None,
    first: First = None,
    last: Last = None,
    points: Count = None,
    over: Over = None,
    x: Axis = "step",
    format: Format = None,
) -> Response:
    """Series with one number a step. `curl …/curves?format=text` draws them in a terminal; `over=seeds` shows what is left of a difference when the seed changes, `over=folds` when the rows do."""
    wanted = Wanted(names=series, runs=runs, first=first, last=last, points=points, layers=None, axis=x, over=over)
    return answer(request, db, id, wanted, shape="scalar", format=format)


@dataclass(frozen=True)
class Wanted:
    """What is asked for, as it was written."""

    names: str | None
    runs: str | None
    first: int | None
    last: int | None
    points: int | None
    layers: str | None
    axis: Literal["step", "epoch"]
    over: across.Across | None = None


@dataclass(frozen=True)
class Found:
    """What the store has of it."""

    job: str
    curves: list[Curve]
    recorded: list[str]
    layers: list[str] | None
    """Of all curves; one of a variant without some of them has `layers` of its own."""
    axis: Literal["step", "epoch"]
    spreads: list[across.Spread] | None = None
    """With `over=`, in place of the curves."""
    over: across.Across | None = None
    shape: Shape = "scalar"

    def along(self, curve: "Curve | across.Spread") -> list[float]:
        """Steps in the unit of the axis."""
        return (curve.x / curve.steps_per_epoch if self.axis == "epoch" else curve.x).tolist()


def answer(request: Request, db: Database, job_id: str, wanted: Wanted, *, shape: Shape, format: Any) -> Response:
    """The curves of one shape, in the form that is asked for."""
    found = find(db, job_id, wanted, shape=shape)
    match face_of(request, format):
        case "json":
            return json_answer(as_json(found), Vary="Accept")
        case "text":
            return text_answer(as_text(found))
        case face:
            if found.spreads is not None:
                return table_answer(face, across.records(found.spreads), columns=across.columns(found.spreads))
            return table_answer(face, records(found), columns=COLUMNS)


def find(db: Database, job_id: str, wanted: Wanted, *, shape: Shape) -> Found:
    """Reads the curves.

    Raises:
        SpecRefused: unknown series, runs or layers, or more numbers than one answer may have.
        NotFound: no such job.
    """
    job = jobs.get(db, job_id)
    recorded = [name for name in series.names(db, job_id) if _shape(name) == shape]
    chosen = _names(wanted.names, shape, recorded)
    indices = _runs(wanted.runs, job.runs)
    known, layers = _places(job.started, wanted.layers, shape)
    points = _points(wanted.points, curves=max(1, len(chosen) * (job.runs if indices is None else len(indices)) * (len(layers or known) or 1)))
    if shape == "histogram" and wanted.over:
        raise SpecRefused([Problem("over", "histograms of several runs are not averaged", "leave over out, and choose runs=")])
    if wanted.first is not None and wanted.last is not None and wanted.first > wanted.last:
        raise SpecRefused([Problem("from", f"step {wanted.first} lies behind step {wanted.last}", "from must not be greater than to")])
    curves = series.read(db, job_id, series=chosen, runs=indices, first=wanted.first, last=wanted.last, points=points, layers=layers)
    together = across.spreads(curves, runs.every(db, job_id), over=wanted.over) if wanted.over else None
    return Found(job_id, curves, recorded, (layers or known) if shape != "scalar" else None, wanted.axis, together, wanted.over, shape=shape)


def _places(started: dict[str, Any] | None, wanted: str | None, shape: Shape) -> tuple[list[str], list[str] | None]:
    """What the numbers of a point belong to, and which of them are wanted; of a histogram the bins of the layers that are."""
    known = places_of(started, shape)
    if shape != "histogram":
        return known, _layers(wanted, known)
    chosen = _layers(wanted, places_of(started, "per_layer"))
    return known, None if chosen is None else places(shape, layers=chosen, times={})


def as_json(found: Found) -> dict[str, Any]:
    head = {"job": found.job, "x": found.axis, "over": found.over, "recorded": found.recorded, "layers": found.layers}
    if found.spreads is not None:
        return {**head, "series": [{**across.as_json(spread, found.along(spread)), **_own_layers(spread.layers, found)} for spread in found.spreads]}
    if found.shape == "histogram":
        layers = _of_bins(found.layers)
        return {**head, "layers": layers, "bins": list(BINS), "series": [_curve(_binned(curve), replace(found, layers=layers)) for curve in found.curves]}
    return {**head, "series": [_curve(curve, found) for curve in found.curves]}


def _binned(curve: Curve) -> Curve:
    """A histogram's numbers as (n, layers, bins)."""
    arrays = {name: getattr(curve, name) for name in ("y", "last", "min", "max", "nonfinite")}
    return replace(curve, layers=_of_bins(curve.layers), **{name: array.reshape(len(array), -1, len(BINS)) for name, array in arrays.items() if array is not None})


def _of_bins(places: list[str] | None) -> list[str]:
    """The layers of which these are the bins."""
    return [place.removesuffix(f".{BINS[0]}") for place in (places or [])[:: len(BINS)]]


def records(found: Found) -> Iterator[Record]:
    """One record a point (and layer). An exact point is a bucket of one."""
    for curve in found.curves:
        last, low, high = (curve.y, curve.y, curve.y) if curve.exact else (curve.last, curve.min, curve.max)
        for i, step in enumerate(curve.x.tolist()):
            base = {"series": curve.series, "run": curve.run, "layer": None, "step": step, "epoch": step / curve.steps_per_epoch}
            for place, layer in enumerate(curve.layers or [None]):
                at = i if curve.layers is None else (i, place)
                count = 1 if curve.exact else int(_there(curve.count)[i])
                bad = int(not np.isfinite(_there(curve.y)[at])) if curve.exact else int(_there(curve.nonfinite)[at])
                yield {**base, "layer": layer, "value": float(_there(last)[at]), "min": float(_there(low)[at]), "max": float(_there(high)[at]), "count": count, "nonfinite": bad}


def as_text(found: Found) -> str:
    """A chart and a short table for each curve; for a per-layer series the table has the layers in its columns."""
    if not found.curves:
        return f"{found.job}: no points yet" + (f"; recorded: {', '.join(found.recorded)}" if found.recorded else "") + "\n"
    if found.spreads is not None:
        return "\n\n".join("\n".join(across.drawn(spread, found.along(spread), axis=found.axis)) for spread in found.spreads) + "\n"
    return "\n\n".join("\n".join(_drawn(curve, found)) for curve in found.curves) + "\n"


def _drawn(curve: Curve, found: Found) -> Iterator[str]:
    declared = series_named(curve.series)
    unit = f" [{declared.unit}]" if declared and declared.unit else ""
    values = _there(curve.y if curve.exact else curve.last)
    x = found.along(curve)
    shown = sorted({round(i) for i in np.linspace(0, len(x) - 1, min(TABLE_ROWS, len(x)))})
    yield f"{printable(curve.series)}{unit}, run {curve.run}" + ("" if curve.exact else f", last of each {curve.bucket} steps")
    if curve.layers is None:
        yield from chart(x, values.tolist(), log=declared is not None and declared.scale == "log" and bool((values > 0).any()), x_label=found.axis)
        yield from columns_of([[found.axis, *(short(x[i]) for i in shown)], ["value", *(short(float(values[i])) for i in shown)]])
    elif found.shape == "histogram":
        yield f"at {found.axis} {short(x[-1])}:"
        filled = [(place, short(float(v))) for place, v in zip(curve.layers, values[-1], strict=True) if v]
        yield from columns_of([["bin", *(place for place, _ in filled)], ["entries", *(count for _, count in filled)]])
    else:
        yield from columns_of([[found.axis, *curve.layers], *([short(x[i]), *(short(float(v)) for v in values[i])] for i in shown)])
    if curve.first_nonfinite is not None:
        yield f"first value that is not finite: step {curve.first_nonfinite}"


def _curve(curve: Curve, found: Found) -> dict[str, Any]:
    declared = series_named(curve.series)
    x = found.along(curve)
    head = {"series": curve.series, "run": curve.run, "unit": declared.unit if declared else "", "exact": curve.exact, "x": x}
    if curve.exact:
        y = _there(curve.y)
        body = {"y": nullable(y), "nonfinite": _nonfinite(y, x, curve.layers)}
    else:
        body = {name: nullable(_there(getattr(curve, name))) for name in ("last", "min", "max", "count", "nonfinite")}
    return {**head, **_own_layers(curve.layers, found), **body, "first_nonfinite": curve.first_nonfinite}


def _own_layers(layers: list[str] | None, found: Found) -> dict[str, Any]:
    return {} if layers == found.layers else {"layers": layers}


def _nonfinite(y: Any, x: list[float], layers: list[str] | None) -> list[dict[str, Any]]:
    return [{"x": x[at[0]], "value": word(float(y[tuple(at)])), **({"layer": layers[at[1]]} if layers else {})} for at in np.argwhere(~np.isfinite(y)).tolist()]


def _names(text: str | None, shape: Shape, recorded: list[str]) -> list[str]:
    """A series that the contract declares and the job has not recorded gives no curve; one that nobody knows is refused."""
    if text is None:
        return recorded
    chosen = list(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))
    declared = [name for name, s in BY_NAME.items() if s.shape == shape and not name.endswith("*")]
    problems = [problem for name in chosen if (problem := _wrong_name(name, shape, [*recorded, *(n for n in declared if n not in recorded)]))]
    if problems or not chosen:
        raise SpecRefused(problems or [Problem("series", "no name is given", "leave series out for all of them")])
    return chosen


def _wrong_name(name: str, shape: Shape, known: list[str]) -> Problem | None:
    found = _shape(name)
    if found is None:
        return Problem("series", f"there is no series {name[:100]!r}", nearest(name, known))
    if found != shape:
        return Problem(
            "series",
            f"{name} has one number a {_A[found][0]}",
            f"read it at /v1/jobs/{{id}}/{_A[found][1]}",
        )
    return None


_A: dict[Shape, tuple[str, str]] = {
    "scalar": ("step", "curves"),
    "per_layer": ("layer", "gradients"),
    "per_time": ("time step", "gradients, without others beside it"),
    "histogram": ("bin", "gradients, without others beside it"),
}
"""What a series has one number of, and where it is read."""


def _shape(name: str) -> Shape | None:
    declared = series_named(name)
    return declared.shape if declared else None


def _runs(text: str | None, runs: int) -> list[int] | None:
    if text is None:
        return None
    chosen: dict[int, None] = {}
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not (_digits(first) and (_digits(last) or not last)) or (last and int(last) < int(first)):
            raise SpecRefused([Problem("runs", f"expected the indices of runs, found {part[:60]!r}", "such as runs=0,2 or runs=0-7")])
        if int(last or first) >= runs:
            raise SpecRefused([Problem("runs", f"there is no run {last or first}", f"this job has the runs 0 to {runs - 1}")])
        chosen |= dict.fromkeys(range(int(first), int(last or first) + 1))
    return list(chosen)


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _layers(text: str | None, known: list[str]) -> list[str] | None:
    if text is None:
        return None
    chosen = list(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))
    problems = [Problem("layers", f"there is no layer {name[:100]!r}", nearest(name, known) if known else "the job has not started yet") for name in chosen if name not in known]
    if problems or not chosen:
        raise SpecRefused(problems or [Problem("layers", "no name is given", "leave layers out for all of them")])
    return chosen


def _points(wanted: int | None, *, curves: int) -> int:
    """How many points each curve may have, so that the answer stays readable; an explicit wish is met up to a limit."""
    points = wanted or min(USUAL_POINTS, max(FEWEST_POINTS, USUAL_NUMBERS // curves))
    if points * curves > max(MOST_NUMBERS, points):
        path, hint = ("points", "ask for fewer points, or choose series=, runs= and layers=") if wanted else ("runs", "choose some runs, such as runs=0-7, and series=")
        raise SpecRefused([Problem(path, f"{points:,} points of {curves:,} curves are more than {MOST_NUMBERS:,} numbers", hint)])
    return points


def _there(array: Any) -> Any:
    """An array that a curve of this form always has."""
    assert array is not None
    return array
