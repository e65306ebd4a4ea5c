"""Writes docs/results.md from benchmarks/results/mnist.json and sequences.json: `python docs/results.py`; with `--check`, says whether the page is what it would write.

`make results` measures first on MNIST files that you bring (benchmarks/mnist.py), `make sequences` on sequences that it draws (benchmarks/sequences.py).
"""

import json
import sys
from collections.abc import Iterator
from math import exp, log, sqrt
from pathlib import Path
from statistics import fmean, quantiles, stdev
from typing import Any

from pages import T95, newest, table, where, written

PAGE = Path(__file__).with_name("results.md")
MEASURED = [Path(__file__).parents[1] / "benchmarks" / "results" / f"{name}.json" for name in ("mnist", "sequences")]
Entry = dict[str, Any]
SOLVED = {"temporal_order": 0.99, "adding": 0.01}
"""From which accuracy, or below which squared error, on held-out rows a problem is called solved."""


def page(mnist: list[Entry], sequences: list[Entry]) -> str:
    """The whole page. Each part is taken from the newest entry that has it."""
    return "\n".join(["# Results", "", *_introduction(), *_methods(mnist), *_search(mnist), *_sequences(sequences)]) + "\n"


def _introduction() -> Iterator[str]:
    yield "On MNIST, and on sequences where recurrent nets have their trouble."
    yield ""
    yield "The MNIST parts are written by `make results`, which trains through a service and a worker of its own and reads everything through the API; raw numbers in `benchmarks/results/mnist.json`."
    yield "It needs the MNIST files in `mnist/` of the data folder: `make results REGTRAIN_DATA=folder`. A net of 784-128-10 with ReLU, batch 64, plain SGD, pixels divided by 255, L1 on both weight matrices, diagnostics off."


def _methods(entries: list[Entry]) -> Iterator[str]:
    rows, entry = newest(entries, "methods")
    yield from ["", "## L1 by proximal steps, and by subgradients", ""]
    if entry is None:
        yield "Not measured yet."
        return
    seeds = len(rows[0]["accuracy"])
    yield f"λ = 1e-4, all 60,000 rows, {seeds} seeds, each line one job. Mean ± standard error over the seeds; accuracy on the 10,000 test rows; zeros: weights of the first layer (100,352) that are exactly 0."
    yield ""
    yield from table(
        ["method", "lr", "epochs", "accuracy", "exact zeros", "seconds"],
        [[row["method"], f"{row['lr']:g}", str(row["epochs"]), _mean(row["accuracy"]), _mean(row["zeros"]), f"{row['seconds']:.0f}"] for row in rows],
    )
    yield ""
    proximal, subgradient, *_ = rows
    differences = [a - b for a, b in zip(proximal["accuracy"], subgradient["accuracy"], strict=True)]
    mean, error = fmean(differences), stdev(differences) / sqrt(seeds)
    yield f"With the same seed both methods start from the same weights and see the rows in the same order. Accuracy by proximal steps less that by subgradients, seed by seed: {100 * mean:+.3f} ± {100 * error:.3f} percentage points, {_verdict(mean, error)}. The zeros differ: a subgradient step passes zero and comes back. How many there are grows with the way that the threshold has gone, steps · lr · λ."
    yield from ["", where(entry)]


def _search(entries: list[Entry]) -> Iterator[str]:
    rows, entry = newest(entries, "search")
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
    yield from table(
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
    yield from table(
        ["λ", "loss on the held-out rows", ""],
        [[f"{score['lambda']:.2g}", f"{score['mean']:.4f} ± {score['standard_error']:.4f}", _marks(row, place)] for place, score in enumerate(row["table"])],
    )
    yield ""
    refit = row["refit"]
    yield f"Means ± standard errors over {row['folds'] * row['seeds']} trainings. The choice, λ = {refit['lambda']:.2g}, trained on all rows: accuracy {refit['accuracy']:.4f} on the test rows, {100 * refit['zeros']:.1f} % exact zeros in the first layer. The loop's losses at its λ, one fold and seed each: {_losses(row['serial'])}."
    yield from ["", where(entry)]


def _sequences(entries: list[Entry]) -> Iterator[str]:
    yield from ["", "## Recurrent nets: plain SGD, a clip, and Ω", ""]
    yield "Written by `make sequences`, which trains in its own process and needs no files; raw numbers in `benchmarks/results/sequences.json`."
    yield "The set-up of Pascanu et al. (2013): 50 tanh units, lr 0.01, batch 20, gradients clipped at norm 1 (those of Ω with them), Ω their regularizer against vanishing gradients (`vanishing_gradient`). Ours alone: initial weights are orthogonal, and 4,000 rows to train on are drawn once, 1,000 more are held out. One job a length; a seed means the same initial weights and batches for all three methods."
    yield from [*_exact(entries), *_problem(entries, "temporal_order"), *_problem(entries, "adding")]


def _exact(entries: list[Entry]) -> Iterator[str]:
    rows, entry = newest(entries, "exact")
    yield from ["", "### A linear net has ρ^T", ""]
    if entry is None:
        yield "Not measured yet."
        return
    yield f"h_t = W x_t + ρQ h_(t−1) with Q orthogonal, {rows[0]['length']} steps, float64, {rows[0]['seeds']} seeds: rms δ_t / rms δ_T is ρ^(T−t) at every t. Error: the largest of all time steps and seeds, relative."
    yield ""
    yield from table(["ρ", "δ_1/δ_T", "error"], [[f"{row['rho']:g}", f"{row['ratio']:.3g}", f"{row['error']:.1e}"] for row in rows])
    yield from ["", where(entry)]


def _problem(entries: list[Entry], part: str) -> Iterator[str]:
    rows, entry = newest(entries, part)
    name, score, guess = {
        "temporal_order": ("Temporal order", "accuracy", "which of two symbols came first and which second, among distractors; a guess has 25 %"),
        "adding": ("The adding problem", "squared error", "the sum of two marked numbers; the constant answer 1 has 1/6 = 0.1667, on 1,000 rows ± 0.006 by their draw alone"),
    }[part]
    yield from ["", f"### {name}", ""]
    if entry is None:
        yield "Not measured yet."
        return
    seeds = len(rows[0]["score"])
    omega = next(row["lambda"] for row in rows if row["lambda"] is not None)
    sign = "accuracy of at least 99 %" if part == "temporal_order" else f"squared error below {SOLVED[part]:g}"
    yield f"{guess[0].upper()}{guess[1:]}. {seeds} seeds, λ of Ω {omega:g} (not searched). Solved: {sign} on the held-out rows when the budget ends. Mean ± standard error over the seeds{f'; of {seeds} a difference is beyond the noise (95 %, Student) from {T95[seeds]:.1f} standard errors on' if seeds in T95 else ''}."
    yield ""
    yield from table(
        ["steps", "updates", "method", f"{score}, held out", "less that of plain SGD, seed by seed", "solved", "diverged"],
        [
            [str(row["length"]), f"{row['updates']:,}", row["method"], _score(row["score"], part), _against(row, rows, part), f"{_solved(row['score'], part)} of {len(row['score'])}", str(row["diverged"])]
            for row in rows
        ],
    )  # fmt: skip
    yield ""
    yield "The gradient over time, rms δ_t / rms δ_T: at the initial weights → in the last epoch, geometric means over the seeds, of δ_1 with its standard error as a factor."
    yield ""
    yield from table(
        ["steps", "method", "t = 1", "T/4", "T/2", "3T/4"],
        [[str(row["length"]), row["method"], *(f"{_factor(row['before'], place)} → {_factor(row['after'], place)}" for place in range(4))] for row in rows],
    )
    most = max(row["updates"] for row in rows)
    yield ""
    yield f"The budget is small: at most {most:,} updates, fewer for longer sequences, to keep the cost of each alike. Pascanu et al. gave theirs far more, so what stays a guess here says nothing of what a method can reach; `benchmarks/sequences.py --epochs` gives it more."
    yield from ["", f"`{entry['command']}`: {where(entry)}"]


def _score(values: list[float | None], part: str) -> str:
    found = [value for value in values if value is not None]
    lost = f" (not finite in {len(values) - len(found)})" if len(found) < len(values) else ""
    if len(found) < 2:
        return lost.strip(" ()")
    return (_mean(found) if part == "temporal_order" else f"{fmean(found):.4f} ± {stdev(found) / sqrt(len(found)):.4f}") + lost


def _against(row: Entry, rows: list[Entry], part: str) -> str:
    plain = next(other for other in rows if other["length"] == row["length"])
    if row is plain:
        return ""
    return _score([None if a is None or b is None else a - b for a, b in zip(row["score"], plain["score"], strict=True)], part).replace("%", "points")


def _solved(values: list[float | None], part: str) -> int:
    return sum(value is not None and (value >= SOLVED[part] if part == "temporal_order" else value < SOLVED[part]) for value in values)


def _factor(seeds: list[list[float | None]], place: int) -> str:
    """Geometric mean over the seeds, that of the first time step with its standard error; how many had a gradient that is 0 or not finite."""
    logs = [log(value) for seed in seeds if (value := seed[place]) is not None and value > 0]
    if len(logs) < 2:
        return "0 or not finite"
    lost = f" (0 or not finite in {len(seeds) - len(logs)})" if len(logs) < len(seeds) else ""
    return f"{exp(fmean(logs)):.2g}" + (f" ×÷ {exp(stdev(logs) / sqrt(len(logs))):.2f}" if place == 0 else "") + lost


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


def main(arguments: list[str]) -> int:
    fresh = page(*(json.loads(file.read_text(encoding="utf-8")) if file.exists() else [] for file in MEASURED))
    return written(PAGE, fresh, arguments, stale="benchmarks/results/mnist.json and sequences.json say: python docs/results.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
