"""Jobs over HTTP: submit, repeat, look, wait, list, cancel, retry, delete, download."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load
from serving import AT_ONCE, LINEAR, PATIENCE, Serving, assert_problem, eventually, report

from regtrain.contract.states import FINAL, Failure, State
from regtrain.store import jobs


def test_a_submitted_job_is_shown_with_its_resolved_spec_and_where_each_value_came_from(service: Serving) -> None:
    answer = service.http.post(
        "/v1/jobs", json={**LINEAR, "name": "first", "metadata": {"team": "vision"}, "regularizers": [{"kind": "l1", "lambda": {"values": [0.1, 1]}, "method": "subgradient"}]}
    )
    job = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["terminal"], job["reason"], job["attempt"], job["runs"]) == ("queued", False, None, 0, 2)
    assert job["spec"]["optimizer"]["momentum"] == 0.0
    assert job["origin"]["optimizer.momentum"] == "default"
    assert job["origin"]["optimizer.lr"] == "given"
    assert job["origin"]["regularizers.0.lambda"] == "searched"
    assert job["warnings"][0]["path"] == "regularizers.0.method"
    assert job["warnings"][0]["source"] == "spec"
    assert job["progress"] == {"step": 0, "steps": None, "epoch": 0, "runs": 2, "eta_seconds": None}
    assert job["diagnosis"] is None
    assert service.job(job["id"]) == job


def test_the_same_key_gives_the_same_job_and_another_body_is_refused(service: Serving) -> None:
    headers = {"Idempotency-Key": "once"}
    first = service.http.post("/v1/jobs", json=LINEAR, headers=headers)
    reordered = dict(reversed(LINEAR.items()))
    again = service.http.post("/v1/jobs", json=reordered, headers=headers)
    assert first.status_code == again.status_code == 201
    assert first.json()["id"] == again.json()["id"]
    assert_problem(service.http.post("/v1/jobs", json={**LINEAR, "seed": 1}, headers=headers), 422, path="Idempotency-Key")
    assert_problem(service.http.post("/v1/jobs", json=LINEAR, headers={"Idempotency-Key": "x" * 256}), 422, path="Idempotency-Key")


def test_twenty_clients_with_one_key_make_one_job(service: Serving) -> None:
    with ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(lambda _: service.http.post("/v1/jobs", json=LINEAR, headers={"Idempotency-Key": "crowd"}), range(20)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_lists_filter_and_page(service: Serving) -> None:
    made = [service.submit(name="paged", metadata={"team": "vision" if i % 2 else "sound"}) for i in range(7)]
    pages: list[list[str]] = []
    query: dict[str, Any] = {"name": "paged", "limit": 3}
    while True:
        page = service.http.get("/v1/jobs", params=query).json()
        pages.append([job["id"] for job in page["jobs"]])
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [job for page in pages for job in page] == made[::-1]

    def ids(text: str) -> list[str]:
        return [job["id"] for job in service.http.get(f"/v1/jobs?name=paged&{text}").json()["jobs"]]

    assert ids("order=oldest") == made
    assert ids("metadata.team=vision&order=oldest") == made[1::2]
    assert ids("state=running,succeeded") == []
    assert ids("state=queued,running&order=oldest") == made
    middle = service.job(made[3])["created_at"]
    assert ids(f"created_after={middle}&order=oldest") == made[4:]
    assert "spec" not in service.http.get("/v1/jobs?limit=1").json()["jobs"][0]
    other = service.http.get("/v1/jobs", params={**query, "order": "oldest"})
    assert_problem(other, 422, path="cursor")
    assert_problem(service.http.get("/v1/jobs?cursor=junk"), 422, path="cursor")


def test_a_cursor_does_not_skip_or_repeat_while_jobs_arrive(service: Serving) -> None:
    made = [service.submit(name="arriving") for _ in range(4)]
    first = service.http.get("/v1/jobs?name=arriving&limit=2").json()
    service.submit(name="arriving")
    second = service.http.get(f"/v1/jobs?name=arriving&limit=2&cursor={first['next_cursor']}").json()
    assert [job["id"] for job in first["jobs"] + second["jobs"]] == made[::-1]


def test_an_unchanged_job_is_not_sent_again(service: Serving) -> None:
    job = service.submit()
    first = service.http.get(f"/v1/jobs/{job}")
    tag = first.headers["etag"]
    assert tag.startswith('W/"')
    again = service.http.get(f"/v1/jobs/{job}", headers={"If-None-Match": f'"other", {tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    service.http.post(f"/v1/jobs/{job}/cancel")
    changed = service.http.get(f"/v1/jobs/{job}", headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.json()["state"] == "cancelled"


def test_waiting_ends_with_the_job(service: Serving) -> None:
    job = service.submit()
    answers: list[Any] = []
    waiting = threading.Thread(target=lambda: answers.append(service.http.get(f"/v1/jobs/{job}?wait=50").json()))
    waiting.start()
    eventually(lambda: service.app.state.poller.waiting, "nobody waits")
    assert not answers
    service.train(job, {"loss/train": np.ones((3, 1))})
    waiting.join(AT_ONCE)
    assert answers[0]["state"] == "succeeded"
    assert answers[0]["terminal"] is True
    assert answers[0]["result"]["chosen_run"] == 0


def test_waiting_ends_when_a_metric_falls_below_its_bound(service: Serving) -> None:
    job = service.submit()
    claim = service.claim(job)
    report(service.database, claim, {"loss/train": np.array([[1.0], [0.9]])}, layers=["head"])
    early = service.http.get(f"/v1/jobs/{job}?wait=0.2&until=loss/train:lt:0.2").json()
    assert early["metrics"]["loss/train"] == 0.9
    answers: list[Any] = []
    waiting = threading.Thread(target=lambda: answers.append(service.http.get(f"/v1/jobs/{job}?wait=50&until=loss/train:lt:0.2").json()))
    waiting.start()
    eventually(lambda: service.app.state.poller.waiting, "nobody waits")
    report(service.database, claim, {"loss/train": np.array([[1.0], [0.9], [0.1]])}, layers=["head"])
    waiting.join(AT_ONCE)
    assert answers[0]["metrics"]["loss/train"] == 0.1
    assert answers[0]["state"] == "running"
    above = service.http.get(f"/v1/jobs/{job}?wait=50&until=loss/train:gt:0.05")
    assert above.json()["state"] == "running"


def test_a_hundred_waiters_ask_the_store_together(service: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    job = service.submit()
    asked: list[list[str]] = []
    look = service.app.state.poller.look
    monkeypatch.setattr(service.app.state.poller, "look", lambda ids: asked.append(ids) or look(ids))
    with ThreadPoolExecutor(100) as clients:
        waiting = [clients.submit(service.http.get, f"/v1/jobs/{job}?wait=50", timeout=PATIENCE) for _ in range(100)]
        eventually(lambda: len(service.app.state.poller.waiting) == 100, "not all wait")
        assert service.http.get("/healthz").status_code == 200
        service.http.post(f"/v1/jobs/{job}/cancel")
        assert {answer.result().json()["state"] for answer in waiting} == {"cancelled"}
    assert all(ids == [job] for ids in asked)


def test_submitting_can_wait_for_the_end(service: Serving) -> None:
    answers: list[Any] = []
    waiting = threading.Thread(target=lambda: answers.append(service.http.post("/v1/jobs?wait=50", json={**LINEAR, "name": "awaited"})))
    waiting.start()
    eventually(lambda: service.http.get("/v1/jobs?name=awaited").json()["jobs"], "not submitted")
    job = service.http.get("/v1/jobs?name=awaited").json()["jobs"][0]["id"]
    service.http.post(f"/v1/jobs/{job}/cancel")
    waiting.join(AT_ONCE)
    assert answers[0].status_code == 201
    assert answers[0].json()["state"] == "cancelled"


def test_a_job_that_is_deleted_while_somebody_waits_is_not_found(service: Serving) -> None:
    assert_problem(service.http.get("/v1/jobs/job_nobody?wait=50"), 404)


@pytest.mark.parametrize("text", ["", "done", "loss/train", "loss/train:lt", "loss/train:lt:", ":lt:1", "loss/train:le:1", "loss/train:lt:x"])
def test_a_condition_that_is_none_is_refused(service: Serving, text: str) -> None:
    assert_problem(service.http.get(f"/v1/jobs/{service.submit()}", params={"until": text}), 422, path="until")


def test_cancelling_is_at_once_in_the_queue_and_an_intent_while_running(service: Serving) -> None:
    waiting, running = service.submit(), service.submit()
    claim = service.claim(running)
    cancelled = service.http.post(f"/v1/jobs/{running}/cancel").json()
    assert (cancelled["state"], cancelled["intent"]) == ("running", "cancelling")
    assert service.http.post(f"/v1/jobs/{running}/cancel").json()["intent"] == "cancelling"
    jobs.cancelled(service.database, claim)
    assert service.job(running)["state"] == "cancelled"
    assert service.http.post(f"/v1/jobs/{running}/cancel").json()["state"] == "cancelled"
    fresh = service.submit()
    assert service.http.post(f"/v1/jobs/{fresh}/cancel").json()["state"] == "cancelled"
    assert waiting


def test_a_retry_is_a_new_job_with_the_same_words(service: Serving) -> None:
    job = service.submit(regularizers=[{"kind": "l2", "lambda": {"values": [0.1, 1]}}])
    assert_problem(service.http.post(f"/v1/jobs/{job}/retry"), 409)
    service.http.post(f"/v1/jobs/{job}/cancel")
    answer = service.http.post(f"/v1/jobs/{job}/retry")
    again = answer.json()
    assert answer.status_code == 201
    assert (again["retry_of"], again["state"]) == (job, "queued")
    assert again["id"] != job
    assert again["spec"] == service.job(job)["spec"]
    assert again["origin"] == service.job(job)["origin"]


def test_only_a_finished_job_can_be_deleted_and_then_it_is_gone(service: Serving) -> None:
    job = service.submit()
    assert_problem(service.http.delete(f"/v1/jobs/{job}"), 409)
    service.train(job, {"loss/train": np.ones((3, 1))})
    folder = service.data / "jobs" / job
    assert folder.exists()
    assert service.http.delete(f"/v1/jobs/{job}").status_code == 204
    assert not folder.exists()
    for path in ("", "/curves", "/gradients", "/runs", "/model"):
        assert_problem(service.http.get(f"/v1/jobs/{job}{path}"), 404)
    assert_problem(service.http.delete(f"/v1/jobs/{job}"), 404)


def test_the_model_is_a_safetensors_file(service: Serving) -> None:
    job = service.submit()
    assert_problem(service.http.get(f"/v1/jobs/{job}/model"), 409)
    service.train(job, {"loss/train": np.ones((3, 1))})
    answer = service.http.get(f"/v1/jobs/{job}/model")
    assert answer.headers["content-disposition"] == f'attachment; filename="{job}.safetensors"'
    assert answer.headers["content-type"] == "application/octet-stream"
    assert load(answer.content)["head.weight"].shape == (1, 1, 1)


def test_runs_are_listed_sorted_and_paged_in_every_form(service: Serving) -> None:
    job = service.submit(regularizers=[{"kind": "l2", "lambda": {"values": [0.1, 1, 10]}}])
    service.train(job, {"loss/train": np.ones((3, 3))})
    first = service.http.get(f"/v1/jobs/{job}/runs?limit=2").json()
    second = service.http.get(f"/v1/jobs/{job}/runs?limit=2&cursor={first['next_cursor']}").json()
    assert [run["index"] for run in first["runs"] + second["runs"]] == [0, 1, 2]
    assert second["next_cursor"] is None
    run = first["runs"][1]
    assert run["values"] == {"regularizers.0.lambda": 1.0}
    assert (run["state"], run["stop_reason"], run["steps"], run["fold"], run["variant"], run["zeros"]) == ("succeeded", "budget", 3, None, None, {"head.weight": 1})
    ranked = service.http.get(f"/v1/jobs/{job}/runs?sort=loss/train").json()["runs"]
    assert [run["index"] for run in ranked] == [2, 1, 0]
    lines = service.http.get(f"/v1/jobs/{job}/runs?format=csv").text.splitlines()
    assert lines[0].startswith("index,seed,state,steps,stop_reason,regularizers.0.lambda,loss/train")
    assert len(lines) == 4
    assert [json.loads(line)["index"] for line in service.http.get(f"/v1/jobs/{job}/runs?format=jsonl").text.splitlines()] == [0, 1, 2]
    assert "regularizers.0.lambda" in service.http.get(f"/v1/jobs/{job}/runs", headers={"Accept": "text/plain"}).text


def test_a_failed_job_says_why_as_a_problem(service: Serving) -> None:
    job = service.submit()
    jobs.fail(service.database, service.claim(job), Failure.DIVERGED, "every run became non-finite", "step 7")
    shown = service.job(job)
    assert (shown["state"], shown["reason"], shown["terminal"]) == ("failed", "diverged", True)
    assert shown["error"]["type"] == "urn:regtrain:failure:diverged"
    assert shown["error"]["detail"] == "every run became non-finite"


def test_states_are_those_of_the_contract(service: Serving) -> None:
    assert_problem(service.http.get("/v1/jobs?state=done"), 422, path="state")
    assert {state for state in State if service.http.get(f"/v1/jobs?state={state}").status_code == 200} == set(State)
    assert frozenset({"succeeded", "failed", "cancelled"}) == FINAL
