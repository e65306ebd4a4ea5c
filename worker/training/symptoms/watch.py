"""What training asks after every report: whether a window is complete, and what is wrong in it.

Windows end at fixed numbers of updates (1, 32, 128, and every 256), so what is noticed does not depend on when reports were made: a job that was
killed and resumed says the same, from the state that its checkpoint carries.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regtrain.contract.events import Noticed, Points
from worker.training.symptoms import course, initialisation, outcome
from worker.training.symptoms.known import Known
from worker.training.symptoms.rates import too_sharp
from worker.training.symptoms.window import AFTER, WATCHED, Finding, Past, Window, next_look

LARGEST = float(np.finfo(np.float64).max)
ALIVE = "alive"
Steps = NDArray[np.int64]


class Watch:
    """The runs of one pack, watched through their points."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.past = Past.begin(len(known.runs), len(known.layers))
        self.done = 0
        """Updates of all windows that have been judged."""
        self.noticed: set[tuple[str, int]] = set()
        """Symptom and place of what has been reported: each is reported once a run."""
        self._open: dict[str, list[tuple[Steps, NDArray[Any]]]] = {}
        """Series → steps and values that have not been judged."""

    def see(self, points: Points) -> Iterator[Noticed]:
        """What is newly wrong by the windows that these points complete; the one in which the budget ends waits for `end`."""
        self._keep(points)
        while next_look(self.done) <= min(points.step, self.known.steps - 1):
            yield from self._judge(next_look(self.done), last=False)

    def end(self, done: int) -> Iterator[Noticed]:
        """What the rest tells, however short, and what only the end can. `done`: updates of the run that went furthest."""
        yield from self._judge(max(done, self.done), last=True)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Everything that is needed to go on, as arrays and JSON."""
        arrays: dict[str, NDArray[Any]] = {f"past/{f.name}": getattr(self.past, f.name) for f in fields(Past)}
        for name, pieces in self._open.items():
            arrays |= {f"steps/{name}": np.concatenate([steps for steps, _ in pieces]), f"open/{name}": np.concatenate([values for _, values in pieces])}
        return arrays, {"done": self.done, "noticed": sorted([symptom, place] for symptom, place in self.noticed)}

    def restore(self, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> None:
        """Takes up a state."""
        self.done, self.noticed = about["done"], {(symptom, place) for symptom, place in about["noticed"]}
        self.past = Past(**{f.name: arrays[f"past/{f.name}"] for f in fields(Past)})
        self._open = {name.removeprefix("open/"): [(arrays[f"steps/{name.removeprefix('open/')}"], values)] for name, values in arrays.items() if name.startswith("open/")}

    def _keep(self, points: Points) -> None:
        for name in (*WATCHED, *AFTER):
            if name not in points.steps or not len(steps := points.steps[name]):
                continue
            values, counts = points.values[name], points.counts[name]
            trained = np.arange(len(steps))[:, None] < counts  # (n, R)
            if not trained.all():
                values = np.where(trained.reshape(*trained.shape, *[1] * (values.ndim - 2)), values, np.nan).astype(values.dtype)
            self._open.setdefault(name, []).append((steps, values))
            if name == "loss/train":
                self._open.setdefault(ALIVE, []).append((steps, trained))

    def _judge(self, done: int, *, last: bool) -> Iterator[Noticed]:
        window = self._cut(done, last=last)
        with np.errstate(all="ignore"):
            past = self.past.with_evaluations(window)
            after = past.after(window)
            found = [finding for judge in self._criteria(window) for finding in judge(self.known, window, past)]
            found += [finding for judge in outcome.CRITERIA for finding in judge(self.known, window, after)]
            sharp = too_sharp(self.known, window)
        self.past = after if sharp is None else replace(after, sharp=sharp)
        self.done = done
        for finding in found:
            if (key := (finding.symptom, finding.place)) not in self.noticed:
                self.noticed.add(key)
                yield self._event(finding, done)

    def _criteria(self, window: Window) -> tuple[Any, ...]:
        """Before the first update what is wrong with the beginning, and whether its numbers are finite; then what goes wrong."""
        if not window.has("loss/train"):
            return ()
        return (*initialisation.CRITERIA, course.non_finite) if window.first == 0 else course.CRITERIA

    def _cut(self, done: int, *, last: bool) -> Window:
        """Takes everything up to an update out of what is open."""
        values: dict[str, NDArray[Any]] = {}
        steps: dict[str, Steps] = {}
        for name, pieces in self._open.items():
            at, whole = (pieces[0]) if len(pieces) == 1 else (np.concatenate([s for s, _ in pieces]), np.concatenate([v for _, v in pieces]))
            end = len(at) if last else int(np.searchsorted(at, done + (name in AFTER)))
            steps[name], values[name] = at[:end], whole[:end] if whole.dtype == bool else whole[:end].astype(np.float64)
            self._open[name] = [(at[end:], whole[end:])]
        self._open = {name: pieces for name, pieces in self._open.items() if len(pieces[0][0])}
        alive = values.pop(ALIVE, np.zeros((0, len(self.known.runs)), bool))
        return Window(self.done, done, alive.sum(0), values, steps, last)

    def _event(self, finding: Finding, done: int) -> Noticed:
        return Noticed(
            run=self.known.runs[finding.place], symptom=finding.symptom, layer=finding.layer, step=finding.step, value=_finite(finding.value), bound=finding.bound,
            severity=finding.severity, confidence=float(min(max(finding.confidence, 0.0), 1.0)),
            evidence={name: _finite(value) if isinstance(value, float) else value for name, value in finding.evidence.items()}, pack=self.known.pack, done=done,
        )  # fmt: skip


def _finite(value: float) -> float:
    """The number, or the nearest that JSON knows."""
    return float(np.nan_to_num(value, nan=0.0, posinf=LARGEST, neginf=-LARGEST))
