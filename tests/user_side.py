"""A real service with real workers, as `regtrain up` starts them, and the command as a user runs it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import psutil
from processes import children_of

REGTRAIN = Path(sys.executable).with_name("regtrain")
EXAMPLES = Path(__file__).parent.parent / "examples"
PATIENCE = 200.0
"""Seconds after which something that should have happened counts as not happening, on a machine that has ten other things to do."""
UP_AT = re.compile(r"regtrain is up at (\S+): ")


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without its REGTRAIN_ settings, with one thread, and with these."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("REGTRAIN_")}
    return {**plain, "REGTRAIN_SELFTEST_SECONDS": "inf", "OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONWARNINGS": "default", **settings}


def regtrain(*arguments: object, stdin: str | None = None, cwd: Path | None = None, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command and returns what it said."""
    command = [str(REGTRAIN), *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=cwd, env=environment(**settings))


@dataclass
class Up:
    """A running `regtrain up`."""

    process: "subprocess.Popen[str]"
    url: str
    log: Path

    def children(self, module: str) -> list[psutil.Process]:
        return children_of(psutil.Process(self.process.pid), module)

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")


@contextmanager
def up(folder: Path, *, workers: int = 1, **settings: str) -> Iterator[Up]:
    """`regtrain up` on a free port with its data in `folder`; ended by Ctrl-C."""
    log = folder / "up.log"
    with log.open("w", encoding="utf-8") as output:
        command = [str(REGTRAIN), "up", "--port", "0", "--data", str(folder / "data"), "--workers", str(workers), "--device", "cpu"]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True, env=environment(**settings))
    try:
        wait_for(lambda: UP_AT.search(log.read_text(encoding="utf-8")) or process.poll() is not None)
        said = UP_AT.search(log.read_text(encoding="utf-8"))
        assert said is not None, log.read_text(encoding="utf-8")
        yield Up(process, said[1], log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)


def wait_for(happened: Callable[[], object]) -> None:
    """Returns as soon as it is so.

    Raises:
        AssertionError: it is not so in time.
    """
    end = monotonic() + PATIENCE
    while not happened():
        assert monotonic() < end, "it did not happen in time"
        sleep(0.02)
