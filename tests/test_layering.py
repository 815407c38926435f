"""Imports run one way, heavy packages wait until they are used, backends only override."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from tinygrad_ish.kernels import cpu, reference

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "kernels": "tinygrad_ish.kernels",
    "serve": "tinygrad_ish.serve",
    "tinygrad_ish": "tinygrad_ish",
}
MAY_IMPORT = {
    "kernels": {"kernels"},
    "tinygrad_ish": {"kernels", "tinygrad_ish"},
    "serve": {"kernels", "tinygrad_ish", "serve"},
}
HEAVY = {
    "PIL", "cupy", "matplotlib", "ml_dtypes", "numba", "onnx", "onnxruntime", "orjson", "pandas",
    "scipy", "starlette", "torch", "tqdm", "uvicorn",
}  # fmt: skip


def layer_of(module: str) -> str | None:
    """The folder that a dotted module name lives in; None for other people's modules."""
    for folder, name in FOLDERS.items():  # tinygrad_ish last: it is a prefix of the others
        if module == name or module.startswith(name + "."):
            return folder
    return None


def imported_modules(source: str, package: str) -> set[str]:
    """Absolute names of everything `source`, a module of `package`, imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join(parents[: len(parents) - node.level + 1] + [base] * bool(base))
            # `from . import kernels` names a module in its alias
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def wrong_imports(folder: str, source: str, package: str) -> set[str]:
    """Imports that go against the layers, or that name a folder as if it were a package."""
    return {
        name
        for name in imported_modules(source, package)
        if name.split(".")[0] in ("kernels", "serve")
        or ((layer := layer_of(name)) and layer not in MAY_IMPORT[folder])
    }


def modules(folder: str) -> list[tuple[str, Path]]:
    """Each file of `folder` with the package that its relative imports start from."""
    return [
        (".".join([FOLDERS[folder], *path.relative_to(ROOT / folder).parent.parts]), path)
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_run_one_way(folder: str) -> None:
    found = {
        str(path.relative_to(ROOT)): names
        for package, path in modules(folder)
        if (names := wrong_imports(folder, path.read_text(encoding="utf-8"), package))
    }
    assert not found, f"imports run serve -> tinygrad_ish -> kernels; these do not: {found}"


@pytest.mark.parametrize(
    ("folder", "package", "source"),
    [
        ("kernels", "tinygrad_ish.kernels", "from .. import tensor"),
        ("kernels", "tinygrad_ish.kernels.cpu", "from ...tensor import Tensor"),
        ("kernels", "tinygrad_ish.kernels", "import tinygrad_ish.errors"),
        ("tinygrad_ish", "tinygrad_ish.nn", "def f():\n    from ..serve import app"),
        ("tinygrad_ish", "tinygrad_ish", "from . import serve"),
        ("serve", "tinygrad_ish.serve", "import kernels"),
        ("tinygrad_ish", "tinygrad_ish", "from kernels import reference"),
    ],
)
def test_the_import_check_sees(folder: str, package: str, source: str) -> None:
    assert wrong_imports(folder, source, package)


@pytest.mark.parametrize("folder", ["benchmarks", "docs", "examples", "scripts", "tests"])
def test_nobody_imports_a_folder_by_its_own_name(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        names = imported_modules(path.read_text(encoding="utf-8"), "")
        wrong = [name for name in names if name.split(".")[0] in ("kernels", "serve")]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}: write tinygrad_ish.{wrong[0]}"


def parameters(function: object) -> list[tuple[str, object, object]]:
    """What a caller sees of a signature: names, kinds and defaults."""
    assert callable(function)
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_the_cpu_backend_lists_every_kernel_of_its_files() -> None:
    for path in sorted((ROOT / "kernels" / "cpu").glob("[a-z]*.py")):
        module = importlib.import_module(f"{cpu.__name__}.{path.stem}")
        listed = {name for name, home in cpu.KERNELS.items() if home == path.stem}
        assert listed == set(module.__all__), f"kernels/cpu/{path.name} and cpu.KERNELS"


@pytest.mark.parametrize("name", cpu.KERNELS)
def test_a_backend_only_overrides_reference_kernels_with_their_signatures(name: str) -> None:
    assert name in reference.__all__, f"kernels/cpu defines {name}, which reference.py lacks"
    assert parameters(getattr(cpu, name)) == parameters(getattr(reference, name))


def test_reference_lists_every_kernel() -> None:
    """A public function that takes `out=None`, or is a step, is a kernel; the others are checks."""
    kernels = {
        name
        for name, value in vars(reference).items()
        if inspect.isfunction(value)
        and value.__module__ == reference.__name__
        and not name.startswith("_")
        and (("out", None) in [(n, d) for n, _, d in parameters(value)] or name.endswith("_step"))
    }
    assert kernels <= set(reference.__all__)
    assert len(reference.__all__) == len(set(reference.__all__))
    assert all(inspect.isfunction(getattr(reference, name)) for name in reference.__all__)


def test_importing_the_package_leaves_heavy_packages_alone() -> None:
    code = "import sys, tinygrad_ish; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    )
    assert not HEAVY & set(run.stdout.split())
