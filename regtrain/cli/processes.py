"""Service and workers as child processes of one command: started in order, watched, ended together.

The children stand in sessions of their own, so that Ctrl-C reaches this process alone, which then ends them in order:
workers first, which write a checkpoint and hand their jobs back, then the service.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from regtrain.contract.errors import RegtrainError

LISTENING = "regtrain service on "
"""How the service says that it listens, followed by its URL."""
GRACE_SECONDS = 30.0
"""How long a child may take to end by itself."""
QUICK_SECONDS = 5.0
QUICK_DEATHS = 3
"""A worker that dies this often in a row within QUICK_SECONDS of its start is not started again."""


class NotStarted(RegtrainError):
    """The service did not come up; it has said why on stderr."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.exit_status = status


@dataclass
class Child:
    """One process, and what it takes to start it again."""

    name: str
    module: str
    process: subprocess.Popen[str]
    started: float
    quick_deaths: int = 0


@dataclass
class House:
    """A service and its workers. `environment` is what the children see; `log` takes their output where it is not shown."""

    environment: dict[str, str]
    log: IO[str] | None = None
    url: str = ""
    _children: list[Child] = field(default_factory=list[Child])
    _pump: threading.Thread | None = None
    """Passes on what the service prints."""
    _news: SimpleQueue[Child | int] = field(default_factory=SimpleQueue[Child | int])

    def open(self, *, workers: int) -> None:
        """Starts the service, waits until it listens, then starts the workers.

        Raises:
            NotStarted: the service ended instead of listening.
        """
        service = self._start("service", "service")
        self.url = self._listening(service)
        for number in range(workers):
            self._start(f"worker {number + 1}", "worker")

    def watch(self, say: Callable[[str], None]) -> int:
        """Starts dead workers again until a signal comes or the service ends. Returns the exit status."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda received, _: self._news.put(received))
        while True:
            news = self._news.get()
            if isinstance(news, int):
                return 0 if news == signal.SIGINT else 128 + news if news != signal.SIGTERM else 0
            status = news.process.wait()
            if news.module == "service":
                say(f"the service ended with status {status}")
                return status or 1
            if not self._again(news, status, say):
                return 1

    def close(self) -> None:
        """Ends the workers, then the service."""
        workers = [child for child in self._children if child.module == "worker"]
        for group in (workers, [child for child in self._children if child.module == "service"]):
            for child in group:
                child.process.terminate()
            for child in group:
                _ended(child.process)
        if self._pump is not None:
            self._pump.join(GRACE_SECONDS)

    def _again(self, child: Child, status: int, say: Callable[[str], None]) -> bool:
        """Starts a dead worker again; False if it dies at once every time."""
        quick = child.quick_deaths + 1 if time.monotonic() - child.started < QUICK_SECONDS else 0
        if quick >= QUICK_DEATHS:
            say(f"{child.name} ended {quick} times within {QUICK_SECONDS:g} seconds of its start, the last time with {_how(status)}: see its messages above")
            return False
        say(f"{child.name} ended with {_how(status)}: starting it again")
        self._children.remove(child)
        self._start(child.name, child.module).quick_deaths = quick
        return True

    def _start(self, name: str, module: str) -> Child:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if module == "service" else self.log,
            stderr=self.log,
            text=True,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        child = Child(name, module, process, time.monotonic())
        self._children.append(child)
        threading.Thread(target=self._await, args=(child,), daemon=True).start()
        return child

    def _await(self, child: Child) -> None:
        child.process.wait()
        self._news.put(child)

    def _listening(self, service: Child) -> str:
        """The URL at which the service listens. What else it prints is passed on."""
        lines = service.process.stdout
        assert lines is not None
        for line in lines:
            if line.startswith(LISTENING):
                self._pump = threading.Thread(target=self._pass_on, args=(lines,), daemon=True)
                self._pump.start()
                return line.removeprefix(LISTENING).strip()
            self._print(line)
        lines.close()
        status = service.process.wait()
        raise NotStarted(status, f"the service did not start (status {status})")

    def _pass_on(self, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                self._print(line)

    def _print(self, line: str) -> None:
        print(line, end="", file=self.log or sys.stdout, flush=True)


@contextmanager
def house(*, workers: int, log: Path | None = None, **settings: object) -> Generator[House]:
    """A running service with workers. Each of `settings` that is not None becomes the children's REGTRAIN_<NAME>."""
    given = {f"REGTRAIN_{name.upper()}": str(value) for name, value in settings.items() if value is not None}
    with open(log or os.devnull, "a", encoding="utf-8") as file:
        opened = House({**os.environ, **given}, log=file if log else None)
        try:
            opened.open(workers=workers)
            yield opened
        finally:
            opened.close()


def _ended(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _how(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"


_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """In the child, before it becomes service or worker: a command that is killed leaves no server behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
