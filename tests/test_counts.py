"""``reduce="sum"``: the sum of the spikes over time, without the spikes; everything else stays as it is."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradient_checks import FLOWS, RELATIVE, check_against_reference, check_is_a_gradient, gradients
from helpers import (
    FLOATS,
    HALVES,
    PARAMETERS,
    RESETS,
    SURROGATES,
    TENSORS,
    Case,
    assert_bits_equal,
    assert_close,
    call,
    inputs,
    leaves,
    random_cases,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import snnfast
from snnfast import Leaky, MultiStep, _ops, reference, use_backend
from snnfast.functional import lif

OPTIONS = [
    Case(17, (3, 10), dtype, reset, delay, record_mem, constant, "neuron", count=True)
    for dtype, reset, delay, record_mem, constant in itertools.product(
        FLOATS + HALVES, RESETS, (True, False), (True, False), (True, False)
    )
]
RESET_CASES = [pytest.param(r, d, id=f"{r}-{'delay' if d else 'nodelay'}") for r in RESETS for d in (True, False)]


def check_forward(case: Case, device: torch.device, seed: int = 0, wild: bool = False) -> None:
    """The reference's count to the last bit, the sum of the spikes to rounding, and the same membrane."""
    tensors = inputs(case, device, seed, wild)
    count, mem = call(lif, tensors, case)
    spk, mem_expected = call(lif, tensors, replace(case, count=False))
    assert count.shape == case.shape
    assert count.is_contiguous()
    assert_bits_equal(mem, mem_expected, f"{case}: membranes")
    assert_bits_equal(count, call(reference.lif, tensors, case)[0], f"{case}: counts")
    assert_close(count, spk.sum(0, dtype=case.acc).to(case.dtype), RELATIVE[case.dtype], f"{case}: counts")
    exact = {**tensors, "graded_spikes_factor": torch.ones((), dtype=case.acc, device=device)}
    count, spk = call(lif, exact, case)[0], call(lif, exact, replace(case, count=False))[0]
    assert_bits_equal(count, spk.sum(0), f"{case}: counts of ungraded spikes")


@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_every_option(case: Case, device: torch.device) -> None:
    check_forward(case, device)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 5, 16, 17, 33, 151], ids=lambda n: f"T{n}")
def test_every_number_of_steps(steps: int, device: torch.device) -> None:
    for i, (delay, record_mem, constant) in enumerate(itertools.product((True, False), repeat=3)):
        dtype, reset = (FLOATS + HALVES)[i % 4], RESETS[i % 3]
        case = Case(steps, (2, 33), dtype, reset, delay, record_mem, constant, "neuron", count=True)
        check_forward(case, device)
        if steps == 0:
            assert not call(lif, inputs(case, device), case)[0].any()


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 0), (2, 257), (2, 3, 4, 5), (4, 1030), (8, 4096)], ids=str)
def test_every_shape(shape: tuple[int, ...], device: torch.device) -> None:
    for i, dtype in enumerate(FLOATS + HALVES):
        case = Case(6, shape, dtype, RESETS[i % 3], i % 2 == 0, i > 1, i == 2, "element", count=True)
        check_forward(case, device, seed=i)
        check_against_reference(case, device, seed=i)


def test_random_calls(device: torch.device) -> None:
    cases = random_cases(
        100, seed=6, steps=(1, 5, 18, 40), shape=((), (1,), (9,), (0, 4), (3, 10), (2, 3, 7), (2, 4, 3, 3), (2, 301)),
        dtype=(*FLOATS, *FLOATS, *HALVES), reset=RESETS, delay=(True, False), record_mem=(True, False),
        constant=(True, False, False), parameters=PARAMETERS, mem=(True, False), spike_grad=tuple(SURROGATES.values()),
        count=(True,),
    )  # fmt: skip
    for i, case in enumerate(cases):
        if case.parameters != "mixed" or len(case.shape) > 1:
            check_forward(case, device, seed=i, wild=i % 2 == 0)
            check_against_reference(case, device, FLOWS[i % 4], seed=i, wild=i % 2 == 0)


def test_a_half_is_rounded_once(device: torch.device) -> None:
    """Counts beyond what a half can hold exactly are those of a sum in float32, not of one that stops growing."""
    for dtype, steps in ((torch.float16, 3001), (torch.bfloat16, 1001)):
        current = torch.full((5,), 2.0, dtype=dtype, device=device)
        count, _ = lif(current, beta=0.5, reset_mechanism="none", num_steps=steps, record_mem=False, reduce="sum")
        assert_bits_equal(count, torch.full((5,), steps, dtype=dtype, device=device))


def test_dtypes_promote_as_without(device: torch.device) -> None:
    single, double, half = (torch.rand(5, device=device).to(d) for d in (torch.float32, torch.float64, torch.float16))
    for current, mem, beta in itertools.product((single, double, half), (None, single, double), (single, double)):
        options: dict[str, Any] = {"mem": mem, "beta": beta, "graded_spikes_factor": 1.3, "num_steps": 9}
        count, mem_rec = lif(current, **options, reduce="sum")
        spk, mem_expected = lif(current, **options)
        assert count.dtype == spk.dtype
        assert_bits_equal(mem_rec, mem_expected)
        assert_bits_equal(count, reference.lif(current, **options, reduce="sum")[0])


# ---- gradients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_gradients_equal_those_through_the_sum_bit_for_bit(case: Case, flow: str, device: torch.device) -> None:
    check_against_reference(case, device, flow)

    def summed(*args: Any, reduce: str, **options: Any) -> tuple[Tensor, Tensor]:
        spk, mem = lif(*args, **options)
        return spk.sum(0), mem

    found, expected = (gradients(f, leaves(inputs(case, device)), case, flow) for f in (lif, summed))
    for name in TENSORS:
        if expected[name] is None:
            assert found[name] is None
        else:
            assert_bits_equal(found[name], expected[name], f"{case}: grad of {name}")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(SURROGATES))
@pytest.mark.parametrize(("reset", "delay"), RESET_CASES)
def test_every_surrogate(reset: str, delay: bool, name: str, device: torch.device) -> None:
    for i, (record_mem, constant) in enumerate(itertools.product((True, False), (True, False))):
        case = Case(
            7, (3, 10), FLOATS[i % 2], reset, delay, record_mem, constant, ("scalar", "neuron", "element", "mixed")[i],
            i != 2, SURROGATES[name], count=True,
        )  # fmt: skip
        check_against_reference(case, device, seed=i, wild=True)


@pytest.mark.parametrize(("reset", "delay"), RESET_CASES)
def test_backward_is_a_gradient_by_finite_differences(reset: str, delay: bool, device: torch.device) -> None:
    for record_mem, constant in itertools.product((True, False), (True, False)):
        check_is_a_gradient(
            Case(5, (2, 3), torch.float64, reset, delay, record_mem, constant, "neuron", count=True), device
        )


@pytest.mark.parametrize(("reset", "delay"), RESET_CASES)
def test_every_number_of_steps_around_the_checkpoints(reset: str, delay: bool, device: torch.device) -> None:
    stride = _ops.checkpoint_stride()
    for steps, constant in itertools.product((0, 1, stride - 1, stride, stride + 1, 2 * stride + 3), (True, False)):
        check_against_reference(Case(steps, (9,), torch.float64, reset, delay, False, constant, count=True), device)


@pytest.mark.parametrize("wrt", TENSORS)
def test_a_gradient_for_one_input_only(wrt: str, device: torch.device) -> None:
    for (reset, delay), constant in itertools.product(itertools.product(RESETS, (True, False)), (True, False)):
        case = Case(6, (2, 5), torch.float64, reset, delay, False, constant, "mixed", count=True)
        check_against_reference(case, device, wrt=(wrt,))


def test_a_loss_on_one_neuron_only_and_an_expanded_gradient(device: torch.device) -> None:
    case = Case(20, (4, 12), count=True, record_mem=False)
    found = []
    for function in (lif, reference.lif):
        tensors = leaves(inputs(case, device))
        count, _ = call(function, tensors, case)
        asked = [t for t in tensors.values() if t is not None]
        found.append(torch.autograd.grad(count[0, 3] + count.sum(), asked))
    for name, a, b in zip(TENSORS, *found, strict=True):
        assert_close(a, b, 1e-5, name)


def test_a_second_derivative_is_refused_by_name(device: torch.device) -> None:
    current = torch.rand(5, 3, device=device, requires_grad=True)
    count, _ = lif(current, beta=0.9, reduce="sum")
    (grad,) = torch.autograd.grad(count.square().sum(), [current], create_graph=True)
    with pytest.raises(NotImplementedError, match="double backward"):
        grad.sum().backward()


def test_number_of_threads_changes_no_bit(device: torch.device) -> None:
    case = Case(20, (7, 3001), record_mem=False, count=True)
    tensors = leaves(inputs(case, device))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        count, mem = call(lif, tensors, case)
        results.append((count, *torch.autograd.grad(count.square().sum() + mem.sum(), list(tensors.values()))))
    for again in results[1:]:
        for a, b in zip(again, results[0], strict=True):
            assert_bits_equal(a, b)


# ---- memory -------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The most elements in any result of any operator."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else (result,):
            if isinstance(t, Tensor):
                self.elements = max(self.elements, t.untyped_storage().nbytes() // t.element_size())
        return result


@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(("reset", "delay"), RESET_CASES)
def test_nothing_over_time_is_ever_written(reset: str, delay: bool, dtype: torch.dtype, device: torch.device) -> None:
    """With a constant current: neither spikes nor their gradient, only a checkpoint in so many steps."""
    case = Case(100, (4, 25), dtype, reset, delay, False, True, "neuron", count=True)
    tensors = leaves(inputs(case, device))
    with Largest() as largest:
        count, mem = call(lif, tensors, case)
        (count.sum() + mem.sum()).backward()
    checkpoints = (case.steps - 1) // _ops.checkpoint_stride() * 100
    assert 0 < largest.elements <= checkpoints
    for t in tensors.values():
        assert t is not None
        t.requires_grad_(False)
    with Largest() as largest:
        call(lif, tensors, case)
    assert 0 < largest.elements <= 100


def saved_bytes(tensors: dict[str, Tensor | None], case: Case, spike_grad: Any) -> int:
    held: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    options = {**case.options, "spike_grad": spike_grad}
    lif(**tensors, **options)  # type: ignore[arg-type]  # a callable is tried out at its first use
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        outputs = lif(**tensors, **options)  # type: ignore[arg-type]
    known = {t.untyped_storage().data_ptr() for t in (*tensors.values(), *outputs[1:]) if t is not None}
    assert outputs[0].untyped_storage().data_ptr() not in held
    return sum(size for pointer, size in held.items() if pointer not in known)


def test_what_is_held_for_backward(device: torch.device) -> None:
    for steps, reset in itertools.product((1, 16, 17, 100), RESETS):
        for dtype in FLOATS:
            case = Case(steps, (4, 25), dtype, reset, count=True)
            assert saved_bytes(leaves(inputs(case, device)), case, case.spike_grad) == 0
        for delay, record_mem, constant in itertools.product((True, False), repeat=3):
            case = Case(steps, (4, 25), torch.float32, reset, delay, record_mem, constant, count=True)
            checkpoints = (steps - 1) // _ops.checkpoint_stride() * 400
            assert saved_bytes(leaves(inputs(case, device)), case, case.spike_grad) <= checkpoints
            if not delay:  # any callable: the membrane of every step, if it is not returned, but no spike
                held = saved_bytes(leaves(inputs(case, device)), case, lambda z: SURROGATES["atan"](z))
                assert held <= checkpoints + (0 if record_mem else 400 * steps)


# ---- what the kernels do not do by themselves ----------------------------------------------------------------------


@pytest.mark.parametrize(("reset", "delay"), RESET_CASES)
def test_any_callable_as_surrogate(reset: str, delay: bool, device: torch.device) -> None:
    for dtype, record_mem, constant, steps in itertools.product(
        FLOATS + HALVES, (True, False), (True, False), (0, 1, 19)
    ):
        case = Case(steps, (3, 5), dtype, reset, delay, record_mem, constant, "neuron", count=True)
        own = replace(case, spike_grad=lambda z: SURROGATES["atan"](z))  # a callable that the kernels do not know
        tensors = leaves(inputs(case, device))
        for with_gradients in (True, False):
            with torch.set_grad_enabled(with_gradients):
                for a, b in zip(call(lif, tensors, own), call(reference.lif, tensors, case), strict=True):
                    assert_close(a, b, RELATIVE[dtype], str(case))
        expected, actual = gradients(reference.lif, tensors, case), gradients(lif, tensors, own)
        for name, grad in expected.items():
            assert_close(
                torch.zeros_like(tensors[name]) if actual[name] is None else actual[name],  # type: ignore[arg-type]
                torch.zeros_like(tensors[name]) if grad is None else grad,  # type: ignore[arg-type]
                RELATIVE[dtype], f"{case}: {name}",
            )  # fmt: skip


@pytest.mark.parametrize("delay", [True, False])
def test_inhibition_and_quantized_states(delay: bool) -> None:
    def rounded(mem: Tensor) -> Tensor:
        return (mem * 8).round() / 8

    for record_mem, steps, more in itertools.product(
        (True, False), (0, 1, 9), ({"inhibition": True}, {"state_quant": rounded})
    ):
        current = torch.rand(steps, 3, 5, requires_grad=True)
        options: dict[str, Any] = {"beta": 0.9, "reset_delay": delay, "record_mem": record_mem, **more}
        results = []
        for function in (lif, reference.lif):
            count, mem = function(current, **options, reduce="sum")
            spk, mem_expected = function(current, **options)
            assert_bits_equal(count, spk.sum(0))
            assert_bits_equal(mem, mem_expected)
            loss = count.square().sum() + mem.sum()
            if steps == 0 and not loss.requires_grad:
                results.append(torch.zeros_like(current))  # nothing depends on it
            else:
                results += torch.autograd.grad(loss, [current])
        assert_close(results[0], results[1], 1e-5)


# ---- layers and tracing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [False, True])
def test_a_layer_counts_and_steps_on(held: bool, backend: str) -> None:
    layer, other = (Leaky(0.9, init_hidden=held, graded_spikes_factor=1.5) for _ in range(2))
    x = torch.rand(9, 3, 10)
    for record_mem in (True, False):
        count, mem = layer.unroll(x, record_mem=record_mem, reduce="sum")
        spk, mem_expected = other.unroll(x, record_mem=record_mem)
        assert_close(count, spk.sum(0), 1e-6)
        assert_bits_equal(mem, mem_expected)
    if held:
        assert_bits_equal(layer.mem, other.mem)
        assert_bits_equal(layer(x[0]), other(x[0]))
    else:
        for a, b in zip(layer(x[0], mem), other(x[0], mem), strict=True):
            assert a.shape == (3, 10)
            assert_bits_equal(a, b)
    for wrong, error in (("mean", ValueError), (True, TypeError)):
        with pytest.raises(error, match=r"^reduce\b"):
            layer.unroll(x, reduce=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_steps", [None, 9], ids=["sequence", "constant"])
def test_a_sequence_counts_the_spikes_of_its_last_layer(num_steps: int | None, backend: str) -> None:
    net = MultiStep(nn.Linear(12, 20), Leaky(0.5), nn.Linear(20, 6), Leaky(0.75, learn_beta=True))
    x = torch.rand(4, 12) * 4 if num_steps else torch.rand(9, 4, 12) * 4
    for record_mem in (True, False):
        results = []
        for reduce in ("sum", None):
            spk, mem = net(x, num_steps, record_mem=record_mem, reduce=reduce)
            count = spk if reduce else spk.sum(0)
            assert count.shape == (4, 6)
            grads = torch.autograd.grad(count.square().sum() + mem.sum(), list(net.parameters()))
            results.append((count, mem, *grads))
        assert results[0][0].any()
        for i, (a, b) in enumerate(zip(*results, strict=True)):
            if i < 2:
                assert_bits_equal(a, b)
            else:
                assert_close(a, b, 1e-5)


def test_a_sequence_without_a_last_leaky_cannot_count(backend: str) -> None:
    net, x = MultiStep(Leaky(0.5), nn.Linear(12, 6)), torch.rand(9, 4, 12)
    with pytest.raises(ValueError, match=r"^reduce: needs a Leaky as the last layer, got Linear"):
        net(x, reduce="sum")
    for wrong, error in (("mean", ValueError), (1, TypeError)):
        with pytest.raises(error, match=r"^reduce\b"):
            net(x, reduce=wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("record_mem", [True, False], ids=["record", "last"])
@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
def test_compiled_without_graph_breaks_equals_eager(
    delay: bool, record_mem: bool, dtype: torch.dtype, device: torch.device
) -> None:
    for constant in (False, True):
        torch._dynamo.reset()
        case = Case(20, (3, 10), dtype, "subtract", delay, record_mem, constant, parameters="neuron", count=True)

        def loss(tensors: dict[str, Tensor | None], case: Case = case) -> tuple[Tensor, Tensor, Tensor]:
            count, mem = call(lif, tensors, case)
            return count, mem, (count * 2).sum() + mem.square().sum()

        results = []
        for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
            tensors = leaves(inputs(case, device))
            *outputs, total = function(tensors)
            total.backward()
            results.append((*outputs, *(t.grad for t in tensors.values() if t is not None)))
        for name, a, b in zip(("count", "mem", *TENSORS), *results, strict=True):
            if name in ("count", "mem"):
                assert_bits_equal(b, a, name)
            else:
                assert_close(b, a, 1e-6, name)


@pytest.mark.parametrize("name", ["unroll", "multistep"])
def test_layers_compile_without_graph_breaks(name: str, device: torch.device) -> None:
    torch._dynamo.reset()
    x, layer = (torch.rand(7, 3, 10) * 2).to(device), Leaky(0.9, learn_beta=True).to(device)
    function = layer.unroll if name == "unroll" else MultiStep(nn.Flatten(), layer)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(x, reduce="sum"), function(x, reduce="sum"), strict=True):
        assert_bits_equal(a, b)


def test_meta_tensors_give_the_shapes() -> None:
    for backend, record_mem in itertools.product(("auto", "reference"), (True, False)):
        with use_backend(backend):
            current = torch.empty(9, 3, 10, device="meta")
            count, mem = snnfast.functional.lif(current, beta=0.9, record_mem=record_mem, reduce="sum")
        assert (count.shape, mem.shape) == ((3, 10), (9, 3, 10) if record_mem else (3, 10))
