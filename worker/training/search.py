"""What the runs of a job wait for: values that are found by training (a path from λ_max, suggestions), weights to start from, and whether they are still worth it."""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from regtrain.contract.job import JobSpec
from regtrain.contract.ranges import Path, Suggest
from regtrain.contract.runs import Run, length_of, origin_of, provisional, ranges, warm_axis, with_values
from regtrain.contract.trial import trains, wave_of
from regtrain.contract.variants import specs_of
from worker.training.draws import seed_at
from worker.training.prepare import Job, for_run
from worker.training.running import pack_of
from worker.training.selection import Found
from worker.training.strengths import empty, strongest
from worker.training.suggestions import Suggestions

Block = tuple[str | None, int | None]
"""Variant and outer fold: what is searched by itself."""


class Search:
    """Decides what a pack trains when its turn comes, from what the packs before it have found. The same results lead to the same decisions, also after a resume."""

    def __init__(self, job: Job, found: Found) -> None:
        self.job, self.found = job, found
        self._specs: dict[str | None, JobSpec] = dict(specs_of(job.spec))
        self._tops: dict[Any, float] = {}
        self._searches: dict[Block, Suggestions] = {}
        self._at = {_address(run, self._axis(run)): run.index for run in job.runs if run.place is not None}

    def first(self, members: list[int]) -> Run:
        """A run of a pack as far as it can be known without asking for suggestions, to describe the job by."""
        run = self.job.runs[members[0]]
        return replace(run, spec=with_values(provisional(run.spec), self._path_values(run)))

    def begin(self, members: list[int]) -> list[Run]:
        """The runs of a pack that train, with their values."""
        runs = [self.job.runs[index] for index in members]
        if not self._competes(runs[0]):
            return []
        for run in runs:
            self._suggestion(run)  # a batch is asked for at once
        found = (self.found.refit(run) if run.point is None else self._assigned(run) for run in runs if not self._left_out(run))
        trained = [run for run in found if run is not None]
        self.found.expect(trained)
        return trained

    def weights_for(self, job: Job, runs: list[Run]) -> tuple[Tensor, Tensor] | None:
        """Weights (R, P) and running averages from which warm-started runs begin: a path without any weights, where they are zero. None for those that begin
        by themselves, and where a run to start from has failed. `job`: as these runs see it."""
        starts = [self._start(job.own(run), run) for run in runs]
        known = [start for start in starts if start is not None]
        if len(known) < len(starts):
            return None
        return torch.stack([flat for flat, _ in known]), torch.stack([buffers for _, buffers in known])

    def end(self, runs: list[Run]) -> None:
        """Tells the search what a trained pack has shown, and gives up what is surely worse."""
        for run in {run.place: run for run in runs if not run.refit}.values():
            search = self._search_of(run)
            if search is not None:
                members = self.found.members(run)
                search.tell(cast(int, run.place), [self.found.metric(index) for index in members if index in self.found.runs], of=len(members))

    # ---------------------------------------------------------------- paths

    def _assigned(self, run: Run) -> Run:
        values = {**run.values, **self._path_values(run), **self._suggestion(run)}
        return replace(run, values=values, spec=with_values(run.spec, values))

    def _path_values(self, run: Run) -> dict[str, float]:
        """λ_max·ratio^(place/(n − 1)), λ_max from all training rows that this block may see: folds share their strengths."""
        found: dict[str, float] = {}
        for path, r in ranges(run.spec):
            if isinstance(r, Path):
                assert run.place is not None
                found[path] = self._top(run, path) * r.ratio ** (run.place / (r.path - 1))
        return found

    def _top(self, run: Run, path: str) -> float:
        key = (_block(run), tuple(run.values.items()), path)
        if key not in self._tops:
            whole = for_run(self.job, replace(run, fold=None, refit=False))
            alone = replace(run, spec=with_values(run.spec, {path: 1.0}))
            self._tops[key] = strongest(whole, alone, int(path.split(".")[1]), pack_of(whole, [alone]))
        return self._tops[key]

    def _axis(self, run: Run) -> str | None:
        return warm_axis(self._specs[run.variant])

    def _start(self, job: Job, run: Run) -> tuple[Tensor, Tensor] | None:
        axis = None if run.point is None else self._axis(run)
        if axis is None or run.place is None:
            return None
        place = origin_of(run.place, length_of(self._specs[run.variant], axis))
        if place is not None:
            return self.found.weights_of(self._at[_address(replace(run, place=place), axis)])
        on_path = any(isinstance(r, Path) for _, r in ranges(self._specs[run.variant]))
        pack = pack_of(job, [run])
        return (empty(job, run, pack), pack.buffers[0].cpu()) if on_path else None

    # ---------------------------------------------------------------- suggestions

    def _search_of(self, run: Run) -> Suggestions | None:
        """The search to which a run belongs; None where nothing is suggested, and for the refit of a choice."""
        if run.place is None:
            return None
        space = {path: r for path, r in ranges(self._specs[run.variant]) if isinstance(r, Suggest)}
        if not space:
            return None
        if (block := _block(run)) not in self._searches:
            selection, seed = self.job.spec.selection, seed_at(self.job.spec.seed, "search", *(str(part) for part in block)) % 2**32
            self._searches[block] = Suggestions(space, seed=seed, higher_is_better=selection.metric.startswith("accuracy"), prune=selection.prune)
        return self._searches[block]

    def _suggestion(self, run: Run) -> dict[str, float]:
        search = self._search_of(run)
        return {} if search is None else search.values(cast(int, run.place))

    def _left_out(self, run: Run) -> bool:
        search = self._search_of(run)
        return not run.refit and search is not None and run.place in search.given_up

    # ---------------------------------------------------------------- trials

    def _competes(self, run: Run) -> bool:
        """Whether a contestant of a trial trains the wave that this run belongs to. A pack has one contestant and one wave."""
        spec = self.job.spec
        if spec.trial is None or run.variant is None:
            return True
        seeds = spec.selection.seeds
        wave = wave_of(run.seed, seeds, spec.trial.order)
        return trains(spec.trial, self.found.contestants(), run.variant, wave=wave, metric=spec.selection.metric, seeds=seeds)


def _block(run: Run) -> Block:
    return run.variant, run.outer


def _address(run: Run, axis: str | None) -> tuple[Any, ...]:
    """What tells a run from all others: everything but its index."""
    others = tuple((path, value) for path, value in run.values.items() if path != axis)
    return run.variant, run.outer, run.refit, run.fold, run.seed, others, run.place
