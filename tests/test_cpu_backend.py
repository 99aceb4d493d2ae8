"""What the CPU backend does beside the arithmetic: instruction sets, and the memory of large outputs."""

import functools
import gc
import itertools
import os
import random
import subprocess
import sys
import time
from pathlib import Path

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
    code = "import snnfast, torch; snnfast.functional.lif(torch.ones(2, 2), beta=0.5)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "SNNFAST_ISA": "mmx"}, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "SNNFAST_ISA: 'mmx' is not available" in done.stderr


@pytest.fixture
def empty_pool():
    gc.collect()
    limit = _ops.extension.pool_idle_limit()
    _ops.extension.pool_clear()
    yield _ops.extension
    _ops.extension.pool_set_idle_limit(limit)
    _ops.extension.pool_clear()


def large(steps=8):
    return snnfast.functional.lif(torch.rand(8 * steps, 8, 1024), beta=0.9, record_mem=False)[0]  # 2 MiB in 8 steps


def test_large_outputs_reuse_the_memory_of_freed_ones(empty_pool):
    first = large()
    address = first.data_ptr()
    assert empty_pool.pool_idle_bytes() == 0
    del first
    assert empty_pool.pool_idle_bytes() == 2 * MIB
    assert large().data_ptr() == address


def test_live_outputs_never_share_memory(empty_pool):
    kept = [large() for _ in range(4)]
    copies = [spk.clone() for spk in kept]
    kept.append(large())
    assert len({spk.data_ptr() for spk in kept}) == 5
    for spk, copy in zip(kept, copies, strict=False):
        assert_bits_equal(spk, copy)


def test_a_view_keeps_the_memory_of_its_output(empty_pool):
    last = large()[-1]
    expected = last.clone()
    large()
    assert_bits_equal(last, expected)


def test_idle_memory_stays_under_the_limit_and_can_be_released(empty_pool):
    snnfast.set_cache_limit(4 * MIB)
    outputs = [large() for _ in range(5)]
    outputs.clear()
    assert empty_pool.pool_idle_bytes() == 4 * MIB
    snnfast.empty_cache()
    assert empty_pool.pool_idle_bytes() == 0
    snnfast.set_cache_limit(0)
    large()
    assert empty_pool.pool_idle_bytes() == 0


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="asks Linux for the pages that it may take")
def test_the_system_may_take_back_what_is_idle_beyond_the_firm_limit(empty_pool):
    def free_to_take() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("LazyFree:")) << 10

    given = [large() for _ in range(4)]
    others = free_to_take()
    firm = empty_pool.pool_set_firm_limit(2 * MIB)
    try:
        copies = [snnfast.functional.lif(spk, beta=0.9, record_mem=False)[0] for spk in given]
        addresses = {spk.data_ptr() for spk in copies}
        copies.clear()
        assert empty_pool.pool_idle_bytes() == 8 * MIB
        assert empty_pool.pool_yielded_bytes() == 6 * MIB
        assert free_to_take() - others == 6 * MIB
        copies = [snnfast.functional.lif(spk, beta=0.9, record_mem=False)[0] for spk in given]
        assert {spk.data_ptr() for spk in copies} == addresses
        assert empty_pool.pool_yielded_bytes() == 0
        assert free_to_take() == others
        with snnfast.use_backend("reference"):
            for spk, x in zip(copies, given, strict=True):
                assert_bits_equal(spk, snnfast.functional.lif(x, beta=0.9, record_mem=False)[0])
        copies.clear()
        empty_pool.pool_clear()
        assert empty_pool.pool_yielded_bytes() == 0
    finally:
        empty_pool.pool_set_firm_limit(firm)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="asks Linux for the pages that it may take")
def test_what_is_firm_stays_within_its_limit_in_any_order_of_calls(empty_pool):
    generator = random.Random(0)
    inputs = {steps: torch.rand(steps, 1, 1 << 18) for steps in (1, 2, 3)}  # MiB
    expected = {steps: snnfast.functional.lif(x, beta=0.9, record_mem=False)[0].clone() for steps, x in inputs.items()}
    firm = empty_pool.pool_set_firm_limit(4 * MIB)
    live: list[tuple[int, Tensor]] = []
    most = 0
    try:
        for _ in range(400):
            if live and generator.random() < 0.5:
                steps, spk = live.pop(generator.randrange(len(live)))
                assert_bits_equal(spk, expected[steps])
                del spk
            else:
                steps = generator.choice(list(inputs))
                live.append((steps, snnfast.functional.lif(inputs[steps], beta=0.9, record_mem=False)[0]))
            idle, yielded = empty_pool.pool_idle_bytes(), empty_pool.pool_yielded_bytes()
            assert 0 <= idle - yielded <= 4 * MIB
            most = max(most, yielded)
        assert most > 8 * MIB
    finally:
        empty_pool.pool_set_firm_limit(firm)


def test_a_much_larger_buffer_is_not_taken_for_a_small_output(empty_pool):
    large(steps=80)
    idle = empty_pool.pool_idle_bytes()
    small = large()
    assert empty_pool.pool_idle_bytes() == idle
    del small


@pytest.mark.parametrize(("limit", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_wrong_limit_is_refused(empty_pool, limit, error):
    before = empty_pool.pool_idle_limit()
    with pytest.raises(error, match="limit"):
        snnfast.set_cache_limit(limit)
    assert empty_pool.pool_idle_limit() == before


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


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for the memory in use")
@pytest.mark.parametrize("kilobytes", [256, 1024, 5000])
def test_an_emptied_cache_is_back_with_the_system(kilobytes: int) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20

    x = torch.zeros(kilobytes * 256)
    with snnfast.use_backend("fused"), torch.no_grad():
        snnfast.empty_cache()
        before = resident()
        outputs = [snnfast.functional.lif(x, beta=0.9, num_steps=1) for _ in range(150000 // kilobytes)]
        full = resident()
        del outputs
        snnfast.empty_cache()
    assert full - before > 200
    assert resident() - before < 60


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
