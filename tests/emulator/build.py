"""Build what runs on the emulator: the ops ``torch.ops.snnfast_emulated`` for CPU tensors, and programs without torch.

``python tests/emulator/build.py`` builds the ops, ``build.py planted address`` a program for one sanitizer.
``SNNFAST_EMULATOR_SANITIZE=1`` builds (and loads) the ops with AddressSanitizer and UndefinedBehaviorSanitizer; the
process must then have been started with their libraries preloaded, see ``make sanitize``.
"""

import ctypes
import fcntl
import functools
import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
import setup  # the flags of the build itself, and its search for the toolkit
from snnfast._program.nvrtc import Launch as ProgramLaunch
from snnfast._program.nvrtc import pack
from tools.gates.kernels import names

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NAMESPACE = "snnfast_emulated"
SANITIZERS = {
    "plain": [],
    # Without two checks that take a fifth of the time to compile: AddressSanitizer finds what they find.
    "address": ["-fsanitize=address,undefined", "-fno-sanitize=null,object-size", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}


class Source(NamedTuple):
    """What is compiled to one object."""

    path: Path
    name: str  # of the object
    flags: list[str]


def _kernels() -> list[Source]:
    return [Source(path, name, shlex.split(" ".join(flags))) for path, name, flags in setup.cuda_sources()]


def _sources_of_ops() -> list[Source]:
    """The sources of the ops, one for each neuron."""
    path = ROOT / "csrc/op/neuron_ops.cpp"
    return [Source(path, f"neuron_ops_{name}", shlex.split(" ".join(setup.of_neuron(name)))) for name in setup.NEURONS]


def _driver() -> Source:
    """For all neurons at once."""
    return Source(HERE / "driver.cpp", "driver", setup.of_all_neurons())


OPS = [
    *_kernels(), *_sources_of_ops(), Source(ROOT / "csrc/op/norm_ops.cpp", "norm_ops", []),
    Source(HERE / "hooks.cpp", "hooks", []),
]  # fmt: skip
PROGRAMS = {"planted": [Source(HERE / "planted/main.cpp", "main", [])], "driver": [*_kernels(), _driver()]}


def ops_sanitizer() -> str:
    return "address" if os.environ.get("SNNFAST_EMULATOR_SANITIZE") == "1" else "plain"


def _build(output: Path, sources: list[Source], sanitizer: str, links: list[str]) -> Path:
    """Compile and link, unless the output is newer than everything it could depend on."""
    home = _toolkit()
    folder = output.with_suffix(".objects")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # of several processes that run tests, one builds
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build_alone(output, folder, sources, sanitizer, links, home)


def _build_alone(
    output: Path, folder: Path, sources: list[Source], sanitizer: str, links: list[str], home: Path
) -> Path:
    inputs = [*ROOT.glob("csrc/**/*"), *HERE.glob("*.*"), *HERE.glob("planted/*"), ROOT / "setup.py"]
    if output.exists() and output.stat().st_mtime > max(path.stat().st_mtime for path in inputs):
        return output
    began = time.time()
    compiler = shlex.split(setup.compiler())
    sanitize = SANITIZERS[sanitizer]
    flags = _flags(home)
    kernel_flags = [*flags, *_kernel_flags(sanitize)]

    emulator = Source(HERE / "emulator.cpp", "emulator", [])

    def compile_one(source: Source) -> str:
        own = [*flags, "-O2"] if source is emulator else kernel_flags
        target = str(folder / f"{source.name}.o")
        command = [*compiler, *own, *source.flags, "-x", "c++", "-c", str(source.path), "-o", target]
        subprocess.run(command, check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, [*sources, emulator]))
    links = [*sanitize, f"-Wl,-T,{HERE / 'shared.ld'}", *links]
    subprocess.run([*compiler, "-o", str(output), *objects, *links], check=True)
    os.utime(output, (began, began))  # a source may have changed meanwhile
    return output


def _toolkit() -> Path:
    home = setup.find_toolkit()
    if home is None:
        raise RuntimeError("the emulator needs the headers of the CUDA toolkit; set CUDA_HOME")
    return home


def _compile_once(source: str, options: list[str], suffix: str) -> Path:
    """What the compiler makes of a source text; it is kept."""
    command = [*shlex.split(setup.compiler()), *_flags(_toolkit()), *options, "source.cpp", "-o", "made"]
    known = [path.read_text() for path in sorted(HERE.glob("*.h"))]
    name = hashlib.sha256(repr((command, known, source)).encode()).hexdigest()[:32] + suffix
    path = HERE / "_build" / "programs" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as here:
            Path(here, "source.cpp").write_text(source)
            subprocess.run(command, cwd=here, check=True)
            os.replace(Path(here, "made"), path)
    return path


def _flags(home: Path) -> list[str]:
    flags = [flag for flag in [*setup.CXX_FLAGS, "-fPIC"] if flag != "-O3"]
    # Line numbers for the reports of sanitizers; all of -g and -O2 take twice as long to compile.
    flags += ["-g1", "-Werror", "-Wno-unknown-pragmas", "-fno-strict-aliasing", setup.TORCH_TARGET_FLAG]
    flags += ["-DSNN_EMULATED", "-DSNN_CUDA", f"-DSNN_NAMESPACE={NAMESPACE}", f"-I{HERE}", f"-isystem{home}/include"]
    return [*flags, f"-isystem{Path(torch.__file__).parent}/include"]


def _kernel_flags(sanitize: list[str]) -> list[str]:
    # A section for each variable: shared.ld collects those that are __shared__.
    return ["-O1", "-fdata-sections", *(["-fno-omit-frame-pointer", *sanitize] if sanitize else [])]


def build_ops() -> Path:
    """The library of the ops. Raises ``RuntimeError`` where it can't be built."""
    torch_lib = Path(torch.__file__).parent / "lib"
    links = ["-shared", f"-L{torch_lib}", "-ltorch", "-ltorch_cpu", "-lc10"]
    folder = HERE / "_build" / ops_sanitizer()
    return _build(folder / "libsnnfast_emulated.so", OPS, ops_sanitizer(), links)


def build_program(name: str, sanitizer: str) -> Path:
    """One of ``PROGRAMS``. Raises ``RuntimeError`` where it can't be built."""
    return _build(HERE / "_build" / sanitizer / name, PROGRAMS[name], sanitizer, [])


@functools.cache
def kernel_library(text: str) -> ctypes.CDLL:
    """The text of a program's kernel as a library with a function ``snnfast_launch(blocks, threads, arguments)``."""
    scheduler = _compile_once((HERE / "emulator.cpp").read_text(), ["-O2", "-c"], ".o")
    flags = [*_kernel_flags(SANITIZERS[ops_sanitizer()]), "-Wno-unused"]
    language = '#include "emulator.h"\n#include <math.h>\n'
    header = _compile_once(language, [*flags, "-x", "c++-header"], ".gch")  # which takes most of the time
    links = [str(scheduler), "-shared", f"-Wl,-T,{HERE / 'shared.ld'}", "-include", str(header.with_suffix(""))]
    return ctypes.CDLL(str(_compile_once(f'{text}\n#include "launch.h"\n', [*flags, *links], ".so")))


def kernel_of(text: str, device: torch.device) -> ProgramLaunch:
    """The kernel of a program's text, as ``snnfast._program.nvrtc.kernel_of`` makes it for a card."""
    library = kernel_library(text)

    def launch(blocks: int, threads: int, arguments: Sequence[int | float]) -> None:
        memory = pack(arguments)
        failed = library.snnfast_launch(blocks, threads, ctypes.byref(memory, 8 * len(arguments)))
        assert failed == 0, f"the kernel failed with error {failed}"

    return launch


@functools.cache
def load() -> ctypes.CDLL:
    """Register ``torch.ops.snnfast_emulated`` in this process (``SNNFAST_EMULATOR_LIBRARY``: one built elsewhere)."""
    from snnfast._core import fake

    path = os.environ.get("SNNFAST_EMULATOR_LIBRARY") or str(build_ops())
    torch.ops.load_library(path)
    fake.register(NAMESPACE)
    library = ctypes.CDLL(path)
    # Whatever allows 16-byte accesses takes them: test shapes are small.
    library.snnfast_set_vector_minimum(ctypes.c_int64(1))
    library.snnfast_take_launches.restype = ctypes.c_int64
    library.snnfast_parameters_of.restype = ctypes.c_void_p
    return library


def set_seed(seed: int) -> None:
    """The order of threads and blocks from now on."""
    load().snnfast_set_emulator_seed(ctypes.c_uint(seed))


class Launch(NamedTuple):
    """A launch of a kernel, which is named as in the table of ``make gates``."""

    kernel: str
    blocks: int
    threads: int  # of a block
    parameters: bytes = b""  # as the kernel finds them


@functools.cache
def kernels() -> dict[int, str]:
    """The names of all kernels of the library, by where they lie in it."""
    listed = subprocess.run(["nm", "--defined-only", load()._name], capture_output=True, text=True, check=True).stdout
    places = {symbol: int(at, 16) for at, kind, symbol in map(str.split, listed.splitlines()) if kind in "tT"}
    found = names(s for s in places if "_kernelI" in s)
    return {places[symbol]: name for symbol, name in found.items() if name.endswith(">")}  # no lambda in a kernel


def take_launches() -> list[Launch]:
    """The launches since the last time that it was asked."""
    found = (ctypes.c_int64 * 4 * load().snnfast_take_launches())()
    load().snnfast_taken_launches(found)
    parameters = [
        ctypes.string_at(load().snnfast_parameters_of(ctypes.c_int64(i)), size) for i, (*_, size) in enumerate(found)
    ]
    return [
        Launch(kernels()[at], blocks, threads, of)
        for (at, blocks, threads, _), of in zip(found, parameters, strict=True)
    ]


def set_vector_minimum(neurons: int) -> None:
    """From how many neurons on a thread takes several of them; -1: as on a card."""
    load().snnfast_set_vector_minimum(ctypes.c_int64(neurons))


def set_norm_blocks(blocks: int) -> None:
    """From so many blocks on, those that sum over the neurons of channels take several tiles each."""
    load().snnfast_set_norm_blocks(ctypes.c_int64(blocks))


def set_chunked_limits(least_steps: int, most_neurons: int) -> None:
    """From how many steps on, and up to how many neurons, backward shares out time among warps."""
    load().snnfast_set_chunked_limits(ctypes.c_int64(least_steps), ctypes.c_int64(most_neurons))


if __name__ == "__main__":
    print(build_program(*sys.argv[1:]) if len(sys.argv) > 1 else build_ops())
