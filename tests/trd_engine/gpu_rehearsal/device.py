"""Compiles and loads `device.cpp`: the part of a rehearsed GPU that PyTorch's C++ asks for. Imports no torch.

PyTorch looks for a CUDA device once, while it is imported. `load` must therefore come first, in a separate process.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("device.cpp")


class CompilerMissingError(Exception):
    """The machine has no C++ compiler; the message says how to install one."""


def build(folder: Path) -> Path:
    """Compile the shared library in `folder` against the installed PyTorch, which takes a few seconds."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise CompilerMissingError("no C++ compiler, so that no GPU can be rehearsed; on Debian: apt-get install g++")
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    library = folder / "rehearsed_device.so"
    command = [compiler, "-std=c++20", "-shared", "-fPIC", f"-I{torch / 'include'}", str(SOURCE)]
    command += [f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}", "-lc10", "-ltorch_cpu", "-o", str(library)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{SOURCE.name} does not compile:\n{result.stderr}")
    return library


def load(library: Path) -> None:
    """Have the device in this process. Raises RuntimeError if PyTorch is in it already."""
    if "torch" in sys.modules:
        raise RuntimeError("torch is imported already; load the rehearsed device first")
    ctypes.CDLL(str(library))
