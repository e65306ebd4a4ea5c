"""The jobs from whose weights others begin: whether a spec's are there and fit, and which jobs still need them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from regtrain.contract.begin import Begin, place_of
from regtrain.contract.checks import shape_of
from regtrain.contract.datasets import Facts
from regtrain.contract.errors import NotFound, Problem, SpecRefused, Warned
from regtrain.contract.job import JobSpec, resolved
from regtrain.contract.states import FINAL, RunState
from regtrain.contract.variants import Variant, spec_of, specs_of
from regtrain.store import files
from regtrain.store.database import Database
from regtrain.store.tables import jobs, origins, runs

MOST_HEADER = 2**28
"""Bytes of the description of a model file that are read."""


@dataclass(frozen=True)
class _Origin:
    """An earlier job, as far as another one can begin from it."""

    sha256: str
    chosen: int | None
    succeeded: frozenset[int]
    """Its runs that have not failed."""
    spec: dict[str, Any]
    runs: Sequence[dict[str, Any]]
    """As its model file lists them."""
    shapes: dict[str, list[int]]
    """Tensor → shape in the model file, runs first."""


def completed(db: Database, spec: JobSpec, facts: Facts) -> tuple[JobSpec, list[Warned]]:
    """A spec that `check` has accepted, with run and sha256 of the weights that it and its variants begin from, and what was probably not meant.

    Raises:
        SpecRefused: there is no such job, run or model, or its tensors are not those of the spec's model.
    """
    if not of_spec(spec):
        return spec, []
    reading, warnings = _Reading(db, facts), list[Warned]()
    if not spec.variants:
        return _completed(reading, spec, set(), "", warnings), list(dict.fromkeys(warnings))
    made: list[Variant] = []
    for place, variant in enumerate(spec.variants):
        changed = {path.split(".")[0] for path in variant.set}
        own = _completed(reading, spec_of(spec, variant), changed, f"variants.{place}.set.", warnings).begin
        if "begin" in changed:
            rest = {path: value for path, value in variant.set.items() if path.split(".")[0] != "begin"}
            variant = variant.model_copy(update={"set": {**rest, "begin": None if own is None else own.model_dump(mode="json")}})
        else:
            spec = spec.model_copy(update={"begin": own})
        made.append(variant)
    return spec.model_copy(update={"variants": tuple(made)}), list(dict.fromkeys(warnings))


def of_spec(spec: JobSpec) -> list[str]:
    """The jobs from whose weights a spec or its variants begin."""
    return sorted({variant.begin.job for _, variant in specs_of(spec) if variant.begin is not None})


def paths(connection: Connection, data: Path, job: str) -> dict[str, Path]:
    """Origin → its model file."""
    query = select(jobs.c.id, jobs.c.model_path).join(origins, origins.c.origin == jobs.c.id).where(origins.c.job == job, jobs.c.model_path.is_not(None))
    return {row.id: data / row.model_path for row in connection.execute(query)}


def needed_by(connection: Connection, job: str) -> str | None:
    """A job that has not ended and begins from this one's weights."""
    query = select(origins.c.job).join(jobs, jobs.c.id == origins.c.job).where(origins.c.origin == job, jobs.c.state.not_in(list(FINAL))).limit(1)
    return connection.execute(query).scalar()


@dataclass(frozen=True)
class _Reading:
    """Where earlier jobs are looked up, and those that have been."""

    db: Database
    facts: Facts
    known: dict[str, _Origin] = field(default_factory=dict[str, _Origin])

    def origin(self, job: str) -> _Origin:
        if job not in self.known:
            self.known[job] = _origin(self.db, job)
        return self.known[job]


def _completed(reading: _Reading, spec: JobSpec, changed: set[str], at: str, warnings: list[Warned]) -> JobSpec:
    """`changed`: the fields that a variant changes, whose paths begin with `at`."""
    if (begin := spec.begin) is None:
        return spec

    def placed(path: str) -> str:
        return at + path if path.split(".")[0] in changed else path

    try:
        origin = reading.origin(begin.job)
        run = _run(begin, origin)
        if found := list(_misfits(spec, reading.facts, begin.job, run, origin)):
            raise SpecRefused(found)
    except SpecRefused as refusal:
        raise SpecRefused([replace(problem, path=placed(problem.path)) for problem in refusal.problems]) from None
    warnings += [replace(warned, path=placed(warned.path)) for warned in _warnings(spec, begin.job, origin)]
    return spec.model_copy(update={"begin": begin.model_copy(update={"run": run, "sha256": origin.sha256})})


def _origin(db: Database, job: str) -> _Origin:
    with db.read() as connection:
        row = connection.execute(select(jobs).where(jobs.c.id == job)).one_or_none()
        ended = frozenset(connection.execute(select(runs.c.index).where(runs.c.job == job, runs.c.state == RunState.SUCCEEDED)).scalars())
    if row is None:
        raise SpecRefused([Problem("begin.job", f"there is no job {job}", "use the ID of a job that has succeeded")])
    if row.model_path is None:
        raise SpecRefused([Problem("begin.job", f"job {job} is {row.state}: only one that has succeeded has weights to begin from", "wait for its end, or use another job")])
    try:
        header = _header(db.data, row.model_path)
        listed = json.loads(header.pop("__metadata__")["runs"])
    except (NotFound, ValueError, KeyError) as error:
        raise SpecRefused([Problem("begin.job", f"the model of job {job} cannot be read: {error}", "use another job")]) from None
    shapes = {name: tensor["shape"] for name, tensor in header.items()}
    result: dict[str, Any] = row.result or {}
    return _Origin(row.model_sha256, result.get("chosen_run"), ended, row.spec, listed, shapes)


def _header(data: Path, stored: str) -> dict[str, Any]:
    """The description at the head of a safetensors file."""
    with files.open_file(data, stored) as file:
        return json.loads(file.read(min(int.from_bytes(file.read(8), "little"), MOST_HEADER)))


def _run(begin: Begin, origin: _Origin) -> int:
    run = origin.chosen if begin.run is None else begin.run
    if begin.sha256 not in (None, origin.sha256):
        raise SpecRefused([Problem("begin.sha256", f"the model of job {begin.job} has the sha256 {origin.sha256}", "leave it out, or use the job that was meant")])
    if run is None:
        raise SpecRefused([Problem("begin.run", f"job {begin.job} has chosen none of its runs", "name one of them")])
    if run not in origin.succeeded or place_of(origin.runs, run) is None:
        raise SpecRefused([Problem("begin.run", f"run {run} of job {begin.job} has no weights: it failed, was left out, or is none", f"see /v1/jobs/{begin.job}/runs")])
    return run


def _misfits(spec: JobSpec, facts: Facts, job: str, run: int, origin: _Origin) -> Iterator[Problem]:
    """The first tensor that is another one in the earlier job."""
    place = place_of(origin.runs, run)
    assert place is not None
    mine = {name: list(shape) for layer in shape_of(spec, facts) for name, shape in layer.tensors.items()}
    theirs = {name.removeprefix(place[0]): shape[1:] for name, shape in origin.shapes.items() if name.startswith(place[0]) and "running" not in name.rsplit(".", 1)[-1]}
    if place[0] == "":
        theirs = {name: shape for name, shape in theirs.items() if "/" not in name}
    for name in [*mine, *theirs]:
        if mine.get(name) != theirs.get(name):
            words = f"in run {run} of job {job} {name} is {_size(theirs.get(name))}, here it is {_size(mine.get(name))}"
            yield Problem("model", f"the weights do not fit: {words}", "give the model that the earlier job has")
            return


def _size(shape: list[int] | None) -> str:
    return "missing" if shape is None else " × ".join(map(str, shape)) if prod(shape) != 0 else "empty"


def _warnings(spec: JobSpec, job: str, origin: _Origin) -> Iterator[Warned]:
    mine = resolved(spec)
    if origin.spec["dataset"] != mine["dataset"] or origin.spec["seed"] != spec.seed:
        yield Warned("begin.job", f"rows, split, scaling or seed are not those of job {job}: its weights may have seen what is held out here, and read columns of another scale")
    activation, theirs = mine["model"].get("activation"), origin.spec["model"].get("activation")
    if activation != theirs and not origin.spec.get("variants"):
        yield Warned("model.activation", f"the weights of job {job} were trained with {theirs}")
