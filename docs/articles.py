"""Runs the articles' examples on a server of its own and writes docs/articles.md: `python docs/articles.py` (some minutes)."""

import os
import platform
import sys
from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from statistics import fmean, median, stdev
from tempfile import TemporaryDirectory
from typing import Any

from pages import table

from regtrain.cli.processes import house
from regtrain.client import Client, Job

PAGE = Path(__file__).with_name("articles.md")
EXAMPLES = Path(__file__).parents[1] / "examples"
VARIANTS = ("plain", "init", "batch_norm", "relu", "structure", "l2", "dropout")
PATIENCE = 600.0
"""Seconds for one job."""


class Done:
    """A finished job, and what is read of it."""

    def __init__(self, client: Client, example: str) -> None:
        submitted = client.submit((EXAMPLES / f"{example}.json").read_bytes())
        self.job: Job = client.wait(submitted["id"], seconds=PATIENCE)
        self.example = example
        self.runs = list(client.runs(self.job["id"]))
        self._client = client

    def result(self) -> dict[str, Any]:
        return self.job.get("result") or {}

    def curve(self, name: str, **query: Any) -> list[list[Any]]:
        """The points of one series for every run."""
        resource = self._client.gradients if "/" in name and name.split("/")[0] in ("signal", "gradient") else self._client.curves
        return [curve["y"] for curve in resource(self.job["id"], series=[name], **query)["series"]]

    def ratios(self, name: str, step: int, **query: Any) -> float:
        """First layer over last layer at one step, median over runs."""
        return median(run[0][0] / run[0][-1] for run in self.curve(name, **{"from": step, "to": step, **query}))


def page(client: Client) -> Iterator[str]:
    """The whole page."""
    yield "# The five articles, as jobs"
    yield ""
    yield "Written by `python docs/articles.py`, which runs the files in `examples/` on a server of its own and reads everything through the API."
    environment: dict[str, str] = {}
    body: list[str] = []
    for part in (_article_000, _article_001, _article_002, _article_002_as_variants, _article_003, _article_004):
        for line in part(client, environment):
            body.append(line)
    yield f"Measured on {environment['device']} ({os.cpu_count()} cores, {environment['threads']} thread(s) a worker), {platform.system()}, Python {environment['python']}, torch {environment['torch']}; each job once."
    yield "The articles' code does not run as printed; the jobs do what the articles describe."
    yield from body


def _article_000(client: Client, environment: dict[str, str]) -> Iterator[str]:
    unsquared, squared, binary, digits = (Done(client, name) for name in ("000_step_penalty", "000_step_penalty_squared", "000_binary", "000_softmax_digits"))
    environment.update(unsquared.result()["environment"])
    yield from ["", "## 000: a penalty on the step", ""]
    yield "The article penalises the parameter step Δ. Unsquared, α‖Δ‖ makes the step η·max(0, 1 − α/‖g‖)·g: nothing moves while the optimizer's direction is no longer than α, so training stops early of itself. Squared, it is a smaller learning rate. Linear regression on ten columns with noise 0.5 (so the least loss is near 0.25), Nesterov 0.9, lr 0.01, 1,000 steps; two classes with labels −1 and +1; softmax on digits:"
    yield ""
    yield from table(
        ["job", "loss/train", "accuracy/train"],
        [[f"`{done.example}`", _short(done.job["metrics"]["loss/train"]), _short(done.job["metrics"].get("accuracy/train"))] for done in (unsquared, squared, binary, digits)],
    )


def _article_001(client: Client, environment: dict[str, str]) -> Iterator[str]:
    l1, l2, stability = (Done(client, name) for name in ("001_l1_grid", "001_l2_grid", "001_stability"))
    yield from ["", "## 001: five points, L1 and L2", ""]
    yield "x = 1 … 5, y = 2 4 7 11 16, with intercept. L1: w = (7 − λ)/2, and 0 from λ = 7. L2 as the article writes it, λ'/2m·w² (λ' = 5λ): w = 35/(10 + λ')."
    yield ""
    rows = [[f"L1, λ = {lam:g}", f"{_weight(run):.15g}", f"{max(0.0, (7 - lam) / 2):.15g}"] for run in l1.runs for lam in run["values"].values()]
    rows += [[f"L2, λ' = {5 * lam:g}", f"{_weight(run):.15g}", f"{35 / (10 + 5 * lam):.15g}"] for run in l2.runs for lam in run["values"].values()]
    yield from table(["", "w, trained", "w, closed form"], rows)
    yield ""
    yield f"Does L2 cure exploding gradients? It lowers the largest stable learning rate, here without intercept from 2/11 = 0.1818 to 2/12 = 0.1667 at λ = 1. The weight at the end ({stability.runs[0]['steps']:,} steps, or where its run had diverged; the minima are 31/11 = 2.8182 and, with λ = 1, 31/12 = 2.5833):"
    yield ""
    found = {(run["values"]["regularizers.0.lambda"], run["values"]["optimizer.lr"]): run for run in stability.runs}
    rates = sorted({lr for _, lr in found})
    yield from table(["λ", *(f"lr {lr:g}" for lr in rates)], [[f"{lam:g}", *(_end(found[lam, lr]) for lr in rates)] for lam in sorted({lam for lam, _ in found})])


def _article_002(client: Client, environment: dict[str, str]) -> Iterator[str]:
    yield from ["", "## 002: what helps a deep sigmoid net", ""]
    yield "Eight sigmoid layers of 64 on digits, SGD with momentum, 20 epochs, five seeds each (medians; accuracy with the least and the greatest). Signal and weight gradient: first layer over last, at step 0. The article's table of remedies, measured:"
    yield ""
    rows: list[list[str]] = []
    for variant in VARIANTS:
        done = Done(client, f"002_{variant}")
        accuracy = sorted(run["metrics"]["accuracy/val"] for run in done.runs)
        microseconds = 1e6 * done.result()["seconds"]["step"] / done.runs[0]["steps"] / len(done.runs)
        rows.append(
            [
                variant.replace("_", " "),
                f"{done.ratios('signal/backward', 0):.1e}",
                f"{done.ratios('gradient/norm', 0):.1e}",
                f"{median(accuracy):.3f} ({accuracy[0]:.3f} to {accuracy[-1]:.3f})",
                f"{microseconds:.0f}",
            ]
        )
    yield from table(["variant", "signal gradient, first/last", "weight gradient, first/last", "accuracy/val", "µs a step and run"], rows)
    yield ""
    yield "L2 and dropout leave the vanished gradient where it is. What changes it is the scale of the signal: initialisation, normalization, the activation, or fewer layers. (Times are of five runs trained as one pack.)"


def _article_002_as_variants(client: Client, environment: dict[str, str]) -> Iterator[str]:
    done = Done(client, "002_variants")
    path = client.path(done.job["id"])
    yield from [
        "",
        "The same as one job: `examples/002_variants.json` names each remedy as a variant of the first net, with the same rows and seeds, and adds the identity around every layer. Means over five seeds ± one standard error; gradients as above:",
        "",
    ]
    rows: list[list[str]] = []
    for entry in path["paths"][0]["entries"]:
        of = [run for run in done.runs if run["point"] == entry["place"]]
        accuracies, indices = [run["metrics"]["accuracy/val"] for run in of], ",".join(str(run["index"]) for run in of)
        error = stdev(accuracies) / sqrt(len(accuracies))
        ratios = [f"{done.ratios(name, 0, runs=indices):.1e}" for name in ("signal/backward", "gradient/norm")]
        taken = "best" if "best" in entry["taken_by"] else ""
        rows.append([entry["variant"], *ratios, f"{entry['score']:.3f} ± {entry['standard_error']:.3f}", f"{fmean(accuracies):.3f} ± {error:.3f}", taken])
    yield from table(["variant", "signal gradient, first/last", "weight gradient, first/last", "loss/val", "accuracy/val", ""], rows)
    yield from ["", path["in_words"]]


def _article_003(client: Client, environment: dict[str, str]) -> Iterator[str]:
    ridge, printed, intercept = (Done(client, name) for name in ("003_ridge", "003_ridge_as_printed", "003_ridge_intercept"))
    # w after t steps from 0: w* (1 − (1 − ηh)ᵗ), with h = (XᵀX + λ)/m and w* = 2.118015660681549
    step, least = 0.01 * (101.94036179371047 + 0.01) / 100, 2.118015660681549
    yield from ["", "## 003: y = 2x + 1 + noise, λ/2m", ""]
    yield "100 points as the article's `np.random.seed(0)` draws them, λ = 0.01, lr 0.01, 1,000 iterations from w = 0. Gradient descent is not at the minimum yet: w_t = w*·(1 − (1 − ηh)ᵗ)."
    yield ""
    yield from table(
        ["job", "w, trained", "expected"],
        [
            ["`003_ridge`: the gradient of the stated objective, 1/m", f"{_weight(ridge.runs[0]):.13g}", f"{least * (1 - (1 - step) ** 1000):.13g}"],
            ["`003_ridge_as_printed`: the gradient as printed, 2/m", f"{_weight(printed.runs[0]):.13g}", f"{least * (1 - (1 - 2 * step) ** 1000):.13g}"],
            ["`003_ridge_intercept`: with intercept, to the minimum", f"{_weight(intercept.runs[0]):.13g}", "2.057146707145"],
        ],
    )


def _article_004(client: Client, environment: dict[str, str]) -> Iterator[str]:
    yield from ["", "## 004: L1, L2 and dropout on a small net", ""]
    yield "The article's net, scaled to digits: 64-128-10, SGD 0.01, batch 64, 10 epochs, λ = 0.01 on the first layer (`004_mnist_*` are the same on MNIST, whose files you bring). Penalty beside the loss at step 0; exact zeros at the end:"
    yield ""
    rows: list[list[str]] = []
    for variant in ("l1", "l1_subgradient", "l2", "dropout"):
        done = Done(client, f"004_digits_{variant}")
        spec = done.job.get("spec") or {}
        kind = spec["regularizers"][0]["kind"]
        penalty = done.curve(f"penalty/{kind}", to=0)[0][0] if kind != "dropout" else None
        zeros = sum(done.runs[0]["zeros"].values()) if kind != "dropout" else None
        rows.append([variant.replace("_", ", "), _short(done.curve("loss/train", to=0)[0][0]), _short(penalty), _short(done.job["metrics"]["accuracy/val"]), _short(zeros)])
    yield from table(["variant", "loss/train at 0", "penalty at 0", "accuracy/val at the end", "zeros of 8,192"], rows)


def _weight(run: dict[str, Any]) -> float:
    return run["coefficients"]["weights"][0]


def _end(run: dict[str, Any]) -> str:
    value = _weight(run)
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.1e}"


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def main() -> int:
    with TemporaryDirectory() as folder, house(workers=1, log=Path(folder) / "log", port=0, data=folder) as running, Client(running.url) as client:
        PAGE.write_text("\n".join(page(client)) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
