"""What a spec comes to, before anything is stored: its runs, packs, steps, parameters and memory. Pure: from the spec and its dataset's facts."""

import hashlib
import json
from dataclasses import dataclass

from regtrain.contract.checks import shape_of
from regtrain.contract.datasets import Counts, Facts, counts
from regtrain.contract.grouping import held_out
from regtrain.contract.job import JobSpec, batch_size, resolved, steps, steps_per_epoch
from regtrain.contract.models import Layer, parameters
from regtrain.contract.runs import PACK_BYTES, FoldRows, Run, bytes_of_run, expand, packs, provisional, vectors_of
from regtrain.contract.theory import Signal, signal
from regtrain.contract.variants import specs_of

DEVICES = tuple(PACK_BYTES)
ITEM_BYTES = {"float32": 4, "float64": 8}


@dataclass(frozen=True)
class LayerPlan:
    name: str
    output: list[int]
    """Shape of what it gives on, for one row."""


@dataclass(frozen=True)
class VariantPlan:
    """What one variant comes to."""

    label: str
    layers: list[LayerPlan]
    parameters: int
    steps: int


@dataclass(frozen=True)
class Plan:
    """What training this spec would be. Layers, parameters and steps are those of the spec as it stands; of variants they stand in `variants`."""

    runs: int
    packs: dict[str, list[int]]
    """Device kind → how many runs each pack has."""
    rows: Counts
    layers: list[LayerPlan]
    parameters: int
    """Of one run."""
    steps: int
    """Updates of one run that uses its whole budget on all training rows; in a fold there are fewer rows."""
    steps_per_epoch: int
    run_bytes: int
    """Memory of one run while it trains: parameters, gradients, optimizer, activations; from the shapes."""
    pack_bytes: dict[str, int]
    """Device kind → memory of its largest pack."""
    rows_bytes: int
    """Memory of all rows on the device, once: folds that share a pack have them once each."""
    signal: Signal | None
    """What mean-field theory predicts for the first run before its first update; None where it begins from trained weights, of which theory knows nothing."""
    variants: list[VariantPlan]


def plan(spec: JobSpec, facts: Facts) -> Plan:
    """The plan of a spec that `check` has accepted."""
    shape, sizes, item, runs = shape_of(spec, facts), counts(spec.dataset, facts, seed=spec.seed), ITEM_BYTES[spec.dtype], expand(spec)
    folds = _fold_rows(spec, facts)
    members = {device: members_of(runs, spec, facts, device=device) for device in DEVICES}
    each, first = {label: run_bytes(variant, facts) for label, variant in specs_of(spec)}, provisional(runs[0].spec)
    return Plan(
        runs=len(runs),
        packs={device: [len(pack) for pack in of] for device, of in members.items()},
        rows=sizes,
        layers=_layers(shape),
        parameters=parameters(shape),
        steps=steps(spec, sizes),
        steps_per_epoch=steps_per_epoch(spec, sizes),
        run_bytes=max(each.values()),
        pack_bytes={device: max(_pack_bytes([runs[index] for index in pack], each, folds) for pack in of) for device, of in members.items()},
        rows_bytes=item * facts.rows * (facts.features + facts.outputs),
        signal=signal(first, facts, shape_of(first, facts)) if first.begin is None else None,
        variants=[_variant(label, variant, facts) for label, variant in specs_of(spec) if label is not None],
    )


def members_of(runs: list[Run], spec: JobSpec, facts: Facts, *, device: str) -> list[list[int]]:
    """Indices of the runs of each pack, in the order of training. `runs`: all of the job, as the spec is expanded."""
    return packs(runs, spec, bytes_of=lambda variant: run_bytes(variant, facts), device=device, folds=_fold_rows(spec, facts))


def _fold_rows(spec: JobSpec, facts: Facts) -> FoldRows | None:
    """None without folds."""
    sizes, row = counts(spec.dataset, facts, seed=spec.seed), ITEM_BYTES[spec.dtype] * (facts.features + facts.outputs)
    held = held_out(spec, facts)
    return FoldRows(held, copy_bytes=row * (sizes.train + sizes.test), batch_bytes=lambda variant: row * batch_size(variant, sizes)) if held else None


def _pack_bytes(runs: list[Run], each: dict[str | None, int], folds: FoldRows | None) -> int:
    """Memory of one pack. `each`: variant → memory of one run, of refits the largest."""
    rows = folds.batch_bytes(runs[0].spec) if folds and len({run.fold for run in runs}) > 1 else 0
    return len(runs) * (each.get(runs[0].variant, max(each.values())) + rows)


def run_bytes(spec: JobSpec, facts: Facts) -> int:
    """Memory of one run of a variant while it trains."""
    batch = batch_size(spec, counts(spec.dataset, facts, seed=spec.seed))
    return bytes_of_run(shape_of(spec, facts), batch=batch, item_bytes=ITEM_BYTES[spec.dtype], vectors=vectors_of(spec.optimizer))


def _variant(label: str, spec: JobSpec, facts: Facts) -> VariantPlan:
    shape = shape_of(spec, facts)
    return VariantPlan(label, _layers(shape), parameters(shape), steps(spec, counts(spec.dataset, facts, seed=spec.seed)))


def _layers(shape: list[Layer]) -> list[LayerPlan]:
    return [LayerPlan(layer.name, list(layer.output)) for layer in shape]


def pace_key(spec: JobSpec, facts: Facts, pack_sizes: list[int]) -> str:
    """What the time of a step depends on, as a digest: shapes, batch, dtype, the parts that compute in a step, and the runs of each pack."""
    given = resolved(spec)
    model = {name: value for name, value in given["model"].items() if name != "init"}
    parts = {
        "model": model,
        "features": facts.features,
        "outputs": facts.classes or facts.outputs,
        "batch": batch_size(spec, counts(spec.dataset, facts, seed=spec.seed)),
        "accumulate": spec.budget.accumulate,
        "dtype": spec.dtype,
        "diagnostics": spec.diagnostics,
        "loss": spec.loss.kind,
        "regularizers": [r.kind for r in spec.regularizers],
        "optimizer": spec.optimizer.kind,
        "clip": spec.clip and spec.clip.kind,
        "variants": given["variants"],
        "packs": pack_sizes,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
