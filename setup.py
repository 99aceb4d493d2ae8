"""Build of the library ``snnfast/_kernels.so``, or ``.dll``: C++ for the CPU, and CUDA kernels for cards.

By default it is built for this machine: for the instruction set of its processor, and for the cards that the driver
sees. ``SNNFAST_BUILD=all`` builds for all processors and cards.

The library is no Python module: ``torch.ops.load_library`` loads it, and one wheel fits every Python. The ops are
registered on torch's stable ABI, so that one binary serves every torch from 2.11 on, with or without CUDA. torch's own
``CUDAExtension`` refuses to build CUDA code beside a CPU build of torch; nothing here needs torch's CUDA, because the
``.cu`` files include no torch header. Environment variables are described in docs/install.md.

What differs between Linux, macOS and Windows is in one table, ``SYSTEMS``. ``SNNFAST_TARGET`` builds for another system
than this one. On systems that are not in the table the package is pure Python, and its reference path runs.
"""

import ctypes
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CPUINFO = Path("/proc/cpuinfo")
EXTENSION = Extension("snnfast._kernels", [], optional=True)  # as setuptools sees it
TORCH_TARGET = (2, 11)
TORCH_TARGET_FLAG = f"-DTORCH_TARGET_VERSION=0x{TORCH_TARGET[0]:02x}{TORCH_TARGET[1]:02x}000000000000"
DEFAULT_ARCHITECTURES = ["7.5", "8.0", "9.0", "10.0", "12.0"]  # and PTX of the last, for what comes later
# Most of nvcc's time goes into PTX. For these architectures that of another gives code of the same size.
PTX_OF = {"12.0": "10.0"}
# The instruction sets of x86-64, best first: flags of the compiler, and what Linux calls what they need. 512: g++'s own
# choice for v4 is vectors of 256 bits. Processors without AVX2 are older than 2013: for them the smaller code.
INSTRUCTION_SETS = {
    "avx512": (
        ["-march=x86-64-v4", "-mprefer-vector-width=512"],
        "avx512f avx512bw avx512cd avx512dq avx512vl avx2 bmi1 bmi2 f16c fma abm movbe",
    ),
    "avx2": (["-march=x86-64-v3"], "avx2 bmi1 bmi2 f16c fma abm movbe"),
    "baseline": (["-Os"], ""),
}
# Compiled once for each instruction set, besides those of the neurons.
KERNELS = (
    "spikes/events", "spikes/convolution", "spikes/rate", "images/pooling", "images/winograd", "norm/kernels",
    "program/kernels",
)  # fmt: skip
NEURONS = sorted(path.stem for path in (ROOT / "csrc/neurons").glob("*.h"))

# No contraction to fused multiply-add: it would round membranes differently from PyTorch. g++ vectorises the threshold
# compare only where it need not preserve floating-point exception flags.
CXX_FLAGS = ["-std=c++20", "-O3", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno"]
CXX_FLAGS += ["-fno-trapping-math", "-Wall", "-Wextra"]
NVCC_FLAGS = ["-std=c++20", "-O3", "-fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra"]


class System(NamedTuple):
    """What the build of one operating system does in its own way."""

    compiler: str | None  # the usual one; without it, zig is
    install: str  # how its compiler is installed
    zig: str  # the target of zig, which compiles for every system on every other one
    suffix: str  # of the library
    flags: str
    links: str


# By the beginnings of the tags of wheels. On macOS torch's libraries are found where they are loaded already; the rpath
# is for programs without torch's Python.
SYSTEMS = {
    "linux": System(
        compiler="g++",
        install="on Debian and Ubuntu: apt install g++; on Fedora: dnf install gcc-c++",
        zig="{}-linux-gnu.2.28",
        suffix=".so",
        flags="-fPIC",
        # defs: no symbol may be missing but those that are weak. libtorch is linked although nothing in it is needed:
        # in a CUDA build of torch it brings in libtorch_cuda, where the one weak symbol is, and a library that the
        # extension does not name is out of its sight.
        links="-Wl,-z,defs -Wl,--exclude-libs,ALL -Wl,--no-as-needed -ltorch -Wl,--as-needed -ltorch_cpu -lc10 "
        "-lpthread -ldl",
    ),
    "macosx_11_0": System(
        compiler="clang++",
        install="xcode-select --install",
        zig="{}-macos.11.0",
        suffix=".so",
        flags="-fPIC -mmacosx-version-min=11.0",
        links="-mmacosx-version-min=11.0 -Wl,-install_name,@rpath/_kernels.so "
        "-Wl,-rpath,@loader_path/../torch/lib -ltorch_cpu -lc10",
    ),
    "win": System(
        compiler=None,
        install="pip install ziglang",
        zig="{}-windows-gnu",
        suffix=".dll",
        flags="-D_CRT_SECURE_NO_WARNINGS",
        links="-s -ltorch_cpu -lc10",  # -s: no debug information, which would be a file beside the library
    ),
}


class BuildError(Exception):
    """The kernels can't be built here; the message says why."""


class VariableError(SystemExit):
    """What an environment variable asks for can't be done; setup.py ends with the message, which names the variable."""


def switch(name: str) -> bool | None:
    """A variable that is 0 or 1; None where it is empty or not set."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise VariableError(f"{name}: expected 0 or 1, got {value!r}")
    return value == "1" if value else None


def for_all() -> bool:
    """Whether to build for all machines, and not for this one alone: by default, if CUDA kernels are asked for."""
    value = os.environ.get("SNNFAST_BUILD", "")
    if value not in ("", "here", "all"):
        raise VariableError(f"SNNFAST_BUILD: expected here or all, got {value!r}")
    return value == "all" if value else asks_for_cuda()


def asks_for_cuda() -> bool:
    """Whether CUDA kernels are asked for, also where no card is visible."""
    wanted = switch("SNNFAST_CUDA")
    return bool(wanted_architectures()) if wanted is None else wanted


class Target(NamedTuple):
    """The machine that the kernels are built for."""

    system: str  # a key of SYSTEMS
    machine: str  # the processor, as the system calls it

    @property
    def tag(self) -> str:
        """What the name of a wheel calls it."""
        return f"{self.system}_{self.machine}"

    @property
    def library(self) -> str:
        """The file of the kernels in the package."""
        return f"snnfast/_kernels{SYSTEMS[self.system].suffix if self.system in SYSTEMS else '.so'}"

    @property
    def x86(self) -> bool:
        return self.machine in ("x86_64", "amd64")


def this_machine() -> Target:
    system = {"darwin": "macosx_11_0", "win32": "win"}.get(sys.platform, sys.platform)
    return Target(system, platform.machine().lower())


def target() -> Target:
    """``SNNFAST_TARGET``, the tag of a wheel, such as ``win_amd64``; or this machine."""
    tag = os.environ.get("SNNFAST_TARGET", "")
    if not tag:
        return this_machine()
    for system in SYSTEMS:
        if tag.startswith(f"{system}_"):
            return Target(system, tag.removeprefix(f"{system}_"))
    raise VariableError(f"SNNFAST_TARGET: expected e.g. linux_aarch64, macosx_11_0_arm64 or win_amd64, got {tag!r}")


def instruction_sets() -> dict[str, list[str]]:
    """Those that the CPU kernels are built for, best first, with their flags."""
    if not target().x86:
        return {"baseline": []}
    known = {name: flags for name, (flags, _) in INSTRUCTION_SETS.items()}
    # The names of the flags are those of Linux.
    if for_all() or target() != this_machine() or target().system != "linux":
        return known
    found = re.search(r"^flags\s*:(.*)$", CPUINFO.read_text(), flags=re.MULTILINE)
    has = set(found[1].split()) if found else set()
    best = next(name for name, (_, needs) in INSTRUCTION_SETS.items() if has.issuperset(needs.split()))
    return {best: known[best]}


def visible_cards() -> list[str]:
    """Compute capabilities of the cards that the driver sees, such as 9.0, without doubles; empty without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []

    def asked(function: str, *arguments: int) -> int:
        answer = ctypes.c_int(0)
        failed = getattr(driver, function)(ctypes.byref(answer), *arguments)
        if failed:
            raise BuildError(f"the CUDA driver does not tell its cards: {function} failed with error {failed}")
        return answer.value

    if driver.cuInit(0):
        return []
    major, minor = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
    cards = range(asked("cuDeviceGetCount"))  # a device's handle is its number
    get = "cuDeviceGetAttribute"
    return sorted({f"{asked(get, major, card)}.{asked(get, minor, card)}" for card in cards})


def max_jobs() -> int | None:
    value = os.environ.get("MAX_JOBS", "")
    if value and not (re.fullmatch("[0-9]{1,6}", value) and int(value) > 0):
        raise VariableError(f"MAX_JOBS: expected a number from 1 to 999999, got {value!r}")
    return int(value) if value else None


def compiler() -> str:
    """The command of the C++ compiler; ``CXX`` may have words before it, as in ``ccache g++``."""
    command = os.environ.get("CXX")
    if command is None:
        return usual_compiler()
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise VariableError(f"CXX: {error}, got {command!r}") from error
    if not words:
        raise VariableError("CXX: expected the command of a C++ compiler, got nothing; unset it for the usual one")
    if shutil.which(words[0]) is None:
        raise VariableError(f"CXX: {words[0]} was not found")
    return command


def usual_compiler() -> str:
    """That of the system, or zig where the system has none, or is not the one that is built for."""
    wanted = target()
    system = SYSTEMS[wanted.system]
    if system.compiler is not None and wanted == this_machine():
        if shutil.which(system.compiler) is None:
            raise BuildError(f"no C++ compiler: {system.compiler} was not found; {system.install}")
        return system.compiler
    if importlib.util.find_spec("ziglang") is None:
        raise BuildError(f"no C++ compiler: zig was not found; {SYSTEMS['win'].install}")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(wanted.machine, wanted.machine)
    python = quote(Path(sys.executable).as_posix())
    return f"{python} -m ziglang c++ -target {system.zig.format(machine)}"


def is_zig() -> bool:
    return any(Path(word).stem in ("zig", "ziglang") for word in shlex.split(compiler()))


def cuda_home() -> Path | None:
    """The CUDA toolkit, or None where no CUDA kernels are built. SNNFAST_CUDA=1 demands it, 0 forbids it."""
    wanted = switch("SNNFAST_CUDA")
    if wanted is False or not (asks_for_cuda() or for_all() or visible_cards()):
        return None
    home = find_toolkit()
    if home is None and wanted:
        raise VariableError("SNNFAST_CUDA=1, but no CUDA toolkit was found; set CUDA_HOME")
    return home


def find_toolkit() -> Path | None:
    """A folder with nvcc and the headers of CUDA."""
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        # nvcc may be a wrapper script outside the toolkit; it tells the toolkit itself.
        told = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True, check=False).stderr
        places += re.findall(r"^#\$ TOP=(.+)$", told, flags=re.MULTILINE)
    places.append("/usr/local/cuda")
    for place in places:
        if place and Path(place, "bin/nvcc").exists() and Path(place, "include/cuda_runtime.h").exists():
            return Path(place).resolve()
    return None


def cuda_missing() -> str:
    """Why the kernels of CUDA are not built, for the user of the installed package."""
    if switch("SNNFAST_CUDA") is False:
        return "SNNFAST_CUDA=0 at install time"
    if not (asks_for_cuda() or for_all() or visible_cards()):
        return "no card was visible at install time; SNNFAST_CUDA=1 builds for all cards"
    return "no nvcc was found at install time"


def wanted_architectures() -> list[str]:
    """``TORCH_CUDA_ARCH_LIST`` by numbers, e.g. ``8.0;9.0+PTX``; empty where it is not set."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    names = re.split(r"[;\s]+", wanted) if wanted else []
    for name in names:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name):
            raise VariableError(f"TORCH_CUDA_ARCH_LIST: expected e.g. '8.0;9.0+PTX', got {wanted!r}")
    return names


def architectures(home: Path) -> list[str]:
    """Those that are wanted; else those of the visible cards; for all machines, those of the default."""
    told = subprocess.run([home / "bin/nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    known = re.findall(r"compute_(\d+)", told)
    wanted = wanted_architectures()
    for name in wanted:
        if re.sub(r"\D", "", name) not in known:
            raise VariableError(f"TORCH_CUDA_ARCH_LIST: nvcc in {home} does not know {name}")
    if wanted:
        return wanted
    cards = [] if for_all() else visible_cards()
    if cards:
        newest = max(known, key=int)
        ptx = f"{newest[:-1]}.{newest[-1]}+PTX"  # the driver makes code for a newer card from it
        return sorted({card if card.replace(".", "") in known else ptx for card in cards})
    default = [name for name in DEFAULT_ARCHITECTURES if name.replace(".", "") in known]
    if not default:
        raise BuildError(f"nvcc in {home} knows none of {', '.join(DEFAULT_ARCHITECTURES)}")
    return [*default[:-1], default[-1] + "+PTX"]


def check_variables() -> None:
    """Raise :class:`VariableError` where a variable is wrong, before anything is built."""
    for name in ("SNNFAST_REQUIRE_EXT", "SNNFAST_WERROR", "SNNFAST_CUDA"):
        switch(name)
    max_jobs()
    if switch("SNNFAST_CUDA") is not False:
        wanted_architectures()
    for_all()
    target()
    if "CXX" in os.environ:
        compiler()
    if switch("SNNFAST_CUDA"):
        cuda_home()


def compression(home: Path) -> list[str]:
    """The best compression of machine code, which nvcc knows from 12.8 on: to a tenth of what 13.0 makes by itself.

    A driver before that of CUDA 12.4 can't read it. One that is so old runs nothing of nvcc 13 anyway.
    """
    told = subprocess.run([home / "bin/nvcc", "--help"], capture_output=True, text=True, check=True).stdout
    return ["--compress-mode=size"] if "--compress-mode" in told else []


def virtual(architecture: str) -> str:
    """The architecture whose PTX the machine code of one is made from, as ``compute_90``."""
    return "compute_" + PTX_OF.get(architecture, architecture).replace(".", "")


def gencode(names: list[str]) -> list[str]:
    flags = []
    for name in names:
        architecture = name.removesuffix("+PTX")
        ptx = virtual(architecture)
        flags.append(f"-gencode=arch={ptx},code=sm_{architecture.replace('.', '')}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch={ptx},code={ptx}")
    return flags


def of_neuron(name: str) -> list[str]:
    """Flags of a source that is compiled once for each neuron: its struct, and the header of it before all others."""
    header = ROOT.resolve() / "csrc/neurons" / f"{name}.h"
    return [f"-DSNN_NEURON={struct_of(name)}", f"-include {quote(str(header))}"]


def of_all_neurons() -> list[str]:
    """Flags of a program about all of them at once: their structs, and the headers of them. Not quoted for a shell."""
    structs = ",".join(f"snnfast::{struct_of(name)}" for name in NEURONS)
    return [f"-DSNN_NEURONS={structs}", *(f"-include{ROOT.resolve() / 'csrc/neurons' / name}.h" for name in NEURONS)]


def struct_of(name: str) -> str:
    """The struct of a neuron: the one in its header whose name, in lower case, is that of the file."""
    found = re.findall(r"^struct (\w+) \{", (ROOT / "csrc/neurons" / f"{name}.h").read_text(), flags=re.MULTILINE)
    return next(struct for struct in found if struct.lower() == name)


def cuda_sources() -> list[tuple[Path, str, list[str]]]:
    """Sources of the CUDA kernels, names of their objects, and flags: most are compiled once for each neuron."""
    made = []
    for source in sorted((ROOT.resolve() / "csrc/cuda").glob("*.cu")):
        if "SNN_NEURON" not in source.read_text():
            made.append((source, f"cuda_{source.stem}", []))
        else:
            made += [(source, f"cuda_{source.stem}_{name}", of_neuron(name)) for name in NEURONS]
    return made


def quote(word: str) -> str:
    """``word`` for the shell that ninja calls. On Windows it calls none."""
    return subprocess.list2cmdline([word]) if os.name == "nt" else shlex.quote(word)


def define(name: str, text: str) -> str:
    return quote(f'-D{name}="{text}"')


def isystem(folder: Path | str) -> str:
    return "-isystem " + quote(str(folder))


def torch_folder() -> Path:
    """Where torch is. Its headers and libraries are needed, and not that it runs: no CUDA libraries beside it."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise BuildError("the build saw no torch; install torch and build with --no-build-isolation")
    return Path(found.origin).parent


def ninja_path(path: Path | str) -> str:
    """``path`` as ninja wants it in a build line."""
    return re.sub(r"([$: ])", r"$\1", str(path))


def write_ninja(path: Path, output: Path) -> None:
    """One build edge per object file; ninja adds parallelism and header dependencies."""
    torch_dir = torch_folder()
    home = cuda_home()
    strict = ["-Werror"] if switch("SNNFAST_WERROR") else []
    of_torch = [TORCH_TARGET_FLAG, isystem(torch_dir / "include")]
    system = SYSTEMS[target().system]
    cxx = [*CXX_FLAGS, system.flags, *strict]
    sets = instruction_sets()
    if is_zig():  # which adds debug information, spells the names of processors in its own way, and hides its libraries
        cxx.append("-g0")
        system = system._replace(links=system.links.replace("-Wl,--exclude-libs,ALL ", ""))
        sets = {isa: [flag.replace("x86-64-v", "x86_64_v") for flag in flags] for isa, flags in sets.items()}
    listed = " ".join(f"X({isa}, __VA_ARGS__)" for isa in sets)
    cxx.append(quote(f"-DSNN_ISAS(X, ...)={listed}"))
    nvcc_version = ""
    if home is not None:
        cxx.append("-DSNN_CUDA")
        told = subprocess.run([home / "bin/nvcc", "--version"], capture_output=True, text=True, check=True).stdout
        version = re.search(r"release [\d.]+, V([\d.]+)", told)
        nvcc_version = f"nvcc {version[1] if version else 'of unknown version'}"
    facts = [
        define("SNN_TORCH_TARGET", ".".join(map(str, TORCH_TARGET)) + " or newer"),
        define("SNN_CUDA_COMPILER", nvcc_version),
        define("SNN_CUDA_ARCHITECTURES", ";".join(architectures(home)) if home is not None else ""),
        define("SNN_CUDA_MISSING", "" if home is not None else cuda_missing()),
    ]
    # source, object, flags
    objects = [
        ("csrc/op/c_api.cpp", "c_api", facts),
        ("csrc/cpu/isa.cpp", "cpu_isa", []),
        ("csrc/cpu/unroll/dispatch.cpp", "cpu_dispatch", []),
        ("csrc/cpu/memory/pool.cpp", "cpu_pool", []),
        ("csrc/cpu/memory/system.cpp", "cpu_system", []),
        *(
            (f"csrc/cpu/spikes/{name}.cpp", f"spikes_{name}", [])
            for name in ("connected", "conv2d", "linear", "rate_coding")
        ),
        ("csrc/cpu/images/pool2d.cpp", "pool2d", []),
        ("csrc/cpu/images/winograd_conv2d.cpp", "winograd_conv2d", []),
        *((f"csrc/cpu/norm/{name}.cpp", f"norm_{name}", []) for name in ("batch_norm", "neurons")),
        ("csrc/op/norm_ops.cpp", "norm_ops", []),
        ("csrc/op/program.cpp", "program", []),
    ]
    for isa, flags in sets.items():
        for file in KERNELS:
            name = f"cpu_{file.replace('/', '_')}_{isa}"
            objects.append((f"csrc/cpu/{file}.cpp", name, [f"-DSNN_ISA={isa}", *flags]))
    for neuron in NEURONS:
        objects.append(("csrc/op/neuron_ops.cpp", f"neuron_ops_{neuron}", of_neuron(neuron)))
        for isa, flags in sets.items():
            flags = [f"-DSNN_ISA={isa}", *flags, *of_neuron(neuron)]
            objects.append(("csrc/cpu/unroll/kernels.cpp", f"cpu_kernels_{neuron}_{isa}", flags))
    lines = [
        f"cxx = {compiler()}",
        "rule cxx",
        "  command = $cxx -MMD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = c++ $out",
    ]
    links = [f"-L{quote(str(torch_dir / 'lib'))}"]
    outputs = []
    for source, name, flags in objects:
        outputs.append(f"{name}.o")
        flags = [*cxx, *of_torch, *flags]
        lines += [f"build {name}.o: cxx {ninja_path(ROOT.resolve() / source)}", "  flags = " + " ".join(flags)]
    if home is not None:
        nvcc = [*NVCC_FLAGS, *compression(home), *gencode(architectures(home))]
        if "CXX" in os.environ:
            nvcc.append(f"-ccbin={quote(shlex.split(compiler())[-1])}")
        if strict:
            nvcc += ["-Werror all-warnings", "-Xcompiler=-Werror"]
        lines += [
            f"nvcc = {quote(str(home / 'bin/nvcc'))}",
            "rule nvcc",
            "  command = $nvcc -MD -MF $out.d --threads 0 $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = nvcc $out",
        ]
        for source, name, flags in cuda_sources():
            outputs.append(f"{name}.o")
            lines += [f"build {name}.o: nvcc {ninja_path(source)}", "  flags = " + " ".join([*nvcc, *flags])]
        links += [f"-L{quote(str(home / folder))}" for folder in ("lib64", "lib")]
        links += ["-lcudart_static", "-lrt"]
    links = [os.environ.get("LDFLAGS", ""), *links, system.links]  # LDFLAGS comes first, so that its -L does
    lines += [
        "rule link",
        "  command = $cxx -shared -o $out $in $libs",
        "  description = link $out",
        f"build {ninja_path(output)}: link " + " ".join(outputs),
        "  libs = " + " ".join(links),
        f"default {ninja_path(output)}",
    ]
    path.write_text("\n".join(lines) + "\n")


class NinjaBuild(build_ext):
    """``build_ext`` that hands the whole library to ninja, and can do without it."""

    def run(self) -> None:
        check_variables()  # not in build_extension: on the way there setuptools reads CXX, too
        self.for_source_tree = bool(self.inplace or self.editable_mode)  # which setuptools sets aside while it builds
        super().run()

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        try:
            self._ninja(output)
        except (BuildError, OSError, subprocess.CalledProcessError) as error:
            # What an earlier build left must not be taken for this one.
            for stale in (output, *([ROOT / target().library] if self.for_source_tree else [])):
                stale.unlink(missing_ok=True)
            reason = "compilation failed, see above" if isinstance(error, subprocess.CalledProcessError) else error
            if switch("SNNFAST_REQUIRE_EXT"):
                raise SystemExit(f"snnfast: the kernels were not built: {reason}") from error
            print(
                f"snnfast: installing WITHOUT the compiled kernels: {reason}.\n"
                "snnfast: everything works on the slow reference path. SNNFAST_REQUIRE_EXT=1 makes this an error.",
                file=sys.stderr,
            )

    def _ninja(self, output: Path) -> None:
        if target().system not in SYSTEMS:
            raise BuildError(f"there are kernels for Linux, macOS and Windows, and this is {sys.platform}")
        folder = Path(self.build_temp).resolve() / target().tag
        folder.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_ninja(folder / "build.ninja", output)
        # With pip's own ninja on the path of this interpreter or of the system.
        command = shutil.which("ninja", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        if command is None:
            raise BuildError("ninja was not found; pip install ninja")
        jobs = max_jobs()
        subprocess.check_call([command, "-C", str(folder), *(["-j", str(jobs)] if jobs is not None else [])])

    def get_ext_filename(self, fullname: str) -> str:
        # No suffix that names a Python; the whole path of "snnfast._kernels", or the last part of it.
        return str(Path(*fullname.split("."))) + Path(target().library).suffix

    def get_outputs(self) -> list[str]:
        # A library that was not built is not there to be installed.
        return [path for path in super().get_outputs() if Path(path).exists()]


class AnyPythonWheel(bdist_wheel):
    """A wheel for every Python: ``py3-none-<platform>`` with the library in it, ``py3-none-any`` without."""

    def run(self) -> None:
        self.run_command("build")
        self.root_is_pure = not Path(self.get_finalized_command("build_ext").build_lib, target().library).exists()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", "any" if self.root_is_pure else target().tag)


def page() -> str:
    """README for PyPI's page, where links and figures need whole addresses, and comments would be shown."""
    source = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]
    text = re.sub(r"<!--.*?-->\n*", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    text = re.sub(r"(!\[[^\]]*\]\(|src=\")(?=docs/)", rf"\1{source}/raw/main/", text)
    return re.sub(r"\]\((?!https?:)", f"]({source}/blob/main/", text)


if __name__ == "__main__":
    setup(
        long_description=page(),
        long_description_content_type="text/markdown",
        ext_modules=[EXTENSION],
        cmdclass={"build_ext": NinjaBuild, "bdist_wheel": AnyPythonWheel},
    )
