"""docker-compose.yml is valid by the Compose specification's own schema and opens nothing to the network; the images are what they say."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator, Draft202012Validator
from jsonschema.exceptions import ValidationError

ROOT = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SCHEMA = json.loads(files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text(encoding="utf-8"))
"""The Compose specification's schema (Apache-2.0), in the copy that check-jsonschema keeps up to date."""


def valid(compose: dict[str, Any]) -> None:
    (Draft7Validator if "draft-07" in SCHEMA["$schema"] else Draft202012Validator)(SCHEMA).validate(compose)


def test_it_is_valid() -> None:
    valid(COMPOSE)


@pytest.mark.parametrize("wrong", [{"image": 3}, {"ports": [{"published": []}]}, {"unknown_key": 1}, {"build": {"target": 1}}])
def test_the_schema_refuses_what_is_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        valid({**COMPOSE, "services": {**COMPOSE["services"], "service": {**COMPOSE["services"]["service"], **wrong}}})


def test_ports_are_published_on_loopback_only() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(isinstance(port, str) and port.startswith("127.0.0.1:") for port in ports)


def test_service_and_worker_share_the_volume_and_the_worker_has_a_gpu() -> None:
    service, worker = COMPOSE["services"]["service"], COMPOSE["services"]["worker"]
    assert service["volumes"] == worker["volumes"] == ["data:/data"]
    assert service["environment"]["REGTRAIN_DATA"] == worker["environment"]["REGTRAIN_DATA"] == "/data"
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert "gpu" in device["capabilities"]


def test_postgres_is_started_by_its_profile_only() -> None:
    assert {name: service.get("profiles") for name, service in COMPOSE["services"].items()} == {"service": None, "worker": None, "postgres": ["postgres"]}


def test_the_service_image_has_no_torch() -> None:
    stages = dict(part.split("\n", 1) for part in (ROOT / "Dockerfile").read_text(encoding="utf-8").split(" AS ")[1:])
    assert {"service", "worker"} <= stages.keys()
    assert COMPOSE["services"]["service"]["build"]["target"] == "service"
    assert COMPOSE["services"]["worker"]["build"]["target"] == "worker"
    assert "[service,postgres]" in stages["service"]
    assert "worker" not in stages["service"].split("FROM")[0]
    assert "USER regtrain" in stages["service"]
    assert "USER regtrain" in stages["worker"]


def test_no_image_runs_from_the_working_directory() -> None:
    """`-P`: a folder named like a package, mounted into the container, is not run in its place."""
    commands = [json.loads(line.removeprefix("CMD ")) for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if line.startswith("CMD [")]
    assert commands == [["python", "-P", "-m", "service"], ["python", "-P", "-m", "worker"]]
