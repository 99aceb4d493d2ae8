"""What only a card can tell: large shapes, streams, graphs, two devices. Other tests take it as a ``device``, too."""

from collections.abc import Callable

import pytest
import torch
from helpers import (
    FLOATS,
    HALVES,
    KINDS,
    RESETS,
    Case,
    Outputs,
    Tensors,
    assert_bits_equal,
    assert_close,
    fused,
    inputs,
    leaves,
)

from snnfast import _ops
from snnfast.functional import lif

# Sums over time and neurons are taken in another order than on the CPU; halves round their results.
RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 2e-2}
MANY = 1 << 18  # neurons from which on a thread takes several of them
card = pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)


def outcome(function: Callable[[], Outputs], tensors: Tensors) -> Outputs:
    """Results and gradients of all inputs, by name."""
    outputs = function()
    given = {name: t for name, t in tensors.items() if t is not None}
    weights = [
        torch.linspace(0.5, 1.5, t.shape[-1], dtype=t.dtype, device=t.device).expand(t.shape) for t in outputs.values()
    ]
    found = torch.autograd.grad(list(outputs.values()), list(given.values()), weights)
    grads = {f"grad of {name}": g for name, g in zip(given, found, strict=True)}
    return {name: t.detach() for name, t in outputs.items()} | grads


def run(case: Case, device: torch.device, seed: int = 0) -> Outputs:
    tensors = leaves(inputs(case, device, seed))
    return outcome(lambda: fused(tensors, case), tensors)


def assert_as_on_cpu(found: Outputs, case: Case, seed: int = 0) -> None:
    """Spikes and states bit for bit, gradients to rounding."""
    used = _ops.used
    _ops.use(_ops.NAMESPACE)  # of the CPU, where the emulator has taken its place
    try:
        expected = run(case, torch.device("cpu"), seed)
    finally:
        _ops.use(used)
    for name, t in expected.items():
        if name.startswith("grad"):
            assert_close(found[name].cpu(), t, RELATIVE[case.dtype], f"{case}: {name}")
        else:
            assert_bits_equal(found[name], t, f"{case}: {name}")


@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cuda", marks=pytest.mark.gpu),
        pytest.param("emulated", marks=[pytest.mark.emulated, pytest.mark.thorough]),
    ],
    indirect=True,
)
@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("neuron", KINDS)
def test_many_neurons_have_the_results_of_the_cpu_at_every_call(
    neuron: str, dtype: torch.dtype, device: torch.device
) -> None:
    many = MANY if device.type == "cuda" else 64
    for i, reset in enumerate(RESETS):
        for variant, shape in (("unroll", (4, many // 4)), ("count", (3, many // 3 // 2 * 2 + 1)), ("step", (37,))):
            case = Case(neuron, variant, 9, shape, dtype, reset, i != 1, i != 2, "neuron").fitted()
            first = run(case, device)
            assert_as_on_cpu(first, case)
            for name, t in run(case, device).items():
                assert_bits_equal(t, first[name], f"{case}, again: {name}")


@card
def test_more_than_2_to_the_31_elements(device: torch.device) -> None:
    T, N, compared = 9, 1 << 28, 5000
    if torch.cuda.mem_get_info()[0] < 24e9:
        pytest.skip("needs 24 GB of free memory")
    x = torch.empty(T, N, dtype=torch.float16, device=device)
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


@card
def test_work_follows_the_current_stream_forward_and_backward(device: torch.device) -> None:
    case = Case("leaky", "unroll", 18, (MANY,))
    tensors = inputs(case, device)
    late = {name: torch.zeros_like(t).requires_grad_() for name, t in tensors.items() if t is not None}
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)  # about 50 ms: what is not ordered after it comes before it
        with torch.no_grad():
            for name, t in late.items():
                t.copy_(tensors[name])  # type: ignore[arg-type]
        found = outcome(lambda: fused(dict(late), case), dict(late))
        torch.cuda.synchronize()
    assert_as_on_cpu(found, case)


@card
def test_a_captured_graph_replays_on_new_inputs(device: torch.device) -> None:
    case = Case("leaky", "unroll", 18, (MANY,), record_mem=False)
    tensors, stream, graph = leaves(inputs(case, device)), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(3):
            outcome(lambda: fused(tensors, case), tensors)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        found = outcome(lambda: fused(tensors, case), tensors)
    for seed in (1, 2):
        with torch.no_grad():
            for name, t in inputs(case, device, seed).items():
                tensors[name].copy_(t)  # type: ignore[union-attr, arg-type]
        graph.replay()
        torch.cuda.synchronize()
        assert_as_on_cpu(found, case, seed)


@card
def test_two_devices(device: torch.device) -> None:
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


@card
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_equals_eager(mode: str, device: torch.device) -> None:
    """``reduce-overhead`` replays CUDA graphs."""
    torch._dynamo.reset()
    case = Case("leaky", "unroll", 18, (4, 70))
    compiled = torch.compile(lambda tensors: fused(tensors, case), fullgraph=True, mode=mode)
    for seed in range(4):  # the first calls warm up, the later ones replay
        tensors = leaves(inputs(case, device, seed))
        torch.compiler.cudagraph_mark_step_begin()
        found = {name: t.clone() for name, t in outcome(lambda tensors=tensors: compiled(tensors), tensors).items()}
        assert_as_on_cpu(found, case, seed)
