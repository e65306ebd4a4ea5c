"""Per-layer series of a job: gradients, signals, weights, updates, penalties, as /curves gives the others."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from regtrain.contract.series import Shape, series_named
from service.curves import Axis, Count, CurvesAnswer, First, Last, Over, Runs, Wanted, answer
from service.faces import Format, contents
from service.problems import responses
from service.requests import JobId, Store

router = APIRouter(tags=["curves"])
Layers = Annotated[str | None, Query(max_length=4000, description="Names of layers, separated by commas; default: all.", examples=["head"])]
LayerNames = Annotated[str | None, Query(max_length=4000, description="Names of series, separated by commas; default: all of this shape.", examples=["gradient/norm"])]
EXAMPLE = {
    "job": "job_01JD3QZ7M8XK5T2V9R4C6B1N0P",
    "x": "step",
    "over": None,
    "recorded": ["gradient/norm", "signal/backward"],
    "layers": ["layers.0", "head"],
    "series": [
        {"series": "gradient/norm", "run": 0, "unit": "loss/weight", "exact": True, "x": [0, 1], "y": [[0.31, 0.9], [0.29, 0.85]], "nonfinite": [], "first_nonfinite": None}
    ],
}


@router.get(
    "/v1/jobs/{id}/gradients",
    summary="Gradients, signals, weights and updates by layer",
    responses={
        200: {
            "model": CurvesAnswer,
            "description": "The series.",
            "content": {"application/json": {"example": EXAMPLE}, **contents("series,run,layer,step,epoch,value,min,max,count,nonfinite")},
        },
        **responses(404, 422),
    },
)
def gradients(
    request: Request,
    db: Store,
    id: JobId,
    series: LayerNames = None,
    layers: Layers = None,
    runs: Runs = None,
    first: First = None,
    last: Last = None,
    points: Count = None,
    over: Over = None,
    x: Axis = "step",
    format: Format = None,
) -> Response:
    """Series with one number a layer and step, in the order of `layers`.

    `series=signal/time`, of recurrent nets, has one number a time step of each recurrent layer: asked for alone, its time steps are the `layers`, as `layers.0.t1`.
    `series=histogram/gradient` counts the entries of each layer by sign and power of two: asked for alone, or with other histograms, `bins` says what is counted.
    """
    wanted = Wanted(names=series, runs=runs, first=first, last=last, points=points, layers=layers, axis=x, over=over)
    return answer(request, db, id, wanted, shape=_shape(series), format=format)


def _shape(series: str | None) -> Shape:
    """That of all series that are asked for, where it is another than one number a layer."""
    found = {one.shape if one else None for name in (series or "").split(",") if name.strip() for one in [series_named(name.strip())]}
    return "per_time" if found == {"per_time"} else "histogram" if found == {"histogram"} else "per_layer"
