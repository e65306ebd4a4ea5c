"""What a job's attempts have left on the disk and no row points to: unpublished files, and checkpoints between two of which a process died."""

from contextlib import suppress

from sqlalchemy import select

from regtrain.contract.states import FINAL
from regtrain.store import files
from regtrain.store.database import Database
from regtrain.store.jobs.working import Claim
from regtrain.store.tables import checkpoints, jobs


def tidy(db: Database, claim: Claim) -> None:
    """Empties the scratch folder of an attempt that is over; if it was the job's last, removes all that no row points to.

    Never touches the folder of a later attempt, and none but its own while the job may go on.
    """
    with db.read() as connection:
        job = connection.execute(select(jobs.c.state, jobs.c.attempt, jobs.c.model_path).where(jobs.c.id == claim.job)).one_or_none()
        kept = {job.model_path if job else None, *connection.execute(select(checkpoints.c.path).where(checkpoints.c.job == claim.job)).scalars()}
    files.sweep(db.data, claim.job, attempt=claim.attempt)
    if job is not None and job.state in FINAL and job.attempt == claim.attempt:
        for attempt in range(1, claim.attempt + 1):
            with suppress(FileNotFoundError):
                files.sweep(db.data, claim.job, attempt=attempt, kept={path for path in kept if path})
