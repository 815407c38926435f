"""Build the wheel and use it as a stranger would: clean environment, another folder.

Checked: the wheel holds exactly the files of the package folders; only the core dependencies come
with it; import, both command lines, a short training run and a weights file work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

from build_wheel import ROOT, build_wheel

MAPPED = {
    "tinygrad_ish": "tinygrad_ish",
    "kernels": "tinygrad_ish/kernels",
    "serve": "tinygrad_ish/serve",
}
EXTRAS_ONLY = {"cupy", "matplotlib", "onnx", "pillow", "pytest", "starlette", "torch", "tqdm"}


def files_on_disk() -> set[str]:
    """Every file of the package folders, under the path it must have in the wheel."""
    return {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, target in MAPPED.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def check_contents(wheel: Path) -> None:
    """Exit with the difference unless the wheel holds the package folders, no more and no less."""
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    missing, surplus = files_on_disk() - packed, packed - files_on_disk()
    if missing or surplus:
        sys.exit(
            f"{wheel.name} differs from the folders on disk.\n"
            f"missing (list the package, or the package data, in setup.cfg): {sorted(missing)}\n"
            f"not on disk: {sorted(surplus)}"
        )
    print(f"{wheel.name}: {len(packed)} files, as in the folders", flush=True)


def check_use(wheel: Path, folder: Path) -> None:
    """Install `wheel` in a new environment under `folder` and run it from there."""
    venv.create(folder / "venv", with_pip=True)
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment["PYTHONNOUSERSITE"] = "1"

    def run(program: str, *arguments: str | Path) -> str:
        command = [str(scripts / program), *map(str, arguments)]
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            sys.exit(f"{done.stdout}\nexit status {done.returncode}: {' '.join(command)}")
        return done.stdout

    run("python", "-m", "pip", "install", "-qq", "--disable-pip-version-check", wheel)
    installed = run("python", "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check")
    unwanted = EXTRAS_ONLY & {line.split("==")[0].lower() for line in installed.splitlines()}
    if unwanted:
        sys.exit(f"a plain install brings {sorted(unwanted)}, which belong to extras")
    print(run("python", ROOT / "scripts" / "wheel_smoke.py"), end="")
    by_module = run("python", "-m", "tinygrad_ish", "info")
    if not by_module.strip() or not run("tinygrad-ish", "info").strip():
        sys.exit("`info` printed nothing")
    if "fc.weight" not in run("tinygrad-ish", "inspect", "smoke.msgpack"):
        sys.exit("`inspect` did not name the weights that the training run saved")
    print("python -m tinygrad_ish, tinygrad-ish info and inspect: fine")


def main() -> None:
    """Build, compare, install, use."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder, "dist"))
        check_contents(wheel)
        check_use(wheel, Path(folder))


if __name__ == "__main__":
    main()
