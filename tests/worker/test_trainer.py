"""The child by itself: the classes of failure, and that it never outlives its loop."""

import errno
import os
import subprocess
import sys

import psutil
import pytest
import torch
from processes import is_over
from worker_houses import ROOT, until

from regtrain.contract.errors import DataError, Diverged, Problem, ResourceError, SpecRefused, TrainingError
from regtrain.contract.states import Failure
from worker.trainer import failed


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (DataError("no rows"), Failure.DATA),
        (Diverged("all"), Failure.DIVERGED),
        (ResourceError("too large"), Failure.RESOURCE),
        (TrainingError("other"), Failure.INFRASTRUCTURE),
        (SpecRefused([Problem("a", "b")]), Failure.SPEC),
        (MemoryError(), Failure.RESOURCE),
        (torch.OutOfMemoryError("CUDA out of memory"), Failure.RESOURCE),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), Failure.RESOURCE),
        (OSError(errno.ENOSPC, "No space left on device"), Failure.RESOURCE),
        (OSError(errno.EIO, "Input/output error"), Failure.INFRASTRUCTURE),
        (ZeroDivisionError("a fault of ours"), Failure.INFRASTRUCTURE),
    ],
)
def test_the_class_of_a_failure(error: Exception, failure: Failure) -> None:
    assert failed(error).failure is failure


def test_torch_says_that_memory_is_full_as_we_expect() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert failed(caught.value).failure is Failure.RESOURCE


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    try:
        _ = 1 // 0
    except ZeroDivisionError as error:
        told = failed(error)
    assert told.message == "ZeroDivisionError: integer division or modulo by zero"
    assert "test_trainer.py" in told.detail


def test_the_child_dies_with_its_loop() -> None:
    """The loop is killed, so it can say nothing; the child is found by its pid and start."""
    code = "import queue, sys; from worker.child import Child; c = Child(device='cpu', threads=1, inbox=queue.Queue()); c._inbox.get(); print(c.pid, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as loop:
        assert loop.stdout is not None
        child = psutil.Process(int(loop.stdout.readline()))
        assert "worker.trainer" in child.cmdline()
        assert os.getpgid(child.pid) != os.getpgid(loop.pid)
        loop.kill()
        loop.wait()
        until(lambda: is_over(child))
