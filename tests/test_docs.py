"""What the docs say is so: the reference is fresh, links lead somewhere, the commands that are shown exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from regtrain.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}
COMMANDS = {command.name or (command.callback.__name__ if command.callback else "") for command in app.registered_commands}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("writer", ["reference.py", "results.py", "claim.py", "fault_bench.py"])  # from the catalogue, and from what was measured
def test_a_page_that_is_written_is_fresh(writer: str) -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / writer, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", TEXT[page]) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_are_shown_exist(page: Path) -> None:
    shown = set(re.findall(r"(?:^\$ |\.venv/bin/|`)regtrain ([a-z]+)", TEXT[page], re.MULTILINE))
    made = set(re.findall(r"(?:^\$? ?|`)make ([a-z-]+)", TEXT[page], re.MULTILINE))
    files = {name for name in re.findall(r"\bexamples/[\w.]+\.json", TEXT[page]) if not (ROOT / name).exists()}
    assert shown <= COMMANDS
    assert made <= TARGETS
    assert files == set()


def test_the_makefile_has_what_newcomers_are_told() -> None:
    assert {"setup", "demo", "up", "test", "check", "docs", "bench", "bench-gpu", "results", "sequences", "claim", "faults", "clean"} <= TARGETS


@pytest.mark.parametrize("command", sorted(COMMANDS - {"serve", "work", "run"}))
def test_every_command_has_help(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert "Usage" in shown.output
