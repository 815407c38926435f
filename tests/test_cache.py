"""The disk cache of compiled kernels: warm starts, edited sources, damaged files, bad folders."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ish.kernels
from tinygrad_ish.kernels import _cache
from tinygrad_ish.kernels._cache import DiskCache
from tinygrad_ish.kernels.cpu import _jit, elementwise
from tinygrad_ish.kernels.cpu._jit import task
from tinygrad_ish.kernels.cpu._tasks import Call, Plan, free, integer, run, scratch, vector

CHILD = """
import json, sys, warnings
import numpy as np
steps = []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from tinygrad_ish.kernels import cpu
    {before}
    cpu.warmup(["relu", "add"], "float32", lambda *step: steps.append(step))
    x = [np.array([-1, 2], dtype) for dtype in ("float32", "float64")]
    got = [cpu.relu(v).tolist() for v in x] + [cpu.relu_backward(v, v).tolist() for v in x]
report = {{**cpu.cache_info()._asdict(), "got": got, "steps": steps}}
report["imported"] = sorted({{"llvmlite", "numba"}} & set(sys.modules))
print(json.dumps({{**report, "warnings": [str(w.message) for w in caught]}}))
"""
# What the child compiles ahead; all of it with what it calls besides, and the CPU's features.
AHEAD = {"elementwise._relu", "_tasks._serial", "_tasks._shared", "_tasks._help"}
FILES = len(AHEAD) + 4
FULL_DISK = """
    from tinygrad_ish.kernels import _cache
    def full(path, data): raise OSError(28, "No space left on device")
    _cache._write = full
"""


def start(folder: Path, code: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "TINYGRAD_ISH_CACHE": str(folder), **env},
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(child: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = child.communicate(timeout=300)
    assert child.returncode == 0
    return json.loads(output)


def relus_in_a_process(folder: Path, before: str = "") -> dict[str, Any]:
    """Two kernels in float32 and float64, in a fresh process."""
    report = finish(start(folder, CHILD.format(before=before.strip())))
    assert report["got"] == [[0, 2]] * 4
    return report


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A cache folder filled by one process, and that process's report."""
    folder = tmp_path_factory.mktemp("cache") / "made" / "on the way"
    return folder, relus_in_a_process(folder)


@pytest.fixture
def copy_of_warm(warm: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(warm[0], tmp_path / "cache"))


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_second_process_loads_and_writes_nothing(warm: tuple[Path, dict[str, Any]]) -> None:
    folder, first = warm
    assert (first["hits"], first["misses"], first["files"]) == (0, FILES, FILES)
    assert {name for _, _, name in first["steps"]} == {*AHEAD, ""}
    assert [done for done, _, _ in first["steps"]] == list(range(len(AHEAD) + 1))
    before = {path: path.stat().st_mtime_ns for path in files_in(folder)}
    second = relus_in_a_process(folder)
    assert (second["hits"], second["misses"], second["steps"]) == (FILES, 0, [])
    assert first["imported"] == ["llvmlite", "numba"] and second["imported"] == ["llvmlite"]
    assert not first["warnings"] and not second["warnings"] and second["problem"] is None
    assert {path: path.stat().st_mtime_ns for path in files_in(folder)} == before
    assert second["bytes"] == sum(path.stat().st_size for path in before)


def test_damaged_files_are_compiled_again(copy_of_warm: Path) -> None:
    damaged = [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data[:-1000] + bytes([data[-1000] ^ 1]) + data[-999:],
        lambda data: data + data,
    ]
    for path, damage in zip(files_in(copy_of_warm), itertools.cycle(damaged), strict=False):
        path.write_bytes(damage(path.read_bytes()))
    report = relus_in_a_process(copy_of_warm)
    assert len(report["warnings"]) == 1 and "is damaged" in report["warnings"][0]
    assert (report["hits"], report["misses"], report["files"]) == (0, FILES, FILES)
    cache = cache_at(copy_of_warm, Path(report["folder"]).name.removeprefix(_cache.PREFIX))
    for path in files_in(copy_of_warm):
        assert cache.load(path.stem), f"{path} was not repaired"


def test_a_full_disk(tmp_path: Path) -> None:
    report = relus_in_a_process(tmp_path, FULL_DISK)
    (message,) = report["warnings"]
    assert "No space left on device" in message and str(tmp_path) in message
    assert "TINYGRAD_ISH_CACHE" in message and report["problem"] == message
    assert not files_in(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    report = relus_in_a_process(tmp_path / "file" / "cache")
    (message,) = report["warnings"]
    assert "file/cache cannot keep compiled kernels" in message


def test_two_processes_at_once(tmp_path: Path) -> None:
    code = CHILD.format(before="")
    children = [start(tmp_path, code), start(tmp_path, code)]
    for report in [finish(child) for child in children]:
        assert report["got"] == [[0, 2]] * 4 and not report["warnings"]
    files = files_in(tmp_path)
    assert len(files) == FILES  # no temporary file is left
    cache = cache_at(tmp_path, files[0].parent.name.removeprefix(_cache.PREFIX))
    assert all(cache.load(path.stem) for path in files)


KERNEL = """
from ._jit import task
from ._tasks import Call, run, vector
from .callee import times

@task
def _times(args, i):
    x, out = vector(args, 0), vector(args, 2)
    for k in range(len(out)):
        out[k] = times(x[k])
    return 0

def kernel(x, out):
    run(Call(_times, x.dtype, 1, (x, len(x), out, len(out)), writes=(out,)))
"""
CALLEE = """
from ._jit import device

@device
def times(v):
    return v * 2
"""
CALL_IT = """
import json
import numpy as np
from copied.cpu import cache_info, extra
out = np.empty(3)
extra.kernel(np.ones(3), out)
print(json.dumps({**cache_info()._asdict(), "got": out.tolist()}))
"""


def test_an_edited_callee_in_another_file(tmp_path: Path) -> None:
    sources = Path(tinygrad_ish.kernels.__file__).parent
    tree = shutil.copytree(sources, tmp_path / "copied", ignore=lambda *_: ["__pycache__"])
    (tree / "cpu" / "extra.py").write_text(KERNEL)

    def call(factor: int) -> dict[str, Any]:
        (tree / "cpu" / "callee.py").write_text(CALLEE.replace("2", str(factor)))
        env = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        report = finish(start(tmp_path / "cache", CALL_IT, **env))
        assert report["got"] == [factor] * 3
        return report

    assert call(2)["misses"] == 3  # the CPU's features, what runs tasks, the kernel
    edited = call(3)
    assert (edited["hits"], edited["misses"]) == (0, 3)
    assert call(2)["hits"] == 3  # both versions are kept


def test_the_stamp_tells_settings_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    stamps = [_jit.stamp()]
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    assert _jit.stamp() == stamps[0]  # the same code, whatever the number
    monkeypatch.setenv("NUMBA_LOOP_VECTORIZE", "0")
    stamps.append(_jit.stamp())
    (tmp_path / ".numba_config.yaml").write_text("opt: 1")
    stamps.append(_jit.stamp())
    monkeypatch.setattr(_jit.llvm, "get_host_cpu_name", lambda: "another")
    stamps.append(_jit.stamp())
    monkeypatch.setattr(_jit.importlib.metadata, "version", lambda name: "0.0")
    stamps.append(_jit.stamp())
    assert len(set(stamps)) == 5


# --- the folder alone, without Numba -----------------------------------------------------------


def cache_at(folder: Path, stamp: str = "stamp") -> DiskCache:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYGRAD_ISH_CACHE", str(folder))
        return DiskCache(stamp)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    assert cache.load("kernel") is None and not cache.holds("kernel")
    cache.save("kernel", b"code")
    assert cache.holds("kernel") and cache_at(tmp_path).load("kernel") == b"code"
    assert cache.info() == (str(tmp_path / "kernels-stamp"), 1, 36, 0, 1, None)
    assert Path(cache.folder).stat().st_mode & 0o777 == 0o700 or os.name == "nt"


@given(st.data())
def test_no_damage_passes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = cache_at(folder)
    cache.save("kernel", b"machine code")
    (path,) = files_in(folder)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = data.draw(
        st.one_of(
            st.binary(max_size=64),
            st.just(whole[:at]),
            st.just(whole + b"\0"),
            st.integers(1, 255).map(
                lambda x: whole[:at] + bytes([whole[at] ^ x]) + whole[at + 1 :]
            ),
        ).filter(lambda changed: changed != whole)
    )
    path.write_bytes(changed)
    with pytest.warns(RuntimeWarning, match="is damaged"):
        assert cache.load("kernel") is None


def test_a_file_under_another_name_is_damaged(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    cache.save("one", b"code")
    shutil.copy(*(Path(cache.folder) / name for name in ("one.bin", "other.bin")))
    with pytest.warns(RuntimeWarning, match=r"other\.bin is damaged"):
        assert cache.load("other") is None


def test_an_unwritable_folder_still_serves_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_at(tmp_path).save("kernel", b"code")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)  # root writes past chmod
    cache = cache_at(tmp_path)
    with pytest.warns(RuntimeWarning, match="Read-only file system.*TINYGRAD_ISH_CACHE") as caught:
        cache.save("other", b"code")
        cache.save("third", b"code")
    assert len(caught) == 1
    assert cache.load("kernel") == b"code" and len(files_in(tmp_path)) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no user ids")
def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_at(tmp_path).save("kernel", b"code")
    if os.geteuid() == 0:
        os.chown(tmp_path, 4242, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4242)
    cache = cache_at(tmp_path)
    with pytest.warns(RuntimeWarning, match="belongs to another user") as caught:
        assert cache.load("kernel") is None
        cache.save("other", b"code")
    assert len(caught) == 1 and not cache.holds("other")


def test_old_stamps_are_pruned(tmp_path: Path) -> None:
    (tmp_path / "not-ours").mkdir()
    for age in range(8):
        cache = cache_at(tmp_path, f"{age}")
        cache.save("kernel", b"code")
        os.utime(cache.folder, (1e9 + age, 1e9 + age))
    cache_at(tmp_path, "new").save("kernel", b"code")
    assert {path.name for path in tmp_path.iterdir()} == {
        "not-ours", "kernels-5", "kernels-6", "kernels-7", "kernels-new",
    }  # fmt: skip


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TINYGRAD_ISH_CACHE", str(tmp_path / "mine"))
    assert _cache.cache_root() == str(tmp_path / "mine")
    monkeypatch.delenv("TINYGRAD_ISH_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert _cache.cache_root() == str(tmp_path / "xdg" / "tinygrad_ish")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path.replace("~", str(tmp_path)))
    assert _cache.cache_root() == str(tmp_path / ".cache" / "tinygrad_ish")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # HOME is missing
    with pytest.warns(RuntimeWarning, match=r"no home folder.*TINYGRAD_ISH_CACHE"):
        cache = DiskCache("stamp")
    cache.save("kernel", b"code")
    assert cache.load("kernel") is None and not cache.holds("kernel")


# --- compiling ----------------------------------------------------------------------------------


def test_a_kernel_is_for_floats() -> None:
    with pytest.raises(TypeError, match="a kernel takes float32 or float64, got int64"):
        elementwise._relu.address(np.dtype(np.int64))


@task
def _unbounded(args, i):
    memory = scratch(np.float64, integer(args, 0))
    memory[0] = 1
    free(memory)
    return 0


@task
def _tangent(args, i):
    return int(math.tan(vector(args, 0)[i]))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stamp does not tell this file's kernels of today from those of yesterday."""
    monkeypatch.setattr(_jit, "_disk", cache_at(tmp_path))


@pytest.mark.parametrize("count", [1, 100])
def test_no_memory_for_intermediate_results(own_cache: None, count: int) -> None:
    call = Call(_unbounded, np.dtype(np.float32), count, (1 << 58,), (), nanoseconds=1e6)
    for _ in range(3):
        with pytest.raises(MemoryError, match="_unbounded got no memory"):
            run(call)
        with pytest.raises(MemoryError, match="_unbounded got no memory"):
            Plan([call]).run()


def test_a_kernel_may_call_known_functions_alone(own_cache: None) -> None:
    with pytest.raises(AssertionError, match=r"_tangent.* calls \{'tan'\}"):
        _tangent.address(np.dtype(np.float64))
