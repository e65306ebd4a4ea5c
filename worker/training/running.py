"""One pack while it trains: everything that changes from step to step, and how it is put away and taken up again."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from regtrain.contract.datasets import feature_names
from regtrain.contract.diagnostics import includes
from regtrain.contract.events import Checkpointed, Log, Noticed, Points
from regtrain.contract.models import Lsuv
from regtrain.contract.ranges import concrete
from regtrain.contract.runs import Run
from worker.training import firing
from worker.training.adapt import Adapting
from worker.training.begin import begun
from worker.training.checkpoints import save
from worker.training.device import environment
from worker.training.evaluate import evaluate
from worker.training.failure import replayed
from worker.training.feed import Feed
from worker.training.flight import Flight, in_full, last
from worker.training.initial import unit_variance
from worker.training.pack import Pack
from worker.training.points import Recorder
from worker.training.prepare import Job
from worker.training.probes import Batch, due, probe
from worker.training.ridge import Ridge
from worker.training.step import step
from worker.training.stopping import Best
from worker.training.symptoms import Watch, known_of
from worker.training.symptoms.window import EVERY, next_look

COMPACT = EVERY
"""Steps between two looks at which runs still train. Fixed, so that the arithmetic of a run does not depend on timing."""

WATCH = "watch/"
"""What the tensors of the watch are called in a checkpoint."""


class Running:
    """A pack, its best evaluations and its points. Runs that have stopped leave the pack when at most half are left; their state stays here."""

    def __init__(self, job: Job, index: int, members: list[int], runs: list[Run], *, begin: tuple[Tensor, Tensor] | None = None) -> None:
        """`members`: the runs of the pack as it is stored, `runs`: those of them that train; `begin`: weights and running averages of a warm start."""
        self.job, self.index, self.runs = job, index, runs
        self.done = 0
        """Updates done."""
        self._slots = [members.index(run.index) for run in runs]
        """Of each run its place in the stored pack, which the points are told by."""
        self.recorder = Recorder(index, len(members), trained=len(runs))
        self.flight = Flight() if includes(runs[0].spec.diagnostics, "light") and runs[0].spec.on_nonfinite == "stop" else None
        self._whole: dict[str, Tensor] = {}
        self._solved: Ridge | None = None
        self.watch = Watch(known_of(job, index, members, runs, fresh=begin is None and runs[0].spec.begin is None))
        self.stopped: set[int] = set()
        """Places of the runs that a symptom has ended."""
        self._ends = {symptom for symptom, what in job.spec.on_symptom.items() if what == "stop"}
        self._make(list(range(len(runs))), begin)

    @property
    def living(self) -> bool:
        """Whether any run is known to go on. On a CPU asking the pack costs next to nothing, elsewhere a report tells."""
        return self.recorder.living and (self.job.device.type != "cpu" or bool(self.pack.alive.any()))

    @property
    def slots(self) -> list[int]:
        """Of each run that still trains its place in the stored pack."""
        return [self._slots[place] for place in self.places]

    def update(self) -> None:
        """One update of every living run, and at the end of an epoch its evaluation."""
        if self.flight is not None and self.flight.due(self.done):
            self.flight.keep(self.done, self.pack.state | self.adapting.state, self.pack.alive)
        x, y = self.feed.batch(self.done)
        rates, lr = self.feed.rates(self.done)
        look = self.done % self.job.per_epoch == 0
        measured, reading = step(self.pack, x, y, t=self.done, lr=lr, look=look)
        self.recorder.add(self.pack, self.done, y.shape[-1], rates, measured, reading, look=look)
        self.done += 1
        if self.done % self.job.per_epoch == 0:
            self.evaluate((x, y, self.done - 1))

    def evaluate(self, last: Batch | None = None) -> None:
        """Loss and accuracy on the validation rows, where there are any; early stopping acts on them, and strengths adapt. `last`: the batch of the last update,
        for the probes."""
        alive = self.pack.alive
        with self.spending("evaluate"):
            if includes(self.pack.spec.diagnostics, "full") and due(self.done, per_epoch=self.job.per_epoch, steps=self.job.steps):
                following = (*self.feed.batch(self.done), self.done) if self.done < self.job.steps else None
                self.recorder.add_after(self.done, probe(self.pack, self.job.train, self.job.val, last, following), alive)
            if includes(self.pack.spec.diagnostics, "standard") and firing.due(self.done, per_epoch=self.job.per_epoch, steps=self.job.steps):
                self.recorder.add_after(self.done, firing.counted(self.pack, self.job.train), alive)
            metrics = evaluate(self.pack, self.job.val, "val") if len(self.job.val) else {}
            if self.done and metrics:
                self.best.update(self.pack, self.done, metrics)
            if self.done:
                self.adapting.update()
            metrics |= self.adapting.strengths()
            if metrics:
                self.recorder.add_after(self.done, metrics, alive)

    def report(self) -> Iterator[Points | Noticed | Log]:
        """The points since the last report, if there are any, what is wrong by them, and once a warning where they break a law of gradients."""
        sound, dead = self.recorder.broken is None, set(self.recorder.died)
        with self.spending("report"):
            points = self.recorder.report(self.pack, self.slots, self.done)
            self._retrace(set(self.recorder.died) - dead)
        if points is not None:
            yield points
            yield from self._noted(self.watch.see(points))
        if sound and self.recorder.broken is not None:
            yield Log("warning", f"a law of gradients does not hold in {self.recorder.broken}; a wrong gradient or a failing device: run `regtrain selftest` there")

    def _retrace(self, slots: set[int]) -> None:
        """Adds to the failures of these runs what led to them: now, since a checkpoint has no copies."""
        if self.flight is None:
            return
        for slot in slots:
            row, died = self.slots.index(slot), self.recorder.died[slot]
            run, (first, state) = self.pack.runs[row], self.flight.before(died["step"], row)
            job = self.job.own(run)
            pack = pack_of(job, [in_full(run)], begin=(state["flat"], state["buffers"]))
            died |= last(job, pack, state, first=first, t=died["step"])

    def obey(self) -> Iterator[Points | Noticed | Log]:
        """At the end of a window, where a symptom is to end its run: reports, and stops those that have it. At fixed steps, so that a run does not depend on timing."""
        if not self._ends or next_look(self.done - 1) != self.done:
            return
        yield from self.report()
        if self.stopped:
            going = torch.tensor([slot not in self.stopped for slot in self.slots], device=self.job.device)
            self.pack.alive = self.pack.alive & going

    def judged(self) -> Iterator[Noticed]:
        """What the end tells, after the last report."""
        yield from self._noted(self.watch.end(self.done))

    def _noted(self, found: Iterator[Noticed]) -> Iterator[Noticed]:
        for noticed in found:
            if noticed.symptom in self._ends:
                self.stopped.add(self.watch.known.runs.index(noticed.run))
            yield noticed

    def compact(self) -> Iterator[Points | Noticed | Log]:
        """At fixed steps: when at most half of the pack is alive, go on with those alone."""
        if self.done % COMPACT or self.pack.size == 1:
            return
        alive = self.pack.alive.cpu().numpy()  # one synchronisation in COMPACT steps
        if 0 < alive.sum() <= self.pack.size / 2:
            yield from self.report()
            self.recorder.settle(alive, self.slots, self.done)
            if self.flight is not None:
                self.flight.narrow(torch.from_numpy(np.flatnonzero(alive)).to(self.job.device))
            self._take(self._gathered(), [self.places[row] for row in np.flatnonzero(alive)])

    def end(self) -> None:
        """After the last update: all runs in one pack again, with the weights of their best evaluations where they are to be restored."""
        if len(self.places) < len(self.runs):
            self._take(self._gathered(), list(range(len(self.runs))))
        self.recorder.settle(self.pack.alive.cpu().numpy(), self.slots, self.done)
        for slot, died in self.recorder.died.items():
            if found := self._replayed(self._slots.index(slot), died["step"]):
                self.recorder.died[slot] = {name: what for name, what in died.items() if name != "layer"} | found
        self.best.restore(self.pack)

    def _replayed(self, place: int, t: int) -> dict[str, Any]:
        """What went wrong in the update that a run did not take: its weights are those from before it."""
        begin = self.pack.flat[place : place + 1], self.pack.buffers[place : place + 1]
        run = self.runs[place]
        job = self.job.own(run)
        return replayed(job, run, t, lambda run: pack_of(job, [run], begin=begin))

    def checkpoint(self, *, final: bool) -> Checkpointed:
        """Writes everything that is needed to go on bit for bit. The points up to here have been reported."""
        assert self.job.scratch is not None
        about: dict[str, Any] = {
            "digest": self.job.digest, "pack": self.index, "step": self.done, "final": final, "places": self.places, "runs": [run.index for run in self.runs],
            "ended": {str(k): v for k, v in self.recorder.ended.items()}, "died": {str(k): v for k, v in self.recorder.died.items()},
            "environment": environment(self.job.device),
        }  # fmt: skip
        arrays, about["watch"] = self.watch.state()
        about["stopped"] = sorted(self.stopped)
        watched = {f"{WATCH}{name}": torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        with self.spending("save"):
            saved = save(self.job.scratch / f"checkpoint-{self.index}-{self.done}.tmp", self._gathered() | watched, about)
        return Checkpointed(pack=self.index, step=self.done, path=saved.path, sha256=saved.sha256)

    def restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Takes up the state of a checkpoint."""
        self.done = about["step"]
        self.recorder.ended = {int(k): v for k, v in about["ended"].items()}
        self.recorder.died = {int(k): v for k, v in about["died"].items()}
        self.stopped = set(about["stopped"])
        self.watch.restore({name.removeprefix(WATCH): tensor.cpu().numpy() for name, tensor in tensors.items() if name.startswith(WATCH)}, about["watch"])
        self._take({name: tensor for name, tensor in tensors.items() if not name.startswith(WATCH)}, about["places"])

    @contextmanager
    def spending(self, on: str) -> Iterator[None]:
        """Adds the time inside to the job's account."""
        begin = time.perf_counter()
        yield
        self.job.seconds[on] += time.perf_counter() - begin

    def _make(self, places: list[int], begin: tuple[Tensor, Tensor] | None = None) -> None:
        self.places = places
        """Which of the pack's runs still train: row r of every tensor belongs to runs[places[r]]."""
        self.pack = pack_of(self.job, [self.runs[place] for place in places], begin=begin)
        self.best = Best(self.pack, self.pack.early.metric if self.pack.early else "loss/val", self.pack.early)
        self.feed = Feed(self.job, self.pack)
        self.adapting = Adapting(self.job, self.pack, self._solved)
        self._solved = self.adapting.solved

    def _take(self, whole: dict[str, Tensor], places: list[int]) -> None:
        """Goes on with these runs, from the state of all."""
        self._make(places)
        rows = torch.tensor(places, device=self.job.device)
        mine = {name: tensor[rows] for name, tensor in whole.items()}
        self.pack.take(mine)
        self.pack.alive = mine["alive"]
        self.best.state = {name: mine[name] for name in self.best.state}
        self.adapting.restore(mine)
        self._whole = whole if len(places) < len(self.runs) else {}

    def _gathered(self) -> dict[str, Tensor]:
        """The state of all runs: of those that still train as it is now, of the others as it was when they left.  (R, …) each"""
        pack = self.pack
        mine = {**pack.state, "alive": pack.alive, **self.best.state, **self.adapting.state}
        if not self._whole:
            return mine
        rows = torch.tensor(self.places, device=self.job.device)
        for name, tensor in mine.items():
            self._whole[name][rows] = tensor
        return self._whole


def pack_of(job: Job, runs: list[Run], *, begin: tuple[Tensor, Tensor] | None = None) -> Pack:
    """These runs of the job as one pack, at the weights from which they begin, or at given weights (R, P) and running averages (R, Q)."""
    begin = begun(job, runs) if begin is None else begin
    names = feature_names(job.rows.facts)
    owns = [job.own(run) for run in runs] if job.folds else [job]
    curvatures, weights = [one.curvature for one in owns if one.curvature is not None], [one.class_weights for one in owns if one.class_weights is not None]
    places = list(job.folds)
    pack = Pack(
        runs, job.shape, features=len(names), device=job.device, names=names, begin=begin,
        curvature=torch.tensor(curvatures, dtype=torch.float64).unsqueeze(1) if len(curvatures) == len(owns) else None,
        class_weights=(torch.stack(weights) if job.folds else weights[0]) if weights else None,
        fold_slot=torch.tensor([places.index(cast(int, run.fold)) for run in runs], device=job.device) if job.folds else None,
    )  # fmt: skip
    if isinstance(pack.spec.model.init, Lsuv) and begin is None:
        unit_variance(pack.net, Feed(job, pack).batch(0)[0], pack.stack(lambda s: concrete(s.model.init.scale)))
    return pack
