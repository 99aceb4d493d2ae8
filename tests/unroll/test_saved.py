"""What forward saves for backward: its bytes, which mode is chosen, and that every mode tells the same gradients."""

import itertools
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from gradient_checks import Operators, bytes_of, check_against_reference, gradients, loss_of, saved_by
from helpers import (
    FLOATS,
    FROM_SPIKES,
    HALVES,
    NEURONS,
    RESETS,
    SURROGATES,
    Case,
    assert_bits_equal,
    assert_close,
    emulated_if_thorough,
    expected,
    fused,
    inputs,
    layer_of,
    leaves,
    random_cases,
)
from ops import backward_arguments, call_op, told
from torch import Tensor

from snnfast._core import ops as _ops
from snnfast._core.ops import SAVE_CHECKPOINTS, SAVE_NOTHING, SAVE_SPIKES
from snnfast.surrogate import DISABLED

neurons = pytest.mark.parametrize("neuron", NEURONS)
TELLING = [neuron for neuron in NEURONS if Case(neuron).kind.ops.recorded_membrane_suffices]  # whose membrane tells all
telling = pytest.mark.parametrize("neuron", TELLING)
STRIDE = _ops.SAVED_MODES[SAVE_CHECKPOINTS][2]  # steps from one checkpoint to the next


def bytes_held(case: Case, tensors: dict[str, Tensor | None], known: tuple[str, ...] | None = None) -> int:
    """Bytes that autograd keeps for the backward pass beyond inputs, or those in ``known``, and outputs."""
    fused(tensors, case)  # a callable is tried out at its first use
    outputs, kept = saved_by(lambda: fused(tensors, case))
    if case.has("count"):
        assert bytes_of([outputs["spk"]], beyond=kept) > 0
    own = [t for name, t in tensors.items() if known is None or name in known]
    return bytes_of(kept, beyond=own + list(outputs.values()) if known is None else own)


# ---- bytes --------------------------------------------------------------------------------------------------------


@emulated_if_thorough
@neurons
@pytest.mark.parametrize("steps", [1, 16, 17, 100], ids=lambda n: f"T{n}")
def test_beyond_inputs_and_outputs_only_checkpoints_are_held(steps: int, neuron: str, device: torch.device) -> None:
    """And of a callable with an immediate reset one membrane of every step."""
    callables = [("callable", False), ("callable+count", False)]
    calls = [*itertools.product(("unroll", "constant", "count"), (True, False)), *callables]
    for reset, (variant, delay), record_mem, dtype in itertools.product(RESETS, calls, (True, False), FLOATS):
        case = Case(neuron, variant, steps, (4, 25), dtype, reset, delay, record_mem)
        ops, size = case.kind.ops, torch.empty(0, dtype=dtype).element_size()
        tells = record_mem and delay and ops.recorded_membrane_suffices
        rows = 0 if tells else (steps - 1) // STRIDE * len(ops.states)
        rows += steps if case.has("callable") else 0
        assert bytes_held(case, leaves(inputs(case, device))) <= rows * 100 * size, str(case)


@emulated_if_thorough
@neurons
def test_a_step_holds_nothing_beyond_inputs_and_outputs(neuron: str, device: torch.device) -> None:
    for dtype, delay in itertools.product((*FLOATS, *HALVES), (True, False)):
        case = Case(neuron, "step", 1, dtype=dtype, delay=delay, record_mem=False)
        tensors = leaves(inputs(case, device))
        layer, states = layer_of(case, tensors), [tensors[name] for name in case.kind.ops.states]
        outputs, kept = saved_by(partial(layer, tensors["current"][0], *states))  # type: ignore[index]
        assert bytes_of(kept, beyond=(*tensors.values(), *outputs)) == 0


@emulated_if_thorough
@neurons
def test_without_a_gradient_asked_for_nothing_is_held(neuron: str, device: torch.device) -> None:
    for variant, record_mem in itertools.product(("unroll", "step", "callable"), (True, False)):
        case = Case(neuron, variant, 20, (4, 25), record_mem=record_mem)
        assert bytes_held(case, inputs(case, device)) == 0
        with torch.no_grad():
            assert bytes_held(case, leaves(inputs(case, device))) == 0


@emulated_if_thorough
@neurons
def test_a_threshold_may_move_before_the_backward_pass(neuron: str, device: torch.device) -> None:
    """By a homeostatic rule, say: no gradient of the loop needs it."""
    for variant in ("unroll", "count", "callable", "step"):
        case = Case(neuron, variant)
        tensors = inputs(case, device)
        learned = tensors["current"].requires_grad_()  # type: ignore[union-attr]
        found = []
        for moved in (0.0, 0.5):
            outputs = fused(tensors, case)
            tensors["threshold"].add_(moved)  # type: ignore[union-attr]
            found.append(torch.autograd.grad(loss_of(outputs, case), [learned])[0])
        assert_bits_equal(*found)


@pytest.mark.needs_extension
@telling
@pytest.mark.parametrize("steps", [25, 100], ids=lambda n: f"T{n}")
def test_bits_hold_less_than_the_current(steps: int, neuron: str) -> None:
    """Of all that is held on the CPU, in bytes for each neuron and step; beside a copy of the threshold."""
    device = torch.device("cpu")

    def held(variant: str, **options: Any) -> float:
        case = replace(Case(neuron, variant, steps, (4, 100), record_mem=False, states=False), **options)
        tensors = leaves(inputs(case, device), ("current",))
        return (bytes_held(case, tensors, case.kind.ops.parameters) - 4) / (steps * 400)

    for reset, constant in itertools.product(RESETS, ("", "+constant")):
        exact = held("unroll" + constant, reset=reset)
        assert exact <= 4 / steps + 0.3 if constant else 4 < exact <= 4.3
        for spike_grad in FROM_SPIKES:
            bits = held("bits" + constant, reset=reset, spike_grad=spike_grad)
            assert bits == (steps + 7) // 8 / steps  # eight steps in a byte


@emulated_if_thorough
@neurons
def test_a_count_of_a_constant_current_writes_nothing_over_time(neuron: str, device: torch.device) -> None:
    """Neither spikes nor their gradient, only a checkpoint in so many steps."""
    for reset, delay, dtype in itertools.product(RESETS, (True, False), FLOATS + HALVES):
        case = Case(neuron, "count+constant", 100, (4, 25), dtype, reset, delay, False, "neuron")
        tensors = leaves(inputs(case, device))
        with Operators() as ran:
            sum(t.sum() for t in fused(tensors, case).values()).backward()  # type: ignore[union-attr]
        assert 0 < ran.elements <= (case.steps - 1) // STRIDE * len(case.kind.ops.states) * 100
        with torch.no_grad(), Operators() as ran:
            fused(tensors, case)
        assert 0 < ran.elements <= 100


# ---- which mode is chosen, and what it tells -----------------------------------------------------------------------


@pytest.fixture
def chosen(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What calls save, one after the other."""
    modes: list[int] = []
    for neuron in NEURONS:
        ops = Case(neuron).kind.ops

        def spy(*args: Any, forward: Any = ops.forward) -> Any:
            modes.append(_ops.unpack(args[-2], "saved"))
            return forward(*args)

        monkeypatch.setattr(ops, "forward", spy)
    return modes


def test_what_the_gradients_need_decides_what_is_saved(chosen: list[int], device: torch.device) -> None:
    every = ("current", "mem", "beta", "threshold", "graded_spikes_factor")
    few = ("current", "mem", "threshold")
    straight = SURROGATES["straight_through_estimator"]
    spikes = SAVE_SPIKES if _ops.has_cpu_kernels(device) else SAVE_CHECKPOINTS
    for neuron, changes, wrt, saved in (
        ("leaky", {}, every, SAVE_NOTHING),
        ("leaky", {"delay": False}, every, SAVE_CHECKPOINTS),
        ("leaky", {"record_mem": False}, every, SAVE_CHECKPOINTS),
        ("leaky", {"dtype": torch.float16}, every, SAVE_CHECKPOINTS),
        *(("leaky", {"record_mem": False, "spike_grad": s}, few, spikes) for s in (straight, DISABLED)),
        ("leaky", {"spike_grad": straight, "dtype": torch.bfloat16}, few, spikes),
        ("leaky", {"spike_grad": straight}, few, SAVE_NOTHING),
        ("leaky", {"record_mem": False, "spike_grad": straight}, (*few, "beta"), SAVE_CHECKPOINTS),
        ("leaky", {"record_mem": False, "spike_grad": straight}, (*few, "graded_spikes_factor"), SAVE_CHECKPOINTS),
        *(("synaptic", {"record_mem": r, "spike_grad": straight}, few, SAVE_CHECKPOINTS) for r in (True, False)),
    ):  # fmt: skip
        case = Case(neuron, **{"steps": 20, "parameters": "neuron", **changes})  # type: ignore[arg-type]
        chosen.clear()
        fused(leaves(inputs(case, device), wrt), case)
        assert chosen == [saved], f"{case}: {wrt}"
        check_against_reference(case, device, wrt=wrt)


@neurons
@pytest.mark.parametrize("steps", [*range(19), 24, 25, 31, 32, 33, 40, 65], ids=lambda n: f"T{n}")
def test_every_mode_tells_the_same_gradients(steps: int, neuron: str, device: torch.device) -> None:
    """Bit for bit: from checkpoints, from the recorded membrane, from spikes.

    To rounding where a kernel for CUDA fuses: it has one for a loss on membranes that are recorded.
    """
    choices = {"shape": ((3, 10), (2, 64), (1, 77)), "delay": (True,), "spike_grad": FROM_SPIKES}
    variants = ("unroll", "constant", "count", "count+constant")
    for i, case in enumerate(random_cases(8, steps, neuron=(neuron,), steps=(steps,), variant=variants, **choices)):
        op = case.kind.ops.backward
        exact = backward_arguments(case, device, seed=i)
        modes = [SAVE_NOTHING] if case.dtype in FLOATS else []
        modes += [SAVE_SPIKES] if _ops.has_cpu_kernels(device) else []
        for saved in modes if case.kind.ops.recorded_membrane_suffices else []:
            given = backward_arguments(case, device, saved=saved, seed=i)
            given |= {name: exact[name] for name in ("surrogate", "p0", "p1")}
            wanted = [g for j, g in enumerate(call_op(op, exact)) if told(case, saved) >> j & 1]
            fuses = not _ops.has_cpu_kernels(device) and given.get("grad_mem_rec") is not None
            for a, b in zip(call_op(op, given), wanted, strict=True):
                if fuses:
                    assert_close(a, b, 1e-6, f"{case}: saved {saved}", scale=float(steps))
                else:
                    assert_bits_equal(a, b, f"{case}: saved {saved}")


@emulated_if_thorough
@telling
@pytest.mark.parametrize("threshold", [float("inf"), -float("inf")])
def test_bits_with_a_threshold_out_of_reach(threshold: float, neuron: str, device: torch.device) -> None:
    """Above -infinity is every finite membrane, and a number must stand for one."""
    for dtype, reset, spike_grad in itertools.product(FLOATS, ("zero", "none"), FROM_SPIKES):
        case = Case(neuron, "bits", 9, (3, 10), dtype, reset, record_mem=False, spike_grad=spike_grad)
        tensors = {**inputs(case, device), "threshold": torch.tensor(threshold, dtype=dtype)}
        found, grads = (gradients(f, leaves(tensors, case.wrt), case, "states") for f in (fused, expected))
        for name in case.wrt:
            zero = torch.zeros_like(tensors[name])  # type: ignore[arg-type]
            a, b = (zero if g[name] is None else g[name] for g in (found, grads))
            assert_close(a, b, 1e-6, f"{case}: {name}")
