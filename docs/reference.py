"""Writes docs/reference.md from the catalogue: `python docs/reference.py`; with `--check` it only says whether the page is fresh."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pages import table, written

from regtrain.contract.catalog import catalog

PAGE = Path(__file__).with_name("reference.md")
TITLES = {
    "datasets": "Datasets",
    "models": "Models",
    "init": "Initial weights (`model.init`)",
    "normalization": "Normalization (`model.normalization`)",
    "reparametrization": "Reparametrization (`model.reparametrization`)",
    "losses": "Losses",
    "regularizers": "Regularizers",
    "optimizers": "Optimizers",
    "schedules": "Learning-rate schedules (`optimizer.schedule`)",
    "clip": "Gradient clipping (`clip`)",
    "surgery": "Surgery (`begin.surgery`)",
}


def page() -> str:
    """The whole page."""
    return "\n".join(_lines(catalog())) + "\n"


def _lines(found: dict[str, Any]) -> Iterator[str]:
    yield "# The job spec: reference"
    yield ""
    yield "Generated from the catalogue (`make docs`); the same is served at `/v1/catalog`, as JSON Schema at `/v1/schema/job`."
    yield "A field without a default is required. Where a type ends in *or a range*, a range may stand in place of the number, and each of its values becomes a run."
    for part in found["job"]:
        heading = "The job" if part["title"] == "JobSpec" else f"`{part['title'].lower()}`"
        yield from ["", f"## {heading}", "", part["doc"], "", *_fields(part)]
    yield from ["", "## Ranges, in place of a number"]
    for part in found["ranges"]:
        yield from ["", f"### `{part['title'].lower()}`", "", part["doc"], "", *_fields(part)]
    for family, kinds in found["families"].items():
        yield from ["", f"## {TITLES[family]}"]
        for kind in kinds:
            yield from ["", f"### `{kind['kind']}`", "", kind["doc"], *(["", *_fields(kind)] if kind["fields"] else [])]
    yield from ["", "## Series", "", "What a job records at each step. `diagnostics` names the cheapest preset that records it.", ""]
    yield from table(
        ["series", "", "unit", "shape", "diagnostics", "meaning"], [[f"`{s['name']}`", s["symbol"], s["unit"], s["shape"], s["preset"], s["meaning"]] for s in found["series"]]
    )
    yield from [
        "",
        "## Symptoms",
        "",
        "What a run can be found to have, causes first. `diagnostics` names the cheapest preset that can show it. How they are ordered and worded: [diagnosis](diagnosis.md).",
        "",
    ]
    yield from table(
        ["symptom", "phase", "diagnostics", "criterion", "may bring", "source"],
        [[f"`{s['name']}`", s["phase"], s["needs"], s["criterion"], ", ".join(s["brings"]), s["source"]] for s in found["symptoms"]],
    )


def _fields(part: dict[str, Any]) -> Iterator[str]:
    yield from table(
        ["field", "type", "default", "meaning"], [[f"`{f['name']}`", f["type"], "required" if f["required"] else _default(f["default"]), f["doc"]] for f in part["fields"]]
    )


def _default(value: Any) -> str:
    match value:
        case None:
            return "none"
        case {"kind": kind}:
            return f"`{kind}`"
        case dict() | list() if not value:
            return "none"
        case dict():
            return "all defaults"
        case str():
            return f"`{value}`" if value else "empty"
        case _:
            return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def main(arguments: list[str]) -> int:
    fresh = page()
    return written(PAGE, fresh, arguments, stale="the catalogue says: make docs")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
