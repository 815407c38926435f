"""Run mypy on the wheel.

mypy does not follow setup.cfg's `package_dir`: read from the source tree, `tinygrad_ish.kernels`
would be missing. Unpacked, the wheel has every package where its name says.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from build_wheel import ROOT, build_wheel


def main() -> int:
    """Return mypy's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        zipfile.ZipFile(wheel).extractall(Path(folder, "site"))
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "mypy",
                "--config-file",
                ROOT / "setup.cfg",
                "-p",
                "tinygrad_ish",
            ],
            cwd=folder,
            env={"MYPY_CACHE_DIR": str(ROOT / ".mypy_cache"), **os.environ, "MYPYPATH": "site"},
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
