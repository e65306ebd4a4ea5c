"""How every benchmark here measures: A B A B …, pinned threads, medians and quartiles, hardware and versions beside each number."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def interleaved(contestants: dict[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """Each contestant once a round, after one round that does not count. A contestant returns its own seconds."""
    for run in contestants.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            taken[name].append(run())
    return taken


def timed(run: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, _, high = quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return low, median(values), high


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Round by round, so that a drift of the machine's speed cancels."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def hardware() -> dict[str, Any]:
    """What the numbers were measured on; `load`: processes that wanted a core in the last minute, the benchmark's own included; `nice`: its priority."""
    found: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "load": os.getloadavg()[0],
        "nice": os.nice(0),
    }
    for package in ("torch", "numpy", "sqlalchemy", "pysqlite3", "fastapi", "scikit-learn", "optuna"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _place(script: str) -> str:
    """From the project's root, where it lies there."""
    path = Path(script).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def publish(name: str, rows: list[dict[str, Any]], *, keep: bool = True) -> None:
    """Prints the rows and, where they are to be kept, appends them with hardware, versions, time and command to benchmarks/results/<name>.json."""
    entry = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "command": " ".join(["python", _place(sys.argv[0]), *sys.argv[1:]]), "hardware": hardware(), "rows": rows}
    print(json.dumps(entry["hardware"]))
    for row in rows:
        print("  ".join(f"{key}={_short(value)}" for key, value in row.items()))
    if keep:
        _append(RESULTS / f"{name}.json", entry)


def _append(file: Path, entry: dict[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    earlier = json.loads(file.read_text()) if file.exists() else []
    file.write_text(json.dumps([*earlier, entry], indent=1) + "\n")
    print(f"appended to {file}")


def _short(value: Any) -> str:
    match value:
        case float():
            return f"{value:.4g}"
        case tuple() | list():
            return "/".join(map(_short, value))
        case dict():
            return "{" + ", ".join(f"{key} {_short(inner)}" for key, inner in value.items()) + "}"
        case _:
            return str(value)


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
