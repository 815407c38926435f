"""Runs a module's ``main`` with CuPy's stand-in in the place of CuPy, in the processes that it
starts too: ``python -m tests.cuda.run_on_stand_in benchmarks.gpu --sizes tiny``."""

from __future__ import annotations

import importlib
import sys

from . import cuda_stand_in, cupy_stand_in

cupy_stand_in.install()  # here, not in main: a process that is spawned imports this file anew

from . import fake_blas, shim  # noqa: E402

shim.use(shim.ShimDevice(cuda_stand_in.record))
fake_blas.use(
    fake_blas.FakeBlas(cuda_stand_in.record, cuda_stand_in.current_stream, cuda_stand_in.alloc)
)

if __name__ == "__main__":
    sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
