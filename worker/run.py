"""`python -m worker run FILE`: trains a spec without server or database and prints the events as JSON Lines.

torch, numpy and pydantic are all it needs. NaN and ±Infinity are null, so that every line is valid JSON.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from regtrain.contract.checks import check
from regtrain.contract.datasets import facts_of
from regtrain.contract.errors import Problem, SpecRefused, TrainingError, Warned
from regtrain.contract.events import Checkpointed, Event, Failed, Finished, Points
from regtrain.contract.job import JobSpec, parse
from regtrain.contract.variants import specs_of

REFUSED, FAILED, INTERRUPTED = 2, 1, 128 + signal.SIGINT


def run(file: str, *, device: str, threads: int | None, data: Path, out: Path | None, arrays: bool) -> int:
    """Trains the spec in `file` (`-`: standard input); returns the exit code: 0, 1 failed, 2 refused, 130 interrupted."""
    try:
        spec = _spec(file)
    except SpecRefused as refusal:
        for problem in refusal.problems:
            _complain(f"{problem.path or file}: {problem.message}" + (f" ({problem.hint})" if problem.hint else ""))
        return REFUSED
    if out is not None and find_spec("safetensors") is None:
        _complain("--out: the model is written by the package safetensors, which is not installed")
        return REFUSED
    try:
        return _train(spec, device=device, threads=threads, data=data, out=out, arrays=arrays)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def line(event: Event, *, arrays: bool) -> str:
    """An event as one line of JSON. Of points, the number and the latest of each series, or with `arrays` all of them."""
    found = {f.name: getattr(event, f.name) for f in fields(event)}
    if isinstance(event, Points) and not arrays:
        found = {"pack": event.pack, "step": event.step, "points": {name: len(steps) for name, steps in event.steps.items()}, "latest": _latest(event)}
    return json.dumps({"event": type(event).__name__, **_plain(found)}, allow_nan=False, ensure_ascii=False)


def _spec(file: str) -> JobSpec:
    try:
        body = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise SpecRefused([Problem("", f"cannot be read: {error.strerror}", "give the file of a spec, or - for standard input")]) from None
    spec = parse(body)
    facts = facts_of(spec.dataset)
    if facts is None:
        raise SpecRefused([Problem("dataset.kind", "uploaded rows are kept by the service", "submit this spec to it, or put the rows into the spec: inline")])
    if any(variant.begin is not None for _, variant in specs_of(spec)):
        raise SpecRefused([Problem("begin.job", "weights of earlier jobs are kept by the service", "submit this spec to it")])
    for warned in check(spec, facts):
        _complain(f"warning: {warned.path}: {warned.message}")
    return spec


def _train(spec: JobSpec, *, device: str, threads: int | None, data: Path, out: Path | None, arrays: bool) -> int:
    with TemporaryDirectory(dir=_folder(out)) as scratch:
        for event in _events(spec, device=device, threads=threads, data=data, scratch=Path(scratch) if out else None):
            if isinstance(event, Checkpointed):
                Path(event.path).unlink()  # nobody will resume from it
                continue
            if isinstance(event, Finished) and out is not None:
                event = Finished(event.result, str(Path(event.path).replace(out / "model.safetensors")), event.sha256)
            print(line(event, arrays=arrays), flush=True)
            if isinstance(event, Failed):
                _complain(f"{event.failure}: {event.message}")
                return FAILED
    return 0


def _events(spec: JobSpec, *, device: str, threads: int | None, data: Path, scratch: Path | None) -> Iterator[Event]:
    import torch

    from worker.trainer import failed
    from worker.training.train import train

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield from train(spec, device=device, data=data, scratch=scratch, checkpoint_seconds=float("inf"))
    except (TrainingError, SpecRefused, MemoryError, OSError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        yield failed(error)


def _folder(out: Path | None) -> Path | None:
    """The model is written beside its place, so that it can be renamed into it."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    return out


def _latest(points: Points) -> dict[str, Any]:
    """Of each series the last point of every run; null for a run that has none here."""
    return {name: [values[count - 1, r].tolist() if count else None for r, count in enumerate(points.counts[name])] for name, values in points.values.items() if len(values)}


def _plain(value: Any) -> Any:
    match value:
        case np.ndarray():
            return _plain(value.tolist())
        case dict():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case Warned():
            return {"path": value.path, "message": value.message, "source": value.source}
        case float() if not isfinite(value):
            return None
        case _:
            return value


def _complain(text: str) -> None:
    print(text, file=sys.stderr)
