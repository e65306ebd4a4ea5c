"""The Python client: HTTP, in the words of the contract.

    from regtrain import Client
    client = Client()
    job = client.wait(client.submit({"dataset": {"kind": "digits"}, ...})["id"])
    client.curves(job["id"], series=["loss/train"])

Every refusal of the service is raised as the contract's own error: SpecRefused, NotFound, Conflict.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, cast

import httpx

from regtrain.contract.errors import Conflict, NotFound, Problem, RegtrainError, SpecRefused

if TYPE_CHECKING:
    from regtrain.contract.job import JobSpec

LOCAL = "http://127.0.0.1:8321"
LONGEST_WAIT = 30
"""Seconds that one request waits for the end of a job; the server's own cap may be shorter."""


class Unreachable(RegtrainError):
    """Nobody answers at the URL."""


class ServiceError(RegtrainError):
    """The service could not answer: the status, and what it said."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status


class Job(TypedDict):
    """A job as `GET /v1/jobs/{id}` shows it; lists leave out what is NotRequired."""

    id: str
    name: str
    state: str
    terminal: bool
    intent: str | None
    reason: str | None
    attempt: int
    progress: dict[str, Any] | None
    metrics: dict[str, float | None]
    created_at: str
    started_at: str | None
    finished_at: str | None
    spec: NotRequired[dict[str, Any]]
    origin: NotRequired[dict[str, str]]
    warnings: NotRequired[list[dict[str, str]]]
    diagnosis: NotRequired[dict[str, Any] | None]
    result: NotRequired[dict[str, Any] | None]
    error: NotRequired[dict[str, Any] | None]
    links: NotRequired[dict[str, str]]


class Client:
    """Talks to one service. Usable as a context manager.

    Args:
        url: where the service is.
        timeout: seconds to wait for an answer, besides the time that a call itself waits for a job.
    """

    def __init__(self, url: str = LOCAL, *, timeout: float = 60) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, timeout=timeout, headers={"Accept": "application/json"})

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(self, spec: "JobSpec | Mapping[str, Any] | str | bytes", *, key: str | None = None) -> Job:
        """Submits a spec: parsed, as a mapping, or as JSON text. With `key`, the same submission twice makes one job.

        Raises:
            SpecRefused: with a path and a hint for everything that is wrong.
        """
        headers = {"Content-Type": "application/json", **({"Idempotency-Key": key} if key else {})}
        return cast(Job, self._json("POST", "/v1/jobs", content=_body(spec), headers=headers))

    def plan(self, spec: "JobSpec | Mapping[str, Any] | str | bytes") -> dict[str, Any]:
        """What a spec would come to: runs, packs, steps, memory, warnings, seconds where workers have trained the like. Nothing is stored.

        Raises:
            SpecRefused: with a path and a hint for everything that is wrong.
        """
        return self._json("POST", "/v1/plan", content=_body(spec), headers={"Content-Type": "application/json"})

    def job(self, job: str, *, wait: float = 0, until: str = "terminal") -> Job:
        """The job; with `wait`, as soon as `until` holds or that many seconds have passed."""
        query: dict[str, Any] = {"wait": f"{wait:g}", "until": until} if wait else {}
        return cast(Job, self._json("GET", f"/v1/jobs/{job}", params=query, timeout=wait + 30))

    def wait(self, job: str, *, seconds: float | None = None) -> Job:
        """The job when it has ended.

        Raises:
            TimeoutError: it has not ended within `seconds`.
        """
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            left = LONGEST_WAIT if end is None else max(0.0, min(LONGEST_WAIT, end - time.monotonic()))
            seen = self.job(job, wait=left)
            if seen.get("terminal"):
                return seen
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"{job} is still {seen.get('state')} after {seconds:g} seconds")

    def watch(self, job: str, *, every: float = 0.25) -> Iterator[Job]:
        """The job again and again until it has ended; the last one is terminal."""
        while True:
            seen = self.job(job)
            yield seen
            if seen.get("terminal"):
                return
            time.sleep(every)

    def jobs(self, **filters: Any) -> Iterator[Job]:
        """Summaries of all jobs that match, page by page: `state`, `name`, `order`, `created_after`, `metadata.<key>`."""
        return cast(Iterator[Job], self._pages("/v1/jobs", "jobs", filters))

    def cancel(self, job: str) -> Job:
        return cast(Job, self._json("POST", f"/v1/jobs/{job}/cancel"))

    def retry(self, job: str) -> Job:
        """A new job with the same spec."""
        return cast(Job, self._json("POST", f"/v1/jobs/{job}/retry"))

    def remedies(self, job: str, *, symptom: str | None = None) -> dict[str, Any]:
        """What may cure a job, the most promising first, and the verdicts of its trials."""
        return self._json("GET", f"/v1/jobs/{job}/remedies", params={"symptom": symptom} if symptom else {})

    def try_remedies(self, job: str, **request: Any) -> Job:
        """The trial of remedies for an ended job, a job of its own whose `result.trial` has the verdicts; repeated, the same one.

        Args:
            job: whose symptom is to be cured.
            request: `symptom`, `remedies` ([{"label": …, "set": {path: value}}] in place of the candidates), `seeds` (at least 8), `epochs`,
                `order` (`in_turn`: one after the other until one is confirmed, or, with fewer than 8 seeds, until one helps),
                `**{"continue": True}` (go on from the job's trained weights, with surgery among the candidates).

        Raises:
            Conflict: the job has not ended.
            SpecRefused: no change is known to help, or a remedy of your own does not fit.
        """
        return cast(Job, self._json("POST", f"/v1/jobs/{job}/remedies", json=request))

    def delete(self, job: str) -> None:
        """Removes an ended job with its curves and files.

        Raises:
            Conflict: it has not ended.
        """
        self._send("DELETE", f"/v1/jobs/{job}")

    def runs(self, job: str, **query: Any) -> Iterator[dict[str, Any]]:
        """The runs of a job, page by page: `sort`, `limit`."""
        return self._pages(f"/v1/jobs/{job}/runs", "runs", query)

    def path(self, job: str) -> dict[str, Any]:
        """The regularization path: score ± standard error, zeros, features and coefficients of every λ, the strongest first, and what each rule takes."""
        return self._json("GET", f"/v1/jobs/{job}/path")

    def curves(self, job: str, *, series: Sequence[str] = (), **query: Any) -> dict[str, Any]:
        """Loss, objective, penalties and metrics: `runs`, `from`, `to`, `points`, `x`, and `over="seeds"` or `"folds"` for mean, min, max and standard error over them."""
        return self._json("GET", f"/v1/jobs/{job}/curves", params=_with_series(query, series))

    def gradients(self, job: str, *, series: Sequence[str] = (), **query: Any) -> dict[str, Any]:
        """Per-layer series, one number a layer at each step: `layers` and what `curves` takes."""
        return self._json("GET", f"/v1/jobs/{job}/gradients", params=_with_series(query, series))

    def diagnosis(self, job: str, *, run: int | None = None) -> dict[str, Any]:
        """What is wrong with a job so far: verdict, root, symptoms in causal order with their evidence; `run`: of one run alone."""
        return self._json("GET", f"/v1/jobs/{job}/diagnosis", params={} if run is None else {"run": run})

    def text(self, path: str, **query: Any) -> str:
        """The readable face of a resource: a table with a small chart; another one by `format`."""
        return self._send("GET", path, params={"format": "text", **query}).text

    def upload(self, file: Path, *, target: str | None = None, groups: str | None = None, name: str | None = None) -> dict[str, Any]:
        """Uploads a CSV or NPZ file as a dataset; its `id` goes into a spec as {"kind": "upload", "id": …}.

        Args:
            file: its ending says what it is.
            target: the column to predict; without one, the last column of a CSV.
            groups: the column of a CSV whose labels say which rows belong together; it is no feature.
            name: a label; without one, the file's name.
        """
        query = {
            "name": name or file.name,
            "format": file.suffix.lower().removeprefix(".") or "csv",
            **{key: value for key, value in (("target", target), ("groups", groups)) if value},
        }
        with file.open("rb") as rows:
            return self._json("POST", "/v1/datasets", params=query, content=rows, timeout=600)

    def datasets(self) -> Iterator[dict[str, Any]]:
        """All datasets, newest first."""
        return self._pages("/v1/datasets", "datasets", {})

    def dataset(self, dataset: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/datasets/{dataset}")

    def delete_dataset(self, dataset: str) -> None:
        """Removes a dataset.

        Raises:
            Conflict: a job that has not ended uses it.
        """
        self._send("DELETE", f"/v1/datasets/{dataset}")

    def strengths(self, convention: str, strength: float, *, loss: str, rows: int, penalty: str = "l2", **more: Any) -> list[dict[str, Any]]:
        """A strength in every convention: `l1_ratio`, `target_deviation` and `classes` where they are needed.

        Raises:
            SpecRefused: the convention has no such penalty or loss, or a number is missing.
        """
        question = {"convention": convention, "strength": strength, "loss": loss, "rows": rows, "penalty": penalty, **more}
        return self._json("POST", "/v1/lambda", json=question)["conventions"]

    def workers(self) -> list[dict[str, Any]]:
        return self._json("GET", "/v1/workers")["workers"]

    def selftest(self) -> dict[str, Any]:
        """What every worker has measured last of the laws that gradients obey exactly."""
        return self._json("GET", "/v1/selftest")

    def measure(self, *, seconds: float = 300, every: float = 0.25) -> dict[str, Any]:
        """Asks every worker to measure those laws anew, and waits for all of them. Without any worker `workers` is empty.

        Raises:
            TimeoutError: a worker has not answered within `seconds`.
        """
        end, seen = time.monotonic() + seconds, self._json("POST", "/v1/selftest")
        while late := [worker["worker"] for worker in seen["workers"] if worker["asked_at"]]:
            if time.monotonic() >= end:
                raise TimeoutError(f"not measured within {seconds:g} seconds by {', '.join(late)}")
            time.sleep(every)
            seen = self.selftest()
        return seen

    def catalog(self) -> dict[str, Any]:
        """All kinds with their fields and their meaning."""
        return self._json("GET", "/v1/catalog")

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the job spec."""
        return self._json("GET", "/v1/schema/job")

    def ready(self) -> bool:
        """Whether the service answers and its database can be used."""
        try:
            self._send("GET", "/readyz")
        except (Unreachable, ServiceError):
            return False
        return True

    def _pages(self, path: str, key: str, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
        cursor = None
        while True:
            page = self._json("GET", path, params={**query, **({"cursor": cursor} if cursor else {})})
            yield from page[key]
            cursor = page.get("next_cursor")
            if cursor is None:
                return

    def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        return self._send(method, path, **request).json()

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **request)
        except httpx.TransportError as error:
            raise Unreachable(
                f"no service answers at {self.url} ({error or type(error).__name__}): start one with `regtrain up`, or say where it is with --url or REGTRAIN_URL"
            ) from error
        if answer.is_success:
            return answer
        raise _error(answer)


def _body(spec: "JobSpec | Mapping[str, Any] | str | bytes") -> str | bytes:
    """Who has a JobSpec has imported the contract's models; nobody else waits half a second for them."""
    match spec:
        case str() | bytes():
            return spec
        case Mapping():
            return json.dumps(spec)
        case _:
            from regtrain.contract.job import resolved

            return json.dumps(resolved(spec))


def _with_series(query: dict[str, Any], series: Sequence[str]) -> dict[str, Any]:
    return {**query, **({"series": ",".join(series)} if series else {})}


def _error(answer: httpx.Response) -> RegtrainError:
    """The contract's error for a problem+json answer."""
    try:
        problem: dict[str, Any] = answer.json()
    except json.JSONDecodeError:
        problem = {"detail": answer.text[:500]}
    detail = str(problem.get("detail") or problem.get("title") or answer.reason_phrase)
    match answer.status_code:
        case 404:
            return NotFound(detail)
        case 409:
            return Conflict(detail)
        case 422:
            errors: list[dict[str, str]] = problem.get("errors") or []
            listed = [Problem(error.get("path", ""), error.get("message", ""), error.get("hint", "")) for error in errors]
            return SpecRefused(listed or [Problem("", detail)])
        case status:
            return ServiceError(status, detail)
