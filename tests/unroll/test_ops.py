"""The ops keep PyTorch's rules for custom operators, and touch no memory that is not theirs whatever they are given."""

import itertools
from typing import Any

import pytest
import torch
from gradient_checks import RELATIVE, trajectory
from helpers import (
    FLOATS,
    NEURONS,
    RESETS,
    SURROGATES,
    THOROUGH,
    Case,
    assert_bits_equal,
    assert_close,
    emulated_if_thorough,
    fused,
    inputs,
    random_cases,
)
from ops import LAYOUTS, Arguments, backward_arguments, call_op, every_input, forward_arguments, ordered, shapes
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from snnfast import functional, use_backend
from snnfast._core import ops as _ops
from snnfast._core.ops import SAVE_CHECKPOINTS, SAVE_NOTHING, SAVE_SPIKES, SAVED_MODES

neurons = pytest.mark.parametrize("neuron", NEURONS)
TIMES = ("unroll", "constant", "step", "count", "count+constant")
OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def saved_modes(device: torch.device) -> list[int]:
    return [mode for mode in range(len(SAVED_MODES)) if mode != SAVE_SPIKES or _ops.has_cpu_kernels(device)]


def some_cases(number: int, seed: int, **choices: Any) -> Any:
    return random_cases(number, seed, **{"variant": TIMES, "shape": ((), (0, 3), (2, 5), (2, 3, 4)), **choices})


@emulated_if_thorough
@neurons
@pytest.mark.parametrize("variant", TIMES)
def test_opcheck(variant: str, neuron: str, device: torch.device) -> None:
    ops = Case(neuron).kind.ops
    choices = {"steps": (20,), "shape": ((2, 3, 4),), "parameters": ("element",), "delay": (True, True, False)}
    for i, case in enumerate(random_cases(2, 1, neuron=(neuron,), variant=(variant,), **choices)):
        layout = LAYOUTS[(i + TIMES.index(variant)) % 4]
        # Every rule for one of them; the rules that take long, of tracing, for a few.
        tests = OPCHECKS if i == 0 and (THOROUGH or variant in ("unroll", "step")) else OPCHECKS[:3]
        for saved in saved_modes(device) if i else (SAVE_CHECKPOINTS,):
            if saved == SAVE_NOTHING and not (ops.recorded_membrane_suffices and case.delay and case.dtype in FLOATS):
                continue
            forward = forward_arguments(case, device, layout, saved)
            torch.library.opcheck(ops.forward, ordered(ops.forward, forward), test_utils=tests)
            backward = backward_arguments(case, device, layout, (None, 5)[i % 2], saved, saved < 2 and i == 1)
            torch.library.opcheck(ops.backward, ordered(ops.backward, backward), test_utils=tests)


@emulated_if_thorough
@neurons
def test_fake_results_have_shapes_dtypes_and_strides_of_real_ones(neuron: str, device: torch.device) -> None:
    ops, modes = Case(neuron).kind.ops, saved_modes(device)
    for i, case in enumerate(some_cases(80 if THOROUGH else 40, 2, neuron=(neuron,), steps=(0, 1, 2, 16, 17))):
        record, last = i % (ops.pre_reset_membrane * 2), i % 3 > 0
        layout, saved = LAYOUTS[i // 2 % 4], modes[i % len(modes)]
        calls = [(ops.forward, forward_arguments(case, device, layout, saved, record, last))]
        if saved != SAVE_NOTHING or (ops.recorded_membrane_suffices and case.delay and case.dtype in FLOATS):
            calls.append(
                (ops.backward, backward_arguments(case, device, layout, i * 7, saved, saved < 2 and i % 3 == 0))
            )
        if layout is LAYOUTS[0] and case.shape and not case.has("step"):
            lengths = torch.arange(case.shape[0], device=device).clamp(max=case.steps)
            calls += [(op, {**given, "lengths": lengths}) for op, given in calls]
        for op, given in calls:
            with FakeTensorMode() as mode:
                fake = call_op(op, {k: mode.from_tensor(a) if isinstance(a, Tensor) else a for k, a in given.items()})
            assert shapes(fake) == shapes(call_op(op, given)), f"{case}, {layout.__name__}"


@neurons
@pytest.mark.needs_extension
def test_fake_tensors_on_cuda_need_no_gpu(neuron: str) -> None:
    if not _ops.extension.cuda:  # type: ignore[union-attr]
        pytest.skip("built without CUDA")
    # torch without CUDA aborts on autograd with such tensors, so the ops are called themselves.
    case = Case(neuron, steps=20, record_mem=False)
    given = backward_arguments(case, torch.device("cpu"))

    def on_cuda(t: Any) -> Any:
        return torch.empty(t.shape, dtype=t.dtype, device="cuda") if isinstance(t, Tensor) else t

    with FakeTensorMode(), torch.no_grad(), use_backend("fused"):
        outputs = fused({name: on_cuda(t) for name, t in inputs(case).items()}, case)
        grads = call_op(case.kind.ops.backward, {name: on_cuda(t) for name, t in given.items()})
    assert {t.device.type for t in (*outputs.values(), *grads)} == {"cuda"}
    ops = case.kind.ops
    states, parameters = len(ops.states), len(ops.parameters)  # one number each, whose gradient is one
    assert [g.shape for g in grads] == [(20, 3, 10), *[(3, 10)] * states, *[()] * parameters]


@neurons
@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
def test_every_mask_gives_the_gradients_it_asks_for(delay: bool, neuron: str, device: torch.device) -> None:
    for i, variant in enumerate(TIMES):
        case = Case(neuron, variant, 5, dtype=torch.float64, reset=RESETS[i % 3], delay=delay, parameters="element")
        op, given = case.kind.ops.backward, backward_arguments(case, device)
        every = call_op(op, given)
        assert len(every) == len(case.names)
        for needs in range(every_input(case) + 1):
            wanted = [g for i, g in enumerate(every) if needs >> i & 1]
            for grad, of_all in zip(call_op(op, {**given, "needs": needs}), wanted, strict=True):
                assert_bits_equal(grad, of_all, f"{needs:b}")


@neurons
def test_every_record_gives_the_states_it_asks_for(neuron: str, device: torch.device) -> None:
    """In any combination, with or without the last ones: and behind them the membrane that decided the spike."""
    choices = {"neuron": (neuron,), "shape": ((3, 10),), "steps": (1, 5, 17), "variant": TIMES[:3]}
    for i, case in enumerate(some_cases(16, 3, **choices)):
        ops = case.kind.ops
        given = forward_arguments(case, device, record=2 * ops.pre_reset_membrane - 1, last=True, saved=i % 2)
        spk, *every = call_op(ops.forward, given)
        n = len(ops.states)
        if case.delay:  # nothing has changed the membrane since
            assert_bits_equal(every[n - 1], every[n].to(case.dtype))
        for record, last in itertools.product(range(2 * ops.pre_reset_membrane), (True, False)):
            found = call_op(ops.forward, {**given, "record": record, "last": last, "saved": SAVE_NOTHING})
            wanted = [every[i] for i in range(n + 1) if record >> i & 1] + (every[n + 1 : 2 * n + 1] if last else [])
            for t, of_all in zip(found, [spk, *wanted], strict=True):
                assert_bits_equal(t, of_all, f"{case}, record {record:b}, last {last}")
                assert t._base is None


@pytest.mark.parametrize("neuron", ["rleaky", "rsynaptic"])
def test_one_step_returns_its_spikes_once(neuron: str, device: torch.device) -> None:
    case = Case(neuron, "step", 1)
    assert len(call_op(case.kind.ops.forward, forward_arguments(case, device))) == len(case.kind.results)


@neurons
@pytest.mark.parametrize("name", list(SURROGATES))
def test_a_given_derivative_equals_the_surrogate(name: str, neuron: str, device: torch.device) -> None:
    choices = {"steps": (1, 5, 21), "states": (True,), "spike_grad": (SURROGATES[name],), "variant": TIMES}
    for i, case in enumerate(random_cases(12, 4, neuron=(neuron,), shape=((3, 12),), **choices)):
        given = backward_arguments(case, device, seed=i)
        wide = {k: t.to(case.acc) for k, t in inputs(case, device, i).items() if t is not None}
        z = trajectory(wide, case).z
        derivative = SURROGATES[name].derivative(z[0] if case.has("step") else z)
        other = {"derivative": derivative, "surrogate": 9, "p0": 0.0, "p1": 0.0}  # these are no longer looked at
        op = case.kind.ops.backward
        for a, b in zip(call_op(op, {**given, **other}), call_op(op, given), strict=True):
            assert_close(a, b, 10 * RELATIVE[case.dtype], f"{case}")


# ---- tensors that never passed the checks of the public functions must not reach a kernel --------------------------

ONE = torch.tensor(1.0)
STEPS, SHAPE = 40, (3, 10)
OTHER_STEP = (10,), (STEPS, *SHAPE), (3, 9)


def wrong_for_both(case: Case) -> list[Arguments]:
    step = case.has("step")
    wrong: list[Arguments] = [
        {"x": torch.zeros(SHAPE if step else (STEPS, *SHAPE), dtype=torch.int32)},
        {"x": torch.tensor(1.0)},
        {"x": torch.rand(3, 9) if step else torch.rand(STEPS, 3, 9)},
        {"x": torch.rand(STEPS - 1, *SHAPE)},
        {"steps": -1}, {"steps": 5}, {"time": 3}, {"reset": 3}, {"saved": len(SAVED_MODES)},
        {"saved": SAVE_SPIKES, "reset_delay": False},
    ]  # fmt: skip
    if step or not case.kind.ops.recorded_membrane_suffices:
        wrong.append({"saved": SAVE_SPIKES})
    for name in case.kind.ops.states:
        wrong += [{name: torch.rand(shape)} for shape in OTHER_STEP]
    for name in case.kind.ops.parameters:
        shapes = ((9,), (3,), (STEPS, *SHAPE), (0,), (3, 0), (1, *SHAPE))
        wrong += [{name: torch.rand(shape)} for shape in shapes]
        wrong += [{name: ONE.int()}, {name: torch.tensor(True)}, {name: torch.tensor(1j)}]
    return wrong


def wrong_for_backward(case: Case) -> list[Arguments]:
    step, states = case.has("step"), case.kind.ops.states
    over_time = SHAPE if step else (STEPS, *SHAPE)
    nothing = dict.fromkeys(("x", "mem_rec", "rows"))
    bits = {
        **nothing, "saved": SAVE_SPIKES, "rows": torch.zeros(5, *SHAPE, dtype=torch.uint8), "surrogate": 3, "needs": 1,
    }  # fmt: skip
    record = {**nothing, "saved": SAVE_NOTHING, "mem_rec": torch.rand(over_time)}
    wrong: list[Arguments] = [
        nothing,
        {"x": None},
        dict.fromkeys(["grad_spk", *(f"grad_{s}{end}" for s in states for end in ("_last", "_rec"))]) | {"x": None},
        {**record, "mem_rec": torch.rand(STEPS - 1, *SHAPE)},
        {**record, "mem_rec": torch.rand(*over_time[:-1], 9)},
        {**record, "mem_rec": torch.rand(over_time).double()},
        {**record, "reset_delay": False},
        {**record, "saved": SAVE_CHECKPOINTS},
        {"mem_rec": torch.rand(over_time)},
        {"x": torch.rand(over_time).double()},
        {"grad_spk": torch.rand(STEPS - 1, *SHAPE)}, {"grad_spk": torch.rand(10)},
        {"grad_spk": ONE.expand(STEPS + 1, *SHAPE)}, {"grad_spk": ONE.expand(*over_time[:-1], 9)},
        {"grad_spk": ONE.expand(*over_time, 1)}, {"grad_spk": ONE.double().expand(over_time)},
        {"grad_spk": torch.rand(over_time).double()},
        {"derivative": torch.rand(STEPS - 1, *SHAPE)}, {"derivative": torch.rand(10)},
        {"derivative": torch.rand(over_time).double()},
        {"surrogate": 10}, {"needs": 1 << len(case.names)},
    ]  # fmt: skip
    for name in states:
        wrong += [
            {f"grad_{name}_rec": torch.rand(STEPS - 1, *SHAPE)},
            {f"grad_{name}_rec": torch.rand(over_time).half()},
        ]
        wrong += [{f"grad_{name}_last": torch.rand(10)}, {f"grad_{name}_last": torch.rand(SHAPE).half()}]
    if not case.kind.ops.recorded_membrane_suffices:
        wrong += [record, bits]
    if step:
        return wrong
    wrong += [
        {**record, "steps": STEPS - 1},
        {**bits, "rows": torch.zeros(4, *SHAPE, dtype=torch.uint8)}, {**bits, "surrogate": 0},
        {**bits, "rows": torch.rand(5, *SHAPE)}, {**bits, "rows": None}, {**bits, "x": torch.rand(over_time)},
        {**bits, "derivative": torch.rand(over_time)}, {**bits, "reset_delay": False},
        {**bits, "needs": 1 << case.names.index(case.kind.decays[-1])},
        {**bits, "needs": 1 << case.names.index("graded_spikes_factor")},
        {"rows": None}, {"rows": None, "saved": SAVE_NOTHING},
        {"rows": torch.rand(0, *SHAPE)}, {"rows": torch.rand(STEPS + 1, *SHAPE)}, {"rows": torch.rand(2, 3, 9)},
        {"x": torch.rand(SHAPE), "time": _ops.CONSTANT, "steps": STEPS - 1},
        {"x": torch.rand(SHAPE)},
        {"reduce": True}, {"reduce": True, "grad_spk": torch.rand(10)},
        {"reduce": True, "grad_spk": torch.rand(SHAPE).double()},
    ]  # fmt: skip
    return wrong


@emulated_if_thorough
@neurons
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("variant", ["unroll", "step"])
def test_inconsistent_arguments_are_refused(variant: str, direction: str, neuron: str, device: torch.device) -> None:
    case = Case(neuron, variant, STEPS, SHAPE)
    op = getattr(case.kind.ops, direction)
    given = (forward_arguments if direction == "forward" else backward_arguments)(case, device)
    unknown = [{"record": 2 * case.kind.ops.pre_reset_membrane}]
    special = wrong_for_backward(case) if direction == "backward" else unknown
    call_op(op, given)
    if not _ops.has_cpu_kernels(device):
        special.append({"saved": SAVE_SPIKES})
    for wrong in wrong_for_both(case) + special:
        moved = {k: t.to(device) if isinstance(t, Tensor) and t.dim() else t for k, t in wrong.items()}
        try:
            call_op(op, {**given, **moved})
        except (RuntimeError, AssertionError):  # by the op, or where its options are put together
            continue
        pytest.fail(f"taken: {wrong}")


@neurons
def test_tensors_on_different_devices_are_refused(neuron: str, device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("needs a second device")
    case = Case(neuron)
    tensors, given = inputs(case, device), forward_arguments(case, device)
    for name in ("mem", case.kind.decays[-1]):
        elsewhere = torch.rand(3, 10)
        with pytest.raises(ValueError, match=f"^{name} is on cpu, but current is on cuda"):
            fused({**tensors, name: elsewhere}, case)
        with pytest.raises(RuntimeError):
            call_op(case.kind.ops.forward, {**given, name: elsewhere})


@neurons
@pytest.mark.needs_extension
def test_sizes_that_no_memory_can_hold_are_an_error_and_not_a_crash(neuron: str) -> None:
    case = Case(neuron, "constant", 2**62 - 1, (3,))
    with use_backend("fused"), pytest.raises((RuntimeError, MemoryError)):
        fused(inputs(case), case)


@pytest.mark.needs_extension
def test_more_steps_than_can_be_counted_in_shares_are_no_crash() -> None:
    options: dict[str, Any] = {"reduce": "sum", "record_mem": False, "lengths": torch.zeros(1, dtype=torch.int64)}
    spk, mem = functional.lif(torch.ones(1), beta=0.9, num_steps=2**58, **options)
    assert spk.count_nonzero() == mem.count_nonzero() == 0


@emulated_if_thorough
def test_tensors_of_a_call_that_is_refused_are_not_kept(device: torch.device) -> None:
    case = Case("rleaky", "step", 1, SHAPE)
    given = {**forward_arguments(case, device), "reset": 3}
    lengths, out = torch.ones(SHAPE[0], dtype=torch.int64, device=device), torch.zeros(SHAPE, device=device)
    for op, last in ((case.kind.ops.forward, lengths), (case.kind.ops.forward_into, [out])):
        with pytest.raises(RuntimeError, match="options: unknown reset"):
            op(*ordered(case.kind.ops.forward, given)[:-1], last)
    assert lengths._use_count() == out._use_count() == 1
