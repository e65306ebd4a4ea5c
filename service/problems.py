"""Every error as RFC 9457 `application/problem+json`: what happened, and for each wrong value its path and what to do."""

import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from asgi_correlation_id import correlation_id
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from regtrain.contract.errors import Conflict, NotFound, Problem, SpecRefused

MEDIA_TYPE = "application/problem+json"


class WrongValue(BaseModel):
    path: str = Field(description="Where: a path in the spec such as `optimizer.lr`, the name of a query parameter or header, or a place in an upload.")
    message: str = Field(description="What is wrong.")
    hint: str = Field(description="What to do.")


class ProblemAnswer(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(examples=["urn:regtrain:refused"])
    title: str
    status: int
    detail: str
    errors: list[WrongValue] = []
    request_id: str | None = None


class Refusal(HTTPException):
    """A request that is refused for its form, with a hint."""

    def __init__(self, status_code: int, detail: str, *, path: str = "", hint: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status_code, detail, headers)
        self.errors = [Problem(path, detail, hint)] if hint else []


def problem(status: int, detail: str, *, kind: str = "", errors: Sequence[Problem] = (), headers: Mapping[str, str] | None = None) -> Response:
    """The answer for one error."""
    title = HTTPStatus(status).phrase
    body = {
        "type": f"urn:regtrain:{kind or title.lower().replace(' ', '-')}",
        "title": title,
        "status": status,
        "detail": detail,
        "errors": [{"path": e.path, "message": e.message, "hint": e.hint} for e in errors],
        "request_id": correlation_id.get(),
    }
    return Response(json.dumps(body), status, dict(headers or {}), MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Registers a handler for each error that a route can raise."""
    handlers: dict[Any, Any] = {
        SpecRefused: _refused,
        RequestValidationError: _parameters,
        NotFound: _not_found,
        Conflict: _conflict,
        HTTPException: _http,
        OperationalError: _database,
    }
    for error, handler in handlers.items():
        app.add_exception_handler(error, handler)


def unexpected() -> Response:
    """For an error of ours: the request id, and nothing else."""
    return problem(500, f"something went wrong here; the log knows more under request id {correlation_id.get()}")


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How these errors look, for the OpenAPI document; `components` defines what they refer to."""
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{ProblemAnswer.__name__}"}}}} for status in statuses
    }


def components() -> dict[str, Any]:
    """The schemas of a problem, by name."""
    own = ProblemAnswer.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**own.pop("$defs"), ProblemAnswer.__name__: own}


async def _refused(_: Request, error: SpecRefused) -> Response:
    return problem(422, str(error)[:2000], kind="refused", errors=error.problems)


async def _not_found(_: Request, error: NotFound) -> Response:
    return problem(404, str(error), kind="not-found")


async def _conflict(_: Request, error: Conflict) -> Response:
    return problem(409, str(error), kind="conflict")


async def _http(request: Request, error: HTTPException) -> Response:
    match error.status_code, getattr(error, "errors", ()):
        case 404, ():
            detail = f"there is nothing at {request.url.path}"
            return problem(404, detail, errors=[Problem("", detail, "/docs describes the API, /openapi.json for programs")])
        case 405, ():
            methods, detail = _methods(request), f"{request.method} is not possible at {request.url.path}"
            return problem(405, detail, errors=[Problem("", detail, f"possible: {methods}")], headers={"Allow": methods})
        case status, errors:
            return problem(status, str(error.detail), errors=errors, headers=error.headers)


def _methods(request: Request) -> str:
    """All methods of a path. Starlette names those of one route only, and a path can have several."""
    paths = request.app.openapi()["paths"]
    found = next((operations for path, operations in paths.items() if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), request.url.path)), {"get": None})
    return ", ".join(method.upper() for method in found)


async def _database(_: Request, error: OperationalError) -> Response:
    structlog.get_logger().error("database_unavailable", error=str(error.orig))
    return problem(503, "the database cannot be used at the moment; try again", headers={"Retry-After": "1"})


async def _parameters(_: Request, error: RequestValidationError) -> Response:
    wrong = [_parameter(e) for e in error.errors()]
    return problem(422, "; ".join(f"{p.path}: {p.message}" for p in wrong)[:2000], kind="refused", errors=wrong)


def _parameter(error: Any) -> Problem:
    name = str(error["loc"][1]) if len(error["loc"]) > 1 else ""
    message = error["msg"].replace("Input should be", "expected", 1)
    shown = error.get("input")
    return Problem(name, f"{message}, found {shown[:60]!r}" if isinstance(shown, str) else message, "see /docs for what this parameter takes")
