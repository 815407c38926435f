"""Versioned model folders: ``models/NAME/VERSION/model.msgpack``, what a server reads.

A version is a number from 1 on. ``publish`` makes one: a folder beside it is filled, synced and
verified, then renamed, so a reader sees all of a version or nothing; of several publishers at a
time each gets a number of its own. A version never changes after that. Beside the program stands
its SHA-256, as ``sha256sum -c model.msgpack.sha256`` reads it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..weights import StrPath, load_metadata, printable
from .runtime import load_program

__all__ = ["MODEL", "Entry", "RegistryError", "describe", "list_models", "publish"]

MODEL = "model.msgpack"
CHECKSUM = MODEL + ".sha256"
_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_RULE = "letters, digits, '.', '_' and '-', with a letter among them"
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_TEMPORARY = ".publish-"
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
_BLOCK = 2**20


class RegistryError(ValueError):
    """A version that cannot be published, or that is not what was published."""


@dataclass(frozen=True)
class Entry:
    """A version of a model; ``path`` is its program.

    Where ``problem`` is a str, it is damaged or none at all: ``version`` may be None then, ``path``
    leads to what is wrong, and the rest says what could be read.
    """

    name: str
    version: int | None
    path: Path
    nbytes: int = 0
    sha256: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def publish(file: StrPath, folder: StrPath, version: int | None = None) -> Entry:
    """Copy a program to ``folder/VERSION/model.msgpack``; the version is one more than the highest
    there is, unless given. ``folder`` (models/NAME) is made where it is missing.

    Raises WeightsError for a file that is no intact program, RegistryError for a version that
    exists already or a folder that cannot be a model's, and OSError where nothing can be written.
    """
    folder = Path(os.path.abspath(os.fsdecode(folder)))
    _check_place(folder, version)
    load_program(file, "numpy").verify()  # before anything is made
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{_TEMPORARY}{os.urandom(8).hex()}"
    temporary.mkdir()
    try:
        sha256 = _copy(Path(os.fsdecode(file)), temporary / MODEL)
        _write(temporary / CHECKSUM, f"{sha256}  {MODEL}\n")
        _sync(temporary)
        copied = load_program(temporary / MODEL, "numpy")  # the file may have changed meanwhile
        copied.verify()
        number = _rename(temporary, folder, version)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(folder)
    _sync(folder.parent)
    path = folder / str(number) / MODEL
    return Entry(folder.name, number, path, path.stat().st_size, sha256, copied.metadata)


def list_models(root: StrPath, verify: bool = True) -> list[Entry]:
    """All versions of all models in ``root``, by name and number; what is damaged, unfinished or
    no version is among them, with its ``problem``.

    Without ``verify`` only the headers of the programs are read: quick enough to look for new
    versions every second. Raises OSError if ``root`` cannot be read.
    """
    return [
        entry
        for folder in sorted(Path(os.fsdecode(root)).iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
        for entry in _entries(folder, verify)
    ]


def describe(entries: list[Entry]) -> str:
    """A listing: a line for each version, and one for each entry of its metadata."""
    lines = []
    for e in entries:
        if e.problem is not None:
            lines.append(f"{printable(str(e.path))}: BAD: {printable(e.problem)}")
            continue
        lines.append(f"{e.name} {e.version}: {e.nbytes:,} bytes, sha256 {e.sha256}")
        lines += [f"    {printable(k)}: {printable(repr(v))}" for k, v in e.metadata.items()]
    return "\n".join(lines)


def _check_place(folder: Path, version: int | None) -> None:
    if not _NAME.fullmatch(folder.name):
        raise RegistryError(
            f"{folder}: expected a folder named after the model, as models/NAME: {_RULE}"
        )
    model = next(folder.glob(f"[!.]*/*/{MODEL}"), None)
    if model is not None:
        raise RegistryError(
            f"{folder}: it is a folder of models, {model.parent.parent.name} among them: name one "
            "in it"
        )
    if version is not None and (type(version) is not int or not _NUMBER.fullmatch(str(version))):
        raise RegistryError(f"version: expected an int from 1 on, got {version!r}")


def _rename(temporary: Path, folder: Path, version: int | None) -> int:
    """Make the filled folder a version, which another publisher may do at the same moment."""
    while True:
        number = version or max(_numbers(folder), default=0) + 1
        try:
            # A folder takes the place of an empty one or none: what is published is never replaced.
            os.rename(temporary, folder / str(number))
            return number
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
        if version is not None:
            raise RegistryError(
                f"{folder / str(version)} exists, and a published version never changes: publish "
                "under another number, or without one"
            )


def _numbers(folder: Path) -> list[int]:
    return [int(p.name) for p in folder.iterdir() if _NUMBER.fullmatch(p.name)]


def _copy(source: Path, target: Path) -> str:
    """Copy a file to disk; the SHA-256 of its bytes."""
    digest = hashlib.sha256()
    with open(source, "rb") as file, open(target, "xb") as copy:
        while block := file.read(_BLOCK):
            digest.update(block)
            copy.write(block)
        copy.flush()
        os.fsync(copy.fileno())
    return digest.hexdigest()


def _write(path: Path, text: str) -> None:
    with open(path, "x", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Names in a folder are on disk once the folder is synced, where a system can do that."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- listing -----------------------------------------------------------------------------------


def _entries(folder: Path, verify: bool) -> list[Entry]:
    """What is in a model's folder."""
    name = folder.name
    if not _NAME.fullmatch(name):
        return [Entry(name, None, folder, problem=f"expected the name of a model: {_RULE}")]
    try:
        paths = sorted(folder.iterdir())
        numbers = sorted(_numbers(folder))
    except OSError as error:
        return [Entry(name, None, folder, problem=f"cannot be read: {error.strerror}")]
    others = [_other(name, p) for p in paths if not _NUMBER.fullmatch(p.name)]
    versions = [_version(name, number, folder / str(number), verify) for number in numbers]
    return [*versions, *(entry for entry in others if entry is not None)]


def _other(name: str, path: Path) -> Entry | None:
    """An entry for what is no version; None for files and hidden folders that are not ours."""
    if path.name.startswith(_TEMPORARY):
        problem = "unfinished: it is being published, or that was interrupted; then delete it"
    elif path.name.startswith(".") or not path.is_dir():
        return None
    else:
        problem = "expected a version, a number from 1 on"
    return Entry(name, None, path, problem=problem)


def _version(name: str, number: int, folder: Path, verify: bool) -> Entry:
    path = folder / MODEL
    try:
        metadata = load_metadata(path)
        nbytes = path.stat().st_size
        sha256 = _published_sha256(folder)
        if verify and (found := _sha256(path)) != sha256:
            raise RegistryError(f"damaged: its SHA-256 is {found}, published was {sha256}")
    except (ValueError, OSError) as error:
        return Entry(name, number, path, problem=f"{error}")
    return Entry(name, number, path, nbytes, sha256, metadata)


def _published_sha256(folder: Path) -> str:
    with open(folder / CHECKSUM, "rb") as file:
        line = file.read(200)
    found = re.fullmatch(rb"([0-9a-f]{64})  " + re.escape(MODEL.encode()) + rb"\n", line)
    if found is None:
        raise RegistryError(f"{folder / CHECKSUM}: expected a SHA-256 and {MODEL}: publish it anew")
    return found[1].decode()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
