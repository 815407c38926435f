"""A folder of compiled kernels: bytes under a name, checked when they come back.

    <cache>/kernels-<stamp>/<kernel>-<dtype>.bin        sha256 of (name, payload), then payload

The stamp names everything the code depends on, so a file is right or absent, never stale. A
payload is executed (it is machine code), so the folder belongs to its user alone. No failure of
the folder stops a run: it costs one warning, and the kernels are compiled again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import warnings
from typing import NamedTuple

VARIABLE = "TINYGRAD_ISH_CACHE"
PREFIX = "kernels-"
KEPT_STAMPS = 4  # the folders of the last few versions: switching branches recompiles nothing
DIGEST_BYTES = hashlib.sha256().digest_size
REMEDY = f"Set {VARIABLE} to a folder of your own to keep compiled kernels."


class CacheInfo(NamedTuple):
    """The state of the disk cache: its folder, what lies there, what this process found."""

    folder: str
    files: int
    bytes: int
    hits: int
    misses: int
    problem: str | None


def cache_root() -> str:
    """$TINYGRAD_ISH_CACHE, else a folder tinygrad_ish in the user's cache folder.

    Raises OSError if the user has no home folder.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return os.path.abspath(os.path.expanduser(given))
    home = "~/AppData/Local" if sys.platform == "win32" else "~/.cache"
    base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME") or home
    base = os.path.expanduser(base)
    if not os.path.isabs(base):
        raise FileNotFoundError(f"there is no home folder for {base!r} (HOME is not set)")
    return os.path.join(base, "tinygrad_ish")


class DiskCache:
    """Named payloads in the folder of one stamp. A payload that cannot be had is None."""

    def __init__(self, stamp: str) -> None:
        self.hits = 0
        self.misses = 0
        self.problem: str | None = None  # the first failure, as it was warned about
        self._root = self.folder = ""
        self._pruned = False
        try:
            self._root = cache_root()
            self.folder = os.path.join(self._root, PREFIX + stamp)
        except OSError as error:
            self._unusable(error)

    def load(self, name: str) -> bytes | None:
        """The payload saved under this name; None if it is not there or not whole."""
        data = self._read(name)
        if data is not None:
            payload = data[DIGEST_BYTES:]
            if data[:DIGEST_BYTES] == _digest(name, payload):
                self.hits += 1
                return payload
            self._warn(f"{self._path(name)} is damaged; compiling this kernel again")
        self.misses += 1
        return None

    def save(self, name: str, payload: bytes) -> None:
        """Write the payload whole or not at all; other processes may do the same at once."""
        try:
            self._make_folder()
            _write(self._path(name), _digest(name, payload) + payload)
        except OSError as error:
            self._unusable(error)
        else:
            self._prune()

    def holds(self, name: str) -> bool:
        """Whether a file of this name is there to be loaded."""
        return os.path.exists(self._path(name))

    def info(self) -> CacheInfo:
        """What lies in the folder now, and what this process found there."""
        problem, sizes = self.problem, []
        try:
            self._make_folder()
            sizes = [entry.stat().st_size for entry in os.scandir(self.folder)]
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            problem = problem or f"cannot keep compiled kernels ({error}). {REMEDY}"
        return CacheInfo(self.folder, len(sizes), sum(sizes), self.hits, self.misses, problem)

    def _make_folder(self) -> None:
        os.makedirs(self._root, mode=0o700, exist_ok=True)
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        self._check_owner()

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, f"{name}.bin")

    def _read(self, name: str) -> bytes | None:
        try:
            self._check_owner()
            with open(self._path(name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._unusable(error)
            return None

    def _check_owner(self) -> None:
        """Raise PermissionError if the folder belongs to a user other than this one and root."""
        for folder in (self._root, self.folder) if hasattr(os, "geteuid") else ():
            owner = os.stat(folder).st_uid
            if owner not in (0, os.geteuid()):
                raise PermissionError(f"{folder} belongs to another user (uid {owner})")

    def _prune(self) -> None:
        """Once in a process: remove all but the stamps last written to."""
        if self._pruned:
            return
        self._pruned = True
        with contextlib.suppress(OSError):  # another process may be removing the same folders
            with os.scandir(self._root) as entries:
                stamps = [e for e in entries if e.name.startswith(PREFIX) and e.is_dir()]
            stamps.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
            for entry in stamps[KEPT_STAMPS:]:
                shutil.rmtree(entry.path, ignore_errors=True)

    def _unusable(self, error: OSError) -> None:
        where = self._root or "the kernel cache"
        self._warn(f"{where} cannot keep compiled kernels ({error}); running without. {REMEDY}")

    def _warn(self, message: str) -> None:
        if self.problem is None:
            self.problem = message
            warnings.warn(message, RuntimeWarning, stacklevel=2)


def _digest(name: str, payload: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + payload).digest()


def _write(path: str, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), suffix=".tmp")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
