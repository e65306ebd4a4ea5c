"""Jobs in a terminal."""

import json
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column, Table

from regtrain.contract.errors import RegtrainError

if TYPE_CHECKING:
    from regtrain.client import Job

COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}
MOST_WARNINGS = 10
MOST_REMEDIES = 3


def watch(console: Console, seen: "Iterable[Job]") -> "Job":
    """Follows a job with a bar until it ends; returns it as it was seen last.

    Raises:
        RegtrainError: it was never seen.
    """
    columns = [
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=20),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[metrics]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
    ]
    following = iter(seen)
    first = next(following, None)
    if first is None:
        raise RegtrainError("there is nothing to watch")
    last = first
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("queued", total=None, metrics="")
        for last in chain([first], following):
            progress = last.get("progress") or {}
            bar.update(task, description=last["state"], completed=progress.get("step", 0), total=progress.get("steps"), metrics=_brief(last.get("metrics") or {}))
    return last


def job(console: Console, seen: "Job") -> None:
    """A job's state and what is known of it, a line each."""
    progress = seen.get("progress") or {}
    rows: dict[str, str] = {
        "job": seen["id"] + (f"  {seen['name']}" if seen.get("name") else ""),
        "state": seen["state"] + (f" ({seen['intent']})" if seen.get("intent") else "") + (f": {seen['reason']}" if seen.get("reason") else ""),
        "steps": f"{progress.get('step', 0)} of {progress['steps']}, {progress.get('runs', 1)} run(s)" if progress.get("steps") else "",
        "metrics": _brief(seen.get("metrics") or {}, most=12),
        **_result(seen.get("result") or {}),
        "diagnosis": _diagnosis(seen.get("diagnosis")),
        "error": str((seen.get("error") or {}).get("detail") or (seen.get("error") or {}).get("message") or ""),
    }
    for name, value in rows.items():
        if value:
            colour = COLOURS.get(seen["state"], "default") if name == "state" else "default"
            console.print(f"{name:>9}  [{colour}]{escape(value)}[/]", soft_wrap=True)
    for warning in seen.get("warnings", [])[:MOST_WARNINGS]:
        console.print(f"  [yellow]warning[/]  {escape(warning['path'])}: {escape(warning['message'])}", soft_wrap=True)


def plan(console: Console, found: dict[str, Any]) -> None:
    """What a job would come to, a line each."""
    seconds: dict[str, float | None] = found["expected_seconds"]
    known = {device: value for device, value in seconds.items() if value is not None}
    packs = [f"{len(sizes)} on {device} (at most {max(sizes)} runs, {_size(found['pack_bytes'][device])})" for device, sizes in found["packs"].items()]
    rows: dict[str, str] = {
        "runs": f"{found['runs']}, {found['parameters']:,} parameters each",
        "packs": ", ".join(packs),
        "rows": f"{found['rows']['train']} to train on, {found['rows']['val']} validation, {found['rows']['test']} test",
        "steps": f"{found['steps']} a run, {found['steps_per_epoch']} an epoch",
        **_signal(found["signal"]),
        "time": ", ".join(f"about {value:.3g} s on {device}" for device, value in known.items()) or "not known until a worker has trained the like",
    }
    for name, value in rows.items():
        console.print(f"{name:>9}  {escape(value)}", soft_wrap=True)
    for warning in found["warnings"][:MOST_WARNINGS]:
        console.print(f"  [yellow]warning[/]  {escape(warning['path'])}: {escape(warning['message'])}", soft_wrap=True)


def _signal(found: dict[str, Any] | None) -> dict[str, str]:
    """What theory predicts, in a few words."""
    if found is None:
        return {}
    ratio, chi, depth, loss, dead = (found[name] for name in ("gradient_ratio", "chi", "trainable_depth", "initial_loss", "dead"))
    reach = f"χ tends to {chi:.4g}" + (f", trainable depth {depth:.3g}" if depth is not None else "") if chi is not None else ""
    words = [f"first/last hidden layer {ratio:.3g}" if ratio is not None else "", reach, f"{dead:.1%} dead units" if dead is not None else ""]
    nearer = [" and ".join(f"{path} = {json.dumps(value)}" for path, value in change["set"].items()) + f" ({change['gradient_ratio']:.3g})" for change in found["remedies"]]
    return {
        **({"loss": f"about {loss:.4g} before the first update"} if loss is not None else {}),
        **({"gradient": ", ".join(filter(None, words)) + ", by theory"} if any(words) else {}),
        **({"nearer 1": ", ".join(nearer[:MOST_REMEDIES])} if nearer else {}),
    }


def jobs(console: Console, found: "list[Job]") -> None:
    """One line a job."""
    table = Table(box=None, header_style="bold")
    for name, width in (("id", 30), ("state", 9), ("steps", 7), ("created", 19), ("name", None)):
        table.add_column(name, overflow="ellipsis", no_wrap=True, min_width=width)
    for seen in found:
        progress = seen.get("progress") or {}
        steps = f"{progress.get('step', 0)}/{progress['steps']}" if progress.get("steps") else ""
        table.add_row(seen["id"], f"[{COLOURS.get(seen['state'], 'default')}]{seen['state']}[/]", steps, seen["created_at"][:19].replace("T", " "), escape(seen.get("name", "")))
    console.print(table if found else "no jobs")


def selftest(console: Console, found: dict[str, Any]) -> None:
    """The laws as every worker has measured them."""
    if not found["workers"]:
        console.print("there is no worker: start one, or measure on the machine that is in doubt with `regtrain selftest --here`")
    for worker in found["workers"]:
        console.print(f"[bold]{worker['worker']}[/] on {escape(worker['host'])}, {worker['device']}, {worker['measured_at']}")
        if worker["error"]:
            console.print(f"[red]{escape(worker['error'])}[/]")
        for law in worker["laws"]:
            verdict = "[green]ok[/]" if law["ok"] else "[red]NO[/]"
            error = "not finite" if law["error"] is None else f"{law['error']:.2e}"
            console.print(f"{verdict}  {law['name']:22} {error:>10} of {law['tolerance']:.1e}  {escape(law['formula'])}", soft_wrap=True)


def _size(count: int) -> str:
    return f"{count / 1e6:.3g} MB" if count >= 1e6 else f"{count / 1e3:.3g} kB"


def _brief(metrics: dict[str, Any], *, most: int = 3) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:most] if isinstance(value, int | float))


def _diagnosis(found: dict[str, Any] | None) -> str:
    """The verdict, where there is anything to say; `regtrain diagnose` says all of it."""
    return f"{found['verdict']}: {found['root']} (regtrain diagnose says more)" if found and found.get("root") else ""


def _result(result: dict[str, Any]) -> dict[str, str]:
    """The few words of a result that a person asks for first."""
    values: dict[str, float] = result.get("values") or {}
    counts: dict[str, int] = result.get("zeros") or {}
    adaptation: dict[str, str] = result.get("adaptation") or {}
    chosen = "  ".join(f"{path} = {value:.6g}" for path, value in values.items())
    zeros = "  ".join(f"{tensor} {count}" for tensor, count in counts.items())
    return {
        "chosen": f"run {result['chosen_run']}: {chosen}" if chosen and result.get("chosen_run") is not None else "",
        "zeros": zeros,
        "strength": adaptation.get("in_words", ""),
    }
