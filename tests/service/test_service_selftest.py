"""/v1/selftest: workers measure, the service asks and shows."""

from typing import Any

from serving import Serving, assert_problem

from regtrain.store import workers

LAW: dict[str, Any] = {"name": "uniform", "formula": "ln C", "error": 1e-16, "tolerance": 1e-12, "ok": True, "seconds": 0.1}
SOUND: dict[str, Any] = {"ok": True, "environment": {"torch": "2"}, "laws": [LAW], "error": None}
BROKEN: dict[str, Any] = {**SOUND, "ok": False, "laws": [LAW, {**LAW, "error": None, "ok": False}]}
UNMEASURED: dict[str, Any] = {"ok": None, "environment": {}, "laws": [], "error": "the laws were not measured: exit code 2"}


def test_shows_the_newest_of_each_worker_and_who_has_been_asked(service: Serving) -> None:
    def shown() -> list[Any]:
        body = service.http.get("/v1/selftest").json()
        return [body["ok"], *((one["ok"], len(one["laws"]), one["measured_at"] is not None, one["asked_at"] is not None) for one in body["workers"])]

    def measured(worker: str, outcome: dict[str, Any]) -> None:
        workers.measured(service.database, worker, outcome, asked=workers.asked(service.database, worker))

    assert service.http.post("/v1/selftest").json()["workers"] == []
    with workers.register(service.database, "w-1", device="cpu", versions={}), workers.register(service.database, "w-2", device="cuda:0", versions={}):
        assert shown() == [None, (None, 0, False, False), (None, 0, False, False)]
        measured("w-1", SOUND)
        assert shown() == [None, (True, 1, True, False), (None, 0, False, False)]
        asked = service.http.post("/v1/selftest")
        assert asked.status_code == 202
        assert asked.json() == service.http.get("/v1/selftest").json()
        assert shown() == [None, (True, 1, True, True), (None, 0, False, True)]
        measured("w-2", SOUND)
        assert shown() == [True, (True, 1, True, True), (True, 1, True, False)]
        measured("w-1", BROKEN)
        assert shown() == [False, (False, 2, True, False), (True, 1, True, False)]
        measured("w-1", UNMEASURED)
        assert shown() == [None, (None, 0, True, False), (True, 1, True, False)]
        one = service.http.get("/v1/selftest").json()["workers"][1]
        assert (one["worker"], one["device"], one["laws"], one["environment"]) == ("w-2", "cuda:0", [LAW], {"torch": "2"})
    assert_problem(service.http.post("/v1/selftest?device=cpu"), 422, path="device")


def test_an_answer_to_an_older_question_leaves_a_newer_one_open(service: Serving) -> None:
    with workers.register(service.database, "w-1", device="cpu", versions={}):
        service.http.post("/v1/selftest")
        first = workers.asked(service.database, "w-1")
        service.http.post("/v1/selftest")
        workers.measured(service.database, "w-1", SOUND, asked=first)
        assert workers.asked(service.database, "w-1") is not None
        workers.measured(service.database, "w-1", SOUND, asked=None)  # begun by itself
        assert workers.asked(service.database, "w-1") is not None
