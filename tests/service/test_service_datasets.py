"""Uploads: what comes in as CSV or NPZ lies as the same numbers in the canonical file, and can be trained on."""

import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from serving import LINEAR, Serving, assert_problem, serving

from regtrain.store import datasets, jobs


def upload(service: Serving, body: bytes, **query: str) -> dict[str, Any]:
    answer = service.http.post("/v1/datasets", params={"format": "csv", **query}, content=body)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == answer.json()["links"]["self"]
    return answer.json()


def canonical(service: Serving, dataset: dict[str, Any]) -> dict[str, np.ndarray]:
    path = service.data / datasets.get(service.database, dataset["id"]).path
    assert hashlib.sha256(path.read_bytes()).hexdigest() == dataset["sha256"]
    return load_file(path)


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def test_a_csv_keeps_its_numbers_names_and_order(service: Serving) -> None:
    rows = np.random.default_rng(0).normal(size=(100, 3))
    text = "a,b,price\n" + "\n".join(",".join(map(repr, row)) for row in rows.tolist()) + "\n"
    dataset = upload(service, text.encode(), name="prices.csv")
    found = canonical(service, dataset)
    assert found["x"].dtype == found["y"].dtype == np.float64
    np.testing.assert_array_equal(found["x"], rows[:, :2])
    np.testing.assert_array_equal(found["y"], rows[:, 2])
    assert dataset["name"] == "prices.csv"
    assert {k: dataset["facts"][k] for k in ("rows", "features", "target", "classes", "feature_names")} == {
        "rows": 100,
        "features": 2,
        "target": "real",
        "classes": None,
        "feature_names": ["a", "b"],
    }
    assert dataset["preview"]["columns"] == ["a", "b", "price"]
    assert dataset["preview"]["rows"] == rows[:5].tolist()
    assert dataset["preview"]["min"] == rows.min(0).tolist()
    assert service.http.get(dataset["links"]["self"]).json() == dataset


def test_words_become_labels_in_alphabetical_order(service: Serving) -> None:
    dataset = upload(service, b"kind,size\ndog,1\ncat,2\ndog,3\n", target="kind")
    assert (dataset["facts"]["target"], dataset["facts"]["classes"], dataset["facts"]["class_names"]) == ("class", 2, ["cat", "dog"])
    assert dataset["facts"]["feature_names"] == ["size"]
    assert canonical(service, dataset)["y"].tolist() == [1, 0, 1]
    assert dataset["preview"]["rows"] == [[1.0, "dog"], [2.0, "cat"], [3.0, "dog"]]


@pytest.mark.parametrize(
    "body",
    [b"a,y\n1,2\n3,4\n", b"a;y\r\n1;2\r\n3;4\r\n", b"a\ty\n1\t2\n\n3\t4", b"\xef\xbb\xbfa,y\n 1 , 2\n3,4\n", b'"a","y"\n"1","2"\n"3","4"\n', b"a,y\n1e0,2.0\n+3,4\n"],
    ids=["commas", "semicolons and CRLF", "tabs and a blank line", "a byte-order mark and spaces", "quotes", "other ways to write a number"],
)
def test_the_dialects_of_csv_mean_the_same(service: Serving, body: bytes) -> None:
    dataset = upload(service, body)
    found = canonical(service, dataset)
    assert (found["x"].tolist(), found["y"].tolist(), dataset["facts"]["feature_names"]) == ([[1.0], [3.0]], [2.0, 4.0], ["a"])
    assert (dataset["facts"]["target"], dataset["facts"]["classes"]) == ("either", 2)


def test_a_first_line_of_numbers_is_a_row(service: Serving) -> None:
    dataset = upload(service, b"1,2,3\n4,5,6\n")
    assert dataset["facts"]["feature_names"] == ["column_1", "column_2"]
    assert canonical(service, dataset)["y"].tolist() == [3.0, 6.0]


def test_equal_rows_and_names_have_equal_hashes(service: Serving) -> None:
    first = upload(service, b"a,y\n1,2.5\n3,4\n")
    second = upload(service, npz(x=np.array([[1], [3]], np.float32), y=np.array([2.5, 4]), feature_names=np.array(["a"])), format="npz")
    assert first["sha256"] == second["sha256"]
    assert first["id"] != second["id"]


def test_an_npz_keeps_its_arrays_and_images_their_shape(service: Serving) -> None:
    images = np.random.default_rng(1).integers(0, 255, (6, 2, 4, 3)).astype(np.uint8)
    dataset = upload(service, npz(x=np.asfortranarray(images), y=np.array(["b", "a", "b", "a", "b", "a"])), format="npz")
    found = canonical(service, dataset)
    np.testing.assert_array_equal(found["x"], images.reshape(6, -1).astype(np.float64))
    assert found["y"].tolist() == [1, 0, 1, 0, 1, 0]
    assert dataset["facts"]["image"] == [2, 4, 3]
    flat = upload(service, npz(x=np.arange(3.0), y=np.array([True, False, True])), format="npz")
    assert (flat["facts"]["features"], flat["facts"]["image"], flat["facts"]["target"]) == (1, None, "either")
    named = upload(service, npz(x=np.ones((2, 2)), y=np.array([[1.5], [2]]), feature_names=np.array(["p", "q"])), format="npz")
    assert named["facts"]["feature_names"] == ["p", "q"]


def test_the_content_type_says_the_format(service: Serving) -> None:
    assert service.http.post("/v1/datasets", content=b"a,y\n1,2\n", headers={"Content-Type": "text/csv; charset=utf-8"}).status_code == 201
    assert service.http.post("/v1/datasets", content=npz(x=np.ones((2, 1)), y=np.ones(2)), headers={"Content-Type": "application/x-npz"}).status_code == 201


def test_a_job_can_train_on_an_upload_and_holds_it(service: Serving) -> None:
    dataset = upload(service, b"a,y\n1,2.5\n3,4\n5,6\n")
    job = service.submit(dataset={"kind": "upload", "id": dataset["id"]})
    claim = service.claim(job)
    assert claim.upload is not None
    assert load_file(claim.upload)["y"].tolist() == [2.5, 4.0, 6.0]
    assert_problem(service.http.delete(f"/v1/datasets/{dataset['id']}"), 409)
    classes = service.http.post("/v1/jobs", json={**LINEAR, "dataset": {"kind": "upload", "id": dataset["id"]}, "loss": {"kind": "cross_entropy"}})
    assert_problem(classes, 422, path="loss.kind")
    jobs.release(service.database, claim)
    service.http.post(f"/v1/jobs/{job}/cancel")
    assert service.http.delete(f"/v1/datasets/{dataset['id']}").status_code == 204
    assert_problem(service.http.get(f"/v1/datasets/{dataset['id']}"), 404)
    assert not (service.data / "datasets" / dataset["id"]).exists()
    retried = assert_problem(service.http.post(f"/v1/jobs/{job}/retry"), 422, path="dataset.id")
    assert "upload" in retried["errors"][0]["hint"]


def test_a_column_of_groups_is_no_feature_and_lies_as_numbers(service: Serving) -> None:
    body = b"ward,a,patient,y\n1,0.5,ann,1\n10,1.5,bob,2\n9,2.5,ann,3\n10,3.5,eve,4\n"
    words = upload(service, body, groups="patient")
    assert (words["facts"]["groups"], words["facts"]["features"], words["facts"]["feature_names"]) == (3, 2, ["ward", "a"])
    assert "group_sizes" not in words["facts"]
    assert (words["preview"]["groups"], words["preview"]["columns"]) == ("patient", ["ward", "a", "y"])
    found = canonical(service, words)
    assert (found["groups"].dtype, found["groups"].tolist()) == (np.int64, [0, 1, 0, 2])
    assert (found["x"].tolist(), found["y"].tolist()) == ([[1, 0.5], [10, 1.5], [9, 2.5], [10, 3.5]], [1, 2, 3, 4])
    assert datasets.get(service.database, words["id"]).facts.group_sizes == (2, 1, 1)
    numbers = upload(service, b"a,y,ward\n0,1,1\n0,2,10\n0,3,9\n", groups="ward")  # the last column names groups: the target is the one before
    assert canonical(service, numbers)["groups"].tolist() == [0, 2, 1]  # 9 < 10 as numbers
    assert canonical(service, numbers)["y"].tolist() == [1, 2, 3]
    plain = upload(service, body.replace(b"ann", b"1").replace(b"bob", b"2").replace(b"eve", b"3"))
    assert (plain["facts"]["groups"], plain["facts"]["features"], list(canonical(service, plain))) == (None, 3, ["x", "y"])


def test_an_npz_may_hold_groups(service: Serving) -> None:
    x, y = np.arange(4.0)[:, None], np.arange(4.0)
    for given in (np.array([7, -2, 7, 30], np.int16), np.array([[7], [-2], [7], [30]], np.int8), np.array(["b", "a", "b", "c"]), np.array([b"b", b"a", b"b", b"c"])):
        dataset = upload(service, npz(x=x, y=y, groups=given), format="npz")
        assert dataset["facts"]["groups"] == 3
        assert canonical(service, dataset)["groups"].tolist() == [1, 0, 1, 2]


def test_a_job_on_an_upload_can_ask_for_whole_groups(service: Serving) -> None:
    rows = "\n".join(f"{i},{'abcde'[i % 5]},{i % 3}" for i in range(30))
    grouped = {"kind": "upload", "id": upload(service, f"x,site,y\n{rows}\n".encode(), groups="site")["id"]}
    plain = {"kind": "upload", "id": upload(service, f"x,z,y\n{rows}\n".translate(str.maketrans("abcde", "12345")).encode())["id"]}
    body = {**LINEAR, "dataset": {**grouped, "test": 0.2, "split": "grouped"}, "selection": {"folds": 4, "grouped": True}}
    answer = service.http.post("/v1/plan", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["rows"] == {"train": 24, "val": 0, "test": 6}
    assert_problem(service.http.post("/v1/plan", json={**body, "selection": {"folds": 5, "grouped": True}}), 422, path="selection.folds")
    assert_problem(service.http.post("/v1/plan", json={**body, "dataset": plain}), 422, path="selection.grouped")
    careless = service.http.post("/v1/plan", json={**body, "selection": {"folds": 4}}).json()
    assert [warning["path"] for warning in careless["warnings"]] == ["selection.grouped"]


def test_datasets_are_listed_in_pages(service: Serving) -> None:
    made = [upload(service, b"a,y\n1,2\n", name="paged")["id"] for _ in range(3)]
    first = service.http.get("/v1/datasets?limit=2").json()
    second = service.http.get(f"/v1/datasets?limit=1&cursor={first['next_cursor']}").json()
    assert [d["id"] for d in first["datasets"] + second["datasets"]] == made[::-1]
    assert_problem(service.http.get("/v1/datasets?cursor=junk"), 422, path="cursor")


def test_nothing_stays_behind_in_the_folder_of_unfinished_uploads(service: Serving) -> None:
    upload(service, b"a,y\n1,2\n")
    assert list((service.data / "incoming").iterdir()) == []


def test_what_a_killed_server_left_of_an_upload_is_removed_at_the_next_start(tmp_path: Path) -> None:
    old, young = tmp_path / "incoming" / "old", tmp_path / "incoming" / "young"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "upload").write_bytes(b"1,2\n")
    os.utime(old, (0, 0))
    with serving(tmp_path):
        assert not old.exists()
        assert young.exists()


def test_a_cell_that_looks_like_a_formula_is_never_sent_as_one(service: Serving) -> None:
    job = service.submit(dataset={"kind": "inline", "x": [[1], [2]], "y": [0.5, 2]}, name="=1+1")
    text = service.http.get(f"/v1/jobs/{job}/runs?format=csv").text
    assert not any(cell.startswith(("=", "+", "@")) for line in text.splitlines() for cell in line.split(","))


def test_a_bomb_of_42_kilobytes_fails_within_64_megabytes(tmp_path: Path) -> None:
    """A member that claims and packs 40 MB of zeros is refused by its directory entry; memory is that of an idle parser."""
    with zipfile.ZipFile(tmp_path / "upload", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\0" * 40_000_000)
        archive.writestr("y.npy", b"\0")
    assert (tmp_path / "upload").stat().st_size < 42_000
    program = (
        "import json, re, sys\n"
        "from pathlib import Path\n"
        "from regtrain.contract.errors import SpecRefused\n"
        "from service.limits import Limits\n"
        "from service.parse import parse\n"
        "try: parse(Path(sys.argv[1]), Path(sys.argv[2]), kind='npz', target=None, limits=Limits())\n"
        "except SpecRefused as refusal: print(json.dumps([refusal.problems[0].path, int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])]))\n"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", program, tmp_path / "upload", tmp_path / "canonical"], capture_output=True, text=True, check=True)
    path, kilobytes = json.loads(ran.stdout)
    assert path == "x"
    assert kilobytes < 64 * 1024
    assert not (tmp_path / "canonical").exists()


def test_the_parser_is_jailed(tmp_path: Path) -> None:
    """It takes no more memory, time and disk than it is told, and says so in words."""
    program = "import resource; from service.limits import Limits; from service.parse import _jail; _jail(Limits(memory=2**30, seconds=7, bytes=1000)); print([resource.getrlimit(r)[1] for r in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)])"
    ran = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == str([2**30, 7, 2000, 0])
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != 2**30
