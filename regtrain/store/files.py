"""Files under the data folder. Their names are made here from server-made ids; the database row is the only pointer to them.

`jobs/<job>/<attempt>/…` belongs to one attempt, so that a worker that lost its job cannot touch the files of the next one.
`datasets/<dataset>/…` is written once. Paths in the database are relative to the data folder.
"""

import os
import re
import shutil
import stat
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from regtrain.contract.errors import NotFound, StaleAttempt

_ID = re.compile(r"(job|ds)_[0-9A-Za-z]{1,64}", re.ASCII)
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}", re.ASCII)


def attempt_folder(data: Path, job: str, attempt: int) -> Path:
    """The folder of one attempt, created."""
    return _folder(data, "jobs", _id(job), str(int(attempt)))


def scratch(data: Path, job: str, attempt: int) -> Path:
    """Where the attempt's child writes files that are not yet published: on the same file system, so that renaming is atomic."""
    return _folder(data, "jobs", _id(job), str(int(attempt)), "scratch")


def dataset_folder(data: Path, dataset: str) -> Path:
    """The folder of one dataset, created."""
    return _folder(data, "datasets", _id(dataset))


def checkpoint_name(pack: int, step: int) -> str:
    return f"checkpoint-{pack}-{step}.safetensors"


def publish(data: Path, temporary: Path, *, job: str, attempt: int, name: str) -> Path:
    """Renames a finished, fsynced file to its final place in the attempt's folder, durably. Returns that place.

    Raises:
        StaleAttempt: the temporary file does not lie in this attempt's folder, or is gone with its job.
    """
    folder = data / "jobs" / _id(job) / str(int(attempt))
    if folder not in temporary.absolute().parents or temporary.is_symlink() or not temporary.is_file():
        raise StaleAttempt(f"{temporary} is no file of attempt {attempt} of {job}")
    return place(data, temporary, folder / _name(name))


def place(data: Path, temporary: Path, final: Path) -> Path:
    """Renames a file over its final place and makes the renaming durable, with the folders on the way, most of which are that already: then it costs nothing."""
    temporary.replace(final)
    for folder in final.parents:
        sync_folder(folder)
        if folder == data:
            break
    return final


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def relative(data: Path, path: Path) -> str:
    """A path as the database keeps it.

    Raises:
        NotFound: it lies outside of the data folder.
    """
    if ".." in path.parts or data not in path.parents:
        raise NotFound(f"{path} does not lie in the data folder")
    return path.relative_to(data).as_posix()


def resolve(data: Path, stored: str) -> Path:
    """The file to which a path from the database points. No link is followed on the way.

    Raises:
        NotFound: there is no such file, or the path would leave the data folder.
    """
    place = data
    for part in _parts(stored):
        place = place / part
        if place.is_symlink():
            raise NotFound(f"{stored} is a link, and links are not followed")
    if not place.is_file():
        raise NotFound(f"the file {stored} is gone from the data folder")
    return place


def open_file(data: Path, stored: str) -> BinaryIO:
    """Opens a stored file for reading, folder by folder under the data folder, following no links.

    Raises:
        NotFound: there is no such file, or a link stands on the way.
    """
    *folders, name = _parts(stored)
    descriptor = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for folder in folders:
            inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)  # a pipe would wait for its writer
        if stat.S_ISREG(os.fstat(file).st_mode):
            return os.fdopen(file, "rb")
        os.close(file)
        raise NotFound(f"{stored} is no file")
    except OSError as error:
        raise NotFound(f"the file {stored} cannot be opened: {error.strerror}") from error
    finally:
        os.close(descriptor)


def remove(data: Path, name: str) -> None:
    """Removes the folder of a job or dataset, if there is one."""
    kind = "jobs" if _id(name).startswith("job_") else "datasets"
    with suppress(FileNotFoundError):
        shutil.rmtree(data / kind / name)


def sweep(data: Path, job: str, *, attempt: int, kept: set[str] | None = None) -> None:
    """Removes an attempt's unpublished files; with `kept`, also its published ones but for these paths, and folders that are empty then."""
    folder = data / "jobs" / _id(job) / str(int(attempt))
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    if kept is not None and folder.is_dir() and not folder.is_symlink():
        for file in folder.iterdir():
            if relative(data, file) not in kept and not file.is_dir():
                file.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()


def discard(data: Path, stored: list[str]) -> None:
    """Removes files to which no row points any more."""
    for path in stored:
        with suppress(NotFound):
            resolve(data, path).unlink(missing_ok=True)


def _folder(data: Path, *parts: str) -> Path:
    """A folder under the data folder, made where it is missing. It becomes durable with the first file that is placed in it: a job need not wait for the disk."""
    folder = data
    for part in parts:
        folder = folder / part
        if folder.is_symlink():
            raise NotFound(f"{folder} is a link, and links are not followed")
        with suppress(FileExistsError):
            folder.mkdir()
    return folder


def _parts(stored: str) -> list[str]:
    parts = PurePosixPath(stored).parts
    if not parts or "/".join(parts) != stored or any(not _NAME.fullmatch(part) for part in parts):
        raise NotFound(f"{stored!r} is no path in the data folder")
    return list(parts)


def _id(text: str) -> str:
    if not _ID.fullmatch(text):
        raise NotFound(f"{text!r} is no id")
    return text


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise NotFound(f"{text!r} is no file name")
    return text
