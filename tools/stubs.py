"""Libraries in place of others, which the emulators have not got.

- Of CUDA, for PyTorch's wheel for Linux aarch64, a build for CUDA. It loads them, and calls none of them where no
  card is. Each function of these returns 100, which is cudaErrorNoDevice.
- Of Windows' C library, which numpy asks for ``crealf`` and ``cimagf``: wine 10 has none.
"""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from tools.symbols import read

# What the system itself has, of a machine without CUDA.
SYSTEM = (
    "libc.",
    "libm.",
    "libdl.",
    "librt.",
    "libpthread.",
    "libgcc_s.",
    "libstdc++.",
    "ld-linux",
    "libgomp.",
    "libz.",
)


def cuda(libraries: Path, folder: Path) -> Path:
    """Make those that the libraries in a folder need and that are not there."""
    if folder.exists():
        return folder
    binaries = [read(path) for path in sorted(libraries.glob("*.so*"))]
    there = {path.name for path in libraries.iterdir()}
    needed = {name for binary in binaries for name in binary.libraries}
    missing = sorted(name for name in needed if name not in there and not name.startswith(SYSTEM))
    versions: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # of a library, its symbols
    loose: set[str] = set()  # symbols that name no library
    own: set[str] = set()
    for binary in binaries:
        owners = {v.name: r.name for r in binary.symbols_version_requirement for v in r.get_auxiliary_symbols()}
        own |= {symbol.name for symbol in binary.exported_symbols}
        for symbol in binary.imported_symbols:
            version = symbol.symbol_version.symbol_version_auxiliary if symbol.has_version else None
            if version is None:
                loose.add(symbol.name)
            elif owners.get(version.name) in missing:
                versions[owners[version.name]][version.name].add(symbol.name)
    folder.mkdir(parents=True)
    for name in missing:
        symbols = set().union(*versions[name].values()) if versions[name] else set()
        if name == missing[0]:
            symbols |= {symbol for symbol in loose - own if symbol.startswith(PREFIXES)}
        source, script = folder / "stub.c", folder / "stub.map"
        source.write_text(
            "\n".join(f"long {symbol}(void) {{ return 100; }}" for symbol in sorted(symbols)) or "int none;"
        )
        script.write_text("\n".join(f"{v} {{ global: {'; '.join(sorted(s))}; }};" for v, s in versions[name].items()))
        zig = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu.2.28", "-w", "-shared", "-fPIC"]
        zig += ["-fno-builtin", f"-Wl,-soname,{name}", "-o", folder / name, source]
        subprocess.run([*zig, *([f"-Wl,--version-script={script}"] if versions[name] else [])], check=True)
    return folder


# How the names of CUDA's own functions begin.
PREFIXES = ("cu", "nccl", "nvrtc", "nvshmem", "nvml", "nvJitLink", "__cuda")

MATH = "api-ms-win-crt-math-l1-1-0.dll"
PARTS = """
struct complex { float real, imaginary; };
__declspec(dllexport) float crealf(struct complex z) { return z.real; }
__declspec(dllexport) float cimagf(struct complex z) { return z.imaginary; }
"""


def math_for_numpy(site: Path) -> None:
    """Have numpy load its functions from a library beside it, which has those and takes the others from wine's."""
    (numpy,) = site.glob("numpy/_core/_multiarray_umath.*.pyd")
    ours = MATH.replace("api", "our")
    content = numpy.read_bytes()
    if MATH.encode() not in content:  # it does so already
        return
    binary = read(numpy)
    names = next({entry.name for entry in needed.entries} for needed in binary.imports if needed.name == MATH)
    forwarded = "".join(f" -export:{name}=ucrtbase.{name}" for name in sorted(names - {"crealf", "cimagf"}))
    source = numpy.parent / "math.c"
    source.write_text(f'{PARTS}__asm__(".section .drectve\\n.ascii \\"{forwarded}\\"\\n.text");\n')
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-windows-gnu", "-w", "-shared", "-fno-builtin"]
    subprocess.run([*zig, "-o", numpy.parent / ours, source], check=True)
    numpy.write_bytes(content.replace(MATH.encode(), ours.encode()))
