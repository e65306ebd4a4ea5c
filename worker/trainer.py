"""The child process that computes: spawned, warm, and without a database, so that it can be killed at any moment.

Over one socket come commands in JSON, and back go events as `encode` writes them. Each `train` is answered by its events,
of which the last is `Finished` or `Failed`, or the word `stopped`. torch is imported once; then jobs start in milliseconds.
"""

import argparse
import ctypes
import errno
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from regtrain.contract.errors import SpecRefused, TrainingError
from regtrain.contract.events import Checkpointed, Event, Failed, Finished, encode
from regtrain.contract.job import JobSpec
from regtrain.contract.states import Failure
from worker.crash import crash_point

if TYPE_CHECKING:
    import torch

PR_SET_PDEATHSIG = 1
MOST_DETAIL = 20_000
"""Characters of a traceback that travel with a failure."""


@dataclass(frozen=True)
class Wishes:
    """What the loop has asked for and training has not yet done."""

    jobs: "queue.SimpleQueue[dict[str, Any] | None]" = field(default_factory=queue.SimpleQueue)
    cancel: threading.Event = field(default_factory=threading.Event)
    drain: threading.Event = field(default_factory=threading.Event)


def main() -> None:
    options = _options()
    die_with(options.parent)
    connection = Connection(options.socket)
    wishes = Wishes()
    threading.Thread(target=_listen, args=(connection, wishes), daemon=True).start()
    device = _warm(options.device, options.threads)
    _say(connection, "ready", device=str(device), environment=_environment(device))
    while (order := wishes.jobs.get()) is not None:
        _serve(order, connection, wishes, device)


def failed(error: BaseException) -> Failed:
    """The class of a failure: what training raised on purpose says it itself, memory and disk are resources, the rest is ours."""
    match error:
        case TrainingError():
            return Failed(error.failure, str(error))
        case SpecRefused():
            return Failed(Failure.SPEC, str(error))
        case _ if _out_of_memory(error):
            return Failed(Failure.RESOURCE, f"out of memory: {error or type(error).__name__}", _trace(error))
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return Failed(Failure.RESOURCE, f"no space left: {error}", _trace(error))
        case _:
            return Failed(Failure.INFRASTRUCTURE, f"{type(error).__name__}: {error}", _trace(error))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def die_with(parent: int) -> None:
    """No orphan computes on: the kernel kills this process with its parent. Signals meant for the loop are the loop's to judge."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _warm(name: str, threads: int | None) -> "torch.device":
    import torch

    from worker.training.device import device_of

    import_module("worker.training.train")
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        device = device_of(name)
    except TrainingError as error:
        sys.exit(str(error))
    torch.zeros(1, device=device)  # creates the CUDA context, which takes a second
    return device


def _environment(device: "torch.device") -> dict[str, Any]:
    from worker.training.device import environment

    return environment(device)


def _listen(connection: Connection, wishes: Wishes) -> None:
    """Takes commands while training goes on. When the loop is gone, so is this process, at once."""
    while True:
        try:
            command = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)
        match command["command"]:
            case "train":
                wishes.cancel.clear()
                wishes.drain.clear()
                wishes.jobs.put(command)
            case "cancel":
                wishes.cancel.set()
            case "drain":
                wishes.drain.set()
            case "exit":
                wishes.cancel.set()
                wishes.jobs.put(None)
            case other:
                raise ValueError(f"unknown command {other!r}")


def _serve(order: dict[str, Any], connection: Connection, wishes: Wishes, device: "torch.device") -> None:
    ended = False
    for event in _events(order, wishes, device):
        header, *buffers = encode(event)
        connection.send_bytes(header)
        if buffers:
            crash_point("child.torn")
        for buffer in buffers:
            connection.send_bytes(buffer)
        crash_point("child.sent")
        ended = isinstance(event, Finished | Failed)
    if not ended:
        _say(connection, "stopped")


def _events(order: dict[str, Any], wishes: Wishes, device: "torch.device") -> Iterator[Event]:
    """The events of one job up to its end, or to the moment at which it is to stop."""
    from worker.training.train import train

    try:
        training = train(
            JobSpec.model_validate_json(order["spec"]),
            device=str(device),
            data=Path(order["data"]),
            upload=Path(order["upload"]) if order["upload"] else None,
            origins={job: Path(path) for job, path in order["origins"].items()},
            scratch=Path(order["scratch"]),
            packs=order["packs"],
            resume={int(pack): Path(path) for pack, path in order["resume"].items()},
            wants_checkpoint=wishes.drain.is_set,
            checkpoint_seconds=order["checkpoint_seconds"],
        )
        with closing(cast("Generator[Event, None, None]", training)):
            for event in training:
                yield event
                if wishes.cancel.is_set() or (wishes.drain.is_set() and isinstance(event, Checkpointed)):
                    return
    except Exception as error:
        if _poisoned(error):
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(70)
        yield failed(error)


def _say(connection: Connection, word: str, **what: Any) -> None:
    connection.send_bytes(json.dumps({"says": word, **what}).encode())


def _out_of_memory(error: BaseException) -> bool:
    """torch has a class for the GPU's memory; on the CPU it raises a RuntimeError that only its text tells apart."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, MemoryError) or "OutOfMemoryError" in names or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def _poisoned(error: Exception) -> bool:
    """After an error on the GPU other than full memory the context is lost: only a new process can go on."""
    return not _out_of_memory(error) and isinstance(error, RuntimeError) and ("CUDA error" in str(error) or "AcceleratorError" in type(error).__name__)


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-MOST_DETAIL:]


if __name__ == "__main__":
    main()
