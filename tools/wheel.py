"""Build the wheel: one for every Python and every torch. `make wheel` runs this in an environment made by noxfile.py.

The build sees the headers of the oldest torch. The link sees the symbols of glibc 2.28, which torch's own wheels need
as well: a compiler's own C library may be newer than that of a user. auditwheel fails if the library needs newer
symbols of any system library, torch-abi-audit if it needs what PyTorch may change. The objects stay in build/ for the
next run.

`--target win_amd64`, for example, builds the wheel of another system, without CUDA kernels. zig compiles it, against
PyTorch's wheel for that system. tools/symbols.py checks what the library needs.
"""

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import setup
from tools import symbols
from tools.packages import install

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build/wheel"
GLIBC = "2.28"
MOST_BYTES = 12_000_000
# Every installation of torch has these libraries, so the wheel does not contain them.
TORCH_LIBRARIES = ("libtorch*.so", "libc10*.so")
OLDEST_TORCH = f"torch=={'.'.join(map(str, setup.TORCH_TARGET))}.*"


def main() -> None:
    parser = argparse.ArgumentParser("wheel", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "dist", help="where the wheel goes; default: %(default)s")
    parser.add_argument("--target", metavar="TAG", help="linux_aarch64, macosx_11_0_arm64 or win_amd64, on any system")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    for stale in (WORK / "raw", WORK / "repaired", *(ROOT / "build").glob("lib*")):  # setuptools packs build/lib
        shutil.rmtree(stale, ignore_errors=True)
    wheel = cross(arguments.target) if arguments.target else repair(build_here())
    size = wheel.stat().st_size
    if size > MOST_BYTES:
        sys.exit(f"{wheel} has {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.1f}")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{shutil.copy(wheel, folder)}: {size / 1e6:.1f} MB, at most {MOST_BYTES / 1e6:.1f}")


def build_here() -> Path:
    """A wheel with the kernels for all machines, which says only that it is for Linux."""
    # -lgcc: the conversions of 16-bit floats, which libgcc_s has only since GCC 12, from the static library.
    flags = f"-L{old_glibc(WORK / f'glibc-{GLIBC}')} -s -lgcc"
    return build({"LDFLAGS": flags})


def build(variables: dict[str, str]) -> Path:
    variables = {"SNNFAST_BUILD": "all", "SNNFAST_REQUIRE_EXT": "1"} | variables
    raw = WORK / "raw"
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", raw, ROOT]
    subprocess.run(pip, check=True, env=os.environ | variables)
    (wheel,) = raw.glob("*.whl")
    return wheel


def cross(tag: str) -> Path:
    """The wheel of another system, whose library finds all its symbols there."""
    packages = WORK / f"torch-{tag}"
    if not packages.exists():
        install([OLDEST_TORCH], packages, tag)
    wheel = build({"SNNFAST_TARGET": tag, "SNNFAST_CUDA": "0", "LDFLAGS": "-s", "PYTHONPATH": str(packages)})
    library = library_in(wheel)
    lines = symbols.needed(library, packages / "torch/lib")
    if tag.startswith("macosx"):
        lines += symbols.of_macos(library, tag)
    print("\n".join(lines))
    return repair(wheel) if tag.startswith("linux") else wheel


def repair(wheel: Path) -> Path:
    """The same wheel with the tag of the oldest Linux that has all symbols; an error if that is newer than GLIBC."""
    excluded = [word for name in TORCH_LIBRARIES for word in ("--exclude", name)]
    folder = WORK / "repaired"
    command = [sys.executable, "-m", "auditwheel", "repair", "--plat", "auto", *excluded, "-w", folder, wheel]
    subprocess.run(command, check=True)
    (repaired,) = folder.glob("*.whl")
    oldest = re.search(r"-manylinux_(\d+)_(\d+)_", repaired.name)
    if oldest is None or tuple(map(int, oldest.groups())) > tuple(map(int, GLIBC.split("."))):
        sys.exit(f"{repaired.name} needs a newer glibc than {GLIBC}")
    subprocess.run(["torch-abi-audit", "--check", "torch", library_in(repaired)], check=True)
    return repaired


def library_in(wheel: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if "/_kernels." in name)
        return Path(archive.extract(name, WORK / "raw"))


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
