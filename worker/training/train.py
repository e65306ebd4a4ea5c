"""A job, readable from top to bottom: rows, packs, steps, events. Cancelling is closing the generator; a test is `list(train(spec))`."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from regtrain.contract.errors import Diverged
from regtrain.contract.events import Event
from regtrain.contract.job import JobSpec
from regtrain.contract.plan import members_of
from worker.training import begin, results
from worker.training.checkpoints import load
from worker.training.prepare import Job, for_pack, prepare
from worker.training.running import Running
from worker.training.search import Search
from worker.training.selection import Found


def train(
    spec: JobSpec,
    *,
    device: str = "cpu",
    data: Path = Path("data"),
    upload: Path | None = None,
    origins: Mapping[str, Path] | None = None,
    scratch: Path | None = None,
    packs: list[list[int]] | None = None,
    resume: dict[int, Path] | None = None,
    wants_checkpoint: Callable[[], bool] = lambda: False,
    checkpoint_seconds: float = 30.0,
) -> Iterator[Event]:
    """Trains a job and reports everything that happens, in order.

    `data`: the data folder, `upload`: the rows of an uploaded dataset. `origins`: the model files of the jobs from which it begins.
    `scratch`: where checkpoints and the model are written; without it there are none. `packs`: membership as stored by the first attempt. `resume`: pack → its newest checkpoint.
    `wants_checkpoint` is asked about four times a second, between two updates.

    Raises:
        TrainingError: the rows or the weights to begin from are missing or unfit, it does not fit into memory, or every run diverged.
    """
    begin.verified(spec, origins or {})
    job = prepare(spec, device=device, data=data, upload=upload, scratch=scratch, origins=origins)
    packs = packs or members_of(job.runs, spec, job.rows.facts, device=job.device.type)
    states = {index: load(path, digest=job.digest, device=job.device) for index, path in (resume or {}).items()}
    found = Found(job)
    search = Search(job, found)
    at, step = _beginning(states)
    yield results.started(job, search.first(packs[0]), packs, pack=at, step=step)
    for index, members in enumerate(packs):
        runs = search.begin(members)
        yield from found.left_out(members, runs)
        if not runs:
            continue
        mine = for_pack(job, runs)
        yield results.pack_begun(mine, index, runs)
        running = Running(mine, index, members, runs, begin=search.weights_for(mine, runs))
        if index not in states:
            yield from begin.logged(mine, runs)
        for event in _train_pack(mine, running, states.pop(index, None), wants_checkpoint, checkpoint_seconds):
            found.note(event)
            yield event
        found.keep(mine, running.pack)
        found.saw(running.watch)
        search.end(runs)
    if found.failed:
        first = min(found.runs.values(), key=lambda run: run.steps)
        how = f": {first.first_nonfinite['in_words']}" if first.first_nonfinite and "in_words" in first.first_nonfinite else ""
        raise Diverged(f"every run became non-finite, the first (run {first.run}) at step {first.steps}{how}. Lower optimizer.lr, or set a clip")
    yield from found.tested()
    yield found.finished()


def _train_pack(job: Job, running: Running, state: Any, wants_checkpoint: Callable[[], bool], checkpoint_seconds: float) -> Iterator[Event]:
    """All updates of one pack, from its beginning or from its checkpoint, to its runs' results."""
    if state is not None:
        running.restore(*state)
        if state[1]["final"]:
            yield from results.of_runs(job, running)
            return
    else:
        running.evaluate()
    begin = saved = time.monotonic()
    while running.done < job.steps and running.living:
        running.update()
        yield from running.obey()
        yield from running.compact()
        if running.recorder.due:
            yield from running.report()
            if job.scratch and (wants_checkpoint() or time.monotonic() - saved > checkpoint_seconds) and running.done < job.steps and running.living:
                yield running.checkpoint(final=False)
                saved = time.monotonic()
    yield from running.report()
    job.seconds["step"] += time.monotonic() - begin
    yield from running.judged()
    running.end()
    yield from results.of_runs(job, running)
    if job.scratch:
        yield running.checkpoint(final=True)


def _beginning(states: dict[int, Any]) -> tuple[int, int]:
    """Pack and step at which this attempt goes on."""
    for index, (_, about) in sorted(states.items()):
        if not about["final"]:
            return index, about["step"]
    return len(states), 0
