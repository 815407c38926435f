"""Everything about the GPU that is measured, beside PyTorch and JAX: ``python -m benchmarks.gpu``.

Parts: facts, kernels, adam, gemm, steps, digits, overheads; ``--part`` picks some. Each compares
before it clocks, says why a contender could not run, and writes its results as they come, as
gpu-<part>.json and gpu-tables.md. What fails does not stop the rest; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from tinygrad_ish.kernels import why_missing

from . import report
from .gpu_clock import Run, run_facts
from .gpu_digits import run_digits, run_overheads
from .gpu_gemm import run_gemm
from .gpu_kernels import run_kernels, run_optimizers
from .gpu_steps import run_steps

PARTS: dict[str, Callable[[Run], None]] = {
    "facts": run_facts,
    "kernels": run_kernels,
    "adam": run_optimizers,
    "gemm": run_gemm,
    "steps": run_steps,
    "digits": run_digits,
    "overheads": run_overheads,
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--part", action="append", choices=list(PARTS), help="one; may be repeated (all)")
    add(
        "--quick", action="store_true", help="fewer rounds; kernels and small steps in float32 only"
    )
    add("--model", action="append", metavar="NAME", help="for steps: 784-128-10, say (all)")
    add("--precision", action="append", metavar="NAME", help="for steps: fp32, tf32 or bf16 (all)")
    add("--out", type=Path, default=report.FOLDER, metavar="FOLDER", help="for JSON and tables")
    add("--sizes", choices=["full", "tiny"], default="full", help="tiny: to try the program itself")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the parts asked for; 1 if something was wrong or failed."""
    args = parse(argv)
    reason = why_missing("cupy")
    if reason is not None:
        print(f"benchmarks.gpu: {reason}", file=sys.stderr)
        return 1
    run = Run(args.out, args.sizes == "tiny", args.quick)
    run.models, run.precisions = args.model, args.precision
    for part in args.part or PARTS:
        start = time.perf_counter()
        run.say(f"\n=== {part}")
        try:
            PARTS[part](run)
        except Exception:  # whatever a library raises: the other parts follow
            traceback.print_exc()
            run.fails(f"{part}: {traceback.format_exc().splitlines()[-1]}")
        run.say(f"=== {part}: {time.perf_counter() - start:.0f} s")
    run.say(f"results in {run.folder}")
    for what in run.wrong:
        print(f"wrong: {what}", file=sys.stderr)
    return bool(run.wrong)


if __name__ == "__main__":
    sys.exit(main())
