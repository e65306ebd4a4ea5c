"""`python -m worker run`: one spec, no server, no database, JSON Lines."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worker_houses import ENDLESS, QUICK, ROOT

from regtrain.contract.events import Points
from worker.run import line

BARE = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"sqlalchemy", "structlog", "pydantic_settings", "safetensors", "alembic", "fastapi", "ulid", "httpx", "sklearn", "zstandard", "typer", "rich"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from worker.__main__ import main
sys.exit(main(["run", *sys.argv[1:]]))
"""
"""An environment that has torch, numpy and pydantic only."""


def _run(*arguments: str, body: object = QUICK, code: str | None = None) -> "subprocess.CompletedProcess[str]":
    start = ["-c", code] if code else ["-m", "worker", "run"]
    command = [sys.executable, "-P", "-W", "error", *start, *(arguments or ("-",))]
    return subprocess.run(
        command, input=body if isinstance(body, str) else json.dumps(body), capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=100
    )


def _strict(text: str) -> Any:
    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_prints_events_with_nothing_but_torch_numpy_and_pydantic() -> None:
    done = _run(code=BARE)
    assert (done.returncode, done.stderr) == (0, "")
    events = [_strict(text) for text in done.stdout.splitlines()]
    started, begun, *points, finished, ended = events
    assert (started["event"], begun["event"], finished["event"], ended["event"]) == ("Started", "PackBegun", "RunFinished", "Finished")
    assert {p["event"] for p in points} == {"Points"}
    assert sum(p["points"]["loss/train"] for p in points) == 5
    assert finished["metrics"]["loss/train"] == pytest.approx(points[-1]["latest"]["loss/train"][0], rel=0.5)
    assert ended["path"] == ""


def test_writes_the_model_and_every_point_where_asked(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(QUICK))
    done = _run(str(spec), "--arrays", "--out", str(tmp_path / "out"), "--device", "cpu", "--threads", "1")
    assert (done.returncode, done.stderr) == (0, "")
    events = [_strict(text) for text in done.stdout.splitlines()]
    points = [event for event in events if event["event"] == "Points"]
    assert [step for p in points for step in p["steps"]["loss/train"]] == [0, 1, 2, 3, 4]
    assert np.shape([value for p in points for value in p["values"]["loss/train"]]) == (5, 1)
    assert events[-1]["path"] == str(tmp_path / "out" / "model.safetensors")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.safetensors"]


def test_numbers_that_are_not_finite_are_null() -> None:
    points = Points(pack=0, step=2, steps={"loss/train": np.arange(2)}, values={"loss/train": np.array([[1.0, np.inf], [np.nan, 2.0]])}, counts={"loss/train": np.array([2, 0])})
    assert _strict(line(points, arrays=True))["values"] == {"loss/train": [[1.0, None], [None, 2.0]]}
    assert _strict(line(points, arrays=False)) == {"event": "Points", "pack": 0, "step": 2, "points": {"loss/train": 2}, "latest": {"loss/train": [None, None]}}


def test_a_run_that_diverges_fails_with_valid_lines() -> None:
    done = _run(body={**QUICK, "optimizer": {"kind": "sgd", "lr": 1e8}, "budget": {"epochs": 100, "batch_size": "all"}})
    assert done.returncode == 1
    events = [_strict(text) for text in done.stdout.splitlines()]
    assert (events[-1]["event"], events[-1]["failure"]) == ("Failed", "diverged")
    assert done.stderr.startswith("diverged: ")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({**QUICK, "optimizer": {"kind": "sgd", "lr": -1}}, "optimizer.lr: "),
        ({**QUICK, "loss": {"kind": "mse"}}, "loss.kind: unknown kind 'mse'"),
        ({**QUICK, "budget": {"batch_size": 64}}, "budget.batch_size: a batch of 64 rows is larger than the 5 training rows"),
        ({**QUICK, "dataset": {"kind": "upload", "id": "ds_1"}}, "dataset.kind: uploaded rows are kept by the service"),
        ("{", "-: not JSON"),
    ],
)
def test_a_wrong_spec_is_refused_with_its_paths(body: object, said: str) -> None:
    done = _run(body=body)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(said)


def test_a_file_that_is_not_there() -> None:
    done = _run("/nowhere/spec.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("/nowhere/spec.json: cannot be read: No such file")


def test_missing_rows_say_where_to_put_them(tmp_path: Path) -> None:
    done = _run("-", "--data", str(tmp_path), body={**QUICK, "dataset": {"kind": "mnist"}, "loss": {"kind": "cross_entropy"}, "budget": {}})
    assert done.returncode == 1
    assert done.stderr.startswith("data: ")
    assert str(tmp_path / "mnist") in done.stderr


def test_ctrl_c_ends_it_quietly() -> None:
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "worker", "run", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(json.dumps(ENDLESS))
        process.stdin.close()
        assert "Started" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == ""
        assert process.wait(100) == 130


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -P -m worker run - | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], input=json.dumps(ENDLESS), capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.returncode == 128 + signal.SIGPIPE
    assert done.stdout.startswith('{"event": "Started"')
    assert done.stderr == ""
