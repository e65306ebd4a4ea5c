"""How far a job is, and how well it does: kept in its row, so that showing a job reads one row."""

from dataclasses import asdict
from math import isfinite
from typing import Any

from sqlalchemy import Connection, Row, select

from regtrain.contract.events import PackBegun, Points, Started
from regtrain.store import rates, series
from regtrain.store.started import OF_PACKS, of_pack
from regtrain.store.tables import now, runs

SHOWN = ("loss/train", "objective/train", "loss/val", "accuracy/val")
"""The metrics of a job while it trains."""
_RANKED = ("loss/val", "loss/train")
"""The first of these that has points says which run is the best so far."""


def begun(job: Row[Any], event: Started, columns: dict[str, Any]) -> dict[str, Any]:
    """The columns that change when an attempt begins or goes on. Packs are those of the first attempt for good."""
    told = asdict(event)
    warnings = [*job.warnings, *(warning for warning in told.pop("warnings") if warning not in job.warnings)]
    packs: list[list[int]] = job.packs or told.pop("packs")
    each = event.steps_of_packs
    at, steps = sum(each[: event.pack]) + event.step, sum(each)
    progress = {"step": at, "steps": steps, "epoch": event.step // event.steps_per_epoch, "runs": job.runs, "eta_seconds": None}
    kept = {key: told[key] for key in ("steps", "steps_per_epoch", "layers", "times", "series", "penalised", "step_order", "environment")}
    before: dict[str, Any] = job.started or {}
    kept["pack_steps"] = each
    kept["packs"] = before.get("packs", {})
    return {"started": kept, "packs": packs, "warnings": warnings, "progress": progress, "pack": event.pack, "attempt_at": now(), "attempt_step": at}


def pack_begun(job: Row[Any], event: PackBegun, columns: dict[str, Any]) -> dict[str, Any]:
    """What this pack has that the first has not."""
    started: dict[str, Any] = columns.get("started") or job.started
    own = {key: value for key in OF_PACKS if (value := getattr(event, key)) != started[key]}
    return {"started": {**started, "packs": {**started["packs"], str(event.pack): own}}} if own else {}


def advanced(job: Row[Any], event: Points, columns: dict[str, Any]) -> dict[str, Any]:
    """Progress after a report. Steps are counted over all packs; the expected time follows the pace of this attempt."""
    started: dict[str, Any] = columns.get("started") or job.started or {}
    since, origin = (columns[name] if name in columns else getattr(job, name) for name in ("attempt_at", "attempt_step"))
    per_epoch = of_pack(started, event.pack, "steps_per_epoch")
    before: dict[str, Any] = columns.get("progress", job.progress)
    at, total = sum(started["pack_steps"][: event.pack]) + event.step, before["steps"]
    eta = None
    if since is not None and total is not None and at > origin:
        eta = round(max((now() - since).total_seconds() * (total - at) / (at - origin), 0.0), 3)
    return {"progress": {**before, "step": at, "epoch": event.step // per_epoch, "eta_seconds": eta}, "pack": event.pack}


def best_run(connection: Connection, job: Row[Any], columns: dict[str, Any]) -> dict[str, Any]:
    """Latest metrics of the only run, or of the best so far with its index as `run`."""
    packs: list[list[int]] = columns.get("packs", job.packs) or []
    latest: dict[str, dict[int, float]] = {}
    for head in series.heads(connection, job.id, names=SHOWN):
        latest.setdefault(head.name, {}).update(zip(packs[head.pack], head.latest[:, 0].tolist(), strict=True))
    ranked = next((latest[name] for name in _RANKED if name in latest), None)
    if ranked is None:
        return {}
    best = min(ranked, key=lambda run: (not isfinite(ranked[run]), ranked[run] if isfinite(ranked[run]) else 0.0, run))
    values = {name: latest[name][best] for name in SHOWN if best in latest.get(name, {})}
    return {"run": best, **values} if job.runs > 1 else values


def ended(connection: Connection, job: Row[Any], result: dict[str, Any]) -> dict[str, Any]:
    """Progress and metrics of a job that is done: those of the run that the result chose, else of the best. Its pace is remembered for plans."""
    rates.remember(connection, job)
    best = result.get("chosen_run", job.metrics.get("run", 0))
    final: dict[str, Any] = connection.execute(select(runs.c.metrics).where(runs.c.job == job.id, runs.c.index == best)).scalar() or {}
    metrics = {**({"run": best} if job.runs > 1 else {}), **(final or job.metrics)}
    return {"metrics": metrics, "progress": {**job.progress, "step": job.progress["steps"] if job.progress["steps"] is not None else job.progress["step"], "eta_seconds": 0.0}}
