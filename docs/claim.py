"""Writes docs/does-regularization-fix-gradients.md from benchmarks/results/claim.json: `python docs/claim.py`; with `--check`, says whether the page is what
it would write. `make claim` measures first (benchmarks/claim.py).
"""

import json
import sys
from collections.abc import Callable, Iterator
from math import sqrt
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from pages import T95, newest, table, where, written

PAGE = Path(__file__).with_name("does-regularization-fix-gradients.md")
MEASURED = Path(__file__).parents[1] / "benchmarks" / "results" / "claim.json"
Row = dict[str, Any]
VANISHED, LEARNED = -1.0, 0.8
"""log10 of the ratio below which a gradient is called vanished here; accuracy from which a net is said to learn (a guess has 0.1)."""
INITS = {"torch": "torch's default", "he_normal": "He's normal"}


def page(entries: list[Row]) -> str:
    """The whole page. Each part is taken from the newest entry that has it."""
    nets, net_entry = newest(entries, "depth")
    times, time_entry = newest(entries, "time")
    return "\n".join([*_head(nets, net_entry), *_nets(nets), *_penalty(nets), *_times(times, time_entry), *_articles(), *_tables(nets)]) + "\n"


def _head(rows: list[Row], entry: Row | None) -> Iterator[str]:
    yield "# Does regularization fix vanishing and exploding gradients?"
    yield ""
    yield "Five articles say so. Measured: **no penalty on the weights does.** What changes the ratio of the gradients is what changes the Jacobians of the layers: initial weights, activation, normalization, residual paths. An L1 or L2 penalty strong enough to be seen makes a vanished gradient vanish faster. The one penalty that helps is not on the weights but on the gradient's own length over time, Ω, and with a clip."
    if entry is None:
        return
    seeds = len(rows[0]["accuracy"])
    depths = sorted({row["depth"] for row in rows})
    yield ""
    yield f"Written by `make claim` (`benchmarks/claim.py`, then `docs/claim.py`): nets of {', '.join(map(str, depths))} hidden layers of 32 units on digits (1,438 rows to train on, 359 held out), standardized, cross-entropy, SGD with lr 0.05 and momentum 0.9, batch 128, {rows[0]['updates']} updates. Each depth is one job of {sum(row['depth'] == depths[0] for row in rows)} variants with {seeds} seeds. {where(entry)}"
    yield ""
    yield "- **Ratio**: rms of ∂loss/∂(linear output), first hidden layer over the last; at step 0, and as geometric mean over the last epoch. 1 is a gradient that arrives as it left."
    yield f"- ± is the standard error over the seeds; of ratios that of log10, written as a factor: 1e-3 ×÷ 1.2. A seed gives all variants of one architecture the same initial weights and the same batches, so effects are differences seed by seed; *beyond the noise* means outside the 95 % interval of Student's t for {seeds} seeds. Of twenty such verdicts one is luck."


def _nets(rows: list[Row]) -> Iterator[str]:
    if not rows:
        return
    yield from ["", "## What each method does", ""]
    bare = {_net(row): row for row in rows if row["method"] == "none"}
    vanished = {net for net, row in bare.items() if (_mean(row["before"]["signal"]) or 0) < VANISHED and net[1] != "scaled"}
    sound = {net for net, row in bare.items() if net not in vanished and net[1] != "scaled" and _accuracy(row) >= LEARNED}
    yield f"Of the {len(bare) - _count(bare, lambda net: net[1] == 'scaled')} bare nets (depth × activation × init) {len(vanished)} start with a ratio below 0.1 (*vanished*); of these {_count(vanished, lambda net: _accuracy(bare[net]) >= LEARNED)} reach an accuracy of {LEARNED:g} all the same. {len(sound)} others do (*sound*)."
    yield ""
    yield from table(
        ["method", "factor on a vanished ratio at step 0", "vanished nets whose ratio is above 0.1: at step 0", "after training", "that learn", "raise the ratio after training beyond the noise", "lower it", "sound nets: accuracy against bare, points", "worse beyond the noise"],
        [_effect(method, rows, bare, vanished, sound) for method in dict.fromkeys(row["method"] for row in rows) if method != "none"],
    )  # fmt: skip
    yield ""
    yield "Read across the rows:"
    yield ""
    yield "- **L1, L2, the step penalty and clipping** leave every gradient of step 0 exactly as it was, in every net and seed: none of them is in ∂loss/∂h, and clipping multiplies all layers by one number. What they do later they do through the weights: L1 and L2 shrink them, and a layer's χ = σ_w²·E φ′² shrinks with them."
    yield "- **Dropout** at rate p multiplies χ by 1/(1 − p), since what it keeps is divided by 1 − p: the ratio does rise, by √(1/(1 − p)) a layer. That is a larger init under another name, with noise: it lifts what had vanished a little, and makes a ratio that was right explode."
    yield "- **Batch norm and residual paths** bring what had vanished near 1, and the nets learn. **Init and activation** do it for nothing: the tables at the end show the same nets with He's weights. Neither is a cure for all: a residual path added to weights that were already right (relu, He) makes the deep gradient explode."
    yield ""
    yield from _helped(rows, bare)


def _helped(rows: list[Row], bare: dict[tuple[Any, ...], Row]) -> Iterator[str]:
    """The nets that speak against the verdict: those that a penalty or the clip made better at what counts."""
    found = [(row, bare[_net(row)]) for row in rows if row["method"] != "none" and row["method"].startswith(("L1", "L2", "clip", "step", "dropout"))]
    better = [(row, base) for row, base in found if _sign(_differences(row["accuracy"], base["accuracy"])) > 0]
    yield f"Where one of them did help: accuracy on held-out rows rose beyond the noise in {len(better)} of {len(found)} nets" + (":" if better else ".")
    if better:
        yield ""
        yield from table(
            ["net", "method", "ratio at step 0", "ratio in the last epoch, bare", "with it", "accuracy, bare", "with it"],
            [
                [f"{row['depth']} {row['activation']} layers, {INITS.get(row['init'], row['init'])}", row["method"], _ratio(row["before"]["signal"]), _ratio(base["after"]["signal"]), _ratio(row["after"]["signal"]), _percent(base["accuracy"]), _percent(row["accuracy"])]
                for row, base in better
            ],
        )  # fmt: skip
        yield ""
        yield "A net among these whose ratio was near 1 from the start did not need its gradients repaired but smaller weights or shorter steps."


def _effect(method: str, rows: list[Row], bare: dict[tuple[Any, ...], Row], vanished: set[tuple[Any, ...]], sound: set[tuple[Any, ...]]) -> list[str]:
    mine = {_net(row): row for row in rows if row["method"] == method}
    sick, well = [net for net in vanished if net in mine], [net for net in sound if net in mine]
    before = [change for net in sick if (change := _differences(mine[net]["before"]["signal"], bare[net]["before"]["signal"]))]
    after = [_differences(mine[net]["after"]["signal"], bare[net]["after"]["signal"]) for net in sick]
    points = [_differences(mine[net]["accuracy"], bare[net]["accuracy"]) for net in well]
    exact = all(difference == 0 for change in before for difference in change)
    return [
        method,
        "1 exactly" if exact else f"{10 ** median(fmean(change) for change in before):.2g} (median)",
        f"{_count(sick, lambda net: _above(mine[net]['before']['signal']))} of {len(sick)}",
        f"{_count(sick, lambda net: _above(mine[net]['after']['signal']))} of {len(sick)}",
        f"{_count(sick, lambda net: _accuracy(mine[net]) >= LEARNED)} of {len(sick)}",
        str(sum(_sign(change) > 0 for change in after)),
        f"{sum(_sign(change) < 0 for change in after)}" + (f", {gone} gone" if (gone := _count(sick, lambda net: _mean(mine[net]["after"]["signal"]) is None)) else ""),
        f"{100 * fmean(fmean(change) for change in points if change):+.1f}" if any(points) else "",
        f"{sum(_sign(change) < 0 for change in points)} of {len(well)}",
    ]


def _penalty(rows: list[Row]) -> Iterator[str]:
    """Where the belief may come from: the gradient that the optimizer sees does not vanish."""
    if not rows:
        return
    yield from ["", "## Why it can look otherwise", ""]
    yield "Whoever prints `weight.grad` behind `(loss + penalty).backward()` sees the penalty's own gradient λ·w (or λ·sign w) in it. It is as large in the first layer as in the last, so the ratio of what is printed rises to 1 while the data's part stays where it was. It points at 0, and says nothing of the rows. Sigmoid nets, torch's weights, weight gradients at step 0, first over last hidden layer:"
    yield ""
    methods = [method for method in dict.fromkeys(row["method"] for row in rows) if method.startswith(("none", "L1", "L2"))]
    deep = [row for row in rows if row["activation"] == "sigmoid" and row["init"] == "torch" and row["depth"] >= 4]
    yield from table(
        ["depth", "method", "of the loss", "as printed, with the penalty", "accuracy, held out"],
        [
            [str(row["depth"]), row["method"], _ratio(row["before"]["weight"]), _ratio(row["before"]["with penalty"]), _percent(row["accuracy"])]
            for row in deep
            if row["method"] in methods
        ],
    )


def _times(rows: list[Row], entry: Row | None) -> Iterator[str]:
    if entry is None:
        return
    yield from ["", "## Deep in time", ""]
    yield f"A recurrent net of 24 units over 40 steps (temporal order: which of two symbols came first and which second; a guess has 25 %), {len(rows[0]['accuracy'])} seeds, 30 epochs of 8 updates, lr 0.05, momentum 0.9. Ratio: rms δ at the first time step over the last. The linear cell with orthogonal weights × 1.2 explodes by construction: 1.2³⁹ = 1,225. {where(entry)}"
    yield ""
    yield from table(
        ["cell", "weights", "method", "ratio at step 0", "in the last epoch", "accuracy, held out", "diverged"],
        [
            [row["activation"], row["init"], row["method"], _ratio(row["before"]["signal"]), _ratio(row["after"]["signal"]), _percent(row["accuracy"]), str(row["diverged"])]
            for row in rows
        ],
    )
    yield ""
    growing = [row for row in rows if row["activation"] == "linear"]
    clipped, others = [row for row in growing if row["method"].startswith("clip")], [row for row in growing if not row["method"].startswith("clip")]
    yield "Again nothing but the weights and the cell decides what is there at step 0: orthogonal weights gain seven orders of magnitude over torch's, gates one or two. A strong L2 then makes it vanish further, and what training itself does to the ratio of the others is no repair: the accuracy of those nets stays that of a guess. Two things learn: orthogonal weights with a clip, and Ω with a clip. Ω (Pascanu et al. 2013) penalises that the gradient changes its length from one time step to the next: it brings the ratio near 1 while it trains, from weights that had lost it. Without the clip it learns nothing here, and in half of the runs no gradient is left."
    yield ""
    yield f"Where the gradient explodes, {sum(row['diverged'] for row in others)} of {sum(len(row['accuracy']) for row in others)} runs without a clip diverge, with L1 and L2 as without, and {sum(row['diverged'] for row in clipped)} of {sum(len(row['accuracy']) for row in clipped)} with one. The clip does not change the ratio either; it bounds the length of the step, and that is what it takes."


def _articles() -> Iterator[str]:
    yield from ["", "## What follows for the five articles", ""]
    yield from table(
        ["article", "says", "measured"],
        [
            ["000", "「通过正则化方法来解决梯度消失问题」: a penalty on the parameter step solves vanishing gradients", "No. The penalty is not in the loss's gradient; at step 0 nothing changes, and a step that is made shorter is shorter in all layers alike. Unsquared it can stop training altogether ([articles.md](articles.md), 000)."],
            ["001", "「使用正则化方法来缓解梯度爆炸问题」: L1 and L2 against explosion", "No, but for what shrinking does: a strong L2 pulls weights in, slowly; the gradient of step 0 explodes as before. It also lowers the largest stable learning rate ([articles.md](articles.md), 001). Clipping does what is wanted here: it bounds the step, not the ratio."],
            ["002", "「如Dropout、L1/L2正则化」 avoid vanishing and exploding, beside init, batch norm and ReLU", "Half right: init, batch norm and ReLU do change the ratio, by orders of magnitude; L1 and L2 do not, and dropout only as far as it multiplies χ by 1/(1 − p)."],
            ["003", "「正则化是一种常用的解决梯度消失问题的方法」: an L2 term in the loss", "No. The larger λ, the smaller the weights, the smaller χ: the ratio of a deep net falls further."],
            ["004", "「防止过拟合和梯度消失」 by L1, L2; dropout 「减少梯度消失的风险」", "Against overfitting, yes, that is what they are for. Against vanishing gradients L1 and L2 do nothing or harm; dropout raises the ratio and costs accuracy in deep nets that were sound without it."],
        ],
    )  # fmt: skip
    yield ""
    yield "What to do instead stands in a plan before anything is trained: `regtrain plan FILE` predicts the ratio and ranks the changes that would bring it to 1 ([signal-propagation.md](signal-propagation.md))."
    yield ""
    yield "What these figures do not say: nets of another width, other data, convolutions, and long trainings. A net of 32 layers may need more than 192 updates even where its gradients arrive. Weight gradients of relu nets can look alike in all layers while the signal gradient has gone (the penalty table above shows weight gradients, the others signals)."


def _tables(rows: list[Row]) -> Iterator[str]:
    """Everything: one table an activation and init."""
    if not rows:
        return
    yield from ["", "## All nets"]
    depths = sorted({row["depth"] for row in rows})
    for activation, init in dict.fromkeys((row["activation"], row["init"]) for row in rows):
        mine = {(row["method"], row["depth"]): row for row in rows if (row["activation"], row["init"]) == (activation, init)}
        named = INITS.get(init, "Xavier's normal × 4")
        chi = ", ".join(f"{_chi(mine['none', depth]):.3g}" for depth in depths)
        yield from [
            "",
            f"### {activation}, {named}",
            "",
            f"χ of the bare nets, measured at step 0 between the first and the last hidden layer: {chi}. Ratio at step 0 → in the last epoch; accuracy on held-out rows.",
            "",
        ]
        yield from table(
            ["method", *(f"{depth} layers" for depth in depths)],
            [[method, *(_cell(mine[method, depth]) for depth in depths)] for method in dict.fromkeys(method for method, _ in mine)],
        )


def _cell(row: Row) -> str:
    return f"{_ratio(row['before']['signal'])} → {_ratio(row['after']['signal'])}; {_percent(row['accuracy'])}" + (f"; {row['diverged']} diverged" if row["diverged"] else "")


def _chi(row: Row) -> float:
    """‖δ_l‖²/‖δ_{l+1}‖², geometric mean over layers and seeds."""
    return 10 ** (2 * (_mean(row["before"]["signal"]) or 0.0) / (row["depth"] - 1))


def _net(row: Row) -> tuple[Any, ...]:
    return row["activation"], row["init"], row["depth"]


def _mean(logs: list[float | None]) -> float | None:
    """Of the seeds that have one; None where none has."""
    known = [log for log in logs if log is not None]
    return fmean(known) if known else None


def _above(logs: list[float | None]) -> bool:
    mean = _mean(logs)
    return mean is not None and mean >= VANISHED and None not in logs


def _accuracy(row: Row) -> float:
    return fmean(value or 0.0 for value in row["accuracy"])


def _differences(ours: list[float | None], theirs: list[float | None]) -> list[float]:
    """Seed by seed, of the seeds that have both."""
    return [a - b for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]


def _sign(differences: list[float]) -> int:
    """1 or −1 where the mean is beyond the noise, else 0."""
    if len(differences) < 2:
        return 0
    mean, error = fmean(differences), stdev(differences) / sqrt(len(differences))
    return 0 if abs(mean) <= T95[len(differences)] * error else 1 if mean > 0 else -1


def _ratio(logs: list[float | None]) -> str:
    known = [log for log in logs if log is not None]
    if not known:
        return "0"
    spread = f" ×÷ {10 ** (stdev(known) / sqrt(len(known))):.2f}" if len(known) > 1 else ""
    return f"{10 ** fmean(known):.1e}{spread}" + (f" (0 in {len(logs) - len(known)} of {len(logs)})" if len(known) < len(logs) else "")


def _percent(values: list[float | None]) -> str:
    known = [100 * (value or 0.0) for value in values]
    return f"{fmean(known):.1f} ± {stdev(known) / sqrt(len(known)):.1f} %"


def _count(nets: Any, holds: Callable[[Any], bool]) -> int:
    return sum(holds(net) for net in nets)


def main(arguments: list[str]) -> int:
    fresh = page(json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else [])
    return written(PAGE, fresh, arguments, stale="benchmarks/results/claim.json says: python docs/claim.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
