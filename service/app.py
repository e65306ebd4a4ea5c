"""Puts the service together: rooms, errors, guard, documentation."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from ulid import ULID

import regtrain
from regtrain.store import jobs, nudge, symptoms
from regtrain.store.database import Database, open_database
from service import catalog, curves, datasets, diagnosis, gradients, health, lam, path, plan, problems, remedies, runs, selftest, workers
from service import jobs as job_routes
from service.guard import Guard
from service.requests import known_parameters
from service.settings import Settings
from service.waiting import Glance, Poller

PARSERS = 2
"""Uploads that are read at the same time."""
ROOMS = (job_routes, remedies, runs, path, curves, gradients, diagnosis, datasets, plan, lam, catalog, workers, selftest, health)
DESCRIPTION = """Regularized training as a service: what a method does to every layer's gradient, measured.

Submit a spec to `/v1/jobs`, wait at `/v1/jobs/{id}?wait=60`, read `/v1/jobs/{id}/curves` and `/gradients` (add `?format=text` in a terminal).
The kinds that a spec may name are at `/v1/catalog`. Errors are RFC 9457 problems that name the path of each wrong value and what to do.
"""


def create_app(settings: Settings) -> FastAPI:
    """The application, with its database open (`app.state.database`; whoever creates the application closes it).

    Raises:
        StoreError: the database cannot be used.
    """
    database = open_database(settings.database_url, settings.data)
    datasets.clear_incoming(database.data)
    app = FastAPIOffline(
        title="regtrain",
        version=regtrain.__version__,
        description=DESCRIPTION,
        dependencies=[Depends(known_parameters)],
        lifespan=_lifespan,
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    app.state.settings, app.state.database = settings, database
    for room in ROOMS:
        app.include_router(room.router)
    document = app.openapi
    app.openapi = lambda: complete(document())
    problems.install(app)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(CorrelationIdMiddleware)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """`app.state.nudge` and `app.state.stop` may be called from any thread and from a signal handler."""
    loop, database = asyncio.get_running_loop(), app.state.database
    poller = Poller(lambda ids: look(database, ids))
    app.state.poller, app.state.parsing = poller, asyncio.Semaphore(PARSERS)
    app.state.nudge = lambda: loop.call_soon_threadsafe(poller.nudge)
    app.state.stop = lambda: loop.call_soon_threadsafe(poller.close)
    with nudge.listening(database.data, f"service_{ULID()}", "services") as taps:
        if taps is not None:
            taps.setblocking(False)
            loop.add_reader(taps, lambda: hear(taps, poller))
        yield
        if taps is not None:
            loop.remove_reader(taps)
    poller.close()


def hear(taps: socket.socket, poller: Poller) -> None:
    """A worker has written something: those who wait look now, once for all the taps that have come."""
    with suppress(BlockingIOError):
        while taps.recv(1):
            continue
    poller.nudge()


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document with its problems defined, and its examples as they were written: FastAPI leaves out every null."""
    document["components"]["schemas"] |= problems.components()
    routes = [route for room in ROOMS for route in room.router.routes if isinstance(route, APIRoute)]
    for route in routes:
        for method in route.methods or ():
            for status, answer in route.responses.items():
                for kind, media in answer.get("content", {}).items():
                    written = {key: media[key] for key in ("example", "examples") if key in media}
                    if written:
                        document["paths"][route.path][method.lower()]["responses"][str(status)]["content"][kind] |= written
    return document


def look(database: Database, ids: list[str]) -> dict[str, Glance]:
    """What those who wait want to see of these jobs."""
    counts = symptoms.counted(database, ids)
    return {job: Glance(state, metrics, counts.get(job, 0)) for job, (state, metrics) in jobs.glances(database, ids).items()}
