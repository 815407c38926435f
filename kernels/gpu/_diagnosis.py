"""What keeps the GPU from being used here, in words: the driver, the wheel, the libraries."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import re
import sys
from typing import Any

from . import _nvrtc

INSTALL = "pip install 'tinygrad_ish[gpu]'"
DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

# What cuInit says: https://docs.nvidia.com/cuda/cuda-driver-api, CUresult.
REASONS = {
    100: "it sees no GPU. In a container, start it with `--gpus all`; "
    "CUDA_VISIBLE_DEVICES is {visible}",
    802: "the system is not ready yet; if there are several GPUs, start nvidia-fabricmanager",
    803: "it does not fit its library (often after an update): restart the machine",
    804: "it is too old for its compatibility library; update the driver",
    999: "it fails for an unknown reason (often after a suspend): reload nvidia_uvm, or restart",
}


def wheels() -> list[tuple[str, str]]:
    """The installed distributions of CuPy and their versions."""
    found = {
        (str(d.metadata["Name"]).lower(), d.version)
        for d in importlib.metadata.distributions()
        if re.match(r"cupy(-|$)", str(d.metadata["Name"]).lower())
    }
    return sorted(found)


def library() -> Any:
    """The driver's library. Raises OSError where there is none."""
    return ctypes.CDLL(DRIVER)


def driver() -> tuple[int, str | None]:
    """The CUDA version that the driver supports (13000 is 13.0; 0 if there is none), and what is
    wrong with it."""
    try:
        cuda = library()
    except OSError:
        return 0, (
            f"there is no NVIDIA driver ({DRIVER} was not found): install one, so that "
            "`nvidia-smi` lists the GPU; in a container, start it with `--gpus all`"
        )
    version = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    code = cuda.cuInit(0)
    if code:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        reason = REASONS.get(code, f"cuInit gives error {code}").format(visible=visible)
        return version.value, f"the NVIDIA driver does not start: {reason}"
    return version.value, None


def problems() -> list[str]:
    """All that keeps device="cuda" from working, each with what to do; first what to mend first."""
    found = []
    version, wrong = driver()
    installed = wheels()
    if not installed:
        found.append(f"CuPy is not installed: {INSTALL} (for an NVIDIA GPU with a CUDA 13 driver)")
    elif len(installed) > 1:
        names = ", ".join(f"{name} {v}" for name, v in installed)
        remove = " ".join(name for name, _ in installed)
        found.append(
            f"several CuPys are installed ({names}), which break each other: "
            f"pip uninstall {remove}, then {INSTALL}"
        )
    if wrong is not None:
        found.append(wrong)
    for name, _ in installed:
        wants = re.fullmatch(r"cupy-cuda(\d+)x", name)
        if wants and 0 < version < int(wants[1]) * 1000:
            found.append(
                f"{name} needs a driver for CUDA {wants[1]}, and this one is for CUDA "
                f"{version // 1000}.{version % 1000 // 10}: update the driver, or "
                f"pip uninstall {name}, then pip install cupy-cuda{version // 1000}x"
            )
    missing = [_nvrtc.why_missing(), _without_cublas()]
    return [*found, *[reason for reason in missing if installed and reason is not None]]


def _without_cublas() -> str | None:
    from . import _blas

    try:
        _blas.load()
    except (_blas.BlasError, OSError) as error:
        return str(error)
    return None


def why_missing() -> str | None:
    """Why CuPy cannot run here, and what to do; None if it can."""
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed: {INSTALL} (needs an NVIDIA GPU with a CUDA 13 driver)"
    try:
        import cupy
    except Exception as error:
        return f"CuPy is installed but does not import ({error}): reinstall it, {INSTALL}"
    if cupy.cuda.is_available():
        return None
    return "; ".join(problems()) or (
        "CuPy found no CUDA device: check that `nvidia-smi` lists a GPU and that its CUDA version "
        "is 13 or newer"
    )


def facts() -> dict[str, str]:
    """What there is to know of CUDA here, by name, for people to read."""
    version, wrong = driver()
    shown = f"CUDA {version // 1000}.{version % 1000 // 10}" if version else ""
    facts = {
        "driver": "; ".join(filter(None, [shown, wrong])) if version else "none",
        "CuPy": ", ".join(f"{name} {v}" for name, v in wheels()) or "not installed",
        "NVRTC": _nvrtc.why_missing() or "ready",
        "cuBLAS": _without_cublas() or "ready",
    }
    if why_missing() is None:
        import cupy

        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        free, total = cupy.cuda.runtime.memGetInfo()
        facts["GPU"] = properties["name"].decode()
        facts["architecture"] = f"sm_{properties['major']}{properties['minor']}"
        facts["memory"] = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    return facts
