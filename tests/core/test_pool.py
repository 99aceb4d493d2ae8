"""The memory of large CPU outputs: how it is recycled, how much of it is kept, and what limits that."""

import gc
import os
import platform
import sys
from pathlib import Path

import pytest
import torch
from fresh import fresh
from helpers import assert_bits_equal

import snnfast
from snnfast._core import ops

pytestmark = pytest.mark.needs_extension
MIB = 1 << 20
of_the_heap = pytest.mark.skipif(
    "glibc" not in platform.libc_ver() or platform.machine() == "aarch64",
    reason="PyTorch takes memory from glibc's heap on Linux, but for aarch64 from mimalloc",
)

# Training steps of varying shapes, three outputs of 2 to 24 MB in each; what it prints is read by the tests.
VARYING = """
import os, random, sys
import torch, snnfast
torch.set_num_threads(1)
most = torch.zeros(2 * 3_000_000)
generator = random.Random(0)
def step(least=250_000, largest=3_000_000):
    n = generator.randint(least, largest)
    current = most[:2 * n].view(2, n).requires_grad_()
    spk, mem = snnfast.functional.lif(current, beta=0.9)
    torch.autograd.grad((spk, mem), current, (spk.detach(), mem.detach()))
def idle():
    return snnfast._core.ops.extension.pool_idle_bytes()
"""


def run_python(code: str) -> str:
    return fresh(VARYING + code)


@pytest.fixture
def empty_pool():
    gc.collect()
    limit = ops.extension.pool_idle_limit()
    ops.extension.pool_clear()
    yield ops.extension
    ops.extension.pool_set_idle_limit(limit)
    ops.extension.pool_clear()


def large(steps=8):
    return snnfast.functional.lif(torch.rand(8 * steps, 8, 1024), beta=0.9, record_mem=False)[0]  # 2 MiB in 8 steps


@pytest.mark.parametrize(("first", "second", "taken"), [(8, 8, True), (16, 8, True), (80, 8, False)])
def test_a_buffer_of_up_to_twice_the_size_is_taken(empty_pool, first, second, taken):
    freed = large(first)
    address = freed.data_ptr()
    assert empty_pool.pool_idle_bytes() == 0
    del freed
    idle = empty_pool.pool_idle_bytes()
    assert idle == first * MIB // 4
    output = large(second)
    assert (output.data_ptr() == address) == taken
    assert empty_pool.pool_idle_bytes() == (0 if taken else idle)


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


def test_an_output_beyond_the_limit_leaves_what_is_kept_of_others(empty_pool):
    large()
    snnfast.set_cache_limit(8 * MIB)
    large(steps=80)
    assert empty_pool.pool_idle_bytes() == 2 * MIB


def test_a_repeated_step_gets_all_its_memory_back_however_large(empty_pool):
    current = torch.zeros(4, 2 * MIB, requires_grad=True)  # 32 MiB

    def step() -> set[int]:
        spk, mem = snnfast.functional.lif(current, beta=0.9)
        (gradient,) = torch.autograd.grad((spk, mem), current, (spk.detach(), mem.detach()))
        return {spk.data_ptr(), mem.data_ptr(), gradient.data_ptr()}

    addresses = step()
    assert empty_pool.pool_idle_bytes() == 3 * 32 * MIB
    assert step() == addresses
    assert empty_pool.pool_idle_bytes() == 3 * 32 * MIB


@pytest.mark.thorough
@pytest.mark.parametrize(("sizes", "most"), [("", 2 * 3 * 24 * MIB), ("100_000, 1_000_000", 64 * MIB)])
def test_shapes_that_vary_keep_at_most_twice_what_was_in_use_at_once_or_64_mib(sizes, most):
    printed = run_python(f"for _ in range(100): step({sizes})\nprint(idle())")
    assert 0 < int(printed) <= most


def test_layers_of_falling_size_all_find_memory_though_one_output_is_in_use_at_a_time(empty_pool):
    inputs = [torch.zeros(1, size * MIB // 4) for size in (80, 48, 26, 10)]

    kept = []
    for x in inputs * 4:
        snnfast.functional.lif(x, beta=0.9, record_mem=False)
        kept.append(empty_pool.pool_idle_bytes())
    assert set(kept[4:]) == {kept[3]}  # none was made afresh, for which another would have had to go


@pytest.mark.thorough
def test_memory_that_is_no_longer_needed_goes_back_while_smaller_outputs_are_made():
    # In a process of its own: outputs of other tests that are alive would count as demand.
    printed = run_python(f"""
large_current, current = torch.zeros(1, {25 * MIB}), torch.zeros(1, {4 * MIB})
snnfast.functional.lif(large_current, beta=0.9, record_mem=False)
print(idle())
for _ in range(220):
    snnfast.functional.lif(current, beta=0.9, record_mem=False)
print(idle())
""")
    before, after = (int(line) for line in printed.split())
    assert before >= 100 * MIB
    assert after <= 64 * MIB


def test_an_output_that_does_not_fit_is_named_and_the_next_one_works(empty_pool):
    large()
    with pytest.raises(RuntimeError, match=rf"snnfast: could not allocate {12 << 50} bytes .*shape \[{1 << 50}, 3\]"):
        snnfast.functional.lif(torch.rand(3), beta=0.9, num_steps=1 << 50)
    large()
    assert empty_pool.pool_idle_bytes() == 2 * MIB


@of_the_heap
def test_pytorchs_own_tensors_of_a_repeated_step_find_their_memory_again() -> None:
    faults = run_python("""
import resource
def faults_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [torch.zeros(size) for size in 20 * [500_000] + 3 * [25_000_000]]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
step()
print(*(faults_of_a_step() for _ in range(3)))
snnfast.set_cache_limit(1 << 20)
print(*(faults_of_a_step() for _ in range(2)))
""")
    first, *others = map(int, faults.split())
    assert max(others[:2]) < first / 10
    assert min(others[2:]) > first / 2


@of_the_heap
def test_a_large_output_begins_on_a_huge_page_outside_of_the_heap() -> None:
    output = run_python("""
def in_heap(tensor):
    parts = [line.split()[0].split("-") for line in open("/proc/self/maps") if "[heap]" in line]
    return any(int(start, 16) <= tensor.data_ptr() < int(end, 16) for start, end in parts)
step()
used = torch.zeros(20_000_000)
print(in_heap(used))
del used  # its pages are small, and stay so
spk = snnfast.functional.lif(torch.ones(20, 500_000), beta=0.9)[0]
print(in_heap(spk), spk.data_ptr() % (2 << 20))
""")
    assert output.split() == ["True", "False", "0"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_process_forked_while_other_threads_make_outputs_can_make_its_own():
    run_python("""
import threading
current = torch.rand(4, 100_000)
stopped = threading.Event()
def work():
    while not stopped.is_set(): snnfast.functional.lif(current, beta=0.9)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
try:
    for _ in range(20):
        child = os.fork()
        if child == 0:
            import signal
            signal.alarm(60)  # ends a child that hangs
            snnfast.functional.lif(current, beta=0.9)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
finally:
    stopped.set()  # else the process would not end
""")


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory in use")
@pytest.mark.parametrize("kilobytes", [1024, *(pytest.param(n, marks=pytest.mark.thorough) for n in (256, 5000))])
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
