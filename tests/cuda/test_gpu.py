"""What only a card can tell."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import norm_checks
import pytest
import torch
import training_steps
from conftest import skip_unless_required
from helpers import FLOATS, HALVES, Case, Outputs, Tensors, assert_bits_equal, assert_close, fused, inputs, leaves
from torch import Tensor

import snnfast
from benchmarks.gpu import workload
from snnfast import surrogate, use_backend
from snnfast.functional import lif

pytestmark = [pytest.mark.gpu, pytest.mark.needs_extension]
DTYPES = FLOATS + HALVES
# Sums over time and neurons are taken in another order than on the CPU; halves round their results.
RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 2e-2}
MANY = 1 << 18  # neurons from which on a thread takes several of them
# Neurons for threads that take several of them, for some that do not because of the number, and few.
SHAPES = ((4, MANY // 4), (3, MANY // 3 // 2 * 2 + 1), (37,))
CARD = torch.device("cuda")


@pytest.fixture(autouse=True)
def fused_on_a_card() -> Iterator[None]:
    if not torch.cuda.is_available():
        skip_unless_required("torch sees no CUDA device", "SNNFAST_REQUIRE_GPU")
    with use_backend("fused"):
        yield


def delay() -> None:
    """Keep the current stream busy for about 50 ms; what is not ordered after it comes before it."""
    torch.cuda._sleep(100_000_000)


def captured(function: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """What ``function`` launches as a graph. It goes back only through what it makes, on the stream of the graph."""
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        function()
    return graph


def run(case: Case, device: torch.device, seed: int = 0) -> Outputs:
    """Results and gradients of all inputs, by name."""
    tensors = leaves(inputs(case, device, seed))
    return outcome(lambda: fused(tensors, case), tensors)


def outcome(function: Callable[[], Outputs], tensors: Tensors) -> Outputs:
    outputs = function()
    given = {name: t for name, t in tensors.items() if t is not None}
    weights = [
        torch.linspace(0.5, 1.5, t.shape[-1], dtype=t.dtype, device=t.device).expand(t.shape) for t in outputs.values()
    ]
    found = torch.autograd.grad(list(outputs.values()), list(given.values()), weights)
    grads = {f"grad of {name}": g for name, g in zip(given, found, strict=True)}
    return {name: t.detach() for name, t in outputs.items()} | grads


def on_cpu(case: Case, seed: int = 0) -> Outputs:
    """The same by the CPU kernels."""
    return run(case, torch.device("cpu"), seed)


def assert_as_on_cpu(found: dict[str, Tensor], case: Case, seed: int = 0) -> None:
    """Spikes and states bit for bit, gradients to rounding."""
    for name, expected in on_cpu(case, seed).items():
        if name.startswith("grad"):
            assert_close(found[name].cpu(), expected, RELATIVE[case.dtype], f"{case}: {name}")
        else:
            assert_bits_equal(found[name], expected, f"{case}: {name}")


@pytest.mark.parametrize("name", [*workload.LAYERS, "LIFNode", "ParametricLIFNode"])
def test_every_kernel_has_the_results_of_the_cpu(name: str) -> None:
    """In calls that launch all kernels, which the emulator shows."""
    for call in workload.watched():
        if call[0] != name:
            continue
        x, grad = workload.given(call, CARD)
        found, wanted = workload.run(call, x, grad), workload.run(call, x.cpu(), grad.cpu())
        assert_bits_equal(found[0], wanted[0], str(call))
        for a, b in zip(found[1:], wanted[1:], strict=True):
            assert_close(a.cpu(), b, RELATIVE[call[3]], str(call))


@pytest.mark.parametrize("dtype", norm_checks.DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("layout", ["usual", "channels_last"])
@pytest.mark.parametrize("name", [None, *norm_checks.NODES], ids=lambda name: name or "Leaky")
def test_neurons_behind_a_batch_normalisation(name: str | None, layout: str, dtype: torch.dtype) -> None:
    """All of these kernels, too, at few neurons and at many."""
    neurons = norm_checks.NODES[name]() if name else norm_checks.LEAKY
    for steps, shape in ((4, (16, 64, 16, 16)), (4, (3, 5, 7, 7)), (7, (8, 6, 9, 9)), (16, (4, 40, 16, 16))):
        x = norm_checks.images(steps, shape, dtype, layout)
        for over_time in (False, True):
            norm_checks.check(x.to(CARD), norm_checks.norm_of(x).to(CARD), over_time, neurons)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_misaligned_and_strided_inputs_give_the_same(dtype: torch.dtype) -> None:
    case = Case("leaky", "unroll", 9, (4, MANY // 4), dtype)
    expected = run(case, CARD)
    tensors = inputs(case, CARD)
    current = tensors["current"]
    assert current is not None
    shifted = torch.cat([current.new_zeros(1), current.flatten()])[1:].view(current.shape)
    for other in (shifted, current.mT.contiguous().mT):
        given = leaves({**tensors, "current": other})
        given["current"] = other.detach().requires_grad_()
        for name, t in outcome(lambda given=given: fused(given, case), given).items():
            if t.dim() == 0:  # of a parameter that is one number: the sum depends on the layout
                assert_close(t, expected[name], RELATIVE[t.dtype], name)
            else:
                assert_bits_equal(t, expected[name], name)


def test_more_than_2_to_the_31_elements() -> None:
    T, N, compared = 9, 1 << 28, 5000
    if torch.cuda.mem_get_info()[0] < 24e9:
        pytest.skip("needs 24 GB of free memory")
    x = torch.empty(T, N, dtype=torch.float16, device=CARD)
    for row in x:
        row.uniform_(0, 2)
    x.requires_grad_()
    spk, _ = lif(x, beta=0.9, record_mem=False)
    (grad,) = torch.autograd.grad(spk.sum(dtype=torch.float32), x)
    for part in (slice(0, compared), slice(N - compared, N)):
        few = x.detach()[:, part].cpu().requires_grad_()
        expected, _ = lif(few, beta=0.9, record_mem=False)
        assert_bits_equal(spk[:, part], expected, "spikes")
        (grad_expected,) = torch.autograd.grad(expected.sum(dtype=torch.float32), few)
        assert_close(grad[:, part].cpu(), grad_expected, RELATIVE[torch.float16], "gradient")


@pytest.mark.parametrize("streams", [1, 2])
def test_work_follows_the_current_stream_forward_and_backward(streams: int) -> None:
    """Two at once have work of their own."""
    case = Case("leaky", "unroll", 18, (MANY,))
    given = [inputs(case, CARD, seed) for seed in range(streams)]
    late = [{name: torch.zeros_like(t) for name, t in tensors.items() if t is not None} for tensors in given]
    found = []
    torch.cuda.synchronize()
    for tensors, to in zip(given, late, strict=True):
        with torch.cuda.stream(torch.cuda.Stream()):
            delay()
            for name, t in to.items():
                t.copy_(tensors[name]).requires_grad_()  # type: ignore[arg-type]
            found.append(outcome(lambda to=to: fused(dict(to), case), dict(to)))
    torch.cuda.synchronize()
    for seed, of in enumerate(found):
        assert_as_on_cpu(of, case, seed)


def test_a_call_after_the_context_broke_raises() -> None:
    """An index out of range is an assertion on the card, after which nothing runs in that process any more."""
    code = """
import torch
from snnfast.functional import lif
x = torch.rand(4, 64, device="cuda")
lif(x, beta=0.9)
try:
    x[0][torch.tensor([1 << 40], device="cuda")]
    torch.cuda.synchronize()
except RuntimeError:
    try:
        lif(x, beta=0.9)
    except RuntimeError:
        print("raised")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "raised" in done.stdout, done.stderr


def test_a_captured_graph_replays_on_new_inputs() -> None:
    case = Case("leaky", "unroll", 18, (MANY,), record_mem=False)
    tensors = leaves(inputs(case, CARD))
    found: dict[str, Tensor] = {}
    graph = captured(lambda: found.update(outcome(lambda: fused(tensors, case), tensors)))
    for seed in (1, 2):
        with torch.no_grad():
            for name, t in inputs(case, CARD, seed).items():
                tensors[name].copy_(t)  # type: ignore[union-attr, arg-type]
        graph.replay()
        torch.cuda.synchronize()
        assert_as_on_cpu(found, case, seed)


def test_two_devices() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    case = Case("leaky", "unroll", 18, (4, 300))
    found = run(case, torch.device("cuda:1"))  # while the first is the current one
    assert {t.device.index for t in found.values()} == {1}
    assert torch.cuda.current_device() == 0
    assert_as_on_cpu(found, case)
    current = torch.rand(4, 8, device="cuda:0")
    with pytest.raises((RuntimeError, ValueError), match="cuda"):
        lif(current, torch.zeros(8, device="cuda:1"), beta=0.9)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_equals_eager(mode: str) -> None:
    """``reduce-overhead`` replays CUDA graphs."""
    torch._dynamo.reset()
    case = Case("leaky", "unroll", 18, (4, 70))
    compiled = torch.compile(lambda tensors: fused(tensors, case), fullgraph=True, mode=mode)
    for seed in range(4):  # the first calls warm up, the later ones replay
        tensors = leaves(inputs(case, CARD, seed))
        torch.compiler.cudagraph_mark_step_begin()
        found = {name: t.clone() for name, t in outcome(lambda tensors=tensors: compiled(tensors), tensors).items()}
        assert_as_on_cpu(found, case, seed)


@snnfast.neuron
def own(x: Tensor, v: Tensor, *, beta: float = 0.9, tau: Any = 3.0) -> tuple[Tensor, Tensor]:
    v = beta * v + x / tau
    spk = snnfast.spike(v - 1.0, surrogate.atan())
    return spk, v * (1 - spk)


def trained(layer: Any, x: Tensor) -> list[Tensor]:
    results = layer.unroll(x)
    return [*results, *torch.autograd.grad(sum(r.square().sum() for r in results), [x, *layer.parameters()])]


def test_a_neuron_of_your_own_in_a_graph() -> None:
    x, layer = torch.rand(33, 3, 1000), own(learn_beta=True, tau=torch.rand(1000) + 2)
    on_cpu = trained(layer, x.requires_grad_())
    layer, given, found = layer.to(CARD), torch.zeros(x.shape, device=CARD, requires_grad=True), []
    graph = captured(lambda: found.append(trained(layer, given)))
    given.data.copy_(x)
    graph.replay()
    for i, (ours, theirs) in enumerate(zip(found[-1], on_cpu, strict=True)):
        if i < 2:
            assert_bits_equal(ours.cpu(), theirs)
        else:
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-6)


def test_a_thread_whose_first_work_is_a_neuron_of_your_own() -> None:
    x, state, layer = torch.rand(33, 3, 1000, device=CARD), torch.zeros(3, 1000, device=CARD), own().to(CARD)

    @torch.no_grad()
    def call() -> list[Tensor]:
        return list(layer.unroll(x, state))

    expected = call()
    torch.cuda.synchronize()
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(call).result()
    for ours, theirs in zip(found, expected, strict=True):
        assert_bits_equal(ours, theirs)


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "amp"])
@pytest.mark.parametrize("name", training_steps.NETWORKS)
def test_a_training_step_as_one_graph(name: str, amp: bool) -> None:
    """On minibatches of two sizes, so that there are two graphs."""
    torch._dynamo.reset()
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(training_steps.training(name, amp))
    (eager, _, step), (captive, optimizer, captured_step) = made
    train = snnfast.graphed(captured_step, optimizer)
    for i in range(12):
        given = training_steps.minibatch(training_steps.BATCH - i % 2)
        torch.testing.assert_close(train(*given), step(*given).detach(), rtol=1e-2, atol=1e-2)
    for (key, ours), theirs in zip(captive.state_dict().items(), eager.state_dict().values(), strict=True):
        # Atomic sums of a convolution may turn the sign of a gradient near zero, and with it that of Adam's steps.
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=4e-3, msg=lambda m, key=key: f"{key}: {m}")
