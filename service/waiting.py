"""Long polls: one poller for all who wait, so that 2,000 of them cost one query a tick and no thread.

A waiting route is async and holds a future. The poller asks the store about all jobs that are waited for at once,
sleeps while nobody waits, and is nudged when this process or a worker of this machine has changed a job.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.concurrency import run_in_threadpool

from regtrain.contract.errors import Problem, SpecRefused
from regtrain.contract.states import FINAL, State
from service.names import nearest

TICK_SECONDS = 0.025


@dataclass(frozen=True)
class Glance:
    """What a condition may look at."""

    state: State
    metrics: dict[str, float | None]
    symptoms: int = 0
    """How many have been noticed."""


@dataclass(frozen=True)
class Until:
    """What is waited for: the end of the job, which ends every wait, or a metric beyond a bound, or the first symptom."""

    metric: str | None = None
    side: Literal["lt", "gt"] = "lt"
    bound: float = 0.0
    symptom: bool = False

    def met(self, glance: Glance | None) -> bool:
        """A job that is gone is waited for no longer."""
        if glance is None or glance.state in FINAL:
            return True
        if self.symptom:
            return glance.symptoms > 0
        value = glance.metrics.get(self.metric) if self.metric else None
        return value is not None and (value < self.bound if self.side == "lt" else value > self.bound)


def until(text: str) -> Until:
    """Reads `terminal`, `symptom` or `<metric>:lt|gt:<number>`.

    Raises:
        SpecRefused: it is neither.
    """
    if text == "terminal":
        return Until()
    if text == "symptom":
        return Until(symptom=True)
    metric, _, rest = text.partition(":")
    side, _, bound = rest.partition(":")
    if not metric or not rest or not bound:
        raise SpecRefused([Problem("until", f"expected terminal, symptom or <metric>:lt|gt:<number>, found {text[:60]!r}", "such as until=terminal or until=loss/val:lt:0.2")])
    if side not in ("lt", "gt"):
        raise SpecRefused([Problem("until", f"unknown comparison {side[:60]!r}", nearest(side, ["lt", "gt"]))])
    try:
        return Until(metric, "lt" if side == "lt" else "gt", float(bound))
    except ValueError:
        raise SpecRefused([Problem("until", f"not a number: {bound[:60]!r}", "such as until=loss/val:lt:0.2")]) from None


@dataclass
class Poller:
    """`look` maps job ids to what is to be seen of each; ids of jobs that are gone are missing from its answer."""

    look: Callable[[list[str]], dict[str, Glance]]
    waiting: dict[asyncio.Future[None], tuple[str, Until]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[Any] | None = None
    closed: bool = False

    async def wait(self, job: str, condition: Until, *, seconds: float) -> None:
        """Returns when the condition holds, the time is over, or the server stops."""
        if self.closed or seconds <= 0:
            return
        ready = asyncio.get_running_loop().create_future()
        self.waiting[ready] = (job, condition)
        self.nudge()
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._poll())
        try:
            async with asyncio.timeout(seconds):
                await ready
        except TimeoutError:
            pass
        finally:
            self.waiting.pop(ready, None)

    def nudge(self) -> None:
        """Something has changed: look now."""
        self.changed.set()

    def close(self) -> None:
        """Answers all who wait, so that the server can stop."""
        self.closed = True
        for ready in list(self.waiting):
            _release(ready)
        self.nudge()

    async def _poll(self) -> None:
        while self.waiting and not self.closed:
            self.changed.clear()
            try:
                seen = await run_in_threadpool(self.look, sorted({job for job, _ in self.waiting.values()}))
            except Exception as error:  # those who wait hear of it; the next one starts a new poll
                for ready in list(self.waiting):
                    _release(ready, error)
                return
            for ready, (job, condition) in list(self.waiting.items()):
                if condition.met(seen.get(job)):
                    _release(ready)
            try:
                async with asyncio.timeout(TICK_SECONDS):
                    await self.changed.wait()
            except TimeoutError:
                pass


def _release(ready: asyncio.Future[None], error: Exception | None = None) -> None:
    if not ready.done():
        ready.set_exception(error) if error else ready.set_result(None)
