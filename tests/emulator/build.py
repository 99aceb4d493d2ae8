"""Build and load the emulated ops ``torch.ops.snnfast_emulated``: the CUDA sources, compiled by g++ for CPU tensors.

``python tests/emulator/build.py`` builds only. ``SNNFAST_EMULATOR_SANITIZE=1`` builds (and loads) the variant with
AddressSanitizer and UndefinedBehaviorSanitizer; the process must then have been started with their libraries
preloaded, see ``make sanitize``.
"""

import ctypes
import functools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
import setup  # the flags of the build itself, and its search for the toolkit

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NAMESPACE = "snnfast_emulated"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def sanitized() -> bool:
    return os.environ.get("SNNFAST_EMULATOR_SANITIZE") == "1"


def build() -> Path:
    """Compile what is newer than its object file; return the library. Raises ``RuntimeError`` where it can't."""
    home = setup.cuda_home()
    if home is None:
        raise RuntimeError("the emulator needs the headers of the CUDA toolkit; set CUDA_HOME")
    folder = HERE / "_build" / ("sanitized" if sanitized() else "plain")
    folder.mkdir(parents=True, exist_ok=True)
    flags = [f for f in setup.CXX_FLAGS if f != "-O3"]
    flags += ["-O1", "-g", *SANITIZE] if sanitized() else ["-O2", "-g"]
    flags += ["-Werror", "-Wno-unknown-pragmas", "-fno-strict-aliasing", setup.TORCH_TARGET_FLAG]
    flags += ["-DSNN_EMULATED", "-DSNN_CUDA", f"-DSNN_NAMESPACE={NAMESPACE}"]
    flags += [f"-I{HERE}", f"-isystem{home}/include", f"-isystem{Path(torch.__file__).parent}/include"]
    sources = [*sorted((ROOT / "csrc/cuda").glob("*.cu")), ROOT / "csrc/lif.cpp", HERE / "hooks.cpp"]
    newest = max(p.stat().st_mtime for p in [*ROOT.glob("csrc/**/*"), *HERE.glob("*.*"), ROOT / "setup.py"])
    library = folder / "libsnnfast_emulated.so"
    if library.exists() and library.stat().st_mtime > newest:
        return library

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.name}.o"
        subprocess.run(
            [setup.compiler(), *flags, "-x", "c++", "-c", str(source), "-o", str(target)], check=True, text=True
        )
        return target

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compile_one, sources))
    torch_lib = Path(torch.__file__).parent / "lib"
    links = [f"-L{torch_lib}", "-ltorch", "-ltorch_cpu", "-lc10", *(SANITIZE if sanitized() else [])]
    subprocess.run([setup.compiler(), "-shared", "-o", str(library), *map(str, objects), *links], check=True)
    return library


@functools.cache
def load() -> None:
    """Register ``torch.ops.snnfast_emulated`` in this process (``SNNFAST_EMULATOR_LIBRARY``: one built elsewhere)."""
    from snnfast import _ops

    library = os.environ.get("SNNFAST_EMULATOR_LIBRARY") or str(build())
    torch.ops.load_library(library)
    _ops.register_fakes(NAMESPACE)
    # Whatever allows 16-byte accesses takes them: test shapes are small.
    set_vector_minimum(1)


def set_vector_minimum(neurons: int) -> None:
    """Neurons from which a thread takes several of them."""
    library = os.environ.get("SNNFAST_EMULATOR_LIBRARY") or str(build())
    ctypes.CDLL(library).snnfast_set_vector_minimum(ctypes.c_int64(neurons))


if __name__ == "__main__":
    print(build())
