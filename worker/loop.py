"""claim → train → finish. With worker/attempt.py the only part of the worker that knows the store.

The loop never computes and never waits for the one who does: it takes what the trainer says from an inbox, gives it to the
attempt, and in between rescues the jobs of dead workers and has the laws of gradients measured.
"""

import queue
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import ExitStack, closing, suppress
from typing import Any

import structlog
from ulid import ULID

from regtrain.contract.errors import StaleAttempt
from regtrain.store import jobs, nudge, workers
from regtrain.store.database import Database, open_database
from regtrain.store.jobs import Claim
from worker.attempt import Attempt, patiently
from worker.child import INBOX_MESSAGES, Child, Gone, Inbox, Nudge, Ready, Said
from worker.crash import crash_point
from worker.measuring import Measuring
from worker.settings import Settings
from worker.silence import Silence

TICK_SECONDS = 0.25
"""The longest that a signal, or what is due by the clock, waits to be seen."""
RESCUE_SECONDS = 1.0
MOST_STARTS = 3
"""A trainer that cannot even start so often in a row is no matter of jobs: the worker gives up."""

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
        self._measuring: Measuring | None = None
        self._measured = False
        self._child = self._new_child()

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note_signal)
        nudges = self._life.enter_context(nudge.listening(self._db.data, self._name, "workers"))
        threading.Thread(target=self._hear, args=(nudges,), daemon=True).start()
        try:
            while not self._signals:
                self._look_around(None)
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
            self._stop_measuring()
            self._child.close()
            log.info("left", worker=self._name)

    def _claim(self) -> Claim | None:
        """Looks into the queue when nudged, else now and then."""
        now = time.monotonic()
        if self._child.ready is None or not (self._was_nudged() or now >= self._next_claim):
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
            if self._measuring is not None and self._measuring.asked is None:
                self._stop_measuring()
            while not attempt.over:
                attempt.take(self._receive())
                attempt.tick(leaving=self._signals, nudged=self._was_nudged())
                self._look_around(claim)
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

    def _look_around(self, mine: Claim | None) -> None:
        """Once a second."""
        now = time.monotonic()
        if now < self._next_rescue:
            return
        self._next_rescue = now + RESCUE_SECONDS
        self._rescue(mine, now)
        self._measure(now)

    def _rescue(self, mine: Claim | None, now: float) -> None:
        """Frees the jobs of workers that are dead or have been silent for a lease; says that we are alive."""
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

    def _measure(self, now: float) -> None:
        """The laws of gradients on this device: by itself once, when there has been nothing to do for a while, and whenever it is asked, beside a job too."""
        if self._measuring is not None:
            if (outcome := self._measuring.outcome()) is not None:
                patiently(workers.measured, self._db, self._name, outcome, asked=self._measuring.asked)
                self._measuring, self._measured = None, True
                log.info("measured", worker=self._name, ok=outcome["ok"])
        elif self._registered and self._child.ready is not None:
            asked = workers.asked(self._db, self._name)
            idle = self._idle_since is not None and now - self._idle_since >= self._settings.selftest_seconds
            if asked is not None or (idle and not self._measured):
                self._measuring = Measuring(device=self._child.ready.device, threads=self._settings.threads, asked=asked)

    def _stop_measuring(self) -> None:
        if self._measuring is not None:
            self._measuring.stop()
            self._measuring = None

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
        if not self._nudged.is_set():
            return False
        self._nudged.clear()
        return True

    def _note_signal(self, *_: object) -> None:
        self._signals += 1


class TrainerBroken(Exception):
    """The training process cannot be started here; the message is what it said."""
