"""Weights of an earlier job to begin from: read from its model file, changed by surgery, the same at every attempt."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regtrain.contract.begin import Begin, place_of
from regtrain.contract.errors import DataError
from regtrain.contract.events import Log
from regtrain.contract.job import JobSpec
from regtrain.contract.runs import Run
from regtrain.contract.variants import specs_of
from worker.training.models import Layout, layout_of
from worker.training.prepare import Beginning, Job
from worker.training.surgery import Theatre, operated

PIECE = 2**20


def verified(spec: JobSpec, origins: Mapping[str, Path]) -> None:
    """Looks whether the model files from which the job begins are those that were meant at its submission.

    Raises:
        DataError: one is missing, or another one.
    """
    for begin in {begin.job: begin for _, variant in specs_of(spec) if (begin := variant.begin) is not None}.values():
        try:
            found = _sha256(origins[begin.job])
        except (KeyError, OSError) as error:
            raise DataError(f"the weights of {begin.job}, from which the job begins, are gone") from error
        if begin.sha256 is not None and found != begin.sha256:
            raise DataError(f"the weights of {begin.job} are not those from which the job was to begin: their sha256 is {found}, not {begin.sha256}")


def begun(job: Job, runs: Sequence[Run]) -> tuple[Tensor, Tensor] | None:
    """Weights (R, P) and running averages (R, Q) from which these runs begin; None where they draw their own. `job`: as these runs see it."""
    if runs[0].spec.begin is None:
        return None
    each = [_beginning(job.own(run), run, run.spec.begin) for run in runs if run.spec.begin is not None]
    return torch.stack([one.flat for one in each]), torch.stack([one.buffers for one in each])


def logged(job: Job, runs: Sequence[Run]) -> Iterator[Log]:
    """What was done to the weights of the first of these runs, a line for each operation."""
    for done in job.beginnings[runs[0].index].done if runs[0].index in job.beginnings else ():
        at = f"run {runs[0].index}: " if len(job.runs) > 1 else ""
        yield Log("info" if done["applied"] else "warning", at + done["in_words"])


def told(job: Job, runs: Sequence[Run]) -> list[dict[str, Any]] | None:
    """For each variant that begins from an earlier job: its weights, what was done to those of its first run, and by how much that has changed the function of any."""
    found: dict[str | None, dict[str, Any]] = {}
    for run in runs:
        if (begin := run.spec.begin) is None or (mine := job.beginnings.get(run.index)) is None:
            continue
        first = {"variant": run.variant, "job": begin.job, "run": begin.run, "sha256": begin.sha256, "operations": list(mine.done), "difference": 0.0}
        entry = found.setdefault(run.variant, first)
        entry["difference"] = max([entry["difference"], *(done["difference"] for done in mine.done if done["applied"])])
    return list(found.values()) or None


def _beginning(job: Job, run: Run, begin: Begin) -> Beginning:
    if run.index not in job.beginnings:
        flat, buffers = _stored(job.origins[begin.job], begin, layout_of(job.shape))
        dtype = torch.float64 if run.spec.dtype == "float64" else torch.float32
        theatre = Theatre(job.shape, run.spec, buffers.double(), job.train, seed=run.seed, class_weights=job.class_weights, dtype=dtype)
        changed, done = operated(theatre, flat.to(dtype).double(), begin.surgery)
        job.beginnings[run.index] = Beginning(changed.to(dtype), buffers.to(dtype), tuple(done))
    return job.beginnings[run.index]


def _stored(path: Path, begin: Begin, layout: Layout) -> tuple[Tensor, Tensor]:
    """Parameters (P,) and running averages (Q,) of a run, as they lie in a model file.

    Raises:
        DataError: the file cannot be read, or has no such run or tensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt", device="cpu") as file:
            place = place_of(json.loads((file.metadata() or {})["runs"]), begin.run or 0)
            if place is None:
                raise DataError(f"the model of {begin.job} has no run {begin.run}")
            prefix, row = place
            flat, buffers = ([file.get_slice(f"{prefix}{slot.name}")[row : row + 1].flatten() for slot in slots] for slots in (layout.slots, layout.buffers))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(f"the weights of {begin.job} cannot be read: {error}") from error
    return torch.cat(flat), torch.cat(buffers) if buffers else torch.zeros(0)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()
