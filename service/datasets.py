"""Uploads: streamed to the disk, read by a jailed process (`service.parse`), kept as one canonical file with its facts."""

import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from regtrain.contract.datasets import Facts, target_facts
from regtrain.contract.errors import Problem, SpecRefused
from regtrain.store import datasets, files
from regtrain.store.database import Database
from regtrain.store.datasets import Dataset
from service.faces import json_answer
from service.jobs import moment
from service.limits import Limits
from service.problems import Refusal, responses
from service.requests import DatasetId, Store, body_within, settings

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])
INCOMING = "incoming"
"""Folder, in the data folder, of uploads that are not yet datasets."""
ABANDONED_SECONDS = 3600
SLOWER = 10
"""How many times longer than a JSON body an upload may take to arrive."""
FORMATS: dict[str, Literal["csv", "npz"]] = {
    "text/csv": "csv",
    "text/tab-separated-values": "csv",
    "application/csv": "csv",
    "application/zip": "npz",
    "application/x-npz": "npz",
    "application/vnd.numpy": "npz",
}
Name = Annotated[str, Query(max_length=200, description="A label for people.", examples=["prices.csv"])]
Kind = Annotated[Literal["csv", "npz"] | None, Query(alias="format", description="Default: by the content type.", examples=["csv"])]
Target = Annotated[str | None, Query(max_length=200, description="CSV: the name of the target column; default: the last one that is not `groups`.", examples=["price"])]
Groups = Annotated[
    str | None,
    Query(max_length=200, description="CSV: the name of the column whose labels say which rows belong together; it is no feature. NPZ: an array `groups`.", examples=["street"]),
]
EXAMPLE_CSV = "street,rooms,area,price\n1,3,70,210\n1,4,95,310\n2,2,41,120\n3,5,120,400\n"


class DatasetAnswer(BaseModel):
    id: str
    name: str
    sha256: str = Field(description="Of the canonical file: equal for equal rows and names.")
    bytes: int
    facts: dict[str, Any] = Field(description="Rows, features, kind of the target, classes, names, and how many different groups, if any.")
    preview: dict[str, Any] | None = Field(description="The first rows, and the range of each column.")
    created_at: datetime
    links: dict[str, str]


class DatasetList(BaseModel):
    datasets: list[DatasetAnswer]
    next_cursor: str | None


EXAMPLE: dict[str, Any] = {
    "id": "ds_01JD3QZ7M8XK5T2V9R4C6B1N0P", "name": "prices.csv", "sha256": "9f86d081…", "bytes": 400, "facts": {"rows": 4, "features": 2, "target": "either", "groups": 3},
    "preview": {"target": "price", "groups": "street", "columns": ["rooms", "area", "price"], "rows": [[3.0, 70.0, 210.0]], "min": [2.0, 41.0, 120.0], "max": [5.0, 120.0, 400.0]},
    "created_at": "2026-11-20T22:00:00Z", "links": {"self": "/v1/datasets/ds_01JD3QZ7M8XK5T2V9R4C6B1N0P"},
}  # fmt: skip


@router.post(
    "",
    status_code=201,
    summary="Upload a dataset",
    responses={201: {"model": DatasetAnswer, "description": "The dataset.", "content": {"application/json": {"example": EXAMPLE}}}, **responses(408, 413, 415, 422)},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "text/csv": {"schema": {"type": "string", "description": "A header line, then one row a line; UTF-8; comma, semicolon or tab."}, "example": EXAMPLE_CSV},
                "application/x-npz": {"schema": {"type": "string", "format": "binary", "description": "numpy.savez(file, x=…, y=…), and groups=… if rows belong together"}},
            },
        }
    },
)
async def upload(request: Request, db: Store, name: Name = "", format: Kind = None, target: Target = None, groups: Groups = None) -> Response:
    """`curl --data-binary @prices.csv 'http://127.0.0.1:8321/v1/datasets?name=prices&format=csv&target=price'`, then name its id in a spec: `{"kind": "upload", "id": "ds_…"}`."""
    kind = format or _format(request)
    own, limits = settings(request), settings(request).upload
    with incoming(db.data) as folder:
        with open(folder / "upload", "wb") as file:
            async for piece in body_within(request, limits.bytes, seconds=SLOWER * own.body_seconds):
                await run_in_threadpool(file.write, piece)
        async with request.app.state.parsing:
            parsed = await parse(folder, kind=kind, target=target, groups=groups, limits=limits)
        dataset = await run_in_threadpool(keep, db, folder / "canonical", name, parsed)
    return json_answer(shown(dataset), 201, Location=f"/v1/datasets/{dataset.id}")


@router.get(
    "",
    summary="List datasets",
    responses={
        200: {"model": DatasetList, "description": "A page of datasets.", "content": {"application/json": {"example": {"datasets": [EXAMPLE], "next_cursor": None}}}},
        **responses(422),
    },
)
def list_datasets(
    db: Store,
    limit: Annotated[int, Query(ge=1, le=500, examples=[20])] = 50,
    cursor: Annotated[str | None, Query(max_length=1000, description="`next_cursor` of the page before.")] = None,
) -> Response:
    """Newest first."""
    found, following = datasets.listing(db, limit=limit, cursor=cursor)
    return json_answer({"datasets": [shown(dataset) for dataset in found], "next_cursor": following})


@router.get(
    "/{id}",
    summary="One dataset",
    responses={200: {"model": DatasetAnswer, "description": "The dataset.", "content": {"application/json": {"example": EXAMPLE}}}, **responses(404, 422)},
)
def get(db: Store, id: DatasetId) -> Response:
    """Its facts, its first rows, its hash."""
    return json_answer(shown(datasets.get(db, id)))


@router.delete("/{id}", status_code=204, summary="Delete a dataset", responses={204: {"description": "It is gone."}, **responses(404, 409, 422)})
def delete(db: Store, id: DatasetId) -> Response:
    """409 while a job that is not terminal needs it."""
    datasets.delete(db, id)
    return Response(status_code=204)


def shown(dataset: Dataset) -> dict[str, Any]:
    return {
        "id": dataset.id,
        "name": dataset.name,
        "sha256": dataset.sha256,
        "bytes": dataset.bytes,
        "facts": dataset.facts.model_dump(mode="json", exclude={"group_sizes"}) | {"groups": dataset.facts.groups},
        "preview": dataset.preview,
        "created_at": moment(dataset.created_at),
        "links": {"self": f"/v1/datasets/{dataset.id}"},
    }


def clear_incoming(data: Path) -> None:
    """Removes what a server that was killed has left of unfinished uploads. Younger ones may be those of another server on the same folder."""
    folder = data / INCOMING
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def incoming(data: Path) -> Iterator[Path]:
    """A folder for one upload, on the file system of the data folder; gone afterwards, whatever happens."""
    folder = Path(tempfile.mkdtemp(dir=data / INCOMING))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def parse(folder: Path, *, kind: str, target: str | None, groups: str | None, limits: Limits) -> dict[str, Any]:
    """Has `folder/upload` read in a process of its own into `folder/canonical`.

    Raises:
        SpecRefused: what is wrong with the file, or that reading it takes too much.
    """
    orders = {"source": str(folder / "upload"), "place": str(folder / "canonical"), "format": kind, "target": target, "groups": groups, "limits": asdict(limits)}
    environment = {"OPENBLAS_NUM_THREADS": "1", "LC_ALL": "C.UTF-8", **{name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "service.parse", env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )  # fmt: skip
    try:
        async with asyncio.timeout(limits.seconds + 10):
            answer, complaints = await child.communicate(json.dumps(orders).encode())
    except TimeoutError:
        raise _too_much(limits) from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode is not None and child.returncode < 0:
        raise _too_much(limits)
    if child.returncode != 0:
        raise RuntimeError(f"the parser ended with {child.returncode}: {complaints.decode(errors='replace')[-4000:]}")
    found = json.loads(answer)
    if "problems" in found:
        raise SpecRefused([Problem(*fields) for fields in found["problems"]])
    return found


def keep(db: Database, canonical: Path, name: str, parsed: dict[str, Any]) -> Dataset:
    """Moves the canonical file to its place and records the dataset; without the record the file is removed again."""
    identity = datasets.fresh_id()
    try:
        place = files.place(db.data, canonical, files.dataset_folder(db.data, identity) / "rows.safetensors")
        return datasets.create(db, id=identity, name=name, sha256=parsed["sha256"], path=place, facts=facts_of(parsed), preview=parsed["preview"])
    except BaseException:
        files.remove(db.data, identity)
        raise


def facts_of(parsed: dict[str, Any]) -> Facts:
    """What is known of the rows without reading them again."""
    labels, distinct, image, sizes = (parsed[name] for name in ("labels", "distinct", "image", "group_sizes"))
    if labels:
        target: dict[str, Any] = {"target": "class", "classes": len(labels), "class_names": tuple(labels)}
    else:
        target = {"target": "real"} if distinct is None else target_facts(tuple(distinct))
    return Facts(
        rows=parsed["rows"],
        features=parsed["features"],
        feature_names=tuple(parsed["feature_names"]),
        image=tuple(image) if image else None,
        group_sizes=sizes and tuple(sizes),
        **target,
    )


def _format(request: Request) -> Literal["csv", "npz"]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("multipart/"):
        raise Refusal(415, "a form is not taken", path="Content-Type", hint="send the file as the body: curl --data-binary @rows.csv 'URL?format=csv'")
    if kind not in FORMATS:
        raise SpecRefused([Problem("format", f"the content type {kind[:100] or 'none'!r} does not say what the file is", "add format=csv or format=npz to the URL")])
    return FORMATS[kind]


def _too_much(limits: Limits) -> SpecRefused:
    return SpecRefused([Problem("", f"reading the file takes more than {limits.seconds} seconds or {limits.memory // 2**20:,} MiB", "upload fewer rows or columns")])
