"""The pace of finished jobs, on SQLite and PostgreSQL: one row a shape and kind of device, the newest."""

from dataclasses import replace

import store_acting as act
from sqlalchemy import select

from regtrain.contract.events import RunFinished
from regtrain.contract.states import RunState, StopReason
from regtrain.store import jobs, rates, tables
from regtrain.store.database import Database


def trained(db: Database, *, steps: int, device: str | None) -> None:
    """Finishes a job whose run made so many steps."""
    act.submit(db)
    held = act.claim(db)
    started = act.started()
    environment = {} if device is None else {"device_kind": device}
    end = RunFinished(run=0, state=RunState.SUCCEEDED, stop_reason=StopReason.BUDGET, steps=steps, metrics={"loss/train": 1.0})
    jobs.report(db, held, [replace(started, environment=environment), end])
    act.finish(db, held, chosen_run=0)


def stored(db: Database) -> list[tuple[str, str, int]]:
    with db.read() as connection:
        return [(row.key, row.device, row.nanoseconds) for row in connection.execute(select(tables.rates).order_by(tables.rates.c.device))]


def test_the_newest_pace_of_each_kind_of_device_is_kept(db: Database) -> None:
    steps = act.started().steps
    trained(db, steps=steps - 1, device="cpu")  # stopped early
    trained(db, steps=steps, device=None)  # nobody knows where
    assert stored(db) == []
    for device in ("cpu", "cuda", "cpu"):
        trained(db, steps=steps, device=device)
    (key, cpu, pace), (same, cuda, _) = stored(db)
    assert (cpu, cuda, key == same) == ("cpu", "cuda", True)
    assert rates.seconds_a_step(db, key, device="cpu") == pace / 1e9 > 0
    assert rates.seconds_a_step(db, "another shape", device="cpu") is None
