"""The demo itself, against a real server and worker: what a newcomer sees first."""

import math
import re
from pathlib import Path

import pytest
from user_side import regtrain


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("demo")
    done = regtrain("demo", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(folder.iterdir()) == [], "the demo leaves nothing behind"
    return done.stdout


def first_value(said: str, title: str) -> float:
    """The value at step 0 in the table below a chart."""
    return float(re.search(rf"^{re.escape(title)}.*?^value +(\S+)", said, re.MULTILINE | re.DOTALL).group(1))  # type: ignore[union-attr]


def test_the_job_succeeds_and_is_named(said: str) -> None:
    assert re.search(r"Job job_[0-9A-Za-z]{26}$", said, re.MULTILINE)
    assert re.search(r"^succeeded .*230/230", said, re.MULTILINE)  # ⌈1438/64⌉ = 23 steps × 10 epochs


def test_the_loss_starts_at_ln_10(said: str) -> None:
    assert first_value(said, "loss/train") == pytest.approx(math.log(10), abs=0.1)


def test_the_penalty_stands_beside_it(said: str) -> None:
    # 64·128 weights uniform in ±1/√64: mean |w| = 1/16, λ Σ|w| = 0.01 · 8192/16 = 5.12; its deviation is 0.01 · √8192/(8·√12) = 0.033
    assert first_value(said, "penalty/l1") == pytest.approx(5.12, abs=0.17)
    assert "warning  regularizers.0.lambda" in said


def test_gradients_by_layer(said: str) -> None:
    table = said.split("gradient/norm [", 1)[1]
    assert re.search(r"^step +layers\.0 +head$", table, re.MULTILINE)
    assert re.search(r"^0 +0\.\d+ +0\.\d+$", table, re.MULTILINE)


def test_the_requests_that_fetch_the_same(said: str) -> None:
    job = re.search(r"Job (job_\w+)", said).group(1)  # type: ignore[union-attr]
    for request in (f"/v1/jobs/{job}/curves?series=loss/train,penalty/l1&format=text'", f"/v1/jobs/{job}/gradients?series=gradient/norm&format=text'"):
        assert re.search(rf"curl 'http://127\.0\.0\.1:\d+{re.escape(request)}", said.replace("\n", ""))


def test_it_says_how_to_keep_a_server(said: str) -> None:
    assert "regtrain up" in said
    assert "curl --json @examples/004_digits_l1.json http://127.0.0.1:8321/v1/jobs" in said


def test_a_spec_of_ones_own_and_a_folder_that_stays(tmp_path: Path) -> None:
    spec = tmp_path / "mine.json"
    spec.write_text(
        '{"dataset": {"kind": "iris"}, "model": {"kind": "linear"}, "loss": {"kind": "cross_entropy"}, "regularizers": [{"kind": "l2", "lambda": 0.1}, {"kind": "l2", "lambda": 0.1}], '
        '"optimizer": {"kind": "sgd", "lr": 0.1}, "budget": {"epochs": 2}}',
        encoding="utf-8",
    )
    done = regtrain("demo", spec, "--data", tmp_path / "kept")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "penalty/l2.2" in done.stdout
    assert (tmp_path / "kept" / "regtrain.db").exists()


def test_a_wrong_spec_ends_with_2_and_its_path(tmp_path: Path) -> None:
    spec = tmp_path / "wrong.json"
    spec.write_text('{"dataset": {"kind": "iris"}, "model": {"kind": "linear"}, "loss": {"kind": "cross_entropy"}, "optimizer": {"kind": "sgd"}}', encoding="utf-8")
    done = regtrain("demo", spec)
    assert done.returncode == 2
    assert "optimizer.lr: this field is required" in done.stderr


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    done = regtrain("demo", tmp_path / "nothing.json")
    assert done.returncode == 1
    assert "there is no" in done.stderr
