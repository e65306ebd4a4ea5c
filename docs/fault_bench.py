"""Writes docs/fault-bench.md from benchmarks/results/faults.json: `python docs/fault_bench.py`; with `--check`, says whether the page is what it would write.

`make faults` measures first (benchmarks/faults).
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any

from pages import table, written

PAGE = Path(__file__).with_name("fault-bench.md")
MEASURED = Path(__file__).parents[1] / "benchmarks" / "results" / "faults.json"
REPAIRED = MEASURED.with_name("repairs.json")
Row = dict[str, Any]
OURS = "this project"
BY_DEFAULT = f"{OURS}, diagnostics `standard`"


def page(entries: list[Row]) -> str:
    """The whole page, from the newest entry with all diagnostics, and one line of the newest with those that are the default."""
    newest = {entry["rows"][0]["diagnostics"]: entry for entry in entries}
    full, default = newest.get("full"), newest.get("standard")
    return "\n".join([*_introduction(), *([] if full is None else _measured(full, full["rows"][0], default and default["rows"][0]))]) + "\n"


def _introduction() -> Iterator[str]:
    yield "# The fault bench"
    yield ""
    yield "Written by `make faults`: jobs that learn, each broken in a named way (`benchmarks/faults/cases.py`), and sound ones, among them those that thresholds take for broken: single rows a batch, warm-up, smoothed labels, pixels that are always 0, gradients that are tiny because all is learned. Digits and breast cancer with nets of 3 layers; blobs and circles with nets of width 5 and 6 to 18 layers, as in AutoTrainer's recipe (Zhang et al. 2021)."
    yield ""
    yield "Not in it, since a spec cannot say them: detached layers, gradients that are not zeroed, exponential units, biases that begin dead, a loss on outputs that have been through a softmax twice, layers frozen by intent, a loss multiplied by 1e±6 with everything else as it was."
    yield ""
    yield "- A net **is struck** if it was broken and did not learn: its accuracy on held-out rows is below the problem's floor. What was broken without an effect is counted apart."
    yield "- **Detected**: an alarm, whatever it says. **Cause named**: what the detector gives as the cause is what was done. Tables of thresholds give none, so whatever they say counts. **Mentioned**: said anywhere, cause or not. **Layer**: the layer that is named is where it was done, for faults that have a place."
    yield "- **False alarms**: sound nets that learned, and were reported. Notes are no alarms. A net that was made to be sound and overfits all the same (the mean of the last quarter of its validation losses is more than a fifth, and more than three standard errors, above the lowest) may be told so; whatever else is said of it is a false alarm."
    yield "- Intervals are Wilson's, 95 %. Seeds of a case are not independent draws of a fault: the intervals say how sure the figure is for these cases, not for others."


def _measured(entry: Row, row: Row, default: Row | None) -> Iterator[str]:
    found, seeds = entry["hardware"], len(row["cases"][0]["accuracy"])
    yield ""
    yield _seeds(row)
    yield ""
    yield f"{row['broken']} broken nets and {row['sound']} sound ones ({row['sound that learned']} of them learned), {seeds} seed{'s' if seeds > 1 else ''} a case, diagnostics `{row['diagnostics']}`, {sum(row['seconds'].values()):.0f} s of training in all. {found['cpu']}, one thread, Python {found['python']}, torch {found['torch']}, load {found['load']:.1f}; {entry['when'][:10]}."
    yield from ["", "## All detectors, from the same series", ""]
    columns = {
        "detected": "struck nets detected",
        "named": "cause named",
        "mentioned": "mentioned",
        "localised": "layer",
        "false alarms": "false alarms",
        "overfitting told": "overfitting told, where it is",
        "detected, all": "all broken nets detected",
    }
    contestants = row["detectors"] if default is None else {OURS: row["detectors"][OURS], BY_DEFAULT: default["detectors"][OURS], **row["detectors"]}
    yield from table(["", *columns.values()], [[name, *(_share(of[column]) if column in of else "" for column in columns)] for name, of in contestants.items()])
    if default is not None:
        yield ""
        yield f"With `standard`, the default, the same nets were trained once more (seed {default['seed']}): layers are read in one update of 8 behind the 32nd, of 32 behind the 256th, and what only `full` has (saturation, sharpness) is not there."
    yield ""
    yield f"Repair by another seed alone, the rest as it was: {_share(row['reseeded'])} of the struck nets learn with the next seed."
    yield from _repairs()
    yield from [
        "",
        "## Fault by fault",
        "",
        "Of the struck nets of each case: how many each detector detected; then, of this project, after how many updates it said so (median), and whether it named cause and layer.",
        "",
    ]
    yield from table(
        ["fault", "problem: case", "struck", "accuracy", *(f"detected, {name}" for name in row["detectors"]), "alarm after updates", "cause named", "layer", "given as the cause"],
        [_fault(case, list(row["detectors"])) for case in row["cases"] if case["kind"]],
    )
    yield from ["", "## Sound nets that were reported", "", "By this project, seed by seed; and nets made to be sound that did not learn.", ""]
    yield from table(
        ["problem: case", "accuracy", "validation loss, end over best", "reported", "alarms"],
        [_sound(case) for case in row["cases"] if not case["kind"] and (any(_alarmed(case)) or min(case["accuracy"]) < case["floor"])],
    )
    yield from ["", "## Seed by seed", "", "Accuracy on held-out rows of each seed; `D` detected, `N` cause named, `L` layer, `·` not; by this project.", ""]
    yield from table(["problem: case", "seeds"], [[_title(case), "; ".join(_seed(case, place) for place in range(seeds))] for case in row["cases"] if case["kind"]])


def _seeds(row: Row) -> str:
    if row.get("seed", 0) == 0:
        return "Bounds were set while looking at these seeds: the figures flatter this project."
    return f"Bounds were set while looking at runs 0 to 2 of jobs with seed 0. The figures are those of seed {row['seed']}, which nobody had looked at: the same problems with other held-out rows, initial weights and orders of rows."


def _alarmed(case: Row) -> list[bool]:
    said = case["said"][OURS]
    return said.get("alarmed", said["detected"])


def _repairs() -> Iterator[str]:
    """Of the newest entry of benchmarks/results/repairs.json."""
    yield from ["", "## Repair", ""]
    if not REPAIRED.exists():
        yield "Not measured yet."
        return
    entry = json.loads(REPAIRED.read_text(encoding="utf-8"))[-1]
    row, found = entry["rows"][0], entry["hardware"]
    spent = row["cost"]["time"]
    yield f"Of every kind of fault the first case of each problem that was struck ({len(row['cases'])} cases). What is to be cured is the cause that the diagnosis gave, right or wrong; beside its remedies as many random changes drawn from the space that they span, and the broken spec itself. {len(row['cases'][0]['control'])} seeds choose the best of each, and none where none beats the control; as many others judge, with other rows held out: accuracy there above the problem's floor. The rules were developed with seed 0 of each job, what is here is from seed {row['cases'][0]['seed']} on; the cases are the same, so the figures say little of faults that nobody thought of. Load {found['load']:.1f}; {entry['when'][:10]}."
    yield ""
    yield f"Cost of a trial: {row['cost']['runs']:.1f} times as many runs as the control's alone on average; in time, with {len(row['cases'][0]['control'])} seeds and all contestants, {median(spent):.0f} trainings of the control (median; at most {spent[-1]:.0f})."
    yield ""
    names = {"control": "as it is, another seed", "remedy": "remedies", "random": "random search, same space, same budget"}
    yield from table(
        ["", "judging runs that learned", "cases that ended worse than the control", "labels themselves wrong (no spec can repair them)"],
        [[words, _share(row["repaired"][name]), _share(row["worse"][name]) if name in row["worse"] else "", _share(row["beyond"][name])] for name, words in names.items()],
    )
    yield ""
    words = {"first": "the first remedy of the list", "remedies": "any remedy of the list", "random": "any random change"}
    untried = "; ".join(f"{said}: {_share(row['untried'][name])}" for name, said in words.items())
    yield f"Without a choice, runs that learned: {untried}."
    yield ""
    yield from table(
        ["problem: case", "to be cured", "another seed", "best remedy", "its accuracy", "best random change, accuracy"],
        [[_title(case), case["symptom"] or "unknown", _accuracies(case["control"]), *(_contestant(case["remedy"])), _contestant(case["random"])[1]] for case in row["cases"]],
    )
    if turns := row.get("in_turn"):
        yield from _in_turn(row, turns)


def _in_turn(row: Row, found: Row) -> Iterator[str]:
    """Every net repaired by itself."""
    cases = [case for case in row["cases"] if case["in_turn"]]
    yield from ["", "## Repair of one net, one remedy after the other", ""]
    yield f"The same cases, net by net, as [a quick repair](remedies.md#one-after-the-other) has them: {found['nets']} nets of {found['cases']} cases, each with a seed of its own, from {cases[0]['in_turn'][0]['seed']} on; the rules were developed with seeds 0 to 3 ({len(row['cases']) - len(cases)} cases are left out: the service refuses their specs at submission). A net is trained with `standard` diagnostics until it shows a symptom, whichever; its own diagnosis names what is to be cured; the remedies are tried in turn with its seed, beside the net where it stopped, until one helps; where none does, and where no symptom is shown, the net stays as it is. Beside them random changes of the same paths in turn, as many as remedies were tried. 0.15 of the rows choose; other 0.15, which neither train nor choose, judge the net that was taken, and the broken one trained whole."
    yield ""
    yield f"Of the nets that did not learn as they are {_share(found['diagnosed'])} show a symptom."
    yield ""
    names = {"control": "as it is, trained whole", "remedy": "the first remedy that helps", "random": "the first random change that helps"}
    yield from table(
        ["", "nets that learned", "of those with a symptom", "nets worse than trained whole", "cases worse on average", "cost in updates: mean, median, most", "cost in time", "tried"],
        [
            [
                words, _share(found["learned"][name]), _share(found["learned, diagnosed"][name]),
                *(["", "", "1", "1", ""] if name == "control" else [_share(found["worse"][name]), _share(found["worse cases"][name]), *_costs(found, name), f"{found['tried'][name]:.2f}"]),
            ]
            for name, words in names.items()
        ],
    )  # fmt: skip
    yield ""
    stopped = found["stopped"]
    yield f"Cost: everything that was trained, the broken net until its symptom included, over the broken net trained whole, of nets with a symptom whose training does not diverge. The symptom is seen after {median(stopped):.2f} of the budget (median; mean {fmean(stopped):.2f}). AutoTrainer reports 2.14 times, at most 37."
    if eight := found["eight"]:
        yield ""
        yield f"A trial in turn over eight seeds, with random contestants, takes {eight['runs']:.1f} runs on average, the control's 8 included, all together {eight['together']:.1f}; it confirms a remedy in {_share(eight['confirmed'])} of the cases."
    yield ""
    yield from table(
        ["problem: case", "diagnosed", "taken", "trained whole", "after repair", "random"],
        [
            [
                _title(case), _several(net["symptom"] or "nothing" for net in case["in_turn"]), _several(net["remedy"]["label"] or "none" for net in case["in_turn"]),
                _accuracies([net["control"] for net in case["in_turn"]]), *(_accuracies([net[name]["accuracy"] for net in case["in_turn"]]) for name in ("remedy", "random")),
            ]
            for case in cases
        ],
    )  # fmt: skip


def _costs(found: Row, name: str) -> list[str]:
    return [f"{fmean(spent):.2f}, {median(spent):.2f}, {spent[-1]:.1f}" for spent in (found["cost"][name]["updates"], found["cost"][name]["seconds"])]


def _several(names: Iterable[str]) -> str:
    """Each once, with how often where it is not alone."""
    told = Counter(names)
    return ", ".join(name if len(told) == 1 else f"{name} × {number}" for name, number in told.items())


def _contestant(one: Row | None) -> tuple[str, str]:
    return ("none", "") if one is None else (one["label"], _accuracies(one["accuracy"]))


def _accuracies(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def _fault(case: Row, detectors: list[str]) -> list[str]:
    struck = [place for place, accuracy in enumerate(case["accuracy"]) if accuracy < case["floor"]]

    def hits(name: str, what: str) -> str:
        return f"{sum(case['said'][name][what][place] for place in struck)}/{len(struck)}" if struck else ""

    causes = [cause for place in struck for cause in case["roots"][place]]
    often = max(dict.fromkeys(causes), key=causes.count) if causes else ""
    return [
        case["kind"], _title(case), f"{len(struck)} of {len(case['accuracy'])}", f"{fmean(case['accuracy']):.2f}", *(hits(name, "detected") for name in detectors),
        _when(case, struck), hits(OURS, "named") if case["root"] else "no word for it", hits(OURS, "localised") if case["layers"] else "", often,
    ]  # fmt: skip


def _when(case: Row, struck: list[int]) -> str:
    """Median over the struck seeds that were noticed."""
    known = [case["noticed"][place] for place in struck if case["noticed"][place] is not None]
    return f"{median(known):g}" if known else ""


def _sound(case: Row) -> list[str]:
    reported = _alarmed(case)
    return [
        _title(case),
        " ".join(f"{accuracy:.2f}" for accuracy in case["accuracy"]),
        " ".join(f"{risen:.2g}" for risen in case["risen"]),
        f"{sum(reported)} of {len(reported)}",
        ", ".join(sorted({name for names in case["alarms"] for name in names})),
    ]


def _seed(case: Row, place: int) -> str:
    said = case["said"][OURS]
    marks = [letter if said[what][place] else "·" for letter, what, asked in (("D", "detected", True), ("N", "named", case["root"]), ("L", "localised", case["layers"])) if asked]
    return f"{case['accuracy'][place]:.2f} {''.join(marks)}"


def _title(case: Row) -> str:
    return f"{case['group'].split(':')[0]}: {case['case']}"


def _share(of: Row) -> str:
    return f"{100 * of['share']:.1f} % ({100 * of['low']:.1f} to {100 * of['high']:.1f}; {of['hits']} of {of['of']})" if of["of"] else ""


def main(arguments: list[str]) -> int:
    fresh = page(json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else [])
    return written(PAGE, fresh, arguments, stale="benchmarks/results/faults.json says: python docs/fault_bench.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
