"""Build the wheel: one for every Python and every torch. `make wheel` runs this in an environment made by noxfile.py.

The build sees the headers of the oldest torch. The link sees the symbols of glibc 2.28, which torch's own wheels need
as well: a compiler's own C library may be newer than that of a user. auditwheel fails if the library needs newer
symbols of any system library. The objects stay in build/ for the next run.
"""

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import setup

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build/wheel"
GLIBC = "2.28"
MOST_BYTES = 12_000_000
# Every installation of torch has these libraries, so the wheel does not contain them.
TORCH_LIBRARIES = ("libtorch*.so", "libc10*.so")


def main() -> None:
    parser = argparse.ArgumentParser("wheel", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "dist", help="where the wheel goes; default: %(default)s")
    folder = parser.parse_args().folder.resolve()
    repaired = WORK / "repaired"
    for stale in (WORK / "raw", repaired, *(ROOT / "build").glob("lib*")):  # setuptools packs what is in build/lib
        shutil.rmtree(stale, ignore_errors=True)
    repair(build(WORK / "raw"), repaired)
    (wheel,) = repaired.glob("*.whl")
    size = wheel.stat().st_size
    if size > MOST_BYTES:
        sys.exit(f"{wheel} has {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.1f}")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{shutil.copy(wheel, folder)}: {size / 1e6:.1f} MB, at most {MOST_BYTES / 1e6:.1f}")


def build(folder: Path) -> Path:
    """A wheel with the kernels for all machines, which says only that it is for Linux."""
    # -lgcc: the conversions of 16-bit floats, which libgcc_s has only since GCC 12, from the static library.
    flags = f"-L{old_glibc(WORK / f'glibc-{GLIBC}')} -s -lgcc"
    variables = {"SNNFAST_BUILD": "all", "SNNFAST_REQUIRE_EXT": "1", "LDFLAGS": flags}
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", folder, ROOT]
    subprocess.run(pip, check=True, env=os.environ | variables)
    (wheel,) = folder.glob("*.whl")
    return wheel


def repair(wheel: Path, folder: Path) -> None:
    """The same wheel with the tag of the oldest Linux that has all symbols; an error if that is none of GLIBC."""
    excluded = [word for name in TORCH_LIBRARIES for word in ("--exclude", name)]
    tag = f"manylinux_{GLIBC.replace('.', '_')}_{platform.machine()}"
    command = [sys.executable, "-m", "auditwheel", "repair", "--plat", tag, *excluded, "-w", folder, wheel]
    subprocess.run(command, check=True)


def old_glibc(folder: Path) -> Path:
    """A folder for the linker, with the C libraries of an old glibc as far as their symbols go; zig makes them."""
    if (folder / "libc.so").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "empty.c").write_text("")
    target = f"{platform.machine()}-linux-gnu.{GLIBC}"
    cache = {f"ZIG_{name}_CACHE_DIR": str(folder / "cache") for name in ("GLOBAL", "LOCAL")}
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-shared", "-o", "empty.so", "empty.c"]
    subprocess.run(zig, check=True, cwd=folder, env=os.environ | cache)
    (libc,) = folder.glob("cache/o/*/libc.so.6")
    for name in ("dl", "m", "pthread", "rt"):
        (made,) = libc.parent.glob(f"lib{name}.so.*")
        shutil.copy(made, folder / f"lib{name}.so")
    # The system's own libc.so is such a script, too: it adds the functions that are linked statically.
    command = [*shlex.split(setup.compiler()), "-print-file-name=libc_nonshared.a"]
    static = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    (folder / "libc.so").write_text(f"GROUP({libc} {static} AS_NEEDED({libc.parent / 'libld.so.2'}))\n")
    return folder


if __name__ == "__main__":
    main()
