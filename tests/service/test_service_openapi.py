"""The OpenAPI document: every operation has an example that works as it stands, and hostile variations of it break nothing."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import jsonschema
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.checks import CHECKS, load_all_checks
from serving import PATIENCE, Serving

METHODS = ("get", "post", "put", "patch", "delete")
load_all_checks()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert method in METHODS
            yield method, path, operation


@pytest.fixture(scope="module")
def document(service: Serving) -> dict[str, Any]:
    return service.http.get("/openapi.json").json()


@pytest.fixture
def trained(service: Serving) -> str:
    job = service.submit()
    service.train(job, {"loss/train": np.ones((3, 1)), "gradient/norm": np.ones((3, 1, 1))})
    return job


def resolved(document: dict[str, Any], schema: Any) -> Any:
    """A schema whose references can be followed on its own."""
    return {**schema, "components": document["components"]}


def test_the_document_is_openapi_3_1_and_every_operation_is_explained(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    names = [f"{method} {path}" for method, path, _ in operations(document)]
    assert set(names) == {
        "get /healthz",
        "get /readyz",
        "post /v1/jobs",
        "get /v1/jobs",
        "get /v1/jobs/{id}",
        "delete /v1/jobs/{id}",
        "post /v1/jobs/{id}/cancel",
        "post /v1/jobs/{id}/retry",
        "get /v1/jobs/{id}/remedies",
        "post /v1/jobs/{id}/remedies",
        "get /v1/jobs/{id}/runs",
        "get /v1/jobs/{id}/path",
        "get /v1/jobs/{id}/curves",
        "get /v1/jobs/{id}/gradients",
        "get /v1/jobs/{id}/diagnosis",
        "get /v1/jobs/{id}/model",
        "post /v1/datasets",
        "get /v1/datasets",
        "get /v1/datasets/{id}",
        "delete /v1/datasets/{id}",
        "post /v1/plan",
        "post /v1/lambda",
        "get /v1/catalog",
        "get /v1/schema/job",
        "get /v1/workers",
        "get /v1/selftest",
        "post /v1/selftest",
    }
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for method, path, operation in operations(document):
        assert operation["summary"], (method, path)
        assert operation["description"], (method, path)
        for status, answer in operation["responses"].items():
            assert status < "400" or list(answer["content"]) == ["application/problem+json"]
        good = next(answer for status, answer in operation["responses"].items() if status < "400")
        assert good["description"]


def test_every_example_of_a_request_works_and_every_answer_has_its_shape(service: Serving, document: dict[str, Any], trained: str) -> None:
    dataset = service.http.post("/v1/datasets?format=csv", content=b"a,y\n1,2\n").json()["id"]
    sent = 0
    for method, path, operation in sorted(operations(document), key=lambda found: found[0] == "delete"):
        query: dict[str, Any] = {}
        headers: dict[str, str] = {}
        for parameter in operation.get("parameters", ()):
            for example in parameter["schema"].get("examples", ())[:1] or [e for option in parameter["schema"].get("anyOf", ()) for e in option.get("examples", ())[:1]]:
                if parameter["in"] in ("query", "header"):
                    (query if parameter["in"] == "query" else headers)[parameter["name"]] = example
        job = trained if path != "/v1/jobs/{id}" or method != "delete" else cancelled(service)
        address = path.replace("{id}", dataset if "datasets" in path else job)
        for content, kind in bodies(operation):
            one = {**headers, **({"Content-Type": kind} if kind else {})}
            if "Idempotency-Key" in one:
                one["Idempotency-Key"] += str(sent)
            answer = service.http.request(method, address, params=query, headers=one, content=content)
            sent += 1
            assert str(answer.status_code) in operation["responses"], answer.text
            assert answer.status_code < 400, f"{method} {address} {query}: {answer.text}"
            declared = operation["responses"][str(answer.status_code)].get("content", {})
            kind = answer.headers.get("content-type", "").partition(";")[0]
            assert (not declared and not answer.content) or kind in declared, (method, path, kind)
            if kind == "application/json" and "schema" in declared[kind]:
                jsonschema.validate(answer.json(), resolved(document, declared[kind]["schema"]))
    assert sent >= 20


def cancelled(service: Serving) -> str:
    job = service.submit()
    service.http.post(f"/v1/jobs/{job}/cancel")
    return job


def bodies(operation: dict[str, Any]) -> Iterator[tuple[bytes | None, str | None]]:
    """The examples of a body, ready to be sent; nothing, where there is none."""
    found = operation.get("requestBody", {}).get("content", {})
    for kind, media in found.items():
        for example in [*([media["example"]] if "example" in media else []), *(e["value"] for e in media.get("examples", {}).values())]:
            yield (example.encode() if isinstance(example, str) else json.dumps(example).encode()), kind
    if not found:
        yield None, None


def test_the_examples_of_answers_have_the_shape_of_answers(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        media = [media for answer in operation["responses"].values() for media in answer.get("content", {}).values() if "schema" in media]
        shown = [
            (example, one["schema"]) for one in media for example in [*([one["example"]] if "example" in one else []), *(e["value"] for e in one.get("examples", {}).values())]
        ]
        for example, schema in shown:
            jsonschema.validate(example, resolved(document, schema))
        assert shown or method == "delete" or path.endswith("/model"), (method, path)


def test_the_schema_of_specs_accepts_the_examples_of_specs(service: Serving, document: dict[str, Any]) -> None:
    schema = service.http.get("/v1/schema/job").json()
    for example in document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["examples"].values():
        jsonschema.Draft202012Validator(schema).validate(example["value"])


def test_hostile_requests_are_answered_within_the_document(service: Serving, trained: str) -> None:
    """schemathesis draws requests from the document, good ones and bad ones; every answer must be one that the document declares, and none a 5xx."""
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    chosen = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance", "negative_data_rejection"]
    checks = CHECKS.get_by_names(chosen)
    dataset = service.http.post("/v1/datasets?format=csv", content=b"a,y\n1,2\n").json()["id"]
    statuses: Counter[int] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()

        @hypothesis.given(
            case=operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE) | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
        )
        @hypothesis.settings(max_examples=12, deadline=None, database=None, derandomize=True, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
        def answer(case: Any) -> None:
            if case.query and "wait" in case.query:
                case.query["wait"] = "0"
            if case.path_parameters and case.method != "DELETE" and len(str(case.path_parameters["id"])) % 4:
                case.path_parameters["id"] = dataset if "datasets" in case.path else trained
            statuses[case.call_and_validate(checks=checks, timeout=PATIENCE).status_code] += 1

        answer()
    assert statuses[200] > 40
    assert statuses[422] > 40
    assert statuses[404] > 20
    assert service.http.get("/readyz").status_code == 200
