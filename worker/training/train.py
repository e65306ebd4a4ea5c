"""A job, readable from top to bottom: rows, packs, steps, events. Cancelling is closing the generator; a test is `list(train(spec))`."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regtrain.contract import runs as expansion
from regtrain.contract.checks import shape_of
from regtrain.contract.datasets import counts
from regtrain.contract.diagnostics import includes
from regtrain.contract.errors import Diverged, Warned
from regtrain.contract.events import Checkpointed, Event, Finished, Points, RunFinished, Started
from regtrain.contract.job import JobSpec, batch_size, digest, resolved, steps, steps_per_epoch
from regtrain.contract.losses import Binary, CrossEntropy
from regtrain.contract.models import Cnn, Layer, LinearModel
from regtrain.contract.ranges import concrete
from regtrain.contract.runs import Run
from regtrain.contract.series import SERIES
from regtrain.contract.states import RunState, StopReason
from worker.training import datasets, losses, preprocess
from worker.training.checkpoints import load, save
from worker.training.device import device_of, environment
from worker.training.draws import row_order
from worker.training.evaluate import Part, evaluate
from worker.training.optimizers import factors
from worker.training.pack import Pack
from worker.training.points import Recorder
from worker.training.regularizers import penalty
from worker.training.step import ORDER, step
from worker.training.stopping import Best


@dataclass
class Job:
    """What all packs of a job share."""

    spec: JobSpec
    runs: list[Run]
    shape: list[Layer]
    rows: datasets.Rows
    train: Part
    val: Part
    test: Part
    scaling: preprocess.Scaling
    device: torch.device
    digest: str
    scratch: Path | None
    steps: int
    per_epoch: int
    batch: int
    seconds: dict[str, float] = field(default_factory=lambda: {"data": 0.0, "step": 0.0, "evaluate": 0.0, "report": 0.0})


def train(
    spec: JobSpec,
    *,
    device: str = "cpu",
    data: Path = Path("data"),
    upload: Path | None = None,
    scratch: Path | None = None,
    packs: list[list[int]] | None = None,
    resume: dict[int, Path] | None = None,
    wants_checkpoint: Callable[[], bool] = lambda: False,
    checkpoint_seconds: float = 30.0,
) -> Iterator[Event]:
    """Trains a job and reports everything that happens, in order.

    `data`: the data folder, `upload`: the rows of an uploaded dataset. `scratch`: where checkpoints and the model are written;
    without it there are none. `packs`: membership as stored by the first attempt. `resume`: pack → its newest checkpoint.
    `wants_checkpoint` is asked about four times a second, between two updates.

    Raises:
        TrainingError: the rows are missing or unfit, it does not fit into memory, or every run diverged.
    """
    job = _prepare(spec, device=device, data=data, upload=upload, scratch=scratch)
    packs = packs or expansion.packs(job.runs, shape=job.shape, batch=job.batch, item_bytes=job.train.x.element_size(), device=job.device.type)
    members = [[job.runs[i] for i in indices] for indices in packs]
    states = {index: load(path, digest=job.digest, device=job.device) for index, path in (resume or {}).items()}
    yield _started(job, packs, members[0], states)
    weights: list[dict[str, Tensor]] = []
    finished: list[RunFinished] = []
    for index, runs in enumerate(members):
        pack = Pack(runs, job.shape, features=job.rows.x.shape[1], device=job.device)
        for event in _train_pack(job, index, pack, states.get(index), wants_checkpoint, checkpoint_seconds):
            if isinstance(event, RunFinished):
                finished.append(event)
            yield event
        weights.append(_tensors(pack))
    if all(run.state == RunState.FAILED for run in finished):
        first = min(finished, key=lambda run: run.steps)
        raise Diverged(f"every run became non-finite, the first (run {first.run}) at step {first.steps}: lower optimizer.lr, or set a clip")
    yield _finished(job, packs, weights, finished)


def _prepare(spec: JobSpec, *, device: str, data: Path, upload: Path | None, scratch: Path | None) -> Job:
    where = device_of(device)
    rows = datasets.load(spec.dataset, data=data, upload=upload, classify=isinstance(spec.loss, CrossEntropy | Binary))
    if isinstance(spec.model, Cnn) and spec.model.image is None:
        spec = spec.model_copy(update={"model": spec.model.model_copy(update={"image": rows.facts.image})})
    split = datasets.split(spec.dataset, rows, seed=spec.seed)
    scaling = preprocess.fit(rows.x[split.train], standardize=spec.dataset.standardize)
    dtype = torch.float64 if spec.dtype == "float64" else torch.float32

    def part(which: np.ndarray[Any, np.dtype[np.int64]]) -> Part:
        x, y = torch.from_numpy(scaling(rows.x[which])), torch.from_numpy(rows.y[which])
        return Part(x.to(where, dtype), losses.target(spec.loss, y, dtype).to(where))

    sizes = counts(spec.dataset, rows.facts)
    return Job(
        spec=spec, runs=expansion.expand(spec), shape=shape_of(spec, rows.facts), rows=rows,
        train=part(split.train), val=part(split.val), test=part(split.test), scaling=scaling, device=where, digest=digest(spec), scratch=scratch,
        steps=steps(spec, sizes), per_epoch=steps_per_epoch(spec, sizes), batch=batch_size(spec, sizes),
    )  # fmt: skip


def _train_pack(job: Job, index: int, pack: Pack, state: Any, wants_checkpoint: Callable[[], bool], checkpoint_seconds: float) -> Iterator[Event]:
    """All updates of one pack, from its beginning or from its checkpoint, to its runs' results."""
    best = Best(pack, pack.early.metric if pack.early else "loss/val", pack.early)
    recorder = Recorder(pack, index)
    start = 0
    if state is not None:
        start = _restore(pack, best, recorder, *state)
        if state[1]["final"]:
            yield from _results(job, pack, best, recorder)
            return
    elif len(job.val):
        recorder.add_after(0, evaluate(pack, job.val, "val"), pack.alive)
    saved = time.monotonic()
    done = start
    for epoch in range(start // job.per_epoch, job.spec.budget.epochs):
        rates, table = _rates(job, pack, epoch)
        order = _order(job, pack, epoch)
        for position in range(done - epoch * job.per_epoch, job.per_epoch):
            x, y = _batch(job, pack, order, position)
            recorder.add(done, y.shape[-1], rates[position], step(pack, x, y, t=done, lr=table[position]))
            done += 1
            if position + 1 == job.per_epoch and len(job.val):
                _evaluate(job, pack, best, recorder, done)
            if recorder.due:
                yield from _reported(job, recorder, done)
                if job.scratch and (wants_checkpoint() or time.monotonic() - saved > checkpoint_seconds) and done < job.steps and recorder.living:
                    yield _checkpoint(job, index, pack, best, recorder, done, final=False)
                    saved = time.monotonic()
                if not recorder.living:
                    break
        if not recorder.living:
            break
    yield from _reported(job, recorder, done)
    recorder.settle(done)
    best.restore(pack)
    yield from _results(job, pack, best, recorder)
    if job.scratch:
        yield _checkpoint(job, index, pack, best, recorder, done, final=True)


def _rates(job: Job, pack: Pack, epoch: int) -> tuple[np.ndarray[Any, np.dtype[np.float64]], Tensor]:
    """The learning rates of an epoch, on the host (n, R) and on the device (n, R, 1)."""
    first = epoch * job.per_epoch
    rates = np.stack([concrete(run.spec.optimizer.lr) * factors(run.spec.optimizer.schedule, first=first, last=first + job.per_epoch, steps=job.steps) for run in pack.runs], 1)
    return rates, torch.from_numpy(rates).to(job.device, pack.dtype).unsqueeze(2)


def _order(job: Job, pack: Pack, epoch: int) -> Tensor | None:
    """Row order of an epoch: (n,) where all runs share their seed, else (R, n). None for a full batch, whose order does not matter."""
    if job.batch == len(job.train):
        return None
    orders = torch.stack([row_order(job=job.spec.seed, run=seed, epoch=epoch, rows=len(job.train)) for seed in pack.seeds]).to(job.device)
    return orders[0] if pack.seed_slot is None else orders[pack.seed_slot]


def _batch(job: Job, pack: Pack, order: Tensor | None, position: int) -> tuple[Tensor, Tensor]:
    """The rows of one update: (B, features) and (B,), or with a run axis where runs differ in seed."""
    if order is None:
        return job.train.x, job.train.y
    rows = order[..., position * job.batch : (position + 1) * job.batch]
    if rows.dim() == 1:  # four times as fast as indexing
        return job.train.x.index_select(0, rows), job.train.y.index_select(0, rows)
    return job.train.x[rows], job.train.y[rows]


def _evaluate(job: Job, pack: Pack, best: Best, recorder: Recorder, done: int) -> None:
    metrics, alive = evaluate(pack, job.val, "val"), pack.alive
    recorder.add_after(done, metrics, alive)
    best.update(pack, done, metrics)


def _reported(job: Job, recorder: Recorder, done: int) -> Iterator[Points]:
    points = recorder.report(done)
    if points is not None:
        yield points


def _checkpoint(job: Job, index: int, pack: Pack, best: Best, recorder: Recorder, done: int, *, final: bool) -> Checkpointed:
    assert job.scratch is not None
    tensors = {"flat": pack.flat, "buffers": pack.buffers, "alive": pack.alive, **{f"optimizer/{k}": v for k, v in pack.directions.state.items()}, **best.state}
    about = {
        "digest": job.digest, "pack": index, "step": done, "final": final, "runs": [run.index for run in pack.runs],
        "ended": {str(k): v for k, v in recorder.ended.items()}, "died": {str(k): v for k, v in recorder.died.items()}, "environment": environment(job.device),
    }  # fmt: skip
    saved = save(job.scratch / f"checkpoint-{index}-{done}.tmp", tensors, about)
    return Checkpointed(pack=index, step=done, path=saved.path, sha256=saved.sha256)


def _restore(pack: Pack, best: Best, recorder: Recorder, tensors: dict[str, Tensor], about: dict[str, Any]) -> int:
    """Puts a checkpoint's state back; returns the updates that it had done."""
    pack.flat.copy_(tensors["flat"])
    pack.buffers.copy_(tensors["buffers"])
    pack.alive = tensors["alive"]
    for name, state in pack.directions.state.items():
        state.copy_(tensors[f"optimizer/{name}"])
    best.state = {name: tensors[name] for name in best.state}
    recorder.ended = {int(k): v for k, v in about["ended"].items()}
    recorder.died = {int(k): v for k, v in about["died"].items()}
    recorder.living = pack.size - len(recorder.ended)
    return about["step"]


def _results(job: Job, pack: Pack, best: Best, recorder: Recorder) -> Iterator[RunFinished]:
    """Metrics of every run at its final weights: on all training rows, on val, and, once, on test."""
    found = {
        name: value.cpu().numpy() for part, rows in (("train", job.train), ("val", job.val), ("test", job.test)) if len(rows) for name, value in evaluate(pack, rows, part).items()
    }
    with torch.no_grad():
        penalties = {p.name: sum(penalty(p.spec, pack.flat[:, c], p.lam, p.ratio) for c in p.columns).cpu().double().numpy() for p in pack.penalties}  # pyright: ignore[reportAttributeAccessIssue]
    tensors = pack.layout.views(pack.flat)
    for r, run in enumerate(pack.runs):
        metrics = {name: float(value[r]) for name, value in (found | penalties).items()}
        if penalties:
            metrics["objective/train"] = metrics["loss/train"] + sum(float(value[r]) for value in penalties.values())
        died = recorder.died.get(r)
        reason = StopReason.DIVERGED if died else StopReason.EARLY_STOPPING if r in recorder.ended else StopReason.BUDGET
        yield RunFinished(
            run=run.index, state=RunState.FAILED if died else RunState.SUCCEEDED, stop_reason=reason, steps=recorder.ended.get(r, job.steps),
            metrics=metrics, best=best.of(r), zeros={name: int((tensors[name][r] == 0).sum()) for p in pack.penalties for name in p.tensors},
            coefficients=_coefficients(job, tensors, r), first_nonfinite=died and {**died, **({"layer": job.shape[died["layer"]].name} if "layer" in died else {})},
        )  # fmt: skip


def _coefficients(job: Job, tensors: dict[str, Tensor], r: int) -> dict[str, Any] | None:
    if not isinstance(job.spec.model, LinearModel):
        return None
    weight = tensors["head.weight"][r].detach().cpu().double().numpy()
    bias = tensors["head.bias"][r].detach().cpu().double().numpy() if "head.bias" in tensors else None
    return preprocess.coefficients(weight, bias, job.scaling, job.rows.facts.feature_names)


def _tensors(pack: Pack) -> dict[str, Tensor]:
    """Parameters and running averages of a pack's runs, by name, on the CPU.  (R, *shape) each"""
    return {name: view.detach().cpu().clone() for name, view in (pack.layout.views(pack.flat) | pack.layout.buffer_views(pack.buffers)).items()}


def _started(job: Job, packs: list[list[int]], first: list[Run], states: dict[int, Any]) -> Started:
    pack = Pack(first[:1], job.shape, features=job.rows.x.shape[1], device=job.device)
    going_on = [(index, about["step"]) for index, (_, about) in sorted(states.items()) if not about["final"]]
    finals = [index for index, (_, about) in states.items() if about["final"]]
    at = going_on[0] if going_on else (max(finals) + 1 if finals else 0, 0)
    return Started(
        runs=len(job.runs), packs=packs, steps=job.steps, steps_per_epoch=job.per_epoch, layers=[layer.name for layer in job.shape], series=_series(job, pack),
        penalised={f"regularizers.{p.index}": p.tensors for p in pack.penalties}, step_order=list(ORDER), environment=environment(job.device),
        warnings=_warnings(job, pack), pack=at[0], step=at[1],
    )  # fmt: skip


def _series(job: Job, pack: Pack) -> list[str]:
    """The names of all series that this job reports, in the order in which they are shown."""
    spec = job.spec
    absent = {
        "loss/val": not len(job.val),
        "accuracy/val": not len(job.val) or not isinstance(spec.loss, CrossEntropy | Binary),
        "objective/train": not pack.penalties,
        "gradient/clipped": spec.clip is None,
        "identity/batch_norm": spec.budget.accumulate > 1,
        "penalty_gradient/norm": not pack.penalties,
        "penalty_gradient/cosine": not pack.penalties,
    }
    penalties = [p.name for p in pack.penalties] + (["penalty/step_penalty"] if pack.step_penalty else [])
    names: list[str] = []
    for series in SERIES:
        if includes(spec.diagnostics, series.preset) and not absent.get(series.name, False):
            names += penalties if series.name == "penalty/*" else [series.name]
    return names


@torch.no_grad()
def _warnings(job: Job, pack: Pack) -> list[Warned]:
    """What only the rows can tell, of the first run, before its first update."""
    some = Part(job.train.x[:1024], job.train.y[:1024])
    loss = float(evaluate(pack, some, "train")["loss/train"][0])
    found: list[Warned] = []
    for p in pack.penalties:
        value = sum(float(penalty(p.spec, pack.flat[:, c], p.lam, p.ratio)[0]) for c in p.columns)
        if value > loss > 0:
            found.append(
                Warned(
                    f"regularizers.{p.index}.lambda",
                    f"at step 0 the penalty is {value:.4g} and the loss {loss:.4g}: λ is so strong that the penalty leads the training; try λ below {float(p.lam[0]) * loss / value / 10:.2g}",
                    "data",
                )
            )
    return found


def _finished(job: Job, packs: list[list[int]], weights: list[dict[str, Tensor]], finished: list[RunFinished]) -> Finished:
    place = {run: slot for slot, run in enumerate(i for indices in packs for i in indices)}
    order = torch.tensor([place[run.index] for run in job.runs])
    tensors = {name: torch.cat([w[name] for w in weights])[order] for name in weights[0]}
    about = {
        "spec": resolved(job.spec), "digest": job.digest, "features": list(job.rows.facts.feature_names or ()), "classes": list(job.rows.facts.class_names or ()),
        "preprocess": {"mean": job.scaling.mean.tolist(), "scale": job.scaling.scale.tolist()},
        "runs": [{"index": run.index, "values": run.values, "seed": run.seed} for run in job.runs],
    }  # fmt: skip
    result: dict[str, Any] = {**_chosen(job, finished), "step_order": list(ORDER), "environment": environment(job.device), "seconds": job.seconds}
    if job.scratch is None:
        return Finished(result=result, path="", sha256="")
    saved = save(job.scratch / "model.tmp", tensors, about)
    return Finished(result=result, path=saved.path, sha256=saved.sha256)


def _chosen(job: Job, finished: list[RunFinished]) -> dict[str, Any]:
    """The run that a caller means by "the" result: the only one, or the best on the validation rows. Without either there is none."""
    good = [run for run in finished if run.state == RunState.SUCCEEDED]
    measured = [run for run in good if "loss/val" in run.metrics and np.isfinite(run.metrics["loss/val"])]
    if len(job.runs) > 1 and not measured:
        return {"chosen_run": None, "chosen_by": None, "values": {}}
    chosen = min(measured, key=lambda run: (run.metrics["loss/val"], run.run)) if len(job.runs) > 1 else good[0]
    run = next(r for r in job.runs if r.index == chosen.run)
    return {
        "chosen_run": chosen.run, "chosen_by": "loss/val" if len(job.runs) > 1 else None, "values": run.values,
        "zeros": chosen.zeros, "coefficients": chosen.coefficients,
    }  # fmt: skip
