"""What the runs of a job say together: the table of scores, the choice, the refit with the chosen values, and the test rows, touched once."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import geometric_mean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regtrain.contract.adapting import fixed
from regtrain.contract.events import Event, Finished, RunFinished
from regtrain.contract.regularizers import EarlyStopping
from regtrain.contract.runs import Run, points
from regtrain.contract.selection import Choice, Score, choose, in_words, nested, scores, spread
from regtrain.contract.states import RunState, StopReason
from regtrain.contract.symptoms import SymptomName
from regtrain.contract.trial import Contestant, judged, signs
from worker.training import begin, results
from worker.training.evaluate import evaluate
from worker.training.models import Layout
from worker.training.pack import Pack
from worker.training.prepare import Job, for_run
from worker.training.running import pack_of
from worker.training.selectors import selectors
from worker.training.symptoms import Watch


@dataclass(frozen=True)
class Kept:
    """The final weights of a trained pack, on the CPU: (R, P) and (R, Q), and where in them each tensor lies."""

    runs: list[int]
    flat: Tensor
    buffers: Tensor
    layout: Layout

    def named(self) -> dict[str, Tensor]:
        return dict(self.layout.views(self.flat)) | self.layout.buffer_views(self.buffers)


class Found:
    """What has been found so far, pack by pack."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.runs: dict[int, RunFinished] = {}
        self._shown: set[tuple[int, str]] = set()
        """Run and symptom, of all that has been noticed."""
        self._made: dict[int, Run] = {}
        """Runs that have been or are being trained, with their values and specs."""
        self._kept: list[Kept] = []
        self._jobs: dict[int, tuple[int, Job]] = {}
        """Of each trained run its updates an epoch; rows and scaling of refits."""
        self._members: dict[tuple[int | None, int], list[int]] = {}
        """Outer fold and point → its runs."""
        for outer in (None, *range(job.spec.selection.outer or 0)):
            self._members |= {(outer, run_of[0].point or 0): [run.index for run in run_of] for run_of in points(job.runs, outer)}

    def expect(self, runs: Sequence[Run]) -> None:
        """These runs are trained next."""
        self._made |= {run.index: run for run in runs}

    def note(self, event: Event) -> None:
        if isinstance(event, RunFinished):
            self.runs[event.run] = event

    def keep(self, job: Job, pack: Pack) -> None:
        """The final weights of a pack."""
        self._kept.append(Kept([run.index for run in pack.runs], pack.flat.cpu().clone(), pack.buffers.cpu().clone(), pack.layout))
        for run in pack.runs:
            self._jobs[run.index] = (job.per_epoch, job if run.refit else self.job)

    def saw(self, watch: Watch) -> None:
        """What a trained pack has shown, also before its checkpoint: only the watch knows that."""
        self._shown |= {(watch.known.runs[place], symptom) for symptom, place in watch.noticed}

    def left_out(self, members: Sequence[int], trained: Sequence[Run]) -> Iterator[RunFinished]:
        """The runs of a pack that are not worth training, or, of a refit, that nothing could be chosen for."""
        for index in members:
            if index not in {run.index for run in trained}:
                reason = StopReason.CANCELLED if self.job.runs[index].refit else StopReason.PRUNED
                self.runs[index] = RunFinished(run=index, state=RunState.CANCELLED, stop_reason=reason, steps=0, metrics={})
                yield self.runs[index]

    @property
    def failed(self) -> bool:
        """Whether no run has become anything; a trial whose control is known has something to say even then."""
        trial = self.job.spec.trial
        return (trial is None or trial.known is None) and all(run.state != RunState.SUCCEEDED for run in self.runs.values())

    def metric(self, index: int) -> float:
        """What a run is compared by; NaN where it failed or has none."""
        run = self.runs.get(index)
        return run.metrics.get(self.job.spec.selection.metric, np.nan) if run is not None and run.state == RunState.SUCCEEDED else np.nan

    def members(self, run: Run) -> list[int]:
        """All repetitions of a run's set of values, in the order of folds and seeds."""
        assert run.point is not None
        return self._members[run.outer, run.point]

    def weights_of(self, index: int) -> tuple[Tensor, Tensor] | None:
        """Final weights (P,) and running averages (Q,) of a run; None where it failed."""
        if (run := self.runs.get(index)) is None or run.state != RunState.SUCCEEDED:
            return None
        kept = next(kept for kept in self._kept if index in kept.runs)
        return kept.flat[kept.runs.index(index)], kept.buffers[kept.runs.index(index)]

    def contestants(self) -> list[Contestant]:
        """Of a trial: what is known of each variant, over the seeds that it has been trained with."""
        trial = self.job.spec.trial
        assert trial is not None
        asked = signs(trial, seeds=self.job.spec.selection.seeds)
        trained: dict[str | None, list[int]] = {variant.label: [] for variant in self.job.spec.variants}
        for run in self.job.runs:
            if run.index in self.runs and self.runs[run.index].stop_reason != StopReason.PRUNED:
                trained[run.variant].append(run.index)
        known = {} if trial.known is None else {trial.control: trial.known.contestant(trial.control)}
        return [known.get(label) or self._contestant(label, runs, asked) for label, runs in trained.items() if label is not None]

    def _contestant(self, label: str, runs: Sequence[int], asked: frozenset[SymptomName]) -> Contestant:
        return Contestant(label, tuple(map(self.metric, runs)), tuple(any(self._shows(index, symptom) for symptom in asked) for index in runs))

    def _shows(self, index: int, symptom: SymptomName) -> bool:
        return (index, symptom) in self._shown or (symptom == "non_finite" and self.runs[index].state == RunState.FAILED)

    def table(self, outer: int | None = None) -> list[Score]:
        """The score of every set of values, in the order of the grid; NaN without validation rows."""
        found = [runs for (of, _), runs in self._members.items() if of == outer]
        first = [self._made.get(runs[0], self.job.runs[runs[0]]) for runs in found]
        return scores([(run.variant, run.values, [(index, self.metric(index)) for index in runs]) for run, runs in zip(first, found, strict=True)])

    def choice(self, table: Sequence[Score]) -> Choice:
        return choose(table, higher_is_better=self._higher)

    def refit(self, run: Run) -> Run | None:
        """The refit with the chosen values; None where nothing could be chosen.

        It has no validation rows, so it cannot stop early by itself: it trains as many epochs as the chosen runs' best evaluations took, in the median. Nor can
        its strength follow their loss: it is the geometric mean of those that the chosen runs have found. One that follows the evidence adapts again.
        """
        table = self.table(run.outer)
        place = self.choice(table).by(self.job.spec.selection.rule)
        if place is None:
            return None
        chosen = self._made[table[place].runs[0]]
        spec, values = chosen.spec, dict(chosen.values)
        for path, strength in self._found_by_validation(table[place].runs).items():
            spec, values = fixed(spec, path, strength), values | {path: strength}
        if any(isinstance(r, EarlyStopping) for r in spec.regularizers):
            epochs = [self.runs[index].best.get("step", 0) / self._jobs[index][0] for index in table[place].runs]
            spec = spec.model_copy(update={"budget": spec.budget.model_copy(update={"epochs": max(1, round(median(epochs)))})})
        return replace(run, values=values, spec=spec, variant=chosen.variant)

    def _found_by_validation(self, runs: Sequence[int]) -> dict[str, float]:
        """Path → geometric mean of the strengths that these runs have found on their validation rows, which a refit has not."""
        ends = [of for index in runs if (of := self.runs[index].adaptation) is not None and of["method"] == "validation_gradient"]
        return {ends[0]["path"]: geometric_mean([of["strength"] for of in ends])} if ends else {}

    def tested(self) -> Iterator[RunFinished]:
        """The chosen run with its metrics on the test rows, where no refit has them."""
        chosen = self._chosen_run()
        if chosen is None or results.tells_test(self.job, self._made[chosen]) or not len(self.job.test):
            return
        run = self._made[chosen]
        job, weights = for_run(self.job, run), self.weights_of(chosen)
        assert weights is not None
        pack = pack_of(job, [run], begin=(weights[0].unsqueeze(0), weights[1].unsqueeze(0)))
        measured = {name: float(value[0]) for name, value in evaluate(pack, job.test, "test").items()}
        self.runs[chosen] = replace(self.runs[chosen], metrics=self.runs[chosen].metrics | measured)
        yield self.runs[chosen]

    def finished(self) -> Finished:
        """The job's result, and its model file: every tensor stacked over all trained runs, in the order of the runs; with variants each has tensors of its own."""
        chosen = self._chosen_run()
        last = self.job if chosen is None or chosen not in self._jobs else self._jobs[chosen][1]
        made = [self._made[index] for index in sorted(self._made)]
        return results.finished(last, self._stacked(), made, {**self._answer(chosen), "trial": self._trial(), "begin": begin.told(self.job, made)})

    def _stacked(self) -> dict[str, Tensor]:
        parts: dict[str | None, list[Kept]] = {}
        for kept in self._kept:
            parts.setdefault(self._made[kept.runs[0]].variant, []).append(kept)
        found: dict[str, Tensor] = {}
        for variant, kept in parts.items():
            order = torch.from_numpy(np.argsort([index for part in kept for index in part.runs]))
            named = [part.named() for part in kept]
            prefix = "" if variant is None else f"{variant}/"
            found |= {f"{prefix}{name}": torch.cat([tensors[name] for tensors in named])[order] for name in named[0]}
        return found

    def _answer(self, chosen: int | None) -> dict[str, Any]:
        table = self.table()
        found: dict[str, Any] = {"chosen_run": chosen, "chosen_by": None, "variant": None, "values": {}, "selection": self._selection(table)}
        if chosen is None:
            place = self.choice(table).by(self.job.spec.selection.rule) if self._searches else None
            return found if place is None else {**found, "values": dict(table[place].values), "variant": table[place].variant, "chosen_by": self.job.spec.selection.metric}
        end, run = self.runs[chosen], self._made[chosen]
        by = None if len(self.job.runs) == 1 else self.job.spec.selection.metric
        head = {**found, "chosen_by": by, "variant": run.variant, "values": run.values}
        return {**head, "zeros": end.zeros, "coefficients": end.coefficients, "certificate": end.certificate, "adaptation": end.adaptation}

    def _trial(self) -> dict[str, Any] | None:
        """The verdicts on remedies, where the job is a trial of some."""
        spec = self.job.spec
        return None if spec.trial is None else judged(spec.trial, self.contestants(), metric=spec.selection.metric, seeds=spec.selection.seeds)

    def _selection(self, table: list[Score]) -> dict[str, Any] | None:
        if not self._searches:
            return None
        selection, choice = self.job.spec.selection, self.choice(table)
        metrics = {index: self.metric(index) for score in table for index in score.runs}
        return {
            "metric": selection.metric, "rule": selection.rule, "chosen": choice.by(selection.rule), **asdict(choice), "table": [asdict(score) for score in table],
            "in_words": in_words(table, choice, selection), "spread": spread(table, metrics, selection), "nested": self._nested(),
            "closed": selectors(self.job, sorted({strength for score in table if (strength := score.values.get("regularizers.0.lambda")) is not None})),
        }  # fmt: skip

    def _nested(self) -> dict[str, Any] | None:
        """What the whole choice is worth on rows that it knows nothing of."""
        refits = [run for run in self._made.values() if run.outer is not None and run.refit]
        if not self.job.spec.selection.outer:
            return None
        name = self.job.spec.selection.metric.replace("val", "outer")
        return nested([(run.values, run.variant, self.runs[run.index].metrics.get(name, np.nan)) for run in sorted(refits, key=lambda run: run.outer or 0)])

    @property
    def _searches(self) -> bool:
        """Whether there is something to compare, and rows to compare by."""
        return len(points(self.job.runs)) > 1 or self.job.spec.selection.folds is not None

    @property
    def _higher(self) -> bool:
        return self.job.spec.selection.metric.startswith("accuracy")

    def _chosen_run(self) -> int | None:
        """The run that a caller means by "the" result: the only one, the refit, or the best of the chosen set of values. With folds alone there is none."""
        if len(self.job.runs) == 1:
            return 0
        refits = [run for run in self._made.values() if run.refit and run.outer is None]
        if refits and refits[0].point is None:
            return refits[0].index
        table = self.table()
        place = self.choice(table).by(self.job.spec.selection.rule)
        if place is None:
            return None
        if refits:
            return next((run.index for run in refits if run.point == place), None)
        if self.job.spec.selection.folds is not None:
            return None
        return min(table[place].runs, key=lambda index: ((-1 if self._higher else 1) * self.metric(index), index))
