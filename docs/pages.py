"""What the writers of pages share: tables, and how a page is written or found stale."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 10: 2.262}
"""Two-sided 95 % quantiles of Student's t, by the number of seeds."""


def table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    """A Markdown table; bars and line ends inside cells stay inside."""
    for row in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"


def written(page: Path, fresh: str, arguments: list[str], *, stale: str) -> int:
    """Writes a page; with `--check` only says whether it is what it would be: 1 if it is `stale`."""
    if arguments != ["--check"]:
        page.write_text(fresh, encoding="utf-8")
        return 0
    if page.exists() and page.read_text(encoding="utf-8") == fresh:
        return 0
    print(f"docs/{page.name} is not what {stale}", file=sys.stderr)
    return 1


def newest(entries: list[dict[str, Any]], part: str) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The rows of a part in the newest entry that has it, and that entry."""
    for entry in reversed(entries):
        if rows := [row for row in entry["rows"] if row["part"] == part]:
            return rows, entry
    return [], None


def where(entry: dict[str, Any]) -> str:
    """On what an entry was measured, and when."""
    found = entry["hardware"]
    return f"{found['cpu']}, {found['cores']} cores, one thread, Python {found['python']}, torch {found['torch']}, load {found['load']:.1f}; {entry['when'][:10]}."
