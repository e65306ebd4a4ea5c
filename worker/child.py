"""The loop's end of the trainer: starts it, hears it without ever waiting for it, and can kill it.

Two threads read: events into the worker's inbox, standard error into a tail that is kept for crash reports. So a trainer
that stops in the middle of a message stops nobody else.
"""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from regtrain.contract.events import Event, buffers_behind, decode

STDERR_BYTES = 64 * 1024
INBOX_MESSAGES = 64
"""Bounds what waits in memory: beyond it the trainer waits for the store."""


@dataclass(frozen=True)
class Ready:
    """torch is imported and the device answers."""

    device: str
    environment: dict[str, Any]


@dataclass(frozen=True)
class Stopped:
    """Training has ended before its end, as it was asked to."""


@dataclass(frozen=True)
class Gone:
    """The process is no more."""


@dataclass(frozen=True)
class Nudge:
    """Something has changed in the store."""


Said = Event | Ready | Stopped | Gone
Inbox = queue.Queue["tuple[Child, Said] | Nudge"]


class Child:
    """One trainer process."""

    def __init__(self, *, device: str, threads: int | None, inbox: Inbox) -> None:
        self._inbox = inbox
        self._tail = b""
        self.ready: Ready | None = None
        """What it said when torch was imported; None until then."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = _spawn(theirs.fileno(), device=device, threads=threads)
        self._connection = Connection(ours.detach())
        self.pid = self._process.pid
        self._stderr = threading.Thread(target=self._keep_stderr, daemon=True)
        self._stderr.start()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, command: str, **what: Any) -> None:
        """Gives a command. To one that is gone this is nothing: its end arrives in the inbox."""
        try:
            self._connection.send_bytes(json.dumps({"command": command, **what}).encode())
        except OSError:
            return

    def forget_stderr(self) -> None:
        """A new job begins: what was said before is not about it."""
        self._tail = b""

    def kill(self) -> None:
        """Ends it and all that it has started, now."""
        if self.alive:
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def close(self, *, seconds: float = 2.0) -> None:
        """Lets it end by itself, for a moment."""
        self.send("exit")
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def last_words(self) -> str:
        """How it ended, and the end of its standard error."""
        self.kill()
        self._stderr.join(timeout=1.0)
        code = self._process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = " (out of memory, perhaps)" if code == -signal.SIGKILL else ""
        said = self._tail.decode(errors="replace").strip()
        return f"the training process {how}{hint}" + (f"\n{said}" if said else "")

    def _read(self) -> None:
        try:
            while True:
                self._inbox.put((self, self._message()))
        except (EOFError, OSError):
            self._connection.close()
            self._inbox.put((self, Gone()))

    def _message(self) -> Said:
        header = self._connection.recv_bytes()
        word = json.loads(header).get("says")
        if word == "ready":
            said = json.loads(header)
            return Ready(said["device"], said["environment"])
        if word == "stopped":
            return Stopped()
        return decode([header, *(self._connection.recv_bytes() for _ in range(buffers_behind(header)))])

    def _keep_stderr(self) -> None:
        """Keeps the tail, and passes everything on to our own standard error, where operators look."""
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            while part := os.read(stdout.fileno(), 8192):
                self._tail = (self._tail + part)[-STDERR_BYTES:]
                sys.stderr.write(part.decode(errors="replace"))
                sys.stderr.flush()


def _spawn(descriptor: int, *, device: str, threads: int | None) -> "subprocess.Popen[bytes]":
    """In a process group of its own, so that Ctrl-C in a terminal reaches the loop alone."""
    command = [sys.executable, "-P", "-X", "faulthandler", "-m", "worker.trainer", "--socket", str(descriptor), "--parent", str(os.getpid()), "--device", device]
    if threads is not None:
        command += ["--threads", str(threads)]
    variables = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[descriptor],
        process_group=0,
        env={**os.environ, **variables},
    )
