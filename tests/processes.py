"""Looking at processes that may end while they are looked at."""

from contextlib import suppress

import psutil


def is_over(process: psutil.Process) -> bool:
    """Whether it has ended; it may still wait for its parent to notice."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def children_of(parent: psutil.Process, module: str) -> list[psutil.Process]:
    """The living children of a process that run a module of ours."""
    found: list[psutil.Process] = []
    for child in parent.children():
        with suppress(psutil.NoSuchProcess):
            if module in child.cmdline():
                found.append(child)
    return found
