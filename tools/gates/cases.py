"""Launches whose instructions are counted: the kernel that runs, and what it is given."""

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import setup

DTYPES = {"float": 0, "double": 1, "Half": 2, "BFloat16": 3}
SAVED = {"nothing": 0, "checkpoints": 1, "membrane": 2, "spikes": 3}
RESETS = {"subtract": 0, "zero": 1, "none": 2}
SURROGATES = {"atan": 0, "fast_sigmoid": 1, "sigmoid": 2}
PLACES = {"host": 0, "device": 1, "each": 2}


@dataclass(frozen=True)
class Case:
    """One launch. The defaults are those of a layer in training, with parameters that are numbers on the device."""

    kernel: str  # its name as the gates print it, up to the end of its width
    neurons: int  # of a step
    steps: int = 128
    saved: str = "checkpoints"
    record: bool = False
    place: str = "device"  # of the parameters
    surrogate: str = "atan"
    reset: str = "subtract"
    sums: bool = False  # gradients of parameters
    stream: bool = True

    @property
    def backward(self) -> bool:
        return self.kernel.startswith("backward")

    @property
    def neuron(self) -> str:
        return self.kernel.split("<")[1].split(",")[0].lower()

    @property
    def dtype(self) -> str:
        return self.kernel.split(", ")[1]

    def with_steps(self, steps: int) -> "Case":
        return replace(self, steps=steps)

    @property
    def line(self) -> str:
        """For the program that makes the arguments."""
        numbers = [DTYPES[self.dtype], self.steps, self.neurons, SAVED[self.saved], int(self.record)]
        numbers += [PLACES[self.place], SURROGATES[self.surrogate], RESETS[self.reset]]
        numbers += [int(self.sums), int(self.stream)]
        return " ".join(["backward" if self.backward else "forward", self.neuron, *map(str, numbers)])


def build(folder: Path) -> Path:
    """The program that makes the arguments of a kernel, from the sources' own structs."""
    program = folder / "arguments"
    source = Path(__file__).parent / "arguments.cpp"
    command = [*shlex.split(setup.compiler()), "-std=c++20", *setup.of_all_neurons()]
    command += [f"-I{setup.ROOT / 'csrc'}", str(source)]
    subprocess.run([*command, "-o", str(program)], check=True)
    return program


def arguments(program: Path, cases: Sequence[Case]) -> list[bytes]:
    """What each launch hands to its kernel."""
    lines = "".join(f"{case.line}\n" for case in cases)
    done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
    return [bytes.fromhex(line) for line in done.stdout.split()]
