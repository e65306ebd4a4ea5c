"""What may stand in a spec: every kind with its fields and docs, and the JSON Schema."""

from functools import cache

from fastapi import APIRouter, Response

from regtrain.contract.catalog import catalog, schema
from service.faces import dumps

router = APIRouter(prefix="/v1", tags=["catalogue"])


@router.get(
    "/catalog",
    summary="Kinds, their fields and docs",
    responses={
        200: {
            "description": "The families of kinds, the ranges, the series, the symptoms.",
            "content": {"application/json": {"example": {"families": {}, "job": [], "ranges": [], "series": [], "symptoms": []}}},
        }
    },
)
def families() -> Response:
    """Every dataset, model, loss, regularizer, optimizer … that a spec can name, with formulas, bounds and defaults; and every series that training can report, and every symptom that it can find."""
    return Response(_catalog(), media_type="application/json")


@router.get(
    "/schema/job",
    summary="JSON Schema of a spec",
    responses={200: {"description": "A JSON Schema (2020-12).", "content": {"application/json": {"example": {"$schema": "https://json-schema.org/draft/2020-12/schema"}}}}},
)
def job_schema() -> Response:
    """For editors and generators."""
    return Response(_schema(), media_type="application/json")


@cache
def _catalog() -> str:
    return dumps(catalog())


@cache
def _schema() -> str:
    return dumps(schema())
