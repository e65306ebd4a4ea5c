"""Curves against numpy: whatever is asked of a stored series, the answer is what the raw numbers say."""

import itertools
from typing import Any

import numpy as np
import pytest
import store_acting as act
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from sqlalchemy import select

from regtrain.contract.errors import NotFound
from regtrain.store import buckets, jobs, series
from regtrain.store.database import Database
from regtrain.store.series import Curve
from regtrain.store.tables import chunks, pyramid


def begun(db: Database, packs: list[list[int]] | None = None, **changes: Any) -> tuple[str, jobs.Claim]:
    job = act.submit(db, selection={"seeds": sum(map(len, packs or [[0]]))}, **changes)
    held = act.claim(db)
    jobs.report(db, held, [act.started(packs, steps=10_000_000)])
    return job.id, held


def check_exact(curve: Curve, steps: np.ndarray, values: np.ndarray) -> None:
    assert curve.exact
    assert_array_equal(curve.x, steps)
    assert_array_equal(curve.y, values)


def check_buckets(curve: Curve, steps: np.ndarray, values: np.ndarray, *, points: int) -> None:
    """Every bucket against its own points; `values` are (n,) or (n, L)."""
    assert not curve.exact
    assert len(curve.x) <= points
    assert curve.bucket & (curve.bucket - 1) == 0
    assert_array_equal(curve.x % curve.bucket, 0)
    which = steps // curve.bucket * curve.bucket
    assert_array_equal(curve.x, np.unique(which))
    for at, x in enumerate(curve.x.tolist()):
        inside = values[which == x]
        finite = np.where(np.isfinite(inside), inside, np.nan)
        assert curve.count[at] == len(inside)  # type: ignore[index]
        assert_array_equal(curve.last[at], inside[-1])  # type: ignore[index]
        assert_array_equal(curve.min[at], np.fmin.reduce(finite, axis=0))  # type: ignore[index]
        assert_array_equal(curve.max[at], np.fmax.reduce(finite, axis=0))  # type: ignore[index]
        assert_array_equal(curve.nonfinite[at], np.sum(~np.isfinite(inside), axis=0))  # type: ignore[index]


def check(db: Database, job_id: str, name: str, steps: np.ndarray, values: np.ndarray, counts: list[int], *, first: int | None, last: int | None, points: int | None) -> None:
    """All runs of one series; `values` are (n, R) or (n, R, L)."""
    found = series.read(db, job_id, series=[name], first=first, last=last, points=points)
    assert [curve.run for curve in found] == list(range(len(counts)))
    chosen = (steps >= (first or 0)) & (steps <= (last if last is not None else steps[-1]))
    for run, curve in enumerate(found):
        mine = chosen & (np.arange(len(steps)) < counts[run])
        if points is None or chosen.sum() <= points:
            check_exact(curve, steps[mine], values[mine, run])
        else:
            check_buckets(curve, steps[mine], values[mine, run], points=points)
        own = values[: counts[run], run].reshape(counts[run], -1)
        bad = np.flatnonzero(~np.isfinite(own).all(axis=1))
        assert curve.first_nonfinite == (int(steps[bad[0]]) if len(bad) else None)


@st.composite
def histories(draw: st.DrawFn) -> dict[str, Any]:
    """A series with gaps, several runs that stop at different places, numbers that are not finite, and the cuts of its reports."""
    n = draw(st.integers(1, 1500))
    seed = draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    spacing = draw(st.sampled_from([1, 1, 1, 3, 100, 938, 70_000]))
    steps = np.cumsum(rng.integers(1, spacing + 1, n)) - 1 + draw(st.sampled_from([0, 0, 5, 1000]))
    runs = draw(st.integers(1, 3))
    layers = draw(st.sampled_from([0, 0, 2]))
    values = rng.normal(size=(n, runs, layers) if layers else (n, runs)).astype(draw(st.sampled_from(["f4", "f8"])))
    values[rng.random(values.shape) < draw(st.sampled_from([0.0, 0.01, 0.9]))] = rng.choice([np.nan, np.inf, -np.inf])
    counts = [n] + [draw(st.integers(0, n)) for _ in range(runs - 1)]
    cuts = sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=12))})
    asked = [
        (draw(st.none() | st.integers(0, int(steps[-1]) + 10)), draw(st.none() | st.integers(0, int(steps[-1]) + 10)), draw(st.none() | st.sampled_from([1, 2, 7, 50, 500, 5000])))
        for _ in range(4)
    ]
    return {"steps": steps, "values": values, "counts": counts, "cuts": cuts, "asked": asked}


def write(db: Database, held: jobs.Claim, name: str, history: dict[str, Any], first: int = 0) -> None:
    """The reports of a history, from the cut number `first` on."""
    for low, high in list(itertools.pairwise(history["cuts"]))[first:]:
        counts = np.clip(np.array(history["counts"]) - low, 0, high - low)
        jobs.report(db, held, [act.points(counts={name: counts}, **{name: (history["steps"][low:high], history["values"][low:high])})])


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", id="postgresql")])
def test_any_reading_of_any_history_is_what_numpy_says(kind: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    from regtrain.store.database import open_database

    db = open_database(request.getfixturevalue("postgresql_url") if kind == "postgresql" else None, tmp_path_factory.mktemp("data"))

    @settings(max_examples=60 if kind == "sqlite" else 15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(histories())
    def holds(history: dict[str, Any]) -> None:
        job_id, held = begun(db, [list(range(len(history["counts"])))])
        name = "gradient_norm" if history["values"].ndim == 3 else "loss_train"
        write(db, held, name, history)
        for first, last, points in history["asked"]:
            check(db, job_id, name.replace("_", "/"), history["steps"], history["values"], history["counts"], first=first, last=last, points=points)
        end = int(history["steps"][-1]) + 1
        with db.read() as connection:
            kept = connection.execute(select(pyramid.c.level, pyramid.c.bucket).where(pyramid.c.series == _id(db, job_id))).all()
        expected = {(level, int(b)) for level in range(buckets.LOWEST, 40) for b in np.unique(history["steps"] >> level) if (int(b) + 1) << level <= end}
        assert set(map(tuple, kept)) == expected
        jobs.release(db, held)
        jobs.cancel(db, job_id)

    try:
        holds()
    finally:
        db.close()


def _id(db: Database, job_id: str) -> int:
    with db.read() as connection:
        [head] = series.heads(connection, job_id)
    return head.id


def test_a_million_points_and_a_nan_at_step_7(sqlite_db: Database) -> None:
    n = 1_000_000
    values = np.random.default_rng(0).normal(size=n).astype(np.float32)
    values[7] = np.nan
    job_id, held = begun(sqlite_db)
    for low in range(0, n, 123_457):
        jobs.report(sqlite_db, held, [act.points(loss_train=(range(low, min(n, low + 123_457)), values[low : low + 123_457]))])
    steps = np.arange(n)
    for points in (1, 10, 499, 500, 2000, 3906, 3907, 10_000, n - 1):
        [curve] = series.read(sqlite_db, job_id, series=["loss/train"], points=points)
        width = curve.bucket
        edges = np.arange(0, n, width)
        finite = np.where(np.isfinite(values), values, np.nan)
        assert not curve.exact
        assert len(edges) <= points
        assert_array_equal(curve.x, edges)
        assert_array_equal(curve.min, np.fmin.reduceat(finite, edges))
        assert_array_equal(curve.max, np.fmax.reduceat(finite, edges))
        assert_array_equal(curve.count, np.diff(np.append(edges, n)))
        assert_array_equal(curve.last, values[np.append(edges[1:], n) - 1])
        assert_array_equal(curve.nonfinite, (edges == 7 // width * width).astype(int))
        assert curve.first_nonfinite == 7
    for points in (None, n):
        [curve] = series.read(sqlite_db, job_id, series=["loss/train"], points=points)
        check_exact(curve, steps, values)
    [curve] = series.read(sqlite_db, job_id, series=["loss/train"], first=499_990, last=500_010, points=21)
    check_exact(curve, steps[499_990:500_011], values[499_990:500_011])
    with sqlite_db.read() as connection:
        sizes = connection.execute(select(chunks.c.points).order_by(chunks.c.first_step)).scalars().all()
    assert sizes[:15] == [65_536] * 15
    assert len(sizes) < 40


def test_buckets_are_as_fine_as_the_points_asked_for_allow(db: Database) -> None:
    job_id, held = begun(db)
    values = np.arange(600.0)
    jobs.report(db, held, [act.points(loss_train=(range(600), values))])
    for points, width in ((599, 2), (300, 2), (299, 4), (40, 16), (3, 256), (1, 1024)):
        [curve] = series.read(db, job_id, series=["loss/train"], points=points)
        assert curve.bucket == width
        check_buckets(curve, np.arange(600), values, points=points)
    [curve] = series.read(db, job_id, series=["loss/train"], points=600)
    check_exact(curve, np.arange(600), values)


def test_a_resumed_series_equals_an_uninterrupted_one(sqlite_db: Database) -> None:
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(history=histories(), share=st.floats(0, 1), name=st.sampled_from(["loss_train", "loss_val"]))
    def holds(history: dict[str, Any], share: float, name: str) -> None:
        if history["values"].ndim == 3:
            history["values"] = history["values"][:, :, 0]
        _resumed_equals_uninterrupted(sqlite_db, history, round(share * (len(history["cuts"]) - 1)), name)

    holds()


def _resumed_equals_uninterrupted(db: Database, history: dict[str, Any], cut: int, name: str) -> None:
    """The checkpoint was written between the reports number cut − 1 and cut."""
    packs = [list(range(len(history["counts"])))]
    (job_id, held), (other_id, other) = begun(db, packs), begun(db, packs)
    at = history["cuts"][cut]
    write(db, held, name, history)
    write(db, other, name, history)
    if at:  # a point of loss/val at the step of a checkpoint is before it, one of loss/train behind it
        act.checkpoint(db, held, step=int(history["steps"][at - 1]) + (0 if name == "loss_val" else 1))
    jobs.crashed(db, held, "")
    again = act.claim(db)
    assert again.job == job_id
    kept = series.read(db, job_id, series=[name.replace("_", "/")])
    assert [curve.x.tolist() for curve in kept] == ([history["steps"][: min(at, c)].tolist() for c in history["counts"]] if at else [])
    jobs.report(db, again, [act.started(packs, steps=10_000_000)])
    write(db, again, name, history, first=cut)
    for points in (None, 3, 100):
        ours, theirs = (series.read(db, each, series=[name.replace("_", "/")], points=points) for each in (job_id, other_id))
        for one, two in zip(ours, theirs, strict=True):
            assert (one.run, one.exact, one.first_nonfinite, one.bucket) == (two.run, two.exact, two.first_nonfinite, two.bucket)
            for field in ("x", "y", "last", "min", "max", "count", "nonfinite"):
                assert_array_equal(getattr(one, field), getattr(two, field))
    assert jobs.get(db, job_id).metrics == jobs.get(db, other_id).metrics
    assert _rows(db, job_id) == _rows(db, other_id)
    for claim in (again, other):
        jobs.cancel(db, claim.job)
        jobs.cancelled(db, claim)


def _rows(db: Database, job_id: str) -> list[Any]:
    with db.read() as connection:
        columns = (pyramid.c.level, pyramid.c.bucket, pyramid.c.summary)
        return connection.execute(select(*columns).where(pyramid.c.series == _id(db, job_id)).order_by(pyramid.c.level, pyramid.c.bucket)).all()


def test_a_report_that_comes_twice_changes_nothing(db: Database) -> None:
    job_id, held = begun(db)
    rng = np.random.default_rng(1)
    values = rng.normal(size=(3000, 1, 2)).astype("f4")
    reports = [
        act.points(gradient_norm=(range(low, low + 500), values[low : low + 500]), loss_train=(range(low, low + 500), values[low : low + 500, 0, 0])) for low in range(0, 3000, 500)
    ]
    for report in reports:
        jobs.report(db, held, [report])
        before = _without_progress(act.everything(db))
        jobs.report(db, held, [report])
        assert _without_progress(act.everything(db)) == before
    [curve] = series.read(db, job_id, series=["gradient/norm"])
    check_exact(curve, np.arange(3000), values[:, 0])


def _without_progress(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: found for name, found in rows.items() if name != "jobs"}  # eta_seconds follows the clock


def test_a_point_at_a_time_ends_in_the_same_chunks_as_all_at_once(sqlite_db: Database) -> None:
    values = np.random.default_rng(2).normal(size=4200).astype("f4")
    slow, slow_claim = begun(sqlite_db)
    fast, fast_claim = begun(sqlite_db)
    with sqlite_db.write() as connection:
        for step in range(4200):
            series.append(connection, slow, act.points(loss_train=([step], values[step : step + 1])))
    jobs.report(sqlite_db, fast_claim, [act.points(loss_train=(range(4200), values))])
    with sqlite_db.read() as connection:
        layout = [connection.execute(select(chunks.c.first_step, chunks.c.points).where(chunks.c.series == _id(sqlite_db, job))).all() for job in (slow, fast)]
    assert [(f, n) for f, n in layout[0] if f < 4096] == [(f, n) for f, n in layout[1] if f < 4096] == [(0, 4096)]
    assert _rows(sqlite_db, slow) == _rows(sqlite_db, fast)
    assert slow_claim.attempt == 1


def test_layers_and_runs_are_chosen_by_name_and_number(db: Database) -> None:
    job_id, held = begun(db, [[0, 2], [1]])
    values = np.arange(20 * 2 * 2.0).reshape(20, 2, 2)
    jobs.report(db, held, [act.points(gradient_norm=(range(20), values), loss_train=(range(20), values[:, :, 0]))])
    jobs.report(db, held, [act.points(pack=1, gradient_norm=(range(20), -values[:, :1]))])
    [curve] = series.read(db, job_id, series=["gradient/norm"], runs=[2], layers=["head"])
    check_exact(curve, np.arange(20), values[:, 1, 1:])
    found = series.read(db, job_id, series=["loss/train", "gradient/norm"])
    assert [(c.series, c.run) for c in found] == [("loss/train", 0), ("loss/train", 2), ("gradient/norm", 0), ("gradient/norm", 2), ("gradient/norm", 1)]
    assert series.names(db, job_id) == ["gradient/norm", "loss/train"]
    for wrong in ({"runs": [3]}, {"runs": [-1]}, {"layers": ["layers.7"]}, {"series": ["nonsense"]}):
        with pytest.raises(NotFound):
            series.read(db, job_id, **({"series": ["loss/train"]} | wrong))
    assert series.read(db, job_id, series=["loss/val"]) == []
    with pytest.raises(NotFound):
        series.read(db, "job_none", series=["loss/train"])


def test_a_pack_of_many_runs_and_layers(sqlite_db: Database) -> None:
    runs, layers, n = 64, 5, 700
    job_id, held = begun(sqlite_db, [list(range(runs))])
    values = np.random.default_rng(3).normal(size=(n, runs, layers)).astype("f4")
    values[300, 63, 4] = np.inf
    counts = np.linspace(1, n, runs).astype(int)
    for low in range(0, n, 100):
        report = act.points(counts={"gradient_norm": np.clip(counts - low, 0, 100)}, gradient_norm=(range(low, low + 100), values[low : low + 100]))
        jobs.report(sqlite_db, held, [report])
    for points in (None, 2, 3):
        check(sqlite_db, job_id, "gradient/norm", np.arange(n), values, counts.tolist(), first=None, last=None, points=points)


def test_half_precision_is_kept_as_single_and_whole_numbers_as_double(db: Database) -> None:
    job_id, held = begun(db)
    jobs.report(db, held, [act.points(loss_train=(range(3), np.array([1, 2, 3], np.float16)), gradient_clipped=(range(3), np.array([0, 1, 1])))])
    one, two = series.read(db, job_id, series=["loss/train", "gradient/clipped"])
    assert (one.y.dtype, two.y.dtype) == (np.float32, np.float64)  # type: ignore[union-attr]
    assert (one.y.tolist(), two.y.tolist()) == ([1, 2, 3], [0, 1, 1])  # type: ignore[union-attr]


@given(first=st.integers(0, 10_000), length=st.integers(1, 100_000), level=st.integers(8, 20))
def test_a_cover_is_complete_and_disjoint(first: int, length: int, level: int) -> None:
    loose, whole = buckets.cover(first, first + length, level)
    pieces = sorted(loose + [(bucket << size, past << size) for size, bucket, past in whole])
    assert pieces[0][0] == first
    assert pieces[-1][1] == first + length
    assert all(a[1] == b[0] for a, b in itertools.pairwise(pieces))
    assert all(buckets.LOWEST <= size <= level for size, _, _ in whole)
    assert len(loose) <= 2
    assert len(whole) <= 2 * (level - buckets.LOWEST) + 1
