"""claim → train → finish. The only file of the worker that knows the store.

The loop never computes and never waits for the one who does: it takes what the trainer says from an inbox, stores it in
that order, and in between beats, looks whether somebody wants the job to stop, and rescues the jobs of dead workers.
"""

import queue
import random
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from enum import Enum, auto
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, assert_never

import structlog
from sqlalchemy.exc import OperationalError
from ulid import ULID

from regtrain.contract.errors import StaleAttempt
from regtrain.contract.events import Checkpointed, Event, Failed, Finished, Log, Noticed, PackBegun, Points, RunFinished, Started
from regtrain.contract.states import Intent
from regtrain.store import files, jobs, nudge, workers
from regtrain.store.database import Database, open_database
from regtrain.store.jobs import Claim
from worker.child import INBOX_MESSAGES, Child, Gone, Inbox, Nudge, Ready, Said, Stopped
from worker.crash import crash_point
from worker.settings import Settings
from worker.silence import Silence

OBEY_SECONDS = 10.0
"""How long the trainer may take to stop when a job is cancelled or paused."""
DRAIN_SECONDS = 18.0
"""How long it may take to reach a checkpoint when the worker is told to leave, which it does within 25 s."""
TICK_SECONDS = 0.25
"""The longest that a signal, or what is due by the clock, waits to be seen."""
RESCUE_SECONDS = 1.0
NUDGED_BEAT_SECONDS = 0.25
"""A nudge makes a beat come early, so that a cancel is seen at once, but not more often than this."""
MOST_STARTS = 3
"""A trainer that cannot even start so often in a row is no matter of jobs: the worker gives up."""
PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Seconds between attempts at a transaction that the database refused."""

P = ParamSpec("P")
T = TypeVar("T")
log: Any = structlog.get_logger()


def work(settings: Settings) -> int:
    """Works until SIGTERM or SIGINT; returns the exit code."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    with closing(open_database(settings.database_url, settings.data)) as db, ExitStack() as life:
        return Worker(db, f"worker_{ULID()}", settings, life).run()


class Worker:
    """One device, one child, one job at a time."""

    def __init__(self, db: Database, name: str, settings: Settings, life: ExitStack) -> None:
        self._life = life
        self._db = db
        self._name = name
        self._settings = settings
        self._inbox: Inbox = queue.Queue(INBOX_MESSAGES)
        self._nudged = threading.Event()
        self._signals = 0
        self._starts = 0
        self._registered = False
        self._silence = Silence(settings.lease_seconds)
        self._next_rescue = 0.0
        self._next_sign = 0.0
        self._next_claim = 0.0
        self._idle_since: float | None = None
        self._child = self._new_child()

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note_signal)
        nudges = self._life.enter_context(nudge.listening(self._db.data, self._name, "workers"))
        threading.Thread(target=self._hear, args=(nudges,), daemon=True).start()
        try:
            while not self._signals:
                self._rescue(None)
                claim = self._claim()
                if claim is not None:
                    self._execute(claim)
                elif self._idle_too_long():
                    break
                else:
                    self._wait()
            return 0
        except TrainerBroken as broken:
            log.error("the trainer does not start", reason=str(broken))
            return 1
        finally:
            self._child.close()
            log.info("left", worker=self._name)

    def _claim(self) -> Claim | None:
        """Looks into the queue when nudged, else now and then."""
        now, nudged = time.monotonic(), self._was_nudged()
        if self._child.ready is None or (now < self._next_claim and not nudged):
            return None
        claim = patiently(jobs.claim, self._db, worker=self._name)
        self._next_claim = now + self._settings.poll_seconds if claim is None else 0.0
        self._idle_since = None if claim is not None else self._idle_since or now
        return claim

    def _execute(self, claim: Claim) -> None:
        """One attempt at a job, to whatever end."""
        crash_point("loop.claimed")
        log.info("claimed", job=claim.job, attempt=claim.attempt)
        attempt = Attempt(self._db, claim, self._child, self._settings)
        try:
            attempt.begin()
            while not attempt.over:
                attempt.take(self._receive())
                attempt.tick(leaving=self._signals, nudged=self._was_nudged())
                self._rescue(claim)
            log.info("ended", job=claim.job, attempt=claim.attempt, how=attempt.ending)
        except StaleAttempt as stale:
            log.warning("lost", job=claim.job, attempt=claim.attempt, reason=str(stale))
            self._child.kill()  # at once: not even its own folder is touched any more
        except Exception:
            log.exception("what the trainer said could not be stored", job=claim.job, attempt=claim.attempt)
            self._child.kill()
            attempt.give_up(traceback.format_exc())
        if not self._child.alive:
            self._child = self._new_child()

    def _wait(self) -> None:
        for said in self._receive():
            if isinstance(said, Gone):
                self._restart()

    def _receive(self) -> list[Said]:
        """What the present child has said, after waiting for a tick at most for the first word, or a nudge."""
        found: list[Said] = []
        try:
            said = self._inbox.get(timeout=TICK_SECONDS)
            while True:
                if not isinstance(said, Nudge) and said[0] is self._child:
                    found.append(said[1])
                if len(found) >= INBOX_MESSAGES:
                    return self._greeted(found)
                said = self._inbox.get_nowait()
        except queue.Empty:
            return self._greeted(found)

    def _greeted(self, found: list[Said]) -> list[Said]:
        for said in found:
            if isinstance(said, Ready):
                self._child.ready = said
                self._starts = 0
                if not self._registered:
                    self._life.enter_context(workers.register(self._db, self._name, device=said.device, versions=said.environment))
                    self._registered = True
                log.info("ready", worker=self._name, device=said.device, trainer=self._child.pid)
        return [said for said in found if not isinstance(said, Ready)]

    def _new_child(self) -> Child:
        self._starts += 1
        return Child(device=self._settings.device, threads=self._settings.threads, inbox=self._inbox)

    def _restart(self) -> None:
        words = self._child.last_words()
        if self._child.ready is None and self._starts >= MOST_STARTS:
            raise TrainerBroken(words)
        self._child = self._new_child()

    def _rescue(self, mine: Claim | None) -> None:
        """Frees the jobs of workers that are dead or have been silent for a lease; says that we are alive."""
        now = time.monotonic()
        if now < self._next_rescue:
            return
        self._next_rescue = now + RESCUE_SECONDS
        if now >= self._next_sign:
            self._next_sign = now + self._settings.heartbeat_seconds
            patiently(workers.beat, self._db, self._name, job=mine.job if mine else None)
            if mine is None:
                self._db.write_back()
        others = {(r.job, r.attempt, r.beat): r.worker for r in jobs.running(self._db) if mine is None or (r.job, r.attempt) != (mine.job, mine.attempt)}
        dead = workers.gone(self._db)
        for beat in {beat for beat, holder in others.items() if holder in dead} | set(self._silence.over(others, now=now)):
            log.warning("rescued", job=beat[0], attempt=beat[1], worker=others[beat])
            patiently(jobs.rescue, self._db, *beat)
            self._next_claim = 0.0
        for worker in dead:
            workers.forget(self._db, worker)

    def _idle_too_long(self) -> bool:
        if self._settings.idle_exit is None or self._idle_since is None or time.monotonic() - self._idle_since < self._settings.idle_exit:
            return False
        if jobs.running(self._db):
            self._idle_since = None
        return self._idle_since is not None

    def _hear(self, nudges: socket.socket | None) -> None:
        with suppress(OSError):  # closed, as we leave
            while nudges is not None and nudges.recv(1):
                if not self._nudged.is_set():
                    self._nudged.set()
                    self._inbox.put(Nudge())

    def _was_nudged(self) -> bool:
        nudged = self._nudged.is_set()
        self._nudged.clear()
        return nudged

    def _note_signal(self, *_: object) -> None:
        self._signals += 1


class TrainerBroken(Exception):
    """The training process cannot be started here; the message is what it said."""


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
