"""One strength in every convention: scikit-learn, glmnet, torch, Keras, the articles. The mathematics is regtrain.contract.lam's."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, ValidationError

from regtrain.contract import lam
from regtrain.contract.datasets import Facts
from regtrain.contract.errors import SpecRefused
from regtrain.contract.given import given_of
from regtrain.contract.job import JobSpec
from regtrain.contract.refusals import problems
from service.faces import json_answer
from service.problems import responses
from service.requests import json_body

router = APIRouter(tags=["lambda"])
EXAMPLE_QUESTION = {"convention": "sklearn_ridge", "strength": 1.0, "loss": "half_squared_error", "penalty": "l2", "rows": 442}


class ConvertedAnswer(BaseModel):
    """The strength in one convention."""

    convention: str
    title: str
    parameter: str
    """What the convention calls it."""
    value: float | None
    """null where it is infinite, or where the targets' deviation is needed and not known."""
    l1_ratio: float | None
    """Of an elastic net: the share of its L1 part as this convention has it."""
    formula: str
    """From λ, the strength of a spec with this loss; n are the training rows, s is the targets' deviation."""
    objective: str
    """What the convention minimises; f is the model's output."""


class LambdaAnswer(BaseModel):
    loss: str
    penalty: str
    rows: int
    target_deviation: float | None
    classes: int | None
    conventions: list[ConvertedAnswer] = Field(description="Every convention that has this penalty beside this loss.")


EXAMPLE = {
    "loss": "half_squared_error", "penalty": "l2", "rows": 442, "target_deviation": None, "classes": None,
    "conventions": [
        {
            "convention": "regtrain_half_squared_error", "title": "regtrain, half_squared_error", "parameter": "lambda", "value": 0.0022624434389140274, "l1_ratio": None,
            "formula": "lambda = λ", "objective": "mean ½(y − f)² + λ·R(w)",
        }
    ],
}  # fmt: skip


@router.post(
    "/v1/lambda",
    summary="A strength in every convention",
    responses={200: {"model": LambdaAnswer, "description": "The strength.", "content": {"application/json": {"example": EXAMPLE}}}, **responses(408, 413, 415, 422)},
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": lam.Question.model_json_schema(), "example": EXAMPLE_QUESTION}}}},
)
async def convert(request: Request) -> Response:
    """What λ here is alpha in Ridge, C in LogisticRegression, weight_decay in torch? From any of them to all, with the formula. `regtrain` means the convention of the loss."""
    question = read(await json_body(request))
    given = {name: getattr(question, name) for name in ("loss", "penalty", "rows", "target_deviation", "classes")}
    return json_answer({**given, "conventions": [asdict(one) for one in lam.convert(question)]})


def read(body: bytes) -> lam.Question:
    """The question that a JSON text asks.

    Raises:
        SpecRefused: with one problem for each thing that is wrong.
    """
    given = given_of(body)
    try:
        return lam.Question.model_validate_json(body)
    except ValidationError as refusal:
        raise SpecRefused(problems(refusal, given, root=lam.Question)) from None


def of_result(spec: JobSpec, facts: Facts | None, result: dict[str, Any]) -> dict[str, Any]:
    """Path of each strength of the chosen run → the strength in every convention; empty where no run is chosen, or its rows are gone."""
    if facts is None or result.get("chosen_run") is None:
        return {}
    values: dict[str, float] = {**(result.get("values") or {})}
    if adaptation := result.get("adaptation"):
        values[adaptation["path"]] = adaptation["strength"]
    return {path: [asdict(one) for one in found] for path, found in lam.of_result(spec, facts, values).items()}
