"""The service as a process: where it binds, what it imports, how it stops, what it logs, and what it says of an error of ours."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import psutil
import pytest
from serving import AT_ONCE, LINEAR, PATIENCE, Serving, assert_problem, eventually, serving

from regtrain.store import jobs


@contextmanager
def process(data: Path, *arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`python -P -m service` on a free port, and its URL."""
    command = [sys.executable, "-P", "-m", "service", "--port", "0", "--data", str(data), *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}, cwd=data.parent)
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line.startswith("regtrain service on http://127.0.0.1:"), line
        yield child, line.split()[-1]
    finally:
        child.kill()
        child.communicate()


def refused(*arguments: str, **environment: str) -> str:
    ran = subprocess.run([sys.executable, "-P", "-m", "service", *arguments], capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, **environment})
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout == ""
    assert "Traceback" not in ran.stderr
    return ran.stderr


def test_a_server_serves_logs_and_stops_cleanly(tmp_path: Path) -> None:
    with process(tmp_path / "data") as (child, url):
        answer = httpx.get(f"{url}/readyz")
        assert answer.json() == {"status": "ok"}
        job = httpx.post(f"{url}/v1/jobs", json=LINEAR).json()["id"]
        assert httpx.get(f"{url}/v1/jobs/{job}", headers={"X-Request-ID": "0123456789abcdef0123456789abcdef"}).headers["x-request-id"] == "0123456789abcdef0123456789abcdef"
        memory = psutil.Process(child.pid).memory_info().rss / 2**20
        assert memory < 150, f"{memory:.0f} MiB"
        child.send_signal(signal.SIGTERM)
        _, log = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0
    lines = [json.loads(line) for line in log.splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert [(line["method"], line["path"], line["status"]) for line in requests] == [("GET", "/readyz", 200), ("POST", "/v1/jobs", 201), ("GET", f"/v1/jobs/{job}", 200)]
    assert requests[0]["request_id"] == answer.headers["x-request-id"]
    assert requests[2]["request_id"] == "0123456789abcdef0123456789abcdef"
    assert all({"timestamp", "level"} <= line.keys() for line in lines)


def test_who_waits_is_answered_when_the_server_stops(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        job = service.submit()
        answers: list[httpx.Response] = []
        waiting = Thread(target=lambda: answers.append(httpx.get(f"{service.url}/v1/jobs/{job}?wait=50", timeout=PATIENCE)))
        waiting.start()
        eventually(lambda: service.app.state.poller.waiting, "nobody waits")
        service.app.state.stop()
        waiting.join(AT_ONCE)
        assert answers[0].json()["state"] == "queued"
        assert service.http.get(f"/v1/jobs/{job}?wait=50", timeout=AT_ONCE).json()["state"] == "queued"


def test_other_machines_are_let_in_only_on_purpose(tmp_path: Path) -> None:
    message = refused("--host", "0.0.0.0", "--port", "0", "--data", str(tmp_path / "data"))
    assert "--allow-remote" in message
    assert "--allow-remote" in refused("--port", "0", "--data", str(tmp_path / "data"), REGTRAIN_HOST="::")
    assert not (tmp_path / "data").exists()
    with process(tmp_path / "data", REGTRAIN_ALLOW_REMOTE="true") as (_, url):
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_database_has_one_server(tmp_path: Path) -> None:
    with process(tmp_path / "data") as (child, _):
        assert f"process {child.pid}" in refused("--port", "0", "--data", str(tmp_path / "data"))
    with process(tmp_path / "data") as (_, url):
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_port_that_is_taken_and_a_setting_that_is_none_are_explained(tmp_path: Path) -> None:
    with process(tmp_path / "data") as (_, url):
        assert "--port" in refused("--port", url.rsplit(":", 1)[1], "--data", str(tmp_path / "other"))
    assert "port" in refused("--port", "http", "--data", str(tmp_path / "other"))
    assert "sqlite" in refused("--port", "0", "--data", str(tmp_path / "other"), "--database-url", "mysql://here")


def test_the_service_imports_no_torch_and_no_worker() -> None:
    program = "import sys, service.app, service.__main__; print(sorted(name for name in sys.modules if name.partition('.')[0] in ('torch', 'worker', 'sklearn', 'scipy')))"
    ran = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_an_error_of_ours_says_a_request_id_and_nothing_else(service: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret: the password is hunter2")

    monkeypatch.setattr(jobs, "get", broken)
    answer = service.http.get("/v1/jobs/job_any")
    body = assert_problem(answer, 500)
    assert "hunter2" not in answer.text
    assert body == {
        "type": "urn:regtrain:internal-server-error",
        "title": "Internal Server Error",
        "status": 500,
        "detail": f"something went wrong here; the log knows more under request id {answer.headers['x-request-id']}",
        "errors": [],
        "request_id": answer.headers["x-request-id"],
    }


def test_what_is_not_there_and_what_cannot_be_done_are_problems(service: Serving) -> None:
    assert_problem(service.http.get("/v1/nothing"), 404)
    answer = service.http.put("/v1/jobs")
    assert_problem(answer, 405)
    assert {method.strip() for method in answer.headers["allow"].split(",")} == {"GET", "POST"}
    answer = service.http.patch("/v1/jobs/job_1")
    assert {method.strip() for method in answer.headers["allow"].split(",")} == {"GET", "DELETE"}
    assert_problem(service.http.get("/v1/jobs/"), 404)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1", "10.0.0.1"])
def test_a_name_that_is_not_ours_is_refused(service: Serving, host: str) -> None:
    assert_problem(service.http.get("/v1/jobs", headers={"Host": host}), 421, path="Host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1", "[::1]:8321"])
def test_the_names_of_this_machine_are_ours(service: Serving, host: str) -> None:
    assert service.http.get("/healthz", headers={"Host": host}).status_code == 200


def test_more_names_can_be_allowed(tmp_path: Path) -> None:
    with serving(tmp_path, allowed_hosts="box.lan, other", allow_remote=True) as service:
        for host in ("box.lan:8321", "other", "192.168.0.7"):
            assert service.http.get("/healthz", headers={"Host": host}).status_code == 200
        assert_problem(service.http.get("/healthz", headers={"Host": "evil.example"}), 421, path="Host")


def test_a_page_of_another_site_cannot_write(service: Serving) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert_problem(service.http.post("/v1/jobs", json=LINEAR, headers=headers), 403, path="Origin")
        assert_problem(service.http.post("/v1/datasets?format=csv", content=b"a,y\n1,2\n", headers=headers), 403, path="Origin")
    assert service.http.post("/v1/jobs", json=LINEAR, headers={"Origin": service.url, "Sec-Fetch-Site": "same-origin"}).status_code == 201
    assert "access-control-allow-origin" not in service.http.get("/v1/jobs", headers={"Origin": "https://evil.example"}).headers


def test_the_documentation_needs_no_network(service: Serving) -> None:
    for page in ("/docs", "/redoc"):
        text = service.http.get(page).text
        assets = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)""", text)
        assert assets
        for asset in assets:
            assert asset.startswith("/"), asset
            assert service.http.get(asset).status_code == 200
        assert not re.search(r"https?://", text.replace("http://www.w3.org", ""))


def test_a_slow_sender_is_cut_off(tmp_path: Path) -> None:
    with serving(tmp_path, body_seconds=0.2) as service, socket.create_connection(("127.0.0.1", int(service.url.rsplit(":", 1)[1])), timeout=PATIENCE) as sender:
        sender.sendall(b'POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"seed"')
        answer = HTTPResponse(sender)
        answer.begin()
        assert (answer.status, answer.headers["content-type"]) == (408, "application/problem+json")
        assert json.loads(answer.read())["status"] == 408


def test_readiness_says_what_is_in_the_way(service: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    assert service.http.get("/readyz").json() == {"status": "ok"}
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "data folder" in assert_problem(service.http.get("/readyz"), 503)["detail"]
