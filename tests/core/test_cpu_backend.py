"""What the CPU backend does beside the arithmetic: instruction sets, threads, and outputs past the caches."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fresh import fresh
from gradient_checks import check_against_reference, gradients, outputs_and_gradients
from helpers import (
    FLOATS,
    HALVES,
    NEURONS,
    THOROUGH,
    Case,
    assert_bits_equal,
    assert_each_equal,
    every_other,
    fused,
    inputs,
    leaves,
    random_cases,
)
from torch import Tensor

import setup
import snnfast
from snnfast._core import ops

pytestmark = pytest.mark.needs_extension
MIB = 1 << 20


def also_of_the_last(case, tensors):
    """Outputs and gradients by name, also where only the last states count, and no decay asks for a gradient."""
    few = {n: t if t is None or n not in case.kind.decays else t.detach() for n, t in tensors.items()}
    last = gradients(fused, few, case, "last")
    return {**outputs_and_gradients(case, tensors), **{f"{name}, last": g for name, g in last.items()}}


KERNELS = ("unroll", "constant", "count", "bits")  # variants with loops of their own
neurons = pytest.mark.parametrize("neuron", NEURONS)
dtypes = pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)


@neurons
@dtypes
def test_every_instruction_set_gives_the_same_bits(dtype, neuron, isa):
    choices = {"neuron": (neuron,), "dtype": (dtype,), "steps": (37,), "shape": ((3, 151),), "variant": KERNELS}
    for case in random_cases(10 if THOROUGH else 5, 1, **choices):
        results = []
        for used in (ops.extension.isa_available()[0], isa):
            ops.extension.set_isa(used)
            results.append(also_of_the_last(case, leaves(inputs(case))))
        assert_each_equal(results[1], results[0], f"{isa}, {case}")


LENGTHS = range(1, 131) if THOROUGH else (1, 3, 7, 8, 15, 16, 17, 23, 31, 33, 40, 47, 63, 65, 79, 96, 127, 129)


@neurons
@dtypes
def test_rows_that_end_anywhere(dtype, neuron, isa):
    choices = {"neuron": (neuron,), "dtype": (dtype,), "parameters": ("neuron", "scalar"), "steps": (5, 6, 7)}
    cases = random_cases(len(LENGTHS), 2, variant=(*KERNELS, "step"), **choices)
    with snnfast.use_backend("fused"):
        for n, case in zip(LENGTHS, cases, strict=True):
            check_against_reference(replace(case, shape=(n,)), torch.device("cpu"), seed=n)


STREAMED = [(1, (8192,)), (2, (64,)), (3, (128,)), (4, (16,)), (4, (48,)), (5, (100,)), (7, (33,)), (8, (17408,)),
            (9, (5, 64)), (15, (3, 80)), (16, (2, 2112)), (17, (1088,)), (33, (7, 64)), (40, (2, 1056))]  # fmt: skip


@neurons
@dtypes
def test_outputs_past_the_caches_have_the_same_bits(dtype, neuron, isa, stream_bytes):
    choices = {"neuron": (neuron,), "dtype": (dtype,), "parameters": ("neuron", "scalar", "element")}
    cases = zip(random_cases(len(STREAMED), 3, variant=KERNELS, **choices), STREAMED, strict=True)
    some = every_other(cases, neuron, dtype.itemsize // 4)
    if not THOROUGH:  # the other half of them for the next dtype
        some = some[(FLOATS + HALVES).index(dtype) % 2 :: 2]
    for case, (steps, shape) in some:
        case = replace(case, steps=steps, shape=shape)
        tensors, results = inputs(case), []
        for least in (1 << 60, 0):
            stream_bytes(least)
            results.append(also_of_the_last(case, leaves(tensors, case.wrt)))
        assert_each_equal(results[1], results[0], f"{isa}, {case}")


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(RuntimeError, match=r"SNNFAST_ISA.*available"):
        ops.extension.set_isa("mmx")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="compares with what Linux says of the processor")
def test_the_instruction_sets_are_those_of_the_processor():
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    has = set(flags[1].split()) if flags else set()
    known = [name for name, (_, needs) in setup.INSTRUCTION_SETS.items() if has.issuperset(needs.split())]
    available = ops.extension.isa_available()
    assert [name for name in known if name in available] == available
    if os.environ.get("SNNFAST_BUILD") == "all":
        assert available == known


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_thread_without_memory_makes_the_call_an_error(threads):
    """Each thread takes memory for the events that it lists."""
    code = f"""
import resource, torch
import snnfast
torch.set_num_threads({threads})
image, weight = torch.zeros(2, 1, 4096, 4096), torch.ones(16, 1, 1, 1)
def convolve(image):
    return torch.ops.snnfast.event_conv2d(image, weight, None, 64, 64, 0, 0)
convolve(image[..., :64, :64].contiguous())
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (4 << 20), resource.RLIM_INFINITY))
try:
    convolve(image)
except RuntimeError as error:
    print(error)
"""
    assert re.search(r"scratch\.h:\d+, snnfast: could not allocate \d+ bytes$", fresh(code))


def test_a_wrong_argument_of_an_op_is_an_error_with_its_message():
    spikes, weight = torch.zeros(1, 1, 8, dtype=torch.uint8), torch.ones(4, 7)
    with pytest.raises(RuntimeError, match=r"spikes_linear, .*linear\.cpp:\d+, weight: expected \[O, N\]$"):
        torch.ops.snnfast.spikes_linear(spikes, weight, None, torch.tensor(1.0), 8)


@pytest.mark.skipif(sys.platform != "linux", reason="reads an ELF file")
def test_the_binary_names_libtorch_through_which_a_cuda_build_of_torch_is_found():
    """Without it the weak symbol of the CUDA stream would stay unresolved, and no CUDA tensor would be accepted."""
    done = subprocess.run(["readelf", "-d", ops.extension.path], capture_output=True, text=True, check=True)
    assert "[libtorch.so]" in done.stdout


@pytest.mark.parametrize(
    "case",
    [
        Case("leaky", "unroll", 5, (3_500_007,), parameters="neuron", record_mem=False),
        pytest.param(
            Case("synaptic", "unroll", 5, (7_000_017,), torch.float16, record_mem=False, delay=False),
            marks=pytest.mark.thorough,
        ),
        pytest.param(Case("leaky", "count+constant", 5, (3_500_016,), record_mem=False), marks=pytest.mark.thorough),
    ],
    ids=str,
)
def test_large_tensors_give_the_bits_of_their_halves(case: Case) -> None:
    """From 64 MiB on, blocks of neurons are longer."""
    tensors = inputs(case)
    neurons = case.shape[0]
    assert case.steps * neurons * case.dtype.itemsize >= 64 * MIB

    def results(part: slice) -> list[Tensor]:
        given = leaves({name: t if t is None or t.dim() == 0 else t[..., part] for name, t in tensors.items()})
        outputs = list(fused(given, case).values())
        wanted = [t for t in given.values() if t is not None and t.dim() > 0]
        return [*outputs, *torch.autograd.grad(outputs, wanted, [torch.ones_like(t) for t in outputs])]

    with snnfast.use_backend("fused"):
        whole = results(slice(None))
        left, right = results(slice(neurons // 2)), results(slice(neurons // 2, None))
    for value, a, b in zip(whole, left, right, strict=True):
        assert_bits_equal(value, torch.cat([a, b], dim=-1))
