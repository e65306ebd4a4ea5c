"""How a route gets what it needs of a request: the store, a body within its limits, and the certainty that no parameter was misspelled."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, Path, Request
from fastapi.dependencies.models import Dependant

from regtrain.contract.errors import NotFound, Problem, SpecRefused
from regtrain.store.database import Database
from service.names import nearest
from service.problems import Refusal
from service.settings import Settings

MOST_QUERY = 8000
"""Characters of a query string."""
_JOB = re.compile(r"job_[0-9A-Za-z]{1,64}", re.ASCII)
_DATASET = re.compile(r"ds_[0-9A-Za-z]{1,64}", re.ASCII)


async def database(request: Request) -> Database:  # async, as FastAPI sends what is not to a thread
    return request.app.state.database


def settings(request: Request) -> Settings:
    return request.app.state.settings


async def job_id(id: Annotated[str, Path(description="The job's ID.", examples=["job_01JD3QZ7M8XK5T2V9R4C6B1N0P"])]) -> str:
    if not _JOB.fullmatch(id):
        raise NotFound(f"there is no job {id[:100]!r}")
    return id


async def dataset_id(id: Annotated[str, Path(description="The dataset's ID.", examples=["ds_01JD3QZ7M8XK5T2V9R4C6B1N0P"])]) -> str:
    if not _DATASET.fullmatch(id):
        raise NotFound(f"there is no dataset {id[:100]!r}")
    return id


Store = Annotated[Database, Depends(database)]
JobId = Annotated[str, Depends(job_id)]
DatasetId = Annotated[str, Depends(dataset_id)]


async def known_parameters(request: Request) -> None:
    """Refuses query parameters that the route does not have: a misspelled filter would silently show everything.

    Raises:
        SpecRefused: with one problem for each.
    """
    allowed = sorted(_parameters(request.scope["route"].dependant))
    given = request.query_params.multi_items()
    wrong = list(_wrong_parameters(given, allowed, open_ended=request.scope["route"].openapi_extra or {}))
    if len(str(request.url.query)) > MOST_QUERY:
        wrong = [Problem("", f"the query is longer than {MOST_QUERY} characters", "ask for less at a time")]
    if wrong:
        raise SpecRefused(wrong)


def _wrong_parameters(given: list[tuple[str, str]], allowed: list[str], *, open_ended: dict[str, Any]) -> Any:
    seen: set[str] = set()
    for name, value in given:
        if name not in allowed and not (name.startswith("metadata.") and open_ended.get("x-metadata-filter")):
            yield Problem(name[:100], "unknown query parameter", nearest(name, allowed))
        elif name in seen:
            yield Problem(name[:100], "stands twice", "give it once, with commas where it takes several values")
        elif "\x00" in value:
            yield Problem(name[:100], "contains a NUL character", "remove it")
        seen.add(name)


def _parameters(dependant: Dependant) -> set[str]:
    return {field.alias for field in dependant.query_params}.union(*(_parameters(inner) for inner in dependant.dependencies))


async def json_body(request: Request) -> bytes:
    """The body of a request that sends JSON.

    Raises:
        Refusal: 415 another content type, 413 too large, 408 too slow.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Refusal(
            415,
            f"expected the content type application/json, found {kind[:100] or 'none'!r}",
            path="Content-Type",
            hint="send it with `curl --json @job.json URL`, or with the header Content-Type: application/json",
        )
    found = bytearray()
    async for chunk in body_within(request, settings(request).body_bytes, seconds=settings(request).body_seconds):
        found += chunk
    return bytes(found)


async def body_within(request: Request, most: int, *, seconds: float) -> AsyncIterator[bytes]:
    """The pieces of a body, counted as they come, since a chunked body announces no length.

    Raises:
        Refusal: 415 a compressed body, 413 more than `most` bytes, 408 slower than `seconds`.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refusal(415, "a compressed body is not taken", path="Content-Encoding", hint="send it as it is")
    too_large = Refusal(413, f"the body is larger than {most:,} bytes", hint="send less, or let the operator raise the limit")
    if int(request.headers.get("content-length", "0")) > most:
        raise too_large
    size, deadline, pieces = 0, asyncio.get_running_loop().time() + seconds, aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                chunk = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Refusal(408, f"the body has not arrived within {seconds:g} seconds", hint="send it again, over a faster connection") from None
        size += len(chunk)
        if size > most:
            raise too_large
        yield chunk
