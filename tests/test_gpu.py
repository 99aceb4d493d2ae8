"""What only a card can tell. ``SNNFAST_DRY_RUN=1`` runs it on the emulator, as far as that has what it takes."""

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from helpers import (
    FLOATS,
    HALVES,
    NEURONS,
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
from torch import Tensor

from benchmarks.gpu.card import Card, DryRun
from snnfast import _ops, use_backend
from snnfast.functional import lif

pytestmark = pytest.mark.gpu
DTYPES = FLOATS + HALVES
# Sums over time and neurons are taken in another order than on the CPU; halves round their results.
RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture
def card() -> Iterator[Card]:
    """A CUDA device with kernels for it; the backend is "fused"."""
    namespace = _ops.LEAKY.forward.namespace
    if os.environ.get("SNNFAST_DRY_RUN") == "1":
        opened: Card = DryRun()
    elif torch.cuda.is_available():
        opened = Card()
    else:
        pytest.skip("torch sees no CUDA device")
    try:
        with use_backend("fused"):
            yield opened
    finally:
        _ops.use(namespace)  # a dry run changes it


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
    namespace = _ops.LEAKY.forward.namespace
    _ops.use("snnfast")
    try:
        return run(case, torch.device("cpu"), seed)
    finally:
        _ops.use(namespace)


def assert_as_on_cpu(found: dict[str, Tensor], case: Case, seed: int = 0) -> None:
    """Spikes and states bit for bit, gradients to rounding."""
    for name, expected in on_cpu(case, seed).items():
        if name.startswith("grad"):
            assert_close(found[name].cpu(), expected, RELATIVE[case.dtype], f"{case}: {name}")
        else:
            assert_bits_equal(found[name], expected, f"{case}: {name}")


def shapes(card: Card) -> list[tuple[int, ...]]:
    """Neurons for threads that take several of them, for some that do not because of the number, and few."""
    return [(4, card.many // 4), (3, card.many // 3 // 2 * 2 + 1), (37,)]


@pytest.mark.parametrize("record_mem", [True, False], ids=["record", "last"])
@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_results_are_those_of_the_cpu(
    dtype: torch.dtype, reset: str, delay: bool, record_mem: bool, card: Card
) -> None:
    for neuron in NEURONS:
        for variant, shape in zip(("unroll", "count", "step"), shapes(card), strict=True):
            case = Case(neuron, variant, 18, shape, dtype, reset, delay, record_mem, "neuron")
            assert_as_on_cpu(run(case, card.device), case)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_misaligned_and_strided_inputs_give_the_same(dtype: torch.dtype, card: Card) -> None:
    case = Case("leaky", "unroll", 9, (4, card.many // 4), dtype)
    expected = run(case, card.device)
    tensors = inputs(case, card.device)
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


def test_more_than_2_to_the_31_elements(card: Card) -> None:
    if card.dry:
        pytest.skip("needs 24 GB")
    T, N, compared = 9, 1 << 28, 5000
    if torch.cuda.mem_get_info()[0] < 24e9:
        pytest.skip("needs 24 GB of free memory")
    x = torch.empty(T, N, dtype=torch.float16, device=card.device)
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


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_repetition_changes_no_bit(dtype: torch.dtype, card: Card) -> None:
    for shape in shapes(card):
        case = Case("leaky", "unroll", 18, shape, dtype, delay=dtype != torch.float64)
        first = run(case, card.device)
        for _ in range(3):
            for name, t in run(case, card.device).items():
                assert_bits_equal(t, first[name], f"{case}: {name}")


def test_work_follows_the_current_stream_forward_and_backward(card: Card) -> None:
    case = Case("leaky", "unroll", 18, (card.many,))
    tensors = inputs(case, card.device)
    late = {name: torch.zeros_like(t).requires_grad_() for name, t in tensors.items() if t is not None}
    card.synchronize()
    with card.other_stream():
        card.delay()
        with torch.no_grad():
            for name, t in late.items():
                t.copy_(tensors[name])  # type: ignore[arg-type]
        found = outcome(lambda: fused(dict(late), case), dict(late))
        card.synchronize()
    assert_as_on_cpu(found, case)


def test_a_captured_graph_replays_on_new_inputs(card: Card) -> None:
    case = Case("leaky", "unroll", 18, (card.many,), record_mem=False)
    tensors = leaves(inputs(case, card.device))
    found: dict[str, Tensor] = {}
    replay = card.captured(lambda: found.update(outcome(lambda: fused(tensors, case), tensors)))
    for seed in (1, 2):
        with torch.no_grad():
            for name, t in inputs(case, card.device, seed).items():
                tensors[name].copy_(t)  # type: ignore[union-attr, arg-type]
        replay()
        card.synchronize()
        assert_as_on_cpu(found, case, seed)


def test_two_devices(card: Card) -> None:
    if card.dry or torch.cuda.device_count() < 2:
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
def test_compiled_equals_eager(mode: str, card: Card) -> None:
    """``reduce-overhead`` replays CUDA graphs."""
    torch._dynamo.reset()
    case = Case("leaky", "unroll", 18, (4, 70))
    options = {"backend": "aot_eager"} if card.dry else {"mode": mode}
    compiled = torch.compile(lambda tensors: fused(tensors, case), fullgraph=True, **options)
    for seed in range(4):  # the first calls warm up, the later ones replay
        tensors = leaves(inputs(case, card.device, seed))
        torch.compiler.cudagraph_mark_step_begin()
        found = {name: t.clone() for name, t in outcome(lambda tensors=tensors: compiled(tensors), tensors).items()}
        assert_as_on_cpu(found, case, seed)
