"""What was noticed: stored once, ordered, cut at the checkpoint from which a job goes on."""

from dataclasses import replace

import pytest
import store_acting as act

from regtrain.contract.errors import StaleAttempt
from regtrain.contract.events import Noticed
from regtrain.store import jobs, symptoms
from regtrain.store.database import Database

SEEN = Noticed(0, "vanishing_signal", "layers.0", 0, 1e-5, 0.05, "critical", 0.99, {"chi": 0.5, "last": "layers.3"}, pack=0, done=1)
LATER = Noticed(0, "plateau", None, 128, 0.99, 0.9, "warning", 0.6, {}, pack=0, done=256)
OTHER = Noticed(1, "plateau", None, 128, 0.98, 0.9, "warning", 0.6, {}, pack=1, done=200)


def begun(db: Database) -> jobs.Claim:
    act.submit(db, selection={"seeds": 2})
    held = act.claim(db)
    jobs.report(db, held, [act.started([[0], [1]])])
    return held


def test_what_is_noticed_is_read_as_it_was_said(db: Database) -> None:
    held = begun(db)
    assert symptoms.every(db, held.job) == []
    jobs.report(db, held, [LATER, OTHER, SEEN])
    assert symptoms.every(db, held.job) == [SEEN, LATER, OTHER]
    assert symptoms.counted(db, [held.job, "job_none"]) == {held.job: 3}
    assert symptoms.every(db, "job_none") == []


def test_the_same_said_again_is_stored_once(db: Database) -> None:
    held = begun(db)
    jobs.report(db, held, [SEEN, LATER])
    jobs.report(db, held, [replace(SEEN, confidence=0.5)])
    assert symptoms.every(db, held.job) == [replace(SEEN, confidence=0.5), LATER]
    jobs.report(db, held, [replace(SEEN, layer="layers.1")])
    assert [one.layer for one in symptoms.every(db, held.job)] == ["layers.0", "layers.1", None]


def test_an_attempt_that_goes_on_forgets_what_lies_beyond_its_checkpoint(db: Database) -> None:
    held = begun(db)
    jobs.report(db, held, [SEEN])
    act.checkpoint(db, held, step=255)
    jobs.report(db, held, [LATER, OTHER])
    jobs.crashed(db, held, "gone")
    again = act.claim(db)
    assert symptoms.every(db, held.job) == [SEEN], "pack 0 goes on from step 255; pack 1 from its beginning"
    jobs.report(db, again, [LATER, OTHER])
    assert symptoms.every(db, held.job) == [SEEN, LATER, OTHER]
    with pytest.raises(StaleAttempt):
        jobs.report(db, held, [replace(SEEN, run=1)])


def test_a_symptom_at_the_checkpoint_is_kept(db: Database) -> None:
    held = begun(db)
    jobs.report(db, held, [LATER])
    act.checkpoint(db, held, step=256)
    jobs.crashed(db, held, "gone")
    act.claim(db)
    assert symptoms.every(db, held.job) == [LATER]


def test_symptoms_go_with_their_job(db: Database) -> None:
    held = begun(db)
    jobs.report(db, held, [SEEN])
    jobs.cancel(db, held.job)
    jobs.cancelled(db, held)
    jobs.delete(db, held.job)
    assert symptoms.every(db, held.job) == []
