"""What the runs of a job say together: the table of scores, the choice, the refit with the chosen values, and the test rows, touched once."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regtrain.contract.events import Event, Finished, RunFinished
from regtrain.contract.regularizers import EarlyStopping
from regtrain.contract.runs import Run, points, with_values
from regtrain.contract.selection import Choice, Score, choose, scores
from regtrain.contract.states import RunState, StopReason
from worker.training import results
from worker.training.evaluate import evaluate
from worker.training.pack import Pack
from worker.training.prepare import Job, for_run
from worker.training.running import pack_of


class Found:
    """What has been found so far, pack by pack."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.runs: dict[int, RunFinished] = {}
        self._made: dict[int, Run] = {run.index: run for run in job.runs if not run.refit}
        """Runs that have been or will be trained, with their own specs."""
        self._weights: list[tuple[list[int], dict[str, Tensor]]] = []
        self._last = job
        """The rows and the scaling of the newest pack: the refit's, where there is one."""

    def note(self, event: Event) -> None:
        if isinstance(event, RunFinished):
            self.runs[event.run] = event

    def keep(self, job: Job, pack: Pack) -> None:
        """The final weights of a pack, on the CPU."""
        self._weights.append(([run.index for run in pack.runs], results.weights(pack)))
        self._last = job

    @property
    def failed(self) -> bool:
        """Whether no run has become anything."""
        return all(run.state != RunState.SUCCEEDED for run in self.runs.values())

    def table(self) -> list[Score]:
        """The score of every set of values, in the order of the grid; NaN without validation rows."""
        return scores([(runs[0].values, [(run.index, self._metric(run.index)) for run in runs]) for runs in points(self.job.runs)])

    def choice(self) -> Choice:
        return choose(self.table(), higher_is_better=self.job.spec.selection.metric.startswith("accuracy"))

    def refit(self, run: Run) -> Run | None:
        """The refit with the chosen values; None where nothing could be chosen.

        It has no validation rows, so it cannot stop early by itself: it trains as many epochs as the chosen runs' best evaluations took, in the median.
        """
        place = self.choice().by(self.job.spec.selection.rule)
        if place is None:
            return None
        chosen = self.table()[place]
        spec = with_values(self.job.spec, dict(chosen.values))
        if any(isinstance(r, EarlyStopping) for r in spec.regularizers):
            epochs = [self.runs[index].best.get("step", 0) / for_run(self.job, self._made[index]).per_epoch for index in chosen.runs]
            spec = spec.model_copy(update={"budget": spec.budget.model_copy(update={"epochs": max(1, round(median(epochs)))})})
        self._made[run.index] = made = replace(run, values=dict(chosen.values), spec=spec)
        return made

    def tested(self) -> Iterator[RunFinished]:
        """The chosen run with its metrics on the test rows, where no refit has them."""
        chosen = self._chosen_run()
        if chosen is None or results.tells_test(self.job, self._made[chosen]) or not len(self.job.test):
            return
        job, run = for_run(self.job, self._made[chosen]), self._made[chosen]
        pack = pack_of(job, [run])
        members, weights = next((members, weights) for members, weights in self._weights if chosen in members)
        for name, view in (dict(pack.net.tensors) | pack.layout.buffer_views(pack.buffers)).items():
            view[0].copy_(weights[name][members.index(chosen)])
        measured = {name: float(value[0]) for name, value in evaluate(pack, job.test, "test").items()}
        self.runs[chosen] = replace(self.runs[chosen], metrics=self.runs[chosen].metrics | measured)
        yield self.runs[chosen]

    def finished(self) -> Finished:
        """The job's result, and its model file: every tensor stacked over all trained runs, in the order of the runs."""
        order = torch.from_numpy(np.argsort([index for members, _ in self._weights for index in members]))
        tensors = {name: torch.cat([weights[name] for _, weights in self._weights])[order] for name in self._weights[0][1]}
        return results.finished(self._last, tensors, [self._made[index] for index in sorted(self._made)], self._answer())

    def _answer(self) -> dict[str, Any]:
        chosen = self._chosen_run()
        found: dict[str, Any] = {"chosen_run": chosen, "chosen_by": None, "values": {}, "selection": self._selection()}
        if chosen is None:
            place = self.choice().by(self.job.spec.selection.rule) if self._searches else None
            return found if place is None else {**found, "values": dict(self.table()[place].values), "chosen_by": self.job.spec.selection.metric}
        end = self.runs[chosen]
        by = None if len(self.job.runs) == 1 else self.job.spec.selection.metric
        return {**found, "chosen_by": by, "values": self._made[chosen].values, "zeros": end.zeros, "coefficients": end.coefficients, "certificate": end.certificate}

    def _selection(self) -> dict[str, Any] | None:
        if not self._searches:
            return None
        selection, choice = self.job.spec.selection, self.choice()
        return {"metric": selection.metric, "rule": selection.rule, "chosen": choice.by(selection.rule), **asdict(choice), "table": [asdict(score) for score in self.table()]}

    @property
    def _searches(self) -> bool:
        """Whether there is something to compare, and rows to compare by."""
        return len(points(self.job.runs)) > 1 or self.job.spec.selection.folds is not None

    def _chosen_run(self) -> int | None:
        """The run that a caller means by "the" result: the only one, the refit, or the best of the chosen set of values. With folds alone there is none."""
        refit = next((run.index for run in self._made.values() if run.refit), None)
        if refit is not None or len(self.job.runs) == 1:
            return refit if refit is not None else 0
        place = self.choice().by(self.job.spec.selection.rule)
        if place is None or self.job.spec.selection.folds is not None:
            return None
        sign = -1 if self.job.spec.selection.metric.startswith("accuracy") else 1
        return min(self.table()[place].runs, key=lambda index: (sign * self._metric(index), index))

    def _metric(self, index: int) -> float:
        run = self.runs.get(index)
        return run.metrics.get(self.job.spec.selection.metric, np.nan) if run is not None and run.state == RunState.SUCCEEDED else np.nan


def skipped(run: Run) -> RunFinished:
    """A refit that was not made, because nothing could be chosen."""
    return RunFinished(run=run.index, state=RunState.CANCELLED, stop_reason=StopReason.CANCELLED, steps=0, metrics={})
