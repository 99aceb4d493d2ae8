"""What the CPU backend does beside the arithmetic: instruction sets, threads, and outputs past the caches."""

import functools
import itertools
import subprocess
import sys
import time

import pytest
import torch
from gradient_checks import check_against_reference, gradients
from helpers import FLOATS, HALVES, RESETS, SURROGATES, Case, assert_bits_equal, call, inputs, leaves
from test_lif import assert_equals_reference
from torch import Tensor

import snnfast
from snnfast import _ops, surrogate

pytestmark = pytest.mark.needs_extension
MIB = 1 << 20


def run(dtype, spike_grad, reset_mechanism):
    torch.manual_seed(0)
    current = torch.randn(37, 3, 1111, dtype=dtype, requires_grad=True)
    beta = torch.rand(1111, dtype=dtype, requires_grad=True)
    spk, mem = snnfast.functional.lif(
        current, beta=beta, spike_grad=spike_grad, reset_mechanism=reset_mechanism, record_mem=False
    )
    (spk.sum() + mem.sum()).backward()
    return spk.detach(), mem.detach(), current.grad, beta.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spike_grad", [surrogate.atan(), surrogate.sigmoid(), surrogate.SFS()], ids=repr)
def test_every_instruction_set_gives_the_same_bits(dtype, spike_grad):
    used = _ops.extension.isa()
    results = {}
    try:
        for name in _ops.extension.isa_available():
            _ops.extension.set_isa(name)
            results[name] = run(dtype, spike_grad, "subtract")
    finally:
        _ops.extension.set_isa(used)
    for values in results.values():
        for value, expected in zip(values, results["baseline"], strict=True):
            assert_bits_equal(value, expected)


@pytest.fixture
def each_isa():
    """Iterate over the instruction sets, each in use in turn."""
    used = _ops.extension.isa()

    def use():
        for name in _ops.extension.isa_available():
            _ops.extension.set_isa(name)
            yield name

    yield use()
    _ops.extension.set_isa(used)


@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
def test_rows_that_end_anywhere(dtype, each_isa):
    with snnfast.use_backend("fused"):
        for isa in each_isa:
            for n in range(1, 131):
                case = Case(
                    5 + n % 3, (n,), dtype, RESETS[n % 3], n % 2 == 0, n % 5 < 3, n % 7 == 0,
                    ("neuron", "scalar")[n % 11 == 0], count=n % 4 == 0,
                )  # fmt: skip
                assert_equals_reference(inputs(case), case)
                if n < 70 or isa == "avx512":  # with two vectors of 16 numbers, all ends are there twice before
                    check_against_reference(case, torch.device("cpu"), seed=n)


@pytest.fixture
def stream_bytes():
    """Sets from how many bytes calls write past the caches."""
    default = _ops.extension.set_stream_bytes(1 << 60)
    yield _ops.extension.set_stream_bytes
    _ops.extension.set_stream_bytes(default)


STREAMED = [(1, (8192,)), (2, (64,)), (3, (128,)), (4, (16,)), (4, (48,)), (5, (100,)), (7, (33,)), (8, (17408,)),
            (9, (5, 64)), (15, (3, 80)), (16, (2, 2112)), (17, (1088,)), (33, (7, 64)), (40, (2, 1056))]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
def test_outputs_past_the_caches_have_the_same_bits(dtype, each_isa, stream_bytes):
    options = list(itertools.product(RESETS, (True, False), (True, False), (True, False), (False, False, True)))
    for isa in each_isa:
        for (i, (steps, shape)), which in itertools.product(enumerate(STREAMED), range(3)):
            reset, record_mem, count, mem, constant = options[(i * 5 + which * 23) % len(options)]
            case = Case(
                steps, shape, dtype, reset, i % 3 != which, record_mem, constant,
                ("neuron", "scalar", "element")[which], mem, SURROGATES["atan"], count,
            )  # fmt: skip
            results = []
            for least in (1 << 60, 0):
                stream_bytes(least)
                tensors = leaves(inputs(case))
                spk, mem_rec = call(snnfast.functional.lif, tensors, case)
                grads = gradients(snnfast.functional.lif, tensors, case)
                last = gradients(snnfast.functional.lif, {**tensors, "beta": tensors["beta"].detach()}, case, "last")
                results.append(
                    {"spk": spk, "mem": mem_rec, **grads, **{f"{name}, last": g for name, g in last.items()}}
                )
            for name, expected in results[0].items():
                if expected is None:
                    assert results[1][name] is None
                else:
                    assert_bits_equal(results[1][name], expected, f"{isa}, {case}: {name}")


def test_rounded_membranes_past_the_caches_have_the_same_bits(each_isa, stream_bytes):
    for isa in each_isa:
        for (steps, shape), record_mem in itertools.product(STREAMED, (True, False)):
            case = Case(steps, shape, record_mem=record_mem)
            results = []
            for least in (1 << 60, 0):
                stream_bytes(least)
                lif = functools.partial(snnfast.functional.lif, membrane_dtype=torch.bfloat16)
                results.append(gradients(lif, leaves(inputs(case)), case))
            for name, expected in results[0].items():
                assert_bits_equal(results[1][name], expected, f"{isa}, {case}: {name}")


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(RuntimeError, match=r"SNNFAST_ISA.*available"):
        _ops.extension.set_isa("mmx")


@pytest.mark.skipif(sys.platform != "linux", reason="reads an ELF file")
def test_the_binary_names_libtorch_through_which_a_cuda_build_of_torch_is_found():
    """Without it the weak symbol of the CUDA stream would stay unresolved, and no CUDA tensor would be accepted."""
    done = subprocess.run(["readelf", "-d", _ops.extension.__file__], capture_output=True, text=True, check=True)
    assert "[libtorch.so]" in done.stdout


def test_few_neurons_give_the_same_bits_with_any_number_of_threads():
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(torch.float32, None, "zero"))
    finally:
        torch.set_num_threads(threads)
    for values in results[1:]:
        for value, expected in zip(values, results[0], strict=True):
            assert_bits_equal(value, expected)


@pytest.mark.parametrize(
    "case",
    [
        Case(steps=5, shape=(3_500_007,), parameters="neuron", record_mem=False),
        Case(steps=6, shape=(3_000_000,), parameters="neuron", reset="zero"),
        Case(steps=5, shape=(7_000_017,), dtype=torch.float16, parameters="neuron", record_mem=False, delay=False),
        Case(steps=5, shape=(3_500_016,), constant=True, parameters="neuron", record_mem=False, count=True),
    ],
    ids=str,
)
def test_large_tensors_give_the_bits_of_their_halves(case: Case) -> None:
    """From 64 MiB on, blocks of neurons are longer."""
    tensors = inputs(case)
    neurons = case.shape[0]
    assert case.steps * neurons * case.dtype.itemsize >= 64 * MIB

    def results(part: slice) -> list[Tensor]:
        given = leaves({name: t if t is None else t[..., part] for name, t in tensors.items()})
        spk, mem = call(snnfast.functional.lif, given, case)
        wanted = [t for t in given.values() if t is not None]
        return [spk, mem, *torch.autograd.grad((spk, mem), wanted, [torch.ones_like(spk), torch.ones_like(mem)])]

    with snnfast.use_backend("fused"):
        whole = results(slice(None))
        left, right = results(slice(neurons // 2)), results(slice(neurons // 2, None))
    for value, a, b in zip(whole, left, right, strict=True):
        assert_bits_equal(value, torch.cat([a, b], dim=-1))


def test_lanes_without_a_neuron_cost_no_more_than_those_with_one():
    """What an earlier call left in them must not decay to denormal numbers, with which processors are far slower."""
    torch.set_num_threads(1)

    def seconds(neurons):
        current, mem = torch.rand(20000, neurons), torch.zeros(neurons)

        def once():
            snnfast.functional.lif(torch.zeros(1, 31), torch.full((31,), 0.5), beta=0.95)
            start = time.perf_counter()
            snnfast.functional.lif(current, mem, beta=0.95, record_mem=False)
            return time.perf_counter() - start

        return min(once() for _ in range(10))

    assert seconds(10) < 5 * seconds(32)
