"""The command line: ``python -m tinygrad_ish``, installed as ``tinygrad-ish``."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import sys

from . import __version__
from .kernels import BACKENDS, why_missing
from .weights import describe

LIBRARIES = ("numpy", "numba", "llvmlite", "msgpack", "cupy-cuda13x", "matplotlib", "tqdm")


def main(argv: list[str] | None = None) -> int:
    """Run a command. The exit status: 0, 1 for a file with damaged tensors, 2 for a command line
    or a file that makes no sense."""
    parser = argparse.ArgumentParser(
        prog="tinygrad-ish", description="A small training engine: look at it and at its files."
    )
    parser.add_argument("--version", action="version", version=f"tinygrad_ish {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("info", help="versions, CPU, threads, backends, compiled kernels")
    inspect = commands.add_parser(
        "inspect", help="what is in a weights file, and whether it is intact"
    )
    inspect.add_argument("file", help="a file that tinygrad_ish.save wrote")
    args = parser.parse_args(argv)
    if args.command == "info":
        info()
        return 0
    try:
        text, intact = describe(args.file)
    except (ValueError, OSError) as error:
        print(f"tinygrad-ish inspect: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0 if intact else 1


def info() -> None:
    """Print what there is to know when something does not run as expected."""
    print(f"tinygrad_ish {__version__} from {os.path.dirname(__file__)}")
    print(f"Python {platform.python_version()} on {platform.platform()}")
    for library in LIBRARIES:
        print(f"  {library:14} {_version(library)}")
    print("CPU")
    for name, value in _cpu().items():
        print(f"  {name:14} {value}")
    print("backends")
    for name, backend in BACKENDS.items():
        reason = why_missing(name)
        print(
            f"  {name:14} {'ready' if reason is None else 'missing. ' + reason} ({backend.device})"
        )
    if why_missing("numba") is None:
        print("compiled kernels")
        for name, value in _cache().items():
            print(f"  {name:14} {value}")


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> dict[str, str]:
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity else os.cpu_count()
    facts = {"machine": platform.machine(), "cores": f"{usable} usable of {os.cpu_count()}"}
    if why_missing("numba") is None:
        import llvmlite.binding as llvm
        import numba

        wanted = ("avx512f", "avx2", "fma", "sse4.2", "neon", "sve")
        features = llvm.get_host_cpu_features()
        facts["model"] = llvm.get_host_cpu_name()
        facts["vector units"] = " ".join(f for f in wanted if features.get(f)) or "none known"
        facts["Numba threads"] = str(numba.config.NUMBA_NUM_THREADS)
    return facts


def _cache() -> dict[str, str]:
    from .kernels import cpu

    found = cpu.cache_info()
    return {
        "folder": found.folder,
        "files": f"{found.files}, {found.bytes / 1e6:.1f} MB",
        "state": found.problem or "ready",
    }


if __name__ == "__main__":
    sys.exit(main())
