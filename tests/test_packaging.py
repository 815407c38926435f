"""What is installed is what is on disk, and make says in words what is missing."""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tinygrad_ish

ROOT = Path(__file__).resolve().parent.parent
GENERATED = re.compile(
    r"(^|/)(__pycache__|\.venv|build|dist|runs|\.(pytest|mypy|ruff)_cache|\.hypothesis)/"
    r"|\.egg-info/|\.(pyc|pyo|so|nbi|nbc|whl|msgpack)$|(^|/)\.DS_Store$"
)


@pytest.fixture(scope="module")
def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def test_setup_cfg_lists_every_package_on_disk(config: configparser.ConfigParser) -> None:
    folders = dict(
        (part.strip() for part in line.split("="))
        for line in lines(config["options"]["package_dir"])
    )
    tops = {folder: name for name, folder in folders.items()}
    on_disk = {
        ".".join([tops[top], *init.relative_to(ROOT / top).parent.parts])
        for top in tops
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert set(lines(config["options"]["packages"])) == on_disk


def test_every_folder_with_code_is_a_package() -> None:
    for top in ("kernels", "serve", "tinygrad_ish"):
        for path in (ROOT / top).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), f"{path.parent} has no __init__.py"


def test_setup_cfg_lists_every_file_that_is_no_code(config: configparser.ConfigParser) -> None:
    folders = dict(
        (part.strip() for part in line.split("="))
        for line in lines(config["options"]["package_dir"])
    )
    data = config["options.package_data"]
    for name, folder in folders.items():
        named = {
            path
            for package, globs in data.items()
            if f"{package}.".startswith(f"{name}.")
            for glob in globs.split()
            for path in (ROOT / folder / package[len(name) + 1 :].replace(".", "/")).glob(glob)
        }
        on_disk = {
            path
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and path.suffix != ".py" and not GENERATED.search(path.as_posix())
        }
        assert named == on_disk


def test_every_dependency_has_a_lower_and_an_upper_bound(config: configparser.ConfigParser) -> None:
    required = lines(config["options"]["install_requires"])
    for extra in config["options.extras_require"].values():
        required += lines(extra)
    unbounded = [
        r
        for r in required
        if not re.fullmatch(r"[A-Za-z0-9_.-]+(\[\w+\])?>=[\d.]+,<[\d.]+(;.*)?", r)
    ]
    assert not unbounded


def test_core_dependencies_are_three(config: configparser.ConfigParser) -> None:
    names = {re.split(r"[<>=]", line)[0] for line in lines(config["options"]["install_requires"])}
    assert names == {"numpy", "numba", "msgpack"}


def test_the_version_is_written_once(config: configparser.ConfigParser) -> None:
    assert config["metadata"]["version"] == "attr: tinygrad_ish.__version__"
    installed = importlib.metadata.version("tinygrad-ish")
    assert installed == tinygrad_ish.__version__, "the version has changed: pip install -e . again"


def test_git_tracks_nothing_generated() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, or git is not installed")
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()
    assert not [name for name in tracked if GENERATED.search(name)]


def make_venv(folder: Path, python: str) -> subprocess.CompletedProcess[str]:
    """`make venv` with `python` in place of python3; it must stop before it installs anything."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", "venv", f"PYTHON={python}", f"VENV={folder / 'venv'}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )


def fake_python(folder: Path, prelude: str) -> str:
    """A python3 that runs `prelude` before the script it is given."""
    path = folder / "python3"
    code = (
        f"import runpy, sys; {prelude}; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_make_names_a_python_that_is_too_old(tmp_path: Path) -> None:
    run = make_venv(tmp_path, fake_python(tmp_path, "sys.version_info = (3, 8, 10, 'final', 0)"))
    assert run.returncode != 0
    assert "is Python 3.8.10" in run.stdout
    assert "needs Python 3.10 or newer" in run.stdout
    assert "make PYTHON=" in run.stdout
    assert "Traceback" not in run.stdout
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_make_names_a_missing_venv_module(tmp_path: Path, module: str) -> None:
    run = make_venv(tmp_path, fake_python(tmp_path, f"sys.modules['{module}'] = None"))
    assert run.returncode != 0
    assert f"lacks the module '{module}'" in run.stdout
    assert "apt install python3-venv" in run.stdout
    assert "Traceback" not in run.stdout
    assert not (tmp_path / "venv").exists()


def test_make_names_a_python_that_is_not_there(tmp_path: Path) -> None:
    run = make_venv(tmp_path, str(tmp_path / "python9"))
    assert run.returncode != 0
    assert "python9 was not found" in run.stdout


def test_the_python_check_agrees_with_setup_cfg(config: configparser.ConfigParser) -> None:
    source = (ROOT / "scripts" / "check_python.py").read_text(encoding="utf-8")
    found = re.search(r"^OLDEST = \((\d+), (\d+)\)$", source, re.MULTILINE)
    assert found
    assert config["options"]["python_requires"] == f">={found[1]}.{found[2]}"


def test_a_skipped_comparison_with_pytorch_fails_where_it_is_required(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "def test_compare(): pytest.skip('PyTorch is not installed')\n"
        "def test_other(): pytest.skip('no GPU')\n"
    )
    (tmp_path / "torch.py").write_text("")  # stands for an installed torch
    (tmp_path / "pytest.ini").write_text("[pytest]\n")

    def outcome(**extra: str) -> str:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
        environment = {k: v for k, v in os.environ.items() if k != "TINYGRAD_ISH_REQUIRE_TORCH"}
        run = subprocess.run(
            command, cwd=tmp_path, env={**environment, **extra}, stdout=subprocess.PIPE, text=True
        )
        return run.stdout

    assert "2 skipped" in outcome()
    required = outcome(TINYGRAD_ISH_REQUIRE_TORCH="1")
    assert "1 failed, 1 skipped" in required
    assert "TINYGRAD_ISH_REQUIRE_TORCH is set and this was skipped" in required
