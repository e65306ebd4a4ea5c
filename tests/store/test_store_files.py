"""Files: nothing outside of the data folder is read or written, whatever a path or a link says."""

import os
from pathlib import Path

import pytest

from regtrain.contract.errors import NotFound, StaleAttempt
from regtrain.store import files

JOB = "job_01ABC"
HOSTILE = [
    "",
    ".",
    "..",
    "../secret",
    "jobs/../../secret",
    "jobs/..",
    "/etc/passwd",
    "//etc/passwd",
    "jobs//x",
    "jobs/./x",
    "jobs/x/",
    "%2e%2e/secret",
    "%252e%252e/secret",
    "..\\secret",
    "jobs\\x",
    "jobs;x",
    "jobs/x\0",
    "jobs/\n",
    "jobs/-x",
    "jobs/.hidden",
    "~/x",
    "jobs/" + "a" * 300,
    "jobs/caf\u00e9",
    "jobs/cafe\u0301",
    "jobs/\u2025",
    "C:x",
    "jobs/$HOME",
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("path", HOSTILE)
def test_paths_that_lead_astray_are_not_followed(data: Path, path: str) -> None:
    before = listing(data.parent)
    for look in (files.resolve, files.open_file):
        with pytest.raises(NotFound):
            look(data, path)
    files.discard(data, [path])
    for make in (files.dataset_folder, files.remove):
        with pytest.raises(NotFound):
            make(data, path)
    for make in (files.attempt_folder, files.scratch):
        with pytest.raises(NotFound):
            make(data, path, 1)
    scratch = files.scratch(data, JOB, 1) / "part"
    scratch.touch()
    with pytest.raises(NotFound):
        files.publish(data, scratch, job=JOB, attempt=1, name=path)
    files.remove(data, JOB)
    assert listing(data.parent) - before <= {"data/jobs"}
    assert (data.parent / "secret").read_text() == "secret"


def test_what_is_published_can_be_read_by_its_stored_path(data: Path) -> None:
    part = files.scratch(data, JOB, 2) / "part"
    part.write_bytes(b"weights")
    final = files.publish(data, part, job=JOB, attempt=2, name=files.checkpoint_name(0, 7))
    stored = files.relative(data, final)
    assert stored == f"jobs/{JOB}/2/checkpoint-0-7.safetensors"
    assert files.resolve(data, stored) == final
    with files.open_file(data, stored) as file:
        assert file.read() == b"weights"
    assert not part.exists()
    files.discard(data, [stored, stored])
    for look in (files.resolve, files.open_file):
        with pytest.raises(NotFound):
            look(data, stored)


def test_an_attempt_publishes_from_its_own_folder_only(data: Path) -> None:
    theirs = files.scratch(data, JOB, 1) / "part"
    theirs.touch()
    outside = data.parent / "secret"
    link = files.scratch(data, JOB, 2) / "link"
    link.symlink_to(outside)
    for wrong in (theirs, outside, link, files.scratch(data, JOB, 2) / "absent"):
        with pytest.raises(StaleAttempt):
            files.publish(data, wrong, job=JOB, attempt=2, name="model.safetensors")
    files.remove(data, JOB)
    with pytest.raises(StaleAttempt):
        files.publish(data, theirs, job=JOB, attempt=1, name="model.safetensors")
    assert not (data / "jobs" / JOB).exists()


@pytest.mark.parametrize("where", ["jobs", f"jobs/{JOB}", f"jobs/{JOB}/1", f"jobs/{JOB}/1/model"])
def test_links_on_the_way_are_not_followed(data: Path, where: str) -> None:
    elsewhere = data.parent / "elsewhere"
    real = elsewhere / f"jobs/{JOB}/1"
    real.mkdir(parents=True)
    (real / "model").write_text("secret")
    (data / where).parent.mkdir(parents=True, exist_ok=True)
    (data / where).symlink_to(elsewhere / where)
    for look in (files.resolve, files.open_file):
        with pytest.raises(NotFound):
            look(data, f"jobs/{JOB}/1/model")
    if where != f"jobs/{JOB}/1/model":
        with pytest.raises(NotFound):
            files.scratch(data, JOB, 1)
    files.discard(data, [f"jobs/{JOB}/1/model"])
    if where == f"jobs/{JOB}":
        with pytest.raises(OSError, match="symbolic link"):
            files.remove(data, JOB)
    assert (real / "model").read_text() == "secret"


def test_only_files_of_the_data_folder_can_be_recorded(data: Path) -> None:
    for path in (data.parent / "secret", data, data / ".." / "secret", Path("relative")):
        with pytest.raises(NotFound):
            files.relative(data, path)


def test_a_folder_and_a_pipe_are_no_files(data: Path) -> None:
    files.attempt_folder(data, JOB, 1)
    os.mkfifo(data / "jobs" / JOB / "1" / "pipe")
    for path in (f"jobs/{JOB}/1", f"jobs/{JOB}/1/pipe"):
        for look in (files.resolve, files.open_file):
            with pytest.raises(NotFound):
                look(data, path)
