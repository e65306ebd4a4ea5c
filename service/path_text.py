"""A regularization path for a terminal: a table, score ± standard error and what is left of the weights over λ, and the words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

from regtrain.contract.path import Entry, Path, RegularizationPath
from service.faces import HEIGHT, WIDTH, columns_of, printable, short

LOW = 6
"""Lines of the chart of counts."""


@dataclass(frozen=True)
class Dot:
    """One point of a chart: where, how far its error reaches, how it is drawn."""

    x: float
    y: float
    error: float = 0.0
    mark: str = "•"


def as_text(answer: dict[str, Any], found: RegularizationPath) -> str:
    lines = [printable(f"{answer['job']}  {answer['name']}".rstrip()), _head(answer, found)]
    for path in found.paths:
        lines += ["", *_title(path), *_table(path, found)]
    lines += [*_charts(found.main, found), "", *_words(answer, found)]
    return "\n".join(lines).rstrip() + "\n"


def _head(answer: dict[str, Any], found: RegularizationPath) -> str:
    ended, of = sum(entry.n for entry in found.entries), sum(entry.of for entry in found.entries)
    return f"{answer['state']}, {found.metric} by {found.rule}" + ("" if found.complete else f"; so far {ended} of {of} runs have ended")


def _title(path: Path) -> list[str]:
    """What all entries of the path share, or why they have no order."""
    shared = [*([f"variant {path.variant}"] if path.variant is not None else []), *(f"{name} = {short(value)}" for name, value in path.fixed.items())]
    order = f"by {path.ordered_by}, the strongest first" if path.ordered_by else path.reason or ""
    return [printable(", ".join([*shared, order]))]


def _table(path: Path, found: RegularizationPath) -> list[str]:
    names = [name for name in dict.fromkeys(name for entry in path.entries for name in entry.values) if name not in path.fixed and name != path.ordered_by]
    several = path.variant is None and any(entry.variant is not None for entry in path.entries)
    before: set[str] = set()
    columns: dict[str, Callable[[Entry], str]] = {
        **({"λ": lambda entry: short(entry.strength)} if path.ordered_by else {"place": lambda entry: str(entry.place)}),
        **({"variant": lambda entry: printable(str(entry.variant))} if several else {}),
        **{name: (lambda entry, name=name: short(entry.values.get(name))) for name in names},
        **({"λ found": lambda entry: " ".join(map(short, entry.adapted)) or "-"} if any(entry.adapted for entry in path.entries) else {}),
        found.metric: lambda entry: short(entry.score),
        "± s.e.": lambda entry: "-" if entry.standard_error is None else f"{entry.standard_error:.3g}",
        "n": lambda entry: f"{entry.n}" if entry.n == entry.of else f"{entry.n}/{entry.of}",
        **({"zeros": lambda entry: "-" if entry.weights is None else short(entry.weights.zeros_in_all)} if any(e.weights and e.weights.zeros for e in path.entries) else {}),
        **({"features": _count} if any(_known(entry) for entry in path.entries) else {}),
    }
    rows = [[*columns, ""]]
    for entry in path.entries:
        now = set(_known(entry) or ())
        moves = _moves(before, now) if path.ordered_by and _known(entry) is not None else ""
        before = now if _known(entry) is not None else before
        note = "  ".join(filter(None, [_taken(entry), moves, entry.state if entry.state in ("pruned", "failed") else ""]))
        rows.append([*(column(entry) for column in columns.values()), note])
    aligned = columns_of([row[:-1] for row in rows])
    return [f"{line}  {printable(row[-1])}".rstrip() for line, row in zip(aligned, rows, strict=True)]


def _taken(entry: Entry) -> str:
    return ", ".join([*(["chosen"] if entry.chosen else []), *entry.taken_by])


def _known(entry: Entry) -> tuple[str, ...] | None:
    return entry.weights.surviving if entry.weights is not None else None


def _count(entry: Entry) -> str:
    known = _known(entry)
    return "-" if known is None else str(len(known))


def _moves(before: set[str], now: set[str], most: int = 6) -> str:
    found = [f"+{name}" for name in sorted(now - before)] + [f"−{name}" for name in sorted(before - now)]
    return " ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def _charts(path: Path, found: RegularizationPath) -> list[str]:
    """Of the path that holds the choice, where there is more than one."""
    if path.ordered_by is None:
        return []
    log = not path.ordered_by.endswith(".rate")
    entries = [entry for entry in path.entries if entry.strength is not None and (entry.strength > 0 or not log)]
    left_out = sum(entry.strength == 0 for entry in path.entries) if log else 0
    scored = [Dot(_at(entry, log), entry.score, entry.standard_error or 0.0, _mark(entry)) for entry in entries if entry.score is not None]
    counted = [Dot(_at(entry, log), float(_left(entry))) for entry in entries if entry.weights is not None]
    lines: list[str] = []
    if len(scored) > 1:
        of = f" ({', '.join(_title(path)[0].split(', ')[:-2])})" if len(found.paths) > 1 and (path.variant or path.fixed) else ""
        told = [f"{mark} {what}" for mark, what in (("M", "best"), ("S", "one standard error"), ("B", "both")) if any(dot.mark == mark for dot in scored)]
        lines += ["", printable(f"{found.metric} ± standard error over λ{of}" + (f": {', '.join(told)}" if told else "")), *_chart(scored, HEIGHT, log=log)]
    if len(counted) > 1 and (what := _counted(entries)):
        lines += ["", what, *_chart(counted, LOW, log=log)]
    return [*lines, *([f"{'':>12}λ = 0 has no place on a logarithmic axis"] if lines and left_out else [])]


def _at(entry: Entry, log: bool) -> float:
    assert entry.strength is not None
    return log10(entry.strength) if log else entry.strength


def _mark(entry: Entry) -> str:
    best, simplest = ("best" in entry.taken_by), ("one_standard_error" in entry.taken_by)
    return "B" if best and simplest else "M" if best else "S" if simplest else "•"


def _counted(entries: Sequence[Entry]) -> str:
    having = [entry for entry in entries if entry.weights is not None]
    if all(_known(entry) is not None for entry in having):
        return "features that are left, over λ"
    return "exact zeros, over λ" if any(entry.weights and entry.weights.zeros_in_all for entry in having) else ""


def _left(entry: Entry) -> float:
    assert entry.weights is not None
    return entry.weights.zeros_in_all if entry.weights.surviving is None else len(entry.weights.surviving)


def _chart(dots: Sequence[Dot], height: int, *, log: bool) -> list[str]:
    """The strongest λ at the left, as in the table at the top. Errors are vertical strokes; marks lie over points, points over strokes."""
    low, high = min(dot.y - dot.error for dot in dots), max(dot.y + dot.error for dot in dots)
    strong, weak = max(dot.x for dot in dots), min(dot.x for dot in dots)

    def column(dot: Dot) -> int:
        return round((strong - dot.x) / (strong - weak) * (WIDTH - 1)) if strong > weak else 0

    def row(y: float) -> int:
        return height - 1 - (round((y - low) / (high - low) * (height - 1)) if high > low else height // 2)

    grid = [[" "] * WIDTH for _ in range(height)]
    for dot in dots:
        for at in range(row(dot.y + dot.error), row(dot.y - dot.error) + 1) if dot.error else ():
            grid[at][column(dot)] = "│"
    for dot in sorted(dots, key=lambda dot: dot.mark != "•"):
        grid[row(dot.y)][column(dot)] = dot.mark
    marks = [short(high), *[""] * (height - 2), short(low)]
    ends = [short(10**edge if log else edge) for edge in (strong, weak)]
    return [
        *(f"{mark:>10} │{''.join(cells).rstrip()}" for mark, cells in zip(marks, grid, strict=True)),
        f"{'':>10} └{'─' * WIDTH}",
        f"{'':>11} {ends[0]:<{WIDTH - 12}}{ends[1]:>12}  λ{', log scale' if log else ''}",
    ]


def _words(answer: dict[str, Any], found: RegularizationPath) -> list[str]:
    """What has been chosen and how sure that is, a line each."""
    chosen = next((entry for entry in found.entries if entry.chosen), None)
    order, spread, nested, closed = found.main.entry_order, answer["spread"], answer["nested"], answer["closed"]
    lines = [
        _chosen(chosen) if chosen else "",
        *(_elsewhere(chosen, found) if chosen else ()),
        found.in_words or "",
        "features enter: " + ", ".join(f"{one.feature} {short(one.strength)}" + _again(one.leaves, one.returns) for one in order[:20]) + ("" if len(order) <= 20 else ", …") if order else "",
        _spread(spread) if spread else "",
        f"nested folds: {short(nested['mean'])} ± {short(nested['standard_error'])}, of the whole choice on rows that it knows nothing of" if nested else "",
        "closed forms: " + ", ".join(f"{name.replace('_', '-')} λ = {short(closed[name]['lambda'])}" for name in ("leave_one_out", "gcv", "evidence") if name in closed) if closed else "",
        f"certificates: {found.certificates['runs']} runs, the largest relative gap {short(found.certificates['relative_gap'])}" if found.certificates else "",
    ]  # fmt: skip
    return [printable(line) for line in lines if line]


def _chosen(entry: Entry) -> str:
    values = ", ".join([*([f"variant {entry.variant}"] if entry.variant is not None else []), *(f"{path} = {short(value)}" for path, value in entry.values.items())])
    left = entry.weights.surviving if entry.weights else None
    names = "" if left is None else f"; left: {', '.join(left[:20])}{', …' if len(left) > 20 else ''}" if left else "; no feature is left"
    return f"chosen: {values}{names}" if values else f"the only set of values{names}"


def _elsewhere(entry: Entry, found: RegularizationPath) -> list[str]:
    """The chosen strengths in other tools' words."""
    said: list[str] = []
    for path, known in entry.conventions.items():
        titles = {one["convention"]: f"{one['title']} {one['parameter']}" for one in found.main.conventions[path]}
        others = [f"{titles[name]} {short(value)}" for name, value in known.items() if value is not None and not name.startswith("regtrain_")]
        said.append(f"{path} elsewhere: {'; '.join(others)}")
    return said


def _again(leaves: Sequence[float], returns: Sequence[float]) -> str:
    parts = [*(f"leaves at {short(at)}" for at in leaves), *(f"returns at {short(at)}" for at in returns)]
    return f" ({', '.join(parts)})" if parts else ""


def _spread(spread: dict[str, Any]) -> str:
    told = f"folds cut anew, {len(spread['chosen'])} times: "
    if quantiles := spread["quantiles"]:
        return f"{told}chosen λ from {short(quantiles['min'])} to {short(quantiles['max'])}, median {short(quantiles['median'])}"
    return f"{told}{len(set(spread['chosen']))} different choices"
