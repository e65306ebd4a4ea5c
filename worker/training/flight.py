"""The flight recorder: what the last updates of a run measured before it met a number that is not finite.

While training goes on nothing is measured for it. The state of a pack is copied every LAST updates; a run that fails is trained again by itself, from a copy
that lies far enough back, with its own rows and noise, which are functions of the step, and every one of these updates is measured. Training knows nothing of it.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regtrain.contract.runs import Run
from worker.training.adapt import Adapting
from worker.training.feed import Feed
from worker.training.pack import Pack
from worker.training.points import Recorder
from worker.training.prepare import Job
from worker.training.step import step

LAST = 32
"""Updates that are told, the failing one included, and updates between two copies: so the two newest always reach far enough back."""
SERIES = ("loss/train", "learning_rate", "gradient/total", "gradient/norm", "signal/forward", "signal/backward", "weight/norm", "update/ratio")

State = dict[str, Tensor]
"""What changes from update to update, a row a run."""


class Flight:
    """The two newest copies of a pack's state; of a run that has stopped, the two newest from before."""

    def __init__(self) -> None:
        self._since: int | None = None
        """The step of the first copy, 0 unless training was resumed: of what was before, nothing is known."""
        self._copies: tuple[State, State] = {}, {}

    def due(self, t: int) -> bool:
        return t % LAST == 0 or self._since is None

    def keep(self, t: int, state: State, alive: Tensor) -> None:
        """Copies the state in front of update t, but for runs that are not alive (R,). Waits for no device: how far back a failure lies does not matter to it."""
        if self._since is None:
            self._since = t
        copy = self._copies[t // LAST % 2]
        everyone = alive.is_cpu and bool(alive.all())
        for name, now in state.items():
            if name in copy and everyone:
                copy[name].copy_(now)
            elif name in copy:
                torch.where(alive.view(-1, *[1] * (now.dim() - 1)), now, copy[name], out=copy[name])
            else:
                copy[name] = now.clone()

    def narrow(self, rows: Tensor) -> None:
        """Goes on with these runs of the pack alone."""
        for copy in self._copies:
            copy.update({name: tensor[rows] for name, tensor in copy.items()})

    def before(self, t: int, row: int) -> tuple[int, State]:
        """The newest copy of a run that is at least LAST updates old behind its update t, or the first one: its step, and the state in front of it, (1, …) each."""
        assert self._since is not None
        at = max(t - LAST + 1, self._since) // LAST
        return max(at * LAST, self._since), {name: tensor[row : row + 1] for name, tensor in self._copies[at % 2].items()}


def in_full(run: Run) -> Run:
    """The run as it looks at every update."""
    return replace(run, spec=run.spec.model_copy(update={"diagnostics": "full"}))


def last(job: Job, pack: Pack, state: State, *, first: int, t: int) -> dict[str, Any]:
    """`last`: what the updates up to t measure, LAST at most, made again from the state in front of update `first`: `steps`, `layers`, and a list a series, of a list
    of layers where it is per layer. pack: of one run `in_full`. Empty where rounding lets that run fail so much earlier than in its own pack that none is left.
    """
    pack.take(state)
    adapting, feed, recorder = Adapting(job, pack), Feed(job, pack), Recorder(0, 1, trained=1)
    adapting.restore(state)
    for now in range(first, t + 1):
        x, y = feed.batch(now)
        rates, lr = feed.rates(now)
        recorder.add(pack, now, y.shape[-1], rates, *step(pack, x, y, t=now, lr=lr), look=False)
        if (now + 1) % job.per_epoch == 0:
            adapting.update()
    points = recorder.report(pack, [0], t + 1)
    assert points is not None
    steps = points.steps["loss/train"][: points.counts["loss/train"][0]]
    told = np.flatnonzero(steps > t - LAST)
    values = {name: _listed(points.values[name][told, 0]) for name in SERIES}
    return {"last": {"steps": steps[told].tolist(), "layers": [layer.name for layer in pack.shape], **values}} if len(told) else {}


def _listed(values: NDArray[Any]) -> list[Any]:
    """With as many digits as tell a number from its neighbours: those of float32 take half the room.  (n,) or (n, L)"""
    return [_listed(value) if value.ndim else float(str(value)) for value in values]
