"""One attempt at a job: what the trainer says is stored in its order, a file before its row, and in between the worker beats, looks whether somebody wants
the job to stop, and kills who does not obey.
"""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, assert_never

import structlog
from sqlalchemy.exc import OperationalError

from regtrain.contract.errors import StaleAttempt
from regtrain.contract.events import Checkpointed, Event, Failed, Finished, Log, Noticed, PackBegun, Points, RunFinished, Started
from regtrain.contract.states import Intent
from regtrain.store import files, jobs
from regtrain.store.database import Database
from regtrain.store.jobs import Claim
from worker.child import Child, Gone, Ready, Said, Stopped
from worker.crash import crash_point
from worker.settings import Settings

OBEY_SECONDS = 10.0
"""How long the trainer may take to stop when a job is cancelled or paused."""
DRAIN_SECONDS = 18.0
"""How long it may take to reach a checkpoint when the worker is told to leave, which it does within 25 s."""
NUDGED_BEAT_SECONDS = 0.25
"""A nudge makes a beat come early, so that a cancel is seen at once, but not more often than this."""
PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Seconds between attempts at a transaction that the database refused."""

P = ParamSpec("P")
T = TypeVar("T")
log: Any = structlog.get_logger()


class Wish(Enum):
    """Why an attempt is to end before its end."""

    CANCEL = auto()
    PAUSE = auto()
    DRAIN = auto()
    STALL = auto()


class Attempt:
    """One execution of a job. Raises StaleAttempt from wherever the store says that the job is no longer ours."""

    def __init__(self, db: Database, claim: Claim, child: Child, settings: Settings) -> None:
        self.ending = ""
        """How it ended; empty while it goes on."""
        self._db = db
        self._claim = claim
        self._child = child
        self._settings = settings
        self._wish: Wish | None = None
        self._nudged = False
        self._pack_steps: list[int] = []
        self._step = 0
        self._heard = self._last_beat = time.monotonic()
        self._deadline = float("inf")

    @property
    def over(self) -> bool:
        return bool(self.ending)

    def begin(self) -> None:
        claim, data = self._claim, self._db.data
        self._child.forget_stderr()
        self._child.send(
            "train",
            spec=claim.spec.model_dump_json(by_alias=True),
            data=str(data),
            upload=str(claim.upload) if claim.upload else None,
            origins={job: str(path) for job, path in claim.origins.items()},
            scratch=str(files.scratch(data, claim.job, claim.attempt)),
            packs=claim.packs,
            resume={str(pack): str(path) for pack, path in claim.resume.items()},
            checkpoint_seconds=self._settings.checkpoint_seconds,
        )

    def take(self, messages: list[Said]) -> None:
        """Stores what the trainer has said, in its order: neighbouring reports in one transaction, a file before its row."""
        reports: list[Event] = []
        for said in messages:
            self._heard = time.monotonic()
            match said:
                case Started() | PackBegun() | Points() | Noticed() | RunFinished() | Log():
                    self._count(said)
                    reports.append(said)
                case Checkpointed():
                    self._checkpoint(reports, said)
                    reports = []
                case Finished():
                    return self._finish(reports, said)
                case Failed():
                    return self._fail(reports, said)
                case Stopped() | Gone():
                    return self._stop(reports)
                case Ready():
                    continue
                case _:
                    assert_never(said)
        if reports:
            self._report(reports)

    def tick(self, *, leaving: int, nudged: bool) -> None:
        """What is due by the clock: a beat, obeying, killing who does not obey or does not move."""
        now = time.monotonic()
        if self.over:
            return
        if leaving and self._wish is None:
            self._ask(Wish.DRAIN)
        if leaving > 1:
            self._deadline = now
        self._nudged |= nudged
        if now - self._last_beat >= (NUDGED_BEAT_SECONDS if self._nudged else self._settings.heartbeat_seconds):
            self._beat(now)
        if self._wish is None and now - self._heard >= self._settings.stall_seconds:
            self._wish, self._deadline = Wish.STALL, now
        if now >= self._deadline:
            self._child.kill()  # its end arrives in the inbox

    def give_up(self, detail: str) -> None:
        """Counts a fault of our own as a crash, so that a job that brings it about again and again stops harming workers."""
        with suppress(StaleAttempt):
            self._crashed(detail)

    def _beat(self, now: float) -> None:
        self._last_beat, self._nudged = now, False
        match patiently(jobs.heartbeat, self._db, self._claim, step=self._step):
            case Intent.CANCELLING if self._wish is not Wish.CANCEL:
                self._ask(Wish.CANCEL)
            case Intent.PAUSING if self._wish is None:
                self._ask(Wish.PAUSE)
            case _:
                pass

    def _ask(self, wish: Wish) -> None:
        """Lets the trainer stop by itself, with a checkpoint unless nobody will need one."""
        self._wish = wish
        self._child.send("cancel" if wish is Wish.CANCEL else "drain")
        self._deadline = time.monotonic() + (DRAIN_SECONDS if wish is Wish.DRAIN else OBEY_SECONDS)

    def _count(self, event: Event) -> None:
        """The step counter of the heartbeat: updates of all packs so far."""
        if isinstance(event, Started):
            self._pack_steps = event.steps_of_packs
        if isinstance(event, Started | Points):
            self._step = sum(self._pack_steps[: event.pack]) + event.step

    def _report(self, reports: list[Event]) -> None:
        """Also without events this is the fence: nothing below happens to a job that is no longer ours."""
        patiently(jobs.report, self._db, self._claim, reports)
        crash_point("loop.points")

    def _checkpoint(self, reports: list[Event], event: Checkpointed) -> None:
        self._report(reports)
        path = self._publish(event.path, files.checkpoint_name(event.pack, event.step))
        crash_point("loop.renamed")
        patiently(jobs.checkpointed, self._db, self._claim, event, path)
        crash_point("loop.checkpointed")

    def _finish(self, reports: list[Event], event: Finished) -> None:
        self._report(reports)
        path = self._publish(event.path, "model.safetensors")
        crash_point("loop.model_renamed")
        patiently(jobs.finish, self._db, self._claim, event, path)
        crash_point("loop.finished")
        self._end("succeeded")

    def _fail(self, reports: list[Event], event: Failed) -> None:
        self._report(reports)
        patiently(jobs.fail, self._db, self._claim, event.failure, event.message, event.detail)
        self._end(f"failed: {event.failure}")

    def _stop(self, reports: list[Event]) -> None:
        """The trainer has stopped: because it was asked to, or by itself, which is a crash."""
        self._report(reports)
        match self._wish:
            case Wish.CANCEL:
                patiently(jobs.cancelled, self._db, self._claim)
                self._end("cancelled")
            case Wish.DRAIN | Wish.PAUSE:
                self._end(f"released: {patiently(jobs.release, self._db, self._claim)}")
            case Wish.STALL:
                self._crashed(f"stalled: the trainer reported nothing for {self._settings.stall_seconds:g} s after step {self._step}, and was killed")
            case None:
                self._crashed(self._child.last_words())

    def _crashed(self, detail: str) -> None:
        log.warning("crashed", job=self._claim.job, attempt=self._claim.attempt, reason=detail.partition("\n")[0])
        patiently(jobs.crashed, self._db, self._claim, detail)
        self._end("crashed")

    def _end(self, how: str) -> None:
        self.ending = how
        jobs.tidy(self._db, self._claim)

    def _publish(self, temporary: str, name: str) -> Path:
        return files.publish(self._db.data, Path(temporary), job=self._claim.job, attempt=self._claim.attempt, name=name)


def patiently(verb: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """A verb writes everything or nothing, so after an error of the database it can be tried again; jitter keeps workers apart."""
    for pause in PAUSES:
        try:
            return verb(*arguments, **named)
        except OperationalError as error:
            log.warning("the database refused", verb=verb.__name__, reason=str(error.orig), again_in=pause)
            time.sleep(pause * random.uniform(0.5, 1.5))
    return verb(*arguments, **named)
