"""/v1/selftest: a worker's program measures, the service only asks."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving import Serving, assert_problem, serving


def test_every_law_holds_here_and_is_measured_once(service: Serving) -> None:
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda _: service.http.get("/v1/selftest"), range(2))
    body = first.json()
    assert first.status_code == 200, first.text
    assert body["ok"] is True
    assert {"equal_products", "finite_differences", "mean_field"} <= {law["name"] for law in body["laws"]}
    assert all(law["ok"] and law["error"] <= law["tolerance"] and law["formula"] for law in body["laws"])
    assert body["environment"]["device_kind"] in ("cpu", "cuda")
    assert second.json() == body


def test_without_a_worker_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('torch is not installed here')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    with serving(tmp_path / "data") as alone:
        found = assert_problem(alone.http.get("/v1/selftest"), 503, path="")
        assert "torch is not installed here" in found["detail"]
        assert_problem(alone.http.get("/v1/selftest?device=cpu"), 422, path="device")


def test_a_device_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGTRAIN_DEVICE", "cuda:63")
    with serving(tmp_path / "data") as alone:
        assert "GPUs here" in assert_problem(alone.http.get("/v1/selftest"), 503)["detail"]
