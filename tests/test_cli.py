"""The command as a user runs it: real processes, a real port, a real database file."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import is_over
from user_side import EXAMPLES, PATIENCE, Up, regtrain, up, wait_for

from regtrain import Client
from regtrain.client import Unreachable
from regtrain.contract.errors import Conflict, NotFound, SpecRefused

SMALL = EXAMPLES / "001_l2_grid.json"
STEPS = json.loads(SMALL.read_bytes())["budget"]["epochs"]
"""Of this full-batch job."""
MOST_TRIES = 5
LONG: dict[str, Any] = {
    "name": "takes a while",
    "dataset": {"kind": "digits", "validation": 0.2},
    "model": {"kind": "mlp", "hidden": [128]},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "sgd", "lr": 0.01},
    "budget": {"epochs": 2000, "batch_size": 64},
    "diagnostics": "off",
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("house")) as found:
        yield found


@pytest.fixture(scope="module")
def finished(running: Up) -> str:
    """The ID of a small finished job."""
    done = regtrain("submit", SMALL, "--url", running.url)
    assert done.returncode == 0, done.stderr
    with Client(running.url) as client:
        assert client.wait(done.stdout.strip(), seconds=PATIENCE)["state"] == "succeeded"
    return done.stdout.strip()


@pytest.fixture
def client(running: Up) -> Iterator[Client]:
    with Client(running.url) as found:
        yield found


def test_submit_prints_the_id_and_nothing_else(finished: str) -> None:
    assert finished.startswith("job_")
    assert len(finished.split()) == 1


def test_submit_reads_standard_input_and_watches(running: Up) -> None:
    done = regtrain("submit", "-", "--watch", "--url", running.url, stdin=SMALL.read_text(encoding="utf-8"))
    assert done.returncode == 0, done.stderr
    assert "succeeded" in done.stdout
    assert f"{STEPS}/{STEPS}" in done.stdout


def test_a_refused_spec_names_paths_and_hints_and_exits_with_2(running: Up) -> None:
    done = regtrain("submit", "-", "--url", running.url, stdin='{"model": {"kind": "mpl"}, "optimizer": {"kind": "sgd", "lr": "0.1"}}')
    assert done.returncode == 2
    assert done.stdout == ""
    for expected in ("model.kind: unknown kind 'mpl'", "did you mean 'mlp'?", "optimizer.lr: expected a number", "dataset: this field is required"):
        assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_watch_show_and_list(running: Up, finished: str) -> None:
    watched = regtrain("watch", finished, "--url", running.url)
    assert watched.returncode == 0
    shown = regtrain("show", finished, "--url", running.url).stdout
    assert "article 001" in shown
    assert f"{STEPS} of {STEPS}, 5 run(s)" in shown
    whole = json.loads(regtrain("show", finished, "--json", "--url", running.url).stdout)
    assert whole["id"] == finished
    assert whole["origin"]["regularizers.0.lambda"] == "searched"
    listed = regtrain("list", "--state", "succeeded", "--url", running.url).stdout
    assert finished in listed
    assert "no jobs" in regtrain("list", "--state", "failed", "--url", running.url).stdout


def test_curves_and_gradients_are_readable(running: Up, finished: str) -> None:
    curves = regtrain("curves", finished, "--series", "loss/train,penalty/l2", "--runs", "1", "--url", running.url)
    assert curves.returncode == 0, curves.stderr
    assert "loss/train" in curves.stdout
    assert "penalty/l2" in curves.stdout
    assert "•" in curves.stdout
    gradients = regtrain("gradients", finished, "--series", "gradient/norm", "--runs", "0", "--url", running.url)
    assert "head" in gradients.stdout
    unknown = regtrain("curves", finished, "--series", "los/train", "--url", running.url)
    assert unknown.returncode == 2
    assert "did you mean 'loss/train'?" in unknown.stderr


def test_a_job_that_is_not_there(running: Up) -> None:
    done = regtrain("show", "job_nope", "--url", running.url)
    assert done.returncode == 1
    assert "there is no job" in done.stderr


def test_the_url_comes_from_the_environment_too(running: Up, finished: str) -> None:
    assert finished in regtrain("list", REGTRAIN_URL=running.url).stdout
    assert finished in regtrain("list", REGTRAIN_PORT=running.url.rsplit(":", 1)[1]).stdout


def test_without_a_server_the_message_says_how_to_start_one(tmp_path: Path) -> None:
    done = regtrain("list", "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "regtrain up" in done.stderr
    assert "Traceback" not in done.stderr


def test_cancel(running: Up, client: Client) -> None:
    job = client.submit(LONG)["id"]
    done = regtrain("cancel", job, "--url", running.url)
    assert done.returncode == 0
    ended = client.wait(job, seconds=PATIENCE)
    assert ended["state"] == "cancelled"
    assert regtrain("watch", job, "--url", running.url).returncode == 1


def test_a_taken_port_is_said_clearly(running: Up, tmp_path: Path) -> None:
    done = regtrain("up", "--port", running.url.rsplit(":", 1)[1], "--data", tmp_path)
    assert done.returncode == 2
    assert "Address already in use" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_data_folder_is_said_clearly(running: Up) -> None:
    done = regtrain("up", "--port", "0", "--data", running.log.parent / "data")
    assert done.returncode == 2
    assert "another server" in done.stderr


def test_other_machines_are_kept_out(tmp_path: Path) -> None:
    done = regtrain("up", "--host", "0.0.0.0", "--port", "0", "--data", tmp_path)
    assert done.returncode == 2
    assert "--allow-remote" in done.stderr


def test_a_killed_worker_is_started_again_and_its_job_finishes(running: Up, client: Client) -> None:
    for _ in range(MOST_TRIES):
        job = client.submit({**LONG, "budget": {"epochs": 60, "batch_size": 16}})["id"]
        wait_for(lambda job=job: (client.job(job)["progress"] or {}).get("step", 0) > 0)
        (worker,) = running.children("worker")
        worker.kill()
        wait_for(lambda worker=worker: {child.pid for child in running.children("worker")} - {worker.pid})
        ended = client.wait(job, seconds=PATIENCE)
        assert ended["state"] == "succeeded"
        if ended["attempt"] == 2:
            break
    else:
        pytest.fail(f"{MOST_TRIES} jobs ended before their worker was killed")
    assert "worker 1 ended with signal SIGKILL: starting it again" in running.said()


def test_ctrl_c_ends_everything_and_a_running_job_goes_on_at_the_next_start(tmp_path: Path) -> None:
    with up(tmp_path) as first, Client(first.url) as client:
        job = client.submit({**LONG, "budget": {"epochs": 60, "batch_size": 16}})["id"]
        wait_for(lambda: (client.job(job)["progress"] or {}).get("step", 0) > 0)
        family = psutil.Process(first.process.pid).children(recursive=True)
        first.process.send_signal(signal.SIGINT)
        assert first.process.wait(PATIENCE) == 0, first.said()
        wait_for(lambda: all(is_over(process) for process in family))
    with up(tmp_path) as second, Client(second.url) as client:
        assert client.wait(job, seconds=PATIENCE)["state"] == "succeeded"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has died")
def test_kill_9_of_the_command_leaves_no_server_behind(tmp_path: Path) -> None:
    with up(tmp_path) as found:
        family = psutil.Process(found.process.pid).children(recursive=True)
        os.kill(found.process.pid, signal.SIGKILL)
        found.process.wait(PATIENCE)
        wait_for(lambda: all(is_over(process) for process in family))


def test_run_trains_without_server_or_database(tmp_path: Path) -> None:
    done = regtrain("run", SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["event"] == "Started"
    assert events[-1]["event"] == "Finished"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("command", "option"), [("serve", "--port"), ("work", "--lease-seconds"), ("run", "--arrays")])
def test_serve_work_and_run_take_the_options_of_what_they_start(command: str, option: str) -> None:
    done = regtrain(command, "--help")
    assert done.returncode == 0
    assert option in done.stdout


def test_version() -> None:
    assert regtrain("--version").stdout.startswith("regtrain 0.")


def test_the_client_raises_the_words_of_the_contract(client: Client, finished: str) -> None:
    with pytest.raises(SpecRefused) as refusal:
        client.submit({**LONG, "seed": -1})
    assert [problem.path for problem in refusal.value.problems] == ["seed"]
    with pytest.raises(NotFound):
        client.job("job_nope")
    running = client.submit(LONG)["id"]
    with pytest.raises(TimeoutError):
        client.wait(running, seconds=0.01)
    with pytest.raises(Conflict):
        client.delete(running)
    client.cancel(running)
    client.wait(running, seconds=PATIENCE)
    client.delete(running)
    with pytest.raises(NotFound):
        client.job(running)
    with Client("http://127.0.0.1:9") as nobody, pytest.raises(Unreachable):
        nobody.job(finished)


def test_the_path_in_a_terminal_as_json_and_as_a_table(running: Up, client: Client, finished: str) -> None:
    shown = regtrain("path", finished, "--url", running.url)
    assert shown.returncode == 0, shown.stderr
    assert "by regularizers.0.lambda, the strongest first" in shown.stdout
    assert [line.split()[0] for line in shown.stdout.splitlines()[5:10]] == ["20", "2", "1", "0.2", "0"]
    found = json.loads(regtrain("path", finished, "--json", "--url", running.url).stdout)
    assert found == client.path(finished)
    assert [entry["strength"] for entry in found["paths"][0]["entries"]] == [20, 2, 1, 0.2, 0]
    assert regtrain("path", finished, "--format", "csv", "--url", running.url).stdout.startswith("place,")
    wrong = regtrain("path", finished, "--format", "png", "--url", running.url)
    assert wrong.returncode == 2
    assert "format" in wrong.stderr
    assert regtrain("path", "job_0", "--url", running.url).returncode == 1


def test_the_client_reads_runs_curves_gradients_and_words(client: Client, finished: str) -> None:
    values = [run["values"]["regularizers.0.lambda"] for run in client.runs(finished, limit=2)]
    assert values == [0, 0.2, 1, 2, 20]
    (curve,) = client.curves(finished, series=["loss/train"], runs="0", to=9)["series"]
    assert curve["x"] == list(range(10))
    (gradient,) = client.gradients(finished, series=["gradient/norm"], runs="0", points=100)["series"]
    assert len(gradient["x"]) <= 100
    assert finished in [job["id"] for job in client.jobs()]
    assert len(client.workers()) >= 1
    assert "l1" in [kind["kind"] for kind in client.catalog()["families"]["regularizers"]]
    assert client.schema()["title"] == "JobSpec"
    assert client.ready()


def test_the_same_key_makes_one_job(client: Client) -> None:
    body = SMALL.read_bytes()
    assert client.submit(body, key="once")["id"] == client.submit(body, key="once")["id"]
    first = client.wait(client.submit(body, key="once")["id"], seconds=PATIENCE)["id"]
    assert client.retry(first)["id"] != first


def test_upload_and_train(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "line.csv"
    file.write_text("x,y\n" + "".join(f"{x},{2 * x + 1}\n" for x in range(10)), encoding="utf-8")
    dataset = client.upload(file)
    assert dataset["facts"]["rows"] == 10
    assert dataset["id"] in [found["id"] for found in client.datasets()]
    spec = {"dataset": {"kind": "upload", "id": dataset["id"]}, "model": {"kind": "linear"}, "loss": {"kind": "half_squared_error"}, "optimizer": {"kind": "sgd", "lr": 0.03}}
    job = client.submit({**spec, "budget": {"epochs": 3000, "batch_size": "all"}, "dtype": "float64"})
    assert client.wait(job["id"], seconds=PATIENCE)["state"] == "succeeded"
    (run,) = client.runs(job["id"])
    assert run["metrics"]["loss/train"] == pytest.approx(0, abs=1e-9)  # y = 2x + 1 without noise
    client.delete_dataset(dataset["id"])
    with pytest.raises(NotFound):
        client.dataset(dataset["id"])


def test_curves_over_seeds(running: Up) -> None:
    spec = {**json.loads(SMALL.read_bytes()), "selection": {"seeds": 2}}
    done = regtrain("submit", "-", "--watch", "--url", running.url, stdin=json.dumps(spec))
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[0]
    shown = regtrain("curves", job, "--series", "loss/train", "--over", "seeds", "--url", running.url)
    assert shown.returncode == 0, shown.stderr
    assert "mean over 2 runs" in shown.stdout
    refused = regtrain("gradients", job, "--over", "layers", "--url", running.url)
    assert refused.returncode == 2
    assert "over" in refused.stderr


def test_a_plan_says_what_a_job_would_come_to_and_how_long_it_takes(running: Up, finished: str, client: Client) -> None:
    planned = regtrain("plan", SMALL, "--url", running.url)
    assert planned.returncode == 0, planned.stderr
    assert f"{STEPS} a run" in planned.stdout
    assert "before the first update" in planned.stdout
    assert "s on cpu" in planned.stdout  # `finished` has been measured
    found = json.loads(regtrain("plan", "-", "--json", "--url", running.url, stdin=SMALL.read_text(encoding="utf-8")).stdout)
    assert found == client.plan(SMALL.read_bytes())
    assert found["runs"] == client.job(finished)["progress"]["runs"]
    refused = regtrain("plan", "-", "--url", running.url, stdin='{"model": {"kind": "mpl"}}')
    assert refused.returncode == 2
    assert "did you mean 'mlp'?" in refused.stderr


def test_strengths_are_converted(client: Client) -> None:
    found = {one["convention"]: one["value"] for one in client.strengths("sklearn_ridge", 2.0, loss="squared_error", rows=50)}
    assert found["torch"] == pytest.approx(2 * 2 / 50)
    with pytest.raises(SpecRefused):
        client.strengths("ridge", 2.0, loss="squared_error", rows=50)
