"""Per-layer series of a job: gradients, signals, weights, updates, penalties, as /curves gives the others."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from regtrain.contract.series import series_named
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
    """
    wanted = Wanted(names=series, runs=runs, first=first, last=last, points=points, layers=layers, axis=x, over=over)
    return answer(request, db, id, wanted, shape="per_time" if _in_time(series) else "per_layer", format=format)


def _in_time(series: str | None) -> bool:
    """Whether all that is asked for are series over time steps."""
    found = [series_named(name.strip()) for name in (series or "").split(",") if name.strip()]
    return bool(found) and all(one is not None and one.shape == "per_time" for one in found)
