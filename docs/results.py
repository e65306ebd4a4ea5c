"""Writes docs/results.md from benchmarks/results/mnist.json: `python docs/results.py`; with `--check`, says whether the page is what it would write.

`make results` measures first (benchmarks/mnist.py), on MNIST files that you bring.
"""

import json
import sys
from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from statistics import fmean, quantiles, stdev
from typing import Any

PAGE = Path(__file__).with_name("results.md")
MEASURED = Path(__file__).parents[1] / "benchmarks" / "results" / "mnist.json"
Entry = dict[str, Any]


def page(entries: list[Entry]) -> str:
    """The whole page. Each part is taken from the newest entry that has it."""
    return "\n".join(["# Results on MNIST", "", *_introduction(), *_methods(entries), *_search(entries)]) + "\n"


def _introduction() -> Iterator[str]:
    yield "Written by `make results`, which trains through a service and a worker of its own and reads everything through the API; raw numbers in `benchmarks/results/mnist.json`."
    yield "It needs the MNIST files in `mnist/` of the data folder: `make results REGTRAIN_DATA=folder`. A net of 784-128-10 with ReLU, batch 64, plain SGD, pixels divided by 255, L1 on both weight matrices, diagnostics off."


def _methods(entries: list[Entry]) -> Iterator[str]:
    entry, rows = _newest(entries, "methods")
    yield from ["", "## L1 by proximal steps, and by subgradients", ""]
    if entry is None:
        yield "Not measured yet."
        return
    seeds = len(rows[0]["accuracy"])
    yield f"λ = 1e-4, all 60,000 rows, {seeds} seeds, each line one job. Mean ± standard error over the seeds; accuracy on the 10,000 test rows; zeros: weights of the first layer (100,352) that are exactly 0."
    yield ""
    yield from _table(
        ["method", "lr", "epochs", "accuracy", "exact zeros", "seconds"],
        [[row["method"], f"{row['lr']:g}", str(row["epochs"]), _mean(row["accuracy"]), _mean(row["zeros"]), f"{row['seconds']:.0f}"] for row in rows],
    )
    yield ""
    proximal, subgradient, *_ = rows
    differences = [a - b for a, b in zip(proximal["accuracy"], subgradient["accuracy"], strict=True)]
    mean, error = fmean(differences), stdev(differences) / sqrt(seeds)
    yield f"With the same seed both methods start from the same weights and see the rows in the same order. Accuracy by proximal steps less that by subgradients, seed by seed: {100 * mean:+.3f} ± {100 * error:.3f} percentage points, {_verdict(mean, error)}. The zeros differ: a subgradient step passes zero and comes back. How many there are grows with the way that the threshold has gone, steps · lr · λ."
    yield from ["", _where(entry)]


def _search(entries: list[Entry]) -> Iterator[str]:
    entry, rows = _newest(entries, "search")
    yield from ["", "## λ from 480 trainings, as one request", ""]
    if entry is None:
        yield "Not measured yet: `make results` makes it, in about a quarter of an hour."
        return
    (row,) = rows
    serial = [one["seconds"] for one in row["serial"]]
    whole, low, high = (row["trainings"] * seconds for seconds in (fmean(serial), min(serial), max(serial)))
    first, _, third = quantiles(serial, n=4)
    yield f"{row['lambdas']} λ from 1e-6 to 1e-2, {row['folds']} folds, {row['seeds']} seeds: {row['trainings']} trainings of {_epochs(row['epochs'])} on 48,000 rows, lr 0.1, and the choice trained once more on all 60,000 rows: one POST."
    yield ""
    yield from _table(
        ["", "seconds", "over the job"],
        [
            ["as one job, from before the POST to the answer that it has ended", f"{row['seconds']:.0f}", "1"],
            [f"{row['trainings']} trainings one after the other by a lean loop (extrapolated)", f"{whole:.0f}", f"{whole / row['seconds']:.2f}"],
        ],
    )
    yield ""
    yield f"The serial time is {row['trainings']} × the mean of {len(serial)} whole trainings by that loop at different λ, half of them before the job and half after it: {fmean(serial):.2f} s, quartiles {first:.2f} and {third:.2f}, from {min(serial):.2f} to {max(serial):.2f} ({low:.0f} to {high:.0f} s for all). The loop measures its fold once, at the end; the job measures it after every epoch, evaluates all training rows at the end, stores every step's loss, and makes the refit. {_faster(whole / row['seconds'])}"
    yield f"Where the worker's time went: {', '.join(f'{name} {seconds:.0f} s' for name, seconds in row['where'].items())}."
    yield ""
    yield from _table(
        ["λ", "loss on the held-out rows", ""],
        [[f"{score['lambda']:.2g}", f"{score['mean']:.4f} ± {score['standard_error']:.4f}", _marks(row, place)] for place, score in enumerate(row["table"])],
    )
    yield ""
    refit = row["refit"]
    yield f"Means ± standard errors over {row['folds'] * row['seeds']} trainings. The choice, λ = {refit['lambda']:.2g}, trained on all rows: accuracy {refit['accuracy']:.4f} on the test rows, {100 * refit['zeros']:.1f} % exact zeros in the first layer. The loop's losses at its λ, one fold and seed each: {_losses(row['serial'])}."
    yield from ["", _where(entry)]


def _newest(entries: list[Entry], part: str) -> tuple[Entry | None, list[Entry]]:
    """The newest entry that has a part, and its rows."""
    for entry in reversed(entries):
        if rows := [row for row in entry["rows"] if row["part"] == part]:
            return entry, rows
    return None, []


def _where(entry: Entry) -> str:
    found = entry["hardware"]
    return f"{found['cpu']}, {found['cores']} cores, one thread, Python {found['python']}, torch {found['torch']}, load {found['load']:.1f}; {entry['when'][:10]}."


def _marks(row: Entry, place: int) -> str:
    return ", ".join(words for key, words in (("best", "best"), ("one_standard_error", "one standard error")) if row[key] == place)


def _mean(values: list[float]) -> str:
    """Percent, with the standard error."""
    return f"{100 * fmean(values):.2f} ± {100 * stdev(values) / sqrt(len(values)):.2f} %"


def _verdict(mean: float, error: float) -> str:
    return "equal within the noise" if abs(mean) <= 2 * error else f"{abs(mean) / error:.1f} standard errors apart"


def _faster(times: float) -> str:
    return f"The job is {times:.2f} times as fast." if times >= 1 else f"The job is slower: it takes {1 / times:.2f} times as long."


def _losses(sample: list[dict[str, float]]) -> str:
    return ", ".join(f"{one['loss']:.4f} at {one['lambda']:.2g}" for one in sample)


def _epochs(number: int) -> str:
    return "one epoch" if number == 1 else f"{number} epochs"


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(row) + " |"


def main(arguments: list[str]) -> int:
    fresh = page(json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else [])
    if arguments == ["--check"]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != fresh:
            print("docs/results.md is not what benchmarks/results/mnist.json says: python docs/results.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
