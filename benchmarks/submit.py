"""From a POST to a trained job: durable submissions a second, what HTTP adds, how long a warm worker takes, and what idling costs.

OMP_NUM_THREADS=1 python benchmarks/submit.py

(a) `submit`, the store's verb, from 1 and from 16 threads of one process: it returns when the job is on the disk (WAL,
    synchronous=FULL). Beside it, in the same rounds, a plain sqlite3 INSERT + COMMIT of the same JSON, one after the other,
    also WAL and FULL: the price of durability alone.
(b) POST /v1/jobs from 1 and from 16 clients that keep their connections (threads, http.client), without a worker. Beside it
    a FastAPI route in a process of its own that reads the body and stores nothing: the price of HTTP alone.
(c) One job after the other on a warm worker, timed by the client from before the POST. Of a job of one step: when a worker had
    taken it (`started_at`, the same clock), when it had ended in the store (`finished_at`: the first step, its report, the model
    file and the last transaction lie before), and when the answer to `POST ?wait=30` was there. Of a job that goes on: when
    `?until=loss/train:lt:1e300` was answered, which is the first step as another process sees it.
(d) Memory of the service, the worker's loop and its training child after their start: resident, and unshared (USS). The
    first start of a service loads alembic, to create the tables; later ones do not.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from http.client import HTTPConnection
from pathlib import Path
from statistics import quantiles
from typing import Any
from urllib.parse import urlsplit

import psutil
from harness import interleaved, publish, quartiles, ratios, timed

from regtrain.contract.job import given_of, parse
from regtrain.store import jobs
from regtrain.store.database import open_database, sqlite

ROOT = Path(__file__).parents[1]
SPEC: dict[str, Any] = {
    "name": "tiny",
    "dataset": {"kind": "inline", "x": [[1], [2], [3], [4], [5]], "y": [2, 4, 7, 11, 16]},
    "model": {"kind": "linear"},
    "loss": {"kind": "half_squared_error"},
    "regularizers": [{"kind": "l1", "lambda": 0.1}],
    "optimizer": {"kind": "sgd", "lr": 0.05},
    "budget": {"epochs": 1, "batch_size": "all"},
}
BODY = json.dumps(SPEC).encode()
LONG = json.dumps({**SPEC, "budget": {"epochs": 1_000_000, "batch_size": "all"}}).encode()
HEADERS = {"Content-Type": "application/json"}
ROUNDS, SUBMISSIONS, REQUESTS, JOBS = 7, 500, 250, 50
LISTENING = "regtrain service on "


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [*stored(Path(folder) / "verb"), *served(Path(folder) / "http"), *trained(Path(folder) / "train")]
    publish("submit", rows)


def stored(folder: Path) -> Iterator[dict[str, Any]]:
    """(a)"""
    spec, given = parse(BODY), given_of(BODY)
    with closing(open_database(None, folder)) as db, closing(plain_database(folder / "plain.db")) as plain:

        def ours(count: int) -> None:
            for _ in range(count):
                jobs.submit(db, spec, given=given, warnings=[])

        def theirs() -> None:
            for number in range(SUBMISSIONS):
                plain.execute("BEGIN IMMEDIATE")
                plain.execute("INSERT INTO jobs (state, spec) VALUES ('queued', ?)", (f"{number} {BODY}",))
                plain.execute("COMMIT")

        for threads in (1, 16):
            taken = interleaved({"ours": lambda n=threads: timed(lambda: together(ours, SUBMISSIONS, n)), "plain": lambda: timed(theirs)}, rounds=ROUNDS)
            rates = {name: [SUBMISSIONS / t for t in times] for name, times in taken.items()}
            yield {
                "what": "store.submit", "threads": threads, "runs": ROUNDS, "submissions": SUBMISSIONS, "per_second": quartiles(rates["ours"]),
                "plain_insert_per_second": quartiles(rates["plain"]), "ratio": quartiles(ratios(rates["ours"], rates["plain"])),
            }  # fmt: skip


def together(work: Callable[[int], None], count: int, threads: int) -> None:
    """`count` shared out among threads that begin at once."""
    shares = [count // threads + (number < count % threads) for number in range(threads)]
    started = [threading.Thread(target=work, args=(share,)) for share in shares]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def plain_database(file: Path) -> Any:
    """One table, as durable as the store's."""
    connection = sqlite.connect(str(file), isolation_level=None)
    for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "CREATE TABLE jobs (id INTEGER PRIMARY KEY, state TEXT, spec TEXT)"):
        connection.execute(statement)
    return connection


def served(folder: Path) -> Iterator[dict[str, Any]]:
    """(b)"""
    with service(folder) as (ours, _), bare() as theirs:
        for clients in (1, 16):
            waits: dict[str, list[float]] = {"ours": [], "bare": []}
            taken = interleaved(
                {
                    "ours": lambda n=clients, w=waits["ours"]: timed(lambda: post(f"{ours}/v1/jobs", clients=n, waits=w)),
                    "bare": lambda n=clients, w=waits["bare"]: timed(lambda: post(f"{theirs}/jobs", clients=n, waits=w)),
                },
                rounds=ROUNDS,
            )
            rates = {name: [REQUESTS / t for t in times] for name, times in taken.items()}
            yield {
                "what": "POST /v1/jobs", "clients": clients, "runs": ROUNDS, "requests": REQUESTS, "per_second": quartiles(rates["ours"]), "ms_p50_p99": percentiles(waits["ours"]),
                "bare_per_second": quartiles(rates["bare"]), "bare_ms_p50_p99": percentiles(waits["bare"]), "ratio": quartiles(ratios(rates["ours"], rates["bare"])),
            }  # fmt: skip


def post(url: str, *, clients: int, waits: list[float]) -> None:
    """REQUESTS submissions, shared out among clients that each keep one connection; the seconds of each go to `waits`."""

    def client(count: int) -> None:
        with closing(connect(url)) as connection:
            for _ in range(count):
                waits.append(timed(lambda: ask(connection, "POST", urlsplit(url).path, BODY)))

    together(client, REQUESTS, clients)


def trained(folder: Path) -> Iterator[dict[str, Any]]:
    """(c) and (d)"""
    with service(folder) as (url, process), worker(folder), closing(connect(url)) as connection:
        eventually(lambda: ask(connection, "GET", "/v1/workers")["workers"])
        ask(connection, "POST", "/v1/jobs?wait=30", BODY)
        loop = next(p for p in psutil.Process().children() if "worker" in p.cmdline())
        yield from memory(service=process, loop=loop, child=next(p for p in loop.children() if "worker.trainer" in p.cmdline()))
        seconds: dict[str, list[float]] = {"taken": [], "ended": [], "answered": [], "first step": []}
        for _ in range(JOBS):
            begin, clock = time.time(), time.perf_counter()
            job = ask(connection, "POST", "/v1/jobs?wait=30", BODY)
            seconds["answered"].append(time.perf_counter() - clock)
            assert job["state"] == "succeeded", job
            seconds["taken"].append(moment(job["started_at"]) - begin)
            seconds["ended"].append(moment(job["finished_at"]) - begin)
        for _ in range(JOBS):
            clock = time.perf_counter()
            job = ask(connection, "POST", "/v1/jobs", LONG)
            seen = ask(connection, "GET", f"/v1/jobs/{job['id']}?wait=30&until=loss/train:lt:1e300")
            seconds["first step"].append(time.perf_counter() - clock)
            assert "loss/train" in seen["metrics"], seen
            ask(connection, "POST", f"/v1/jobs/{job['id']}/cancel", b"")
            ask(connection, "GET", f"/v1/jobs/{job['id']}?wait=30")
        for what, times in seconds.items():
            yield {"what": f"submit to {what}", "jobs": JOBS, "ms_p50_p99": percentiles(times), "ms_quartiles": quartiles([1000 * t for t in times])}
    with service(folder) as (_, process):
        yield from memory(service_on_a_database_that_is_there=process)


def memory(**processes: psutil.Process) -> Iterator[dict[str, Any]]:
    for name, process in processes.items():
        held = process.memory_full_info()
        loaded = any("torch" in Path(part.path).name for part in process.memory_maps())
        yield {"what": f"memory of the {name.replace('_', ' ')}", "rss_mb": held.rss / 1e6, "uss_mb": held.uss / 1e6, "torch": loaded}


@contextmanager
def service(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A service of its own, and its URL."""
    with running("-P", "-m", "service", "--port", "0", "--data", str(folder)) as process:
        yield first_line(process).removeprefix(LISTENING), psutil.Process(process.pid)


@contextmanager
def worker(folder: Path) -> Iterator[None]:
    with running("-P", "-m", "worker", "--data", str(folder), "--threads", "1", "--device", "cpu"):
        yield


@contextmanager
def bare() -> Iterator[str]:
    """A FastAPI route that reads a JSON body and stores nothing, and the URL of its process."""
    with running(__file__, "bare") as process:
        yield first_line(process)


def serve_bare() -> None:
    import socket

    import uvicorn
    from fastapi import FastAPI, Request

    app = FastAPI()

    @app.post("/jobs", status_code=201)
    async def take(request: Request) -> dict[str, Any]:
        return {"id": "job", "state": "queued", "spec": await request.json()}

    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run(sockets=[listener])


@contextmanager
def running(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A Python process that is ended with the context."""
    with ExitStack() as ending:
        process = ending.enter_context(
            subprocess.Popen(
                [sys.executable, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
                env={**{name: value for name, value in os.environ.items() if not name.startswith("REGTRAIN_")}, "OMP_NUM_THREADS": "1"},
            )
        )  # fmt: skip
        ending.callback(process.send_signal, signal.SIGTERM)
        yield process


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line, "the process did not start"
    return line


def connect(url: str) -> HTTPConnection:
    return HTTPConnection(urlsplit(url).netloc, timeout=60)


def ask(connection: HTTPConnection, method: str, path: str, body: bytes | None = None) -> Any:
    connection.request(method, path, body, HEADERS if body is not None else {})
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status < 300, text
    return json.loads(text)


def eventually(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """p50 and p99 in milliseconds."""
    cuts = quantiles(seconds, n=100, method="inclusive")
    return 1000 * cuts[49], 1000 * cuts[98]


if __name__ == "__main__":
    serve_bare() if sys.argv[1:] == ["bare"] else main()
