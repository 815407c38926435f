"""The command line: ``python -m tinygrad_ish``, installed as ``tinygrad-ish``."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys

from . import __version__
from .deploy import registry
from .deploy.predict import predict
from .kernels import BACKENDS, why_missing

LIBRARIES = ("numpy", "numba", "llvmlite", "msgpack", "cupy-cuda13x", "matplotlib", "tqdm")


def main(argv: list[str] | None = None) -> int:
    """Run a command and give its exit status: see ``_run``."""
    try:
        status = _run(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever reads our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(argv: list[str] | None) -> int:
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
    inspect.add_argument("file", help="ours, safetensors, Flax msgpack or NumPy .npz")
    convert = commands.add_parser("convert", help="weights from one file format to another")
    convert.add_argument("source", help="ours, safetensors, Flax msgpack or NumPy .npz")
    convert.add_argument("target", help="NAME.msgpack (ours), .safetensors, .flax or .npz")
    convert.add_argument(
        "--to", help="tinygrad_ish, safetensors, flax or npz, whatever the target's name"
    )
    ask = commands.add_parser("predict", help="what a program says of images, CSV or JSON rows")
    ask.add_argument("program", help="a file that tinygrad_ish.export wrote")
    ask.add_argument("files", nargs="+", metavar="FILE", help="an image, CSV or JSON; - for stdin")
    ask.add_argument("--json", action="store_true", help="a JSON object for each row")
    ask.add_argument("--top", type=_positive, metavar="K", help="only the K most probable classes")
    publish = commands.add_parser("publish", help="copy a program to the next version of a model")
    publish.add_argument("file", help="a file that tinygrad_ish.export wrote")
    publish.add_argument("folder", help="of the model, as models/NAME")
    publish.add_argument("--version", type=_positive, metavar="N", help="the number (the next one)")
    models = commands.add_parser("models", help="the published models in a folder, verified")
    models.add_argument("folder", help="where NAME/VERSION/model.msgpack are")
    commands.add_parser("serve", help="a server around programs (serve --help)", add_help=False)
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["serve"]:  # it has a command line of its own
        return int(importlib.import_module("tinygrad_ish.serve.main").main(given[1:]))
    args = parser.parse_args(given)
    if args.command == "info":
        info()
        return 0
    if args.command == "predict":
        return _predict(args)
    try:
        if args.command == "publish":
            entry = registry.publish(args.file, args.folder, args.version)
            print(f"{entry.path}: {entry.nbytes:,} bytes, sha256 {entry.sha256}")
            return 0
        if args.command == "models":
            entries = registry.list_models(args.folder)
            print(registry.describe(entries) or f"{args.folder}: no models")
            return int(any(e.problem is not None for e in entries))
        from . import formats  # zipfile and json take some milliseconds

        if args.command == "convert":
            print(formats.convert(args.source, args.target, args.to))
            return 0
        text, intact = formats.describe(args.file)
    except (ValueError, OSError) as error:
        print(f"tinygrad-ish {args.command}: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0 if intact else 1


def _predict(args: argparse.Namespace) -> int:
    try:
        return predict(args.program, args.files, args.top, args.json)
    except BrokenPipeError:  # whoever reads has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 10**9):
        raise argparse.ArgumentTypeError(f"must be an int from 1 on, got {text}")
    return int(text)


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
    print("CUDA")
    for name, value in _cuda().items():
        print(f"  {name:14} {value}")
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


def _cuda() -> dict[str, str]:
    from .kernels.gpu import _diagnosis

    facts = _diagnosis.facts()
    wanted = facts["driver"] != "none" or facts["CuPy"] != "not installed"
    problems = _diagnosis.problems() if wanted else []
    return {**facts, **{f"to mend, {i + 1}": p for i, p in enumerate(problems)}}


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
