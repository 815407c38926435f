"""Build the sdist, and the wheel from the sdist: `python scripts/build_wheel.py [FOLDER]`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build_wheel(folder: Path) -> Path:
    """Build into `folder` and return the wheel's path.

    The wheel is built from the unpacked sdist, never from the source tree: there setuptools keeps
    a `build/lib`, and files deleted since would still go into the wheel.
    """
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}\nthe build failed: {' '.join(command)}")
    (wheel,) = folder.glob("*.whl")
    return wheel


if __name__ == "__main__":
    print(build_wheel(Path(sys.argv[1] if len(sys.argv) > 1 else "dist")))
