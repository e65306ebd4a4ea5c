"""What a job answers when it has been trained: the metrics of every run, the run that is meant by "the" result, the model file."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regtrain.contract.datasets import Counts
from regtrain.contract.diagnostics import includes
from regtrain.contract.errors import Warned
from regtrain.contract.events import Finished, PackBegun, RunFinished, Started
from regtrain.contract.job import JobSpec, resolved, steps
from regtrain.contract.losses import Binary, CrossEntropy
from regtrain.contract.models import LinearModel, times
from regtrain.contract.runs import Run, points
from regtrain.contract.series import SERIES
from regtrain.contract.states import RunState, StopReason
from worker.training import activations, cautions, firing, preprocess, probes
from worker.training.adapt import Adapting
from worker.training.certificates import certifier
from worker.training.checkpoints import save
from worker.training.device import environment
from worker.training.evaluate import evaluate
from worker.training.pack import Pack
from worker.training.prepare import Job, for_run, split_of
from worker.training.running import Running, pack_of
from worker.training.step import ORDER


def started(job: Job, first: Run, packs: list[list[int]], *, pack: int, step: int) -> Started:
    """What is known before the first update. `first`: a run of the first pack."""
    whole, job = job, for_run(job, first)
    one = pack_of(job, [first])
    return Started(
        runs=len(job.runs), packs=packs, steps=job.steps, steps_per_epoch=job.per_epoch, layers=[layer.name for layer in job.shape], times=times(job.shape), series=_series(job, one),
        pack_steps=_pack_steps(whole, packs),
        penalised={f"regularizers.{p.index}": p.tensors for p in (*one.penalties, *one.bounds, *([one.omega] if one.omega else []))}, step_order=list(ORDER), environment=environment(job.device),
        warnings=[*_warnings(job, one), *cautions.of_data(whole)], pack=pack, step=step,
    )  # fmt: skip


def pack_begun(job: Job, index: int, runs: list[Run]) -> PackBegun:
    """`job`: as the runs of the pack see it."""
    layers, values = [layer.name for layer in job.shape], [run.values for run in runs]
    return PackBegun(
        pack=index, layers=layers, steps=job.steps, steps_per_epoch=job.per_epoch, runs=[run.index for run in runs], values=values, variant=runs[0].variant,
        times=times(job.shape),
    )  # fmt: skip


def _pack_steps(job: Job, packs: list[list[int]]) -> list[int]:
    """Steps of each pack, counted from its variant and its rows; of a refit those of the first variant."""
    found: dict[tuple[str | None, int | None, int | None, bool], int] = {}
    for run in (job.runs[members[0]] for members in packs):
        key = (run.variant, run.fold, run.outer, run.refit)
        if key not in found:
            rows = split_of(job, run)
            found[key] = steps(run.spec, Counts(train=len(rows.train), val=len(rows.val), test=len(rows.test)))
    return [found[run.variant, run.fold, run.outer, run.refit] for run in (job.runs[members[0]] for members in packs)]


@torch.no_grad()
def of_runs(job: Job, running: Running) -> Iterator[RunFinished]:
    """Every run at its final weights: its metrics on all training rows, on val, and on test where no choice is to be made first."""
    pack, recorder = running.pack, running.recorder
    held_out = "test" if pack.runs[0].outer is None else "outer"
    parts = [("train", job.train), ("val", job.val), *([(held_out, job.test)] if tells_test(job, pack.runs[0]) else [])]
    measured = {name: value.cpu().numpy() for part, rows in parts if len(rows) for name, value in evaluate(pack, rows, part).items()}
    penalties = {p.name: p.value(pack.flat).cpu().double().numpy() for p in pack.penalties}
    strengths = {name: value.cpu().numpy() for name, value in running.adapting.strengths().items()}
    tensors, certificate = pack.net.tensors, _certifier(job, pack)
    adaptation = running.adapting.told(lambda runs: pack_of(job, runs))
    for r, run in enumerate(pack.runs):
        metrics = {name: float(value[r]) for name, value in (measured | penalties | strengths).items()}
        if penalties and pack.omega is None:  # Ω is known of batches alone
            metrics["objective/train"] = metrics["loss/train"] + sum(float(value[r]) for value in penalties.values())
        slot = running.slots[r]
        died = recorder.died.get(slot)
        yield RunFinished(
            run=run.index, state=RunState.FAILED if died else RunState.SUCCEEDED,
            stop_reason=_stop_reason(pack, r, died=bool(died), ended=slot in recorder.ended, symptom=slot in running.stopped),
            steps=recorder.ended.get(slot, job.steps), metrics=metrics, best=running.best.of(r),
            zeros={name: int((tensors[name][r] == 0).sum()) for p in (*pack.penalties, *pack.bounds) for name in p.tensors},
            coefficients=_coefficients(job.own(run), pack.spec, tensors, r), first_nonfinite=_named(job, died), certificate=None if died else certificate(r),
            adaptation=adaptation(r),
        )  # fmt: skip


def _certifier(job: Job, pack: Pack) -> Callable[[int], dict[str, Any] | None]:
    """The certificate of each run, on its own training rows."""
    if not job.folds:
        return certifier(pack, job.train, lambda runs: pack_of(job, runs))
    found: dict[int, Callable[[], dict[str, Any] | None]] = {}
    for own in job.folds.values():
        rows = [r for r, run in enumerate(pack.runs) if job.own(run) is own]
        part = pack_of(own, [pack.runs[r] for r in rows], begin=(pack.flat[rows], pack.buffers[rows]))
        of = certifier(part, own.train, partial(pack_of, own))
        found |= {r: partial(of, place) for place, r in enumerate(rows)}
    return lambda run: found[run]()


def _stop_reason(pack: Pack, r: int, *, died: bool, ended: bool, symptom: bool) -> StopReason:
    if died:
        return StopReason.DIVERGED
    converged = pack.directions.state.get("converged")
    if converged is not None and bool(converged[r]):
        return StopReason.CONVERGED
    if not ended:
        return StopReason.BUDGET
    return StopReason.SYMPTOM if symptom else StopReason.EARLY_STOPPING


def finished(job: Job, tensors: dict[str, Tensor], runs: list[Run], answer: dict[str, Any]) -> Finished:
    """The job's result, and its model file. `job`: with the scaling of its last pack; `answer`: what has been chosen."""
    result: dict[str, Any] = {**answer, "step_order": list(ORDER), "environment": environment(job.device), "seconds": job.seconds}
    if job.scratch is None:
        return Finished(result=result, path="", sha256="")
    about = {
        "spec": resolved(job.spec), "digest": job.digest, "features": list(job.rows.facts.feature_names or ()), "classes": list(job.rows.facts.class_names or ()),
        "preprocess": {"mean": job.scaling.mean.tolist(), "scale": job.scaling.scale.tolist()},
        "runs": [{"index": run.index, "variant": run.variant, "values": run.values, "seed": run.seed, "fold": run.fold, "outer": run.outer} for run in runs],
    }  # fmt: skip
    saved = save(job.scratch / "model.tmp", tensors, about)
    return Finished(result=result, path=saved.path, sha256=saved.sha256)


def tells_test(job: Job, run: Run) -> bool:
    """Whether a run is measured on the test rows (of nested folds: on the outer fold) as it ends: not where a choice among several is still to be made."""
    return run.point is None if run.refit else run.fold is None and run.outer is None and len(points(job.runs)) == 1


def _series(job: Job, pack: Pack) -> list[str]:
    """The names of all series that this job reports, in the order in which they are shown."""
    spec, penalised = pack.spec, bool(pack.penalties or pack.omega)
    measured = activations.names(job.shape)
    present = {
        "loss/val": len(job.val) > 0,
        "accuracy/val": len(job.val) > 0 and isinstance(spec.loss, CrossEntropy | Binary),
        "objective/train": penalised,
        "gradient/clipped": spec.clip is not None,
        "signal/time": bool(times(job.shape)),
        "identity/batch_norm": spec.budget.accumulate == 1,
        **dict.fromkeys(("decrease/expected", "decrease/quadratic", "decrease/actual", "histogram/update"), job.steps >= job.per_epoch),
        **dict.fromkeys(("noise/trace", "noise/gradient", "noise/scale"), len(job.train) > 1),
        "gradient/validation_cosine": len(job.val) > 0,
        "gradient/successive_cosine": probes.followed(per_epoch=job.per_epoch, steps=job.steps),
        **{name: name in measured for name in (activations.DEAD, activations.FIRING, activations.SATURATED)},
        firing.SILENT: activations.DEAD in measured,
        firing.RATES: activations.FIRING in measured,
        "penalty_gradient/norm": penalised,
        "penalty_gradient/cosine": penalised,
    }
    penalties = [p.name for p in pack.penalties] + ([pack.omega.name] if pack.omega else []) + (["penalty/step_penalty"] if pack.step_penalty else [])
    families = {"penalty/*": penalties, "strength/*": list(Adapting(job, pack).strengths())}
    names: list[str] = []
    for series in SERIES:
        if includes(spec.diagnostics, series.preset) and present.get(series.name, True):
            names += families.get(series.name, [series.name])
    return names


@torch.no_grad()
def _warnings(job: Job, pack: Pack) -> list[Warned]:
    """What only the rows can tell, of the first run, before its first update."""
    loss = float(evaluate(pack, job.train.rows(slice(1024)), "train")["loss/train"][0])
    found: list[Warned] = []
    for p in pack.penalties:
        value = float(p.value(pack.flat)[0])
        if value > loss > 0:
            far = f"at step 0 the penalty is {value:.4g} and the loss {loss:.4g}: λ is far too strong, the penalty leads the training"
            found.append(Warned(f"regularizers.{p.index}.lambda", f"{far}; try λ below {float(p.lam[0]) * loss / value / 10:.2g}", "data"))
    return found


def _coefficients(job: Job, spec: JobSpec, tensors: Any, r: int) -> dict[str, Any] | None:
    if not isinstance(spec.model, LinearModel):
        return None
    weight = tensors["head.weight"][r].cpu().double().numpy()
    bias = tensors["head.bias"][r].cpu().double().numpy() if "head.bias" in tensors else None
    return preprocess.coefficients(weight, bias, job.scaling, job.rows.facts.feature_names)


def _named(job: Job, died: dict[str, Any] | None) -> dict[str, Any] | None:
    """Where a run died, its layer by name."""
    return died and {**died, **({"layer": job.shape[died["layer"]].name} if isinstance(died.get("layer"), int) else {})}
