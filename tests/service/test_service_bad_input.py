"""What cannot be accepted is refused with the exact path and a hint, and leaves nothing behind: no row, no file."""

import copy
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import Serving, assert_problem, serving
from sqlalchemy import func, select

from regtrain.store.tables import metadata
from service.limits import Limits

GOOD: dict[str, Any] = {
    "dataset": {"kind": "digits", "validation": 0.2},
    "model": {"kind": "mlp", "hidden": [16]},
    "loss": {"kind": "cross_entropy"},
    "regularizers": [{"kind": "l1", "lambda": 0.01}, {"kind": "dropout", "rate": 0.5}],
    "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
    "budget": {"epochs": 2, "batch_size": 64},
}
REMOVED = object()
INLINE = {"kind": "inline", "x": [[1], [2], [3]], "y": [1.5, 2, 3]}
LINEAR = {"dataset": INLINE, "model": {"kind": "linear"}, "loss": {"kind": "squared_error"}, "regularizers": [], "budget": {"batch_size": "all"}}

WRONG_SPECS: list[tuple[str, dict[str, Any], str]] = [
    ("an unknown part", {"optimiser": {"kind": "sgd"}}, "optimiser"),
    ("a part that is missing", {"model": REMOVED}, "model"),
    ("a part that is no object", {"model": 3}, "model"),
    ("an unknown kind", {"model.kind": "mpl"}, "model.kind"),
    ("no kind", {"loss": {}}, "loss.kind"),
    ("the optimizer adamw", {"optimizer": {"kind": "adamw"}}, "optimizer.kind"),
    ("the loss mse", {"loss": {"kind": "mse"}}, "loss.kind"),
    ("an unknown key", {"optimizer.momentun": 0.9}, "optimizer.momentun"),
    ("lam for lambda", {"regularizers.0": {"kind": "l1", "lam": 1}}, "regularizers.0.lam"),
    ("no strength", {"regularizers.0": {"kind": "l1"}}, "regularizers.0.lambda"),
    ("a negative strength", {"regularizers.0.lambda": -1}, "regularizers.0.lambda"),
    ("a number in quotes", {"optimizer.lr": "0.1"}, "optimizer.lr"),
    ("true for a number", {"optimizer.lr": True}, "optimizer.lr"),
    ("a learning rate of 0", {"optimizer.lr": 0}, "optimizer.lr"),
    ("a momentum of 1", {"optimizer.momentum": 1}, "optimizer.momentum"),
    ("Nesterov without momentum", {"optimizer.momentum": 0, "optimizer.nesterov": True}, "optimizer.nesterov"),
    ("a bad member of a range", {"regularizers.0.lambda": {"values": [0.1, -1]}}, "regularizers.0.lambda.values.1"),
    ("an empty range", {"regularizers.0.lambda": {"values": []}}, "regularizers.0.lambda.values"),
    ("a range that falls", {"regularizers.0.lambda": {"log": [1, 0.1], "points": 3}}, "regularizers.0.lambda"),
    ("a logarithm from 0", {"regularizers.0.lambda": {"log": [0, 0.1], "points": 3}}, "regularizers.0.lambda.log.0"),
    ("a range without points", {"regularizers.0.lambda": {"log": [0.1, 1]}}, "regularizers.0.lambda.points"),
    ("a range of one point", {"regularizers.0.lambda": {"linear": [0.1, 1], "points": 1}}, "regularizers.0.lambda.points"),
    ("a range of no shape", {"regularizers.0.lambda": {"grid": [1, 2]}}, "regularizers.0.lambda"),
    ("too many runs", {"regularizers.0.lambda": {"linear": [0.1, 1], "points": 5000}}, ""),
    ("a dropout rate of 1", {"regularizers.1.rate": 1}, "regularizers.1.rate"),
    ("a layer that is none", {"regularizers.0.on": ["layers.7"]}, "regularizers.0.on.0"),
    ("dropout in a linear model", {"base": LINEAR, "regularizers": [{"kind": "dropout", "rate": 0.5}]}, "regularizers.0.on"),
    ("early stopping without validation rows", {"dataset.validation": 0.0, "regularizers.1": {"kind": "early_stopping"}}, "regularizers.1.metric"),
    ("early stopping twice", {"regularizers": [{"kind": "early_stopping"}, {"kind": "early_stopping"}]}, "regularizers.1"),
    (
        "accuracy of a quantity",
        {"base": {**LINEAR, "dataset": {**INLINE, "validation": 0.4}}, "regularizers": [{"kind": "early_stopping", "metric": "accuracy/val"}]},
        "regularizers.0.metric",
    ),
    ("a proximal penalty beside a step penalty", {"regularizers.1": {"kind": "step_penalty", "lambda": 0.1}}, "regularizers.1"),
    ("a width of 0", {"model.hidden": [16, 0]}, "model.hidden.1"),
    ("no hidden layer", {"model.hidden": []}, "model.hidden"),
    ("an unknown activation", {"model.activation": "rely"}, "model.activation"),
    ("a convolution on rows that are no images", {"dataset": {"kind": "iris"}, "model": {"kind": "cnn", "channels": [4]}}, "model.image"),
    ("a classification loss on a quantity", {"dataset": {"kind": "diabetes"}}, "loss.kind"),
    ("a quantity's loss on classes", {"loss": {"kind": "squared_error"}}, "loss.kind"),
    ("the binary loss on ten classes", {"loss": {"kind": "binary"}}, "loss.kind"),
    ("a share of 1", {"dataset.validation": 1.0}, "dataset.validation"),
    ("a share that is no row", {"base": LINEAR, "dataset.validation": 0.01}, "dataset.validation"),
    ("no row to train on", {"base": LINEAR, "dataset.validation": 0.9, "dataset.test": 0.0}, "dataset"),
    ("stratified quantities", {"base": LINEAR, "dataset.split": "stratified"}, "dataset.split"),
    ("rows of different lengths", {"base": LINEAR, "dataset.x": [[1], [2, 3], [4]]}, "dataset"),
    ("fewer targets than rows", {"base": LINEAR, "dataset.y": [1]}, "dataset"),
    ("a word among the rows", {"base": LINEAR, "dataset.x": [[1], ["two"], [3]]}, "dataset.x.1.0"),
    ("an upload that does not exist", {"dataset": {"kind": "upload", "id": "ds_nothere"}}, "dataset.id"),
    ("an upload with a path for an id", {"dataset": {"kind": "upload", "id": "../secrets"}}, "dataset.id"),
    ("no epochs", {"budget.epochs": 0}, "budget.epochs"),
    ("half an epoch", {"budget.epochs": 0.5}, "budget.epochs"),
    ("a batch larger than the rows", {"budget.batch_size": 100_000}, "budget.batch_size"),
    ("micro-batches without rows", {"budget.accumulate": 65}, "budget.accumulate"),
    ("more steps than a job may have", {"budget.epochs": 10_000_000, "budget.batch_size": 1}, "budget.epochs"),
    ("more parameters than a job may have", {"model.hidden": [65_536, 65_536]}, "model"),
    ("an unknown precision", {"dtype": "float16"}, "dtype"),
    ("a negative seed", {"seed": -1}, "seed"),
    ("a seed beyond 2^53", {"seed": 2**53 + 1}, "seed"),
    ("an unknown preset", {"diagnostics": "everything"}, "diagnostics"),
    ("a name that is too long", {"name": "x" * 201}, "name"),
    ("metadata that is no text", {"metadata": {"team": 3}}, "metadata.team"),
    ("a metadata key with a space", {"metadata": {"my team": "x"}}, "metadata.my team"),
    ("too many regularizers", {"regularizers": [{"kind": "l2", "lambda": 0.1}] * 33}, "regularizers"),
    ("a clip of 0", {"clip": {"kind": "global_norm", "max": 0}}, "clip.max"),
    ("epochs in the wrong place", {"epochs": 3}, "epochs"),
]

WRONG_BODIES: list[tuple[str, bytes, str]] = [
    ("nothing", b"", ""),
    ("no JSON", b"{'dataset': 1}", ""),
    ("a list", b"[]", ""),
    ("a key that stands twice", b'{"seed": 1, "seed": 2}', "seed"),
    ("a key that stands twice inside", b'{"optimizer": {"lr": 1, "lr": 2}}', "optimizer.lr"),
    ("NaN", b'{"seed": NaN}', ""),
    ("Infinity", json.dumps(GOOD).replace("0.9", "Infinity").encode(), ""),
    ("deep nesting", b'{"a":' * 30 + b"1" + b"}" * 30, ""),
    ("very deep nesting", b"[" * 100_000, ""),
    ("bytes that are no UTF-8", b'{"name": "\xff"}', ""),
    ("half a character", b'{"name": "\\ud800"}', ""),
    ("a number that is too large", json.dumps(GOOD).replace("0.9", "1e400").encode(), "optimizer.momentum"),
    ("a NUL in a name", b'{"name": "a\\u0000b"}', "name"),
    ("a NUL in a key", b'{"metadata": {"a\\u0000b": "c"}}', "metadata.a\x00b"),
    ("a NUL in a kind", json.dumps(GOOD).replace("digits", "dig\\u0000its").encode(), "dataset.kind"),
]


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def pickled() -> bytes:
    """An archive whose array would run code when it is unpickled."""
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([{"a": 1}, {"b": 2}], dtype=object), y=np.zeros(2))
    return buffer.getvalue()


def bomb() -> bytes:
    """100 MB of zeros in 100 kB."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.zeros((12_500, 1000)), y=np.zeros(12_500))
    return buffer.getvalue()


def lying(shape: str) -> bytes:
    """An archive whose array promises more than it has."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0" * 64
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.npy", member)
        archive.writestr("y.npy", member)
    return buffer.getvalue()


def declared_size_lies() -> bytes:
    """A member that unpacks to more than its directory entry says."""
    raw = bytearray(npz(x=np.zeros((4, 1)), y=np.zeros(4)))
    packed = zlib.compress(b"\0" * 10_000)
    return bytes(raw[: len(raw) // 2] + packed)


WRONG_UPLOADS: list[tuple[str, str, Callable[[], bytes], str]] = [
    ("nothing", "csv", lambda: b"", ""),
    ("a header alone", "csv", lambda: b"a,b,y\n", ""),
    ("a missing value", "csv", lambda: b"a,b,y\n1,2,3\n4,,6\n", "lines.3.b"),
    ("a missing target", "csv", lambda: b"a,b,y\n1,2,3\n4,5,NA\n", "lines.3.y"),
    ("a word among numbers", "csv", lambda: b"a,b,y\n1,2,3\nfour,5,6\n", "lines.3.a"),
    ("an infinite cell", "csv", lambda: b"a,b,y\n1,inf,3\n", "lines.2.b"),
    ("a number with underscores", "csv", lambda: b"a,b,y\n1_000,2,3\n", "lines.2.a"),
    ("a row that is too short", "csv", lambda: b"a,b,y\n1,2,3\n4,5\n", "lines.3"),
    ("a row that is too long", "csv", lambda: b"a,b,y\n1,2,3,4\n", "lines.2"),
    ("two columns of one name", "csv", lambda: b"a,a,y\n1,2,3\n", "lines.1.a"),
    ("a column without a name", "csv", lambda: b"a,,y\n1,2,3\n", "lines.1"),
    ("one column", "csv", lambda: b"y\n1\n", ""),
    ("numbers and words as targets", "csv", lambda: b"a,y\n1,1\n2,2\n3,two\n", "lines.4.y"),
    ("an infinite target", "csv", lambda: b"a,y\n1,1\n2,inf\n", "lines.3.y"),
    ("an open quote", "csv", lambda: b'a,y\n1,"2\n3,4\n', ""),
    ("bytes that are no UTF-8", "csv", lambda: b"a,y\n1,\xff\n", ""),
    ("a NUL", "csv", lambda: b"a,y\n1,\x002\n", ""),
    ("more labels than a target may have", "csv", lambda: b"a,y\n" + b"".join(b"1,w%d\n" % i for i in range(1001)), "target"),
    ("a line without an end", "csv", lambda: b"a," * 2_000_000, ""),
    ("more columns than allowed", "csv", lambda: b",".join(b"c%d" % i for i in range(3000)) + b"\n", ""),
    ("more rows than allowed", "csv", lambda: b"a,y\n" + b"1,2\n" * 6000, ""),
    ("an NPZ that is called CSV", "csv", lambda: npz(x=np.zeros((3, 1)), y=np.zeros(3)), ""),
    ("a CSV that is called NPZ", "npz", lambda: b"a,y\n1,2\n", ""),
    ("no y", "npz", lambda: npz(x=np.zeros((3, 1))), "y"),
    ("an array of another name", "npz", lambda: npz(x=np.zeros((3, 1)), y=np.zeros(3), z=np.zeros(3)), ""),
    ("pickled objects", "npz", pickled, "x"),
    ("complex numbers", "npz", lambda: npz(x=np.zeros((3, 1), complex), y=np.zeros(3)), "x"),
    ("words as features", "npz", lambda: npz(x=np.array([["a"], ["b"]]), y=np.zeros(2)), "x"),
    ("x with five axes", "npz", lambda: npz(x=np.zeros((2, 1, 1, 1, 1)), y=np.zeros(2)), "x"),
    ("no rows", "npz", lambda: npz(x=np.zeros((0, 3)), y=np.zeros(0)), "x"),
    ("fewer targets than rows", "npz", lambda: npz(x=np.zeros((3, 1)), y=np.zeros(2)), "y"),
    ("NaN", "npz", lambda: npz(x=np.array([[1, 2], [3, np.nan]]), y=np.zeros(2)), "x.1.1"),
    ("an infinite target", "npz", lambda: npz(x=np.zeros((2, 1)), y=np.array([0, np.inf])), "y.1"),
    ("names that do not fit", "npz", lambda: npz(x=np.zeros((2, 2)), y=np.zeros(2), feature_names=np.array(["a"])), "feature_names"),
    ("a name with a NUL", "npz", lambda: npz(x=np.zeros((2, 1)), y=np.zeros(2), feature_names=np.array(["a\0b"])), "feature_names"),
    ("a label with half a character", "npz", lambda: npz(x=np.zeros((2, 1)), y=np.array(["a", "\ud800"])), "target"),
    ("a label over two lines", "csv", lambda: b'a,y\n1,"two\nlines"\n', "target"),
    ("a name over two lines", "csv", lambda: b'a,"y\ny"\n1,2\n', "lines.1"),
    ("groups for other rows", "npz", lambda: npz(x=np.zeros((3, 1)), y=np.zeros(3), groups=np.zeros(2, int)), "groups"),
    ("groups with two axes", "npz", lambda: npz(x=np.zeros((2, 1)), y=np.zeros(2), groups=np.zeros((2, 2), int)), "groups"),
    ("groups that are fractions", "npz", lambda: npz(x=np.zeros((2, 1)), y=np.zeros(2), groups=np.array([0.5, 1])), "groups"),
    ("a row without a group", "npz", lambda: npz(x=np.zeros((2, 1)), y=np.zeros(2), groups=np.array(["a", " "])), "groups.1"),
    ("a group with a long label", "npz", lambda: npz(x=np.zeros((2, 1)), y=np.zeros(2), groups=np.array(["a", "b" * 201])), "groups.1"),
    ("a bomb", "npz", bomb, ""),
    ("a header that promises a terabyte", "npz", lambda: lying("(1000000000000, 1)"), "x"),
    ("a header with a negative side", "npz", lambda: lying("(-1, 8)"), "x"),
    ("half an archive", "npz", lambda: npz(x=np.zeros((3, 1)), y=np.zeros(3))[:200], ""),
    ("an archive with a torn member", "npz", declared_size_lies, ""),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    limits = Limits(bytes=50_000_000, rows=5000, columns=2000, seconds=20)
    with serving(tmp_path_factory.mktemp("data"), upload=limits) as running:
        running.submit()
        yield running


@pytest.fixture
def unchanged(service: Serving) -> Iterator[None]:
    before = traces(service)
    yield
    assert traces(service) == before


def traces(service: Serving) -> tuple[dict[str, int], list[str]]:
    """Row counts of every table, and every file under the data folder."""
    with service.database.read() as connection:
        counts = {name: connection.execute(select(func.count()).select_from(table)).scalar_one() for name, table in metadata.tables.items()}
    return counts, sorted(str(path.relative_to(service.data)) for path in Path(service.data).rglob("*"))


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The good spec with values set by path; `base` replaces whole parts first."""
    spec = copy.deepcopy({**GOOD, **changes.get("base", {})})
    for path, value in changes.items():
        if path == "base":
            continue
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        node: Any = spec
        for part in parents:
            node = node[part] if isinstance(node, list) else node.setdefault(part, {})
        if value is REMOVED:
            del node[last]
        else:
            node[last] = value
    return spec


def test_the_good_spec_is_accepted(service: Serving) -> None:
    assert service.http.post("/v1/jobs", json=GOOD).status_code == 201
    assert service.http.post("/v1/jobs", json=changed({"base": LINEAR})).status_code == 201


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("changes", "path"), [pytest.param(changes, path, id=name) for name, changes, path in WRONG_SPECS])
def test_a_wrong_spec_is_refused_at_its_path(service: Serving, changes: dict[str, Any], path: str) -> None:
    body = assert_problem(service.http.post("/v1/jobs", json=changed(changes)), 422, path=path)
    assert len(body["errors"]) == 1, body["errors"]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("body", "path"), [pytest.param(body, path, id=name) for name, body, path in WRONG_BODIES])
def test_a_body_that_is_no_strict_json_is_refused(service: Serving, body: bytes, path: str) -> None:
    assert_problem(service.http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"}), 422, path=path)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("kind", "body", "path"), [pytest.param(kind, body, path, id=f"{kind}: {name}") for name, kind, body, path in WRONG_UPLOADS])
def test_a_wrong_upload_is_refused_at_its_path(service: Serving, kind: str, body: Callable[[], bytes], path: str) -> None:
    assert_problem(service.http.post("/v1/datasets", params={"format": kind}, content=body()), 422, path=path)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("query", "body", "path", "message"),
    [
        ({"groups": "site"}, b"a,sight,y\n1,2,3\n", "groups", "no column 'site'"),
        ({"groups": "y", "target": "y"}, b"a,b,y\n1,2,3\n", "groups", "is the target"),
        ({"groups": "a"}, b"a,y\n1,3\n", "groups", "beside the target and the groups"),
        ({"groups": "b"}, b"a,b,y\n1,p,3\n1,,3\nx,NA,\n", "lines.3.b", "a missing value"),
        ({"groups": "b"}, b"a,b,y\n1,p,3\n1," + b"p" * 201 + b",3\n", "lines.3.b", "longer than 200"),
        ({"groups": "b"}, b"a,b,y\nx,p,3\n", "lines.2.a", "not a number"),
        ({"groups": "groups", "format": "npz"}, npz(x=np.zeros((2, 1)), y=np.zeros(2), groups=np.zeros(2, int)), "groups", "only the columns of a CSV"),
    ],
)
def test_wrong_groups_are_refused_at_their_path(service: Serving, query: dict[str, str], body: bytes, path: str, message: str) -> None:
    problem = assert_problem(service.http.post("/v1/datasets", params={"format": "csv", **query}, content=body), 422, path=path)
    assert message in next(error["message"] for error in problem["errors"] if error["path"] == path)


@pytest.mark.usefixtures("unchanged")
def test_every_wrong_place_is_named_at_once(service: Serving) -> None:
    body = assert_problem(service.http.post("/v1/jobs", json=changed({"optimizer.lr": 0, "budget.epochs": 0, "model.activation": "rely"})), 422)
    assert {error["path"] for error in body["errors"]} == {"optimizer.lr", "budget.epochs", "model.activation"}
    cells = assert_problem(service.http.post("/v1/datasets?format=csv", content=b"a,b,y\n,x,1\n1,,?\n"), 422)
    assert [error["path"] for error in cells["errors"]] == ["lines.2.a", "lines.2.b", "lines.3.b", "lines.3.y"]
    assert cells["errors"][1]["message"] == "line 2, column 'b': not a number: 'x'"


@pytest.mark.usefixtures("unchanged")
def test_the_form_of_a_request_is_checked(service: Serving) -> None:
    post, good = service.http.post, json.dumps(GOOD).encode()
    plain = assert_problem(post("/v1/jobs", content=good, headers={"Content-Type": "text/plain"}), 415, path="Content-Type")
    assert "curl --json" in plain["errors"][0]["hint"]
    assert_problem(post("/v1/jobs", content=good), 415, path="Content-Type")
    assert_problem(post("/v1/jobs", content=good, headers={"Content-Type": "application/json", "Content-Encoding": "gzip"}), 415, path="Content-Encoding")
    assert_problem(post("/v1/datasets", content=b"a,y\n1,2\n"), 422, path="format")
    assert_problem(post("/v1/datasets?format=xlsx", content=b"a,y\n1,2\n"), 422, path="format")
    assert_problem(post("/v1/datasets?format=csv&target=z", content=b"a,y\n1,2\n"), 422, path="target")
    assert_problem(post("/v1/datasets", files={"file": b"a,y\n1,2\n"}), 415, path="Content-Type")
    assert_problem(post("/v1/datasets?format=csv&nome=x", content=b"a,y\n1,2\n"), 422, path="nome")
    assert_problem(post("/v1/datasets?format=csv&name=x%00y", content=b"a,y\n1,2\n"), 422, path="name")
    assert_problem(post("/v1/jobs?wait=-1", json=GOOD), 422, path="wait")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_cut_off(service: Serving, chunked: bool) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(51):
            yield b"1,2\n" * 250_000

    body: Any = pieces() if chunked else b"1,2\n" * 12_750_000
    assert_problem(service.http.post("/v1/datasets?format=csv", content=body), 413, path="")
    assert_problem(service.http.post("/v1/jobs", content=b"x" * (17 * 2**20), headers={"Content-Type": "application/json"}), 413, path="")


@pytest.mark.parametrize("id", ["..", "%2e%2e", "%252e", "job_%00", "job_a%5Cb", "job_a;b", "job_" + "a" * 300, "job_é", "job_e%CC%81", "ds_abc"])
def test_an_id_is_a_name_and_never_a_path(service: Serving, id: str) -> None:
    for path in (f"/v1/jobs/{id}", f"/v1/jobs/{id}/curves", f"/v1/jobs/{id}/model"):
        answer = service.http.get(path)
        assert answer.status_code in (404, 405)
        assert answer.headers["content-type"] == "application/problem+json"
    assert service.http.get(f"/v1/datasets/{id}").status_code in (404, 405)
