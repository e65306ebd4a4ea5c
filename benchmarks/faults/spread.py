"""One thing after another on every core: the groups of the bench have nothing to do with each other."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

import torch

Item, Done = TypeVar("Item"), TypeVar("Done")


def spread(work: Callable[[Item], Done], items: Sequence[Item], *, processes: int) -> Iterator[Done]:
    """What the work makes of each item, in their order; in this process where one is enough."""
    if processes <= 1 or len(items) <= 1:
        torch.set_num_threads(1)
        yield from map(work, items)
        return
    with ProcessPoolExecutor(min(processes, len(items)), mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(work, items)


def cores() -> int:
    return os.cpu_count() or 1
