"""The ops and functions of one time step, and the unroll with a derivative that is given to it."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import snntorch.surrogate as theirs
import torch
from gradient_checks import RELATIVE, check_against_reference, gradients, loss_of
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
from test_bad_input import label
from test_opcheck import OPCHECKS, backward_arguments, channels_last, contiguous, expanded, permuted, shapes
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from snnfast import Leaky, _ops, reference
from snnfast._arguments import LIFArguments, check_arguments
from snnfast.autograd import fused_lif_of_callable, fused_lif_step
from snnfast.functional import lif
from snnfast.surrogate import DISABLED, Surrogate

STEP = Case(1, (3, 10), record_mem=False)
OPTIONS = [pytest.param(r, d, id=f"{r}-{'delay' if d else 'nodelay'}") for r in RESETS for d in (True, False)]


def arguments(tensors: dict[str, Tensor | None], case: Case) -> LIFArguments:
    options = dict(case.options)
    order = ("spike_grad", "reset_mechanism", "reset_delay", "num_steps", "record_mem")
    return check_arguments(*tensors.values(), *(options[name] for name in order))  # type: ignore[arg-type]


def step(current: Tensor, mem: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    """``fused_lif_step`` with the signature of an unroll of one step that doesn't record the membrane."""
    args = check_arguments(
        current, mem, options["beta"], options["threshold"], options["graded_spikes_factor"], options["spike_grad"],
        options["reset_mechanism"], options["reset_delay"], options["num_steps"], options["record_mem"],
    )  # fmt: skip
    spk, mem = fused_lif_step(
        current if args.num_steps == 1 else current.squeeze(0), args.mem, args.beta, args.threshold,
        args.graded_spikes_factor, RESETS.index(args.reset_mechanism), args.reset_delay, options["spike_grad"],
    )  # fmt: skip
    return spk.unsqueeze(0), mem


def of_callable(current: Tensor, mem: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    args = check_arguments(
        current, mem, options["beta"], options["threshold"], options["graded_spikes_factor"], options["spike_grad"],
        options["reset_mechanism"], options["reset_delay"], options["num_steps"], options["record_mem"],
    )  # fmt: skip
    return fused_lif_of_callable(args, args.spike_grad)


# ---- the ops of one step ------------------------------------------------------------------------------------------


class StepCall(NamedTuple):
    forward: list[Any]
    backward: list[Any]
    unroll_forward: list[Any]
    unroll_backward: list[Any]


def step_call(case: Case, device: torch.device, layout: Any = contiguous, needs: int = 31, seed: int = 0) -> StepCall:
    """Arguments of the step ops, and those of the unroll's with a time dimension of one step."""
    tensors = [
        t if t is None else layout(t) for t in inputs(replace(case, constant=True), device, seed, wild=True).values()
    ]
    x, *others = tensors
    assert x is not None
    options = [RESETS.index(case.reset), case.delay]
    spk, mem = _ops.lif_step_forward(x, *others, *options)
    grad_spk, grad_mem = layout(torch.rand_like(spk)), layout(torch.rand_like(mem))
    last = [case.spike_grad.kernel_id, *case.spike_grad.parameters(), needs]
    checkpoints = torch.empty(0, *case.shape, dtype=case.acc, device=device)
    return StepCall(
        [x, *others, *options],
        [grad_spk, grad_mem, x, *others, *options, *last],
        [x.unsqueeze(0), *others, None, *options, False, False, _ops.KEEP_NOTHING],
        [
            grad_spk.unsqueeze(0), grad_mem, x.unsqueeze(0), None, checkpoints, *others, None, 1, False,
            *options, False, _ops.KEEP_CHECKPOINTS, *last,
        ],
    )  # fmt: skip


@pytest.mark.parametrize(("reset", "delay"), OPTIONS)
@pytest.mark.parametrize("layout", [contiguous, permuted, channels_last, expanded])
def test_opcheck(layout: Any, reset: str, delay: bool, device: torch.device) -> None:
    ops = _ops.namespace(_ops.NAMESPACE)
    for dtype, needs in ((torch.float32, 31), (torch.float16, 10)):
        args = step_call(Case(1, (2, 3, 4, 5), dtype, reset, delay, parameters="element"), device, layout, needs)
        torch.library.opcheck(ops.lif_step_forward.default, args.forward, test_utils=OPCHECKS)
        torch.library.opcheck(ops.lif_step_backward.default, args.backward, test_utils=OPCHECKS)


def step_cases() -> Sequence[Case]:
    """Every option, dtype and shape of parameters, the surrogates in turn."""
    surrogates = itertools.cycle((*SURROGATES.values(), DISABLED))
    return [
        Case(1, shape, dtype, reset, delay, False, parameters=parameters, mem=mem, spike_grad=next(surrogates))
        for reset, delay, dtype in itertools.product(RESETS, (True, False), (*FLOATS, *HALVES))
        for parameters, shape, mem in (
            *((p, (3, 10), True) for p in PARAMETERS if p != "exotic"),
            ("exotic", (2, 4, 3, 3), True), ("scalar", (), True), ("neuron", (0, 3), True), ("neuron", (2, 301), False),
        )
    ]  # fmt: skip


def test_the_step_ops_equal_the_unroll_of_one_step_bit_for_bit(device: torch.device) -> None:
    for i, case in enumerate(step_cases()):
        if case.parameters in ("exotic", "mixed"):  # not one block of adjacent dimensions
            continue
        args = step_call(case, device, (contiguous, permuted)[i % 2], 31 if i % 3 else i % 32, seed=i)
        found, expected = _ops.lif_step_forward(*args.forward), _ops.lif_forward(*args.unroll_forward)
        for t, of_unroll in zip(found, (expected[0].squeeze(0), expected[1]), strict=True):
            assert_bits_equal(t, of_unroll, str(case))
            assert t.is_contiguous()
            assert t._base is None
        grads, expected_grads = _ops.lif_step_backward(*args.backward), _ops.lif_backward(*args.unroll_backward)
        needs = args.backward[-1]
        assert len(grads) == len(expected_grads) == needs.bit_count()
        for n, (grad, of_unroll) in enumerate(zip(grads, expected_grads, strict=True)):
            assert_bits_equal(grad, of_unroll.squeeze(0) if n == 0 and needs & 1 else of_unroll, str(case))


def test_fake_results_have_the_shapes_of_real_ones(device: torch.device) -> None:
    for i, (shape, dtype, delay) in enumerate(
        itertools.product(((), (0, 3), (2, 5)), (*FLOATS, *HALVES), (True, False))
    ):
        args = step_call(Case(1, shape, dtype, RESETS[i % 3], delay, mem=i % 5 != 0), device, needs=(7 * i) % 32)
        for op, given in ((_ops.lif_step_forward, args.forward), (_ops.lif_step_backward, args.backward)):
            with FakeTensorMode() as mode:
                fake = op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in given))
            assert shapes(fake) == shapes(op(*given))


@pytest.mark.parametrize(("reset", "delay"), OPTIONS)
def test_every_mask_gives_the_gradients_it_asks_for(reset: str, delay: bool, device: torch.device) -> None:
    for parameters, constant in itertools.product(("scalar", "element"), (True, False)):
        case = Case(5, (3, 10), torch.float64, reset, delay, constant=constant, parameters=parameters)
        args, step_args = backward_arguments(case, device)[:-1], step_call(case, device).backward[:-1]
        for op, given in ((_ops.lif_backward, args), (_ops.lif_step_backward, step_args)):
            every = op(*given, 31)
            assert len(every) == 5
            for needs in range(32):
                found, expected = op(*given, needs), [g for i, g in enumerate(every) if needs >> i & 1]
                for grad, of_all in zip(found, expected, strict=True):
                    assert_bits_equal(grad, of_all, f"{needs:05b}")


X, MEM = torch.rand(3, 10), torch.rand(3, 10)
ONE = torch.tensor(1.0)
FORWARD: dict[str, Any] = {
    "x": X, "mem0": MEM, "beta": ONE, "threshold": ONE, "graded": ONE, "reset": 0, "reset_delay": True,
}  # fmt: skip
BACKWARD: dict[str, Any] = {
    "grad_spk": X, "grad_mem": X, "x": X, "mem0": MEM, "beta": ONE, "threshold": ONE, "graded": ONE,
    "reset": 0, "reset_delay": True, "surrogate": 0, "p0": 2.0, "p1": 0.0, "needs": 31,
}  # fmt: skip
BAD_EITHER: list[dict[str, Any]] = [
    {"mem0": torch.rand(10)},
    {"mem0": torch.rand(1, 3, 10)},
    {"mem0": MEM.double()},
    {"reset": 3},
    {"reset": -1},
    {"x": X.int()},
    {"x": X.double()},
    {"x": torch.rand(3, 9)},
    *({name: value} for name in ("beta", "threshold", "graded") for value in (
        ONE.int(), torch.rand(10).double(), torch.rand(9), torch.rand(3), torch.rand(1, 3, 10), torch.rand(0),
    )),
]  # fmt: skip
BAD_BACKWARD: list[dict[str, Any]] = [
    {"x": None},
    {"grad_spk": torch.rand(1, 3, 10)},
    {"grad_spk": torch.rand(10)},
    {"grad_spk": X.double()},
    {"grad_mem": torch.rand(1, 3, 10)},
    {"grad_mem": torch.rand(10)},
    {"grad_mem": X.half()},
    {"surrogate": 10},
    {"surrogate": -1},
    {"needs": 32},
    {"needs": -1},
]


def show(wrong: dict[str, Any]) -> str:
    return "-".join(f"{k}-{label(v)}" for k, v in wrong.items())


def call_op(op: Callable[..., Any], arguments: dict[str, Any], device: torch.device) -> Any:
    return op(*(a.to(device) if isinstance(a, Tensor) and a.dim() else a for a in arguments.values()))


@pytest.mark.parametrize("wrong", BAD_EITHER, ids=show)
def test_the_forward_op_refuses_inconsistent_arguments(wrong: dict[str, Any], device: torch.device) -> None:
    call_op(_ops.lif_step_forward, FORWARD, device)
    with pytest.raises(RuntimeError):
        call_op(_ops.lif_step_forward, {**FORWARD, **wrong}, device)


@pytest.mark.parametrize("wrong", BAD_EITHER + BAD_BACKWARD, ids=show)
def test_the_backward_op_refuses_inconsistent_arguments(wrong: dict[str, Any], device: torch.device) -> None:
    call_op(_ops.lif_step_backward, BACKWARD, device)
    with pytest.raises(RuntimeError):
        call_op(_ops.lif_step_backward, {**BACKWARD, **wrong}, device)


# ---- the differentiable step --------------------------------------------------------------------------------------


def test_the_step_equals_an_unroll_of_one_step_bit_for_bit(device: torch.device) -> None:
    for i, case in enumerate(step_cases()):
        case = replace(case, constant=i % 2 == 0)
        tensors = inputs(case, device, seed=i, wild=i % 3 == 0)
        with torch.no_grad():
            for t, expected in zip(call(step, tensors, case), call(lif, tensors, case), strict=True):
                assert_bits_equal(t, expected, str(case))
                assert not t.requires_grad
        asking, flow = leaves(tensors), ("both", "spk", "mem")[i % 3]
        for t, expected in zip(call(step, asking, case), call(lif, asking, case), strict=True):
            assert_bits_equal(t, expected, str(case))
            assert t.requires_grad == expected.requires_grad
        found, of_unroll = gradients(step, asking, case, flow), gradients(lif, asking, case, flow)
        for name, grad in of_unroll.items():
            assert (found[name] is None) == (grad is None), f"{case}: grad of {name}"
            if grad is not None:
                assert_bits_equal(found[name], grad, f"{case}: grad of {name}")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrt", [*TENSORS, "all but current"])
def test_a_gradient_for_some_inputs_only(wrt: str, device: torch.device) -> None:
    asked = (wrt,) if wrt in TENSORS else TENSORS[1:]
    for reset, delay, dtype in itertools.product(RESETS, (True, False), (*FLOATS, *HALVES)):
        case = replace(STEP, dtype=dtype, reset=reset, delay=delay, parameters="mixed")
        check_against_reference(case, device, wrt=asked, function=step)


def test_a_float64_parameter_with_dimensions_widens_the_arithmetic(device: torch.device) -> None:
    beta, x, mem = torch.rand(10, device=device).double(), X.to(device), MEM.to(device)
    layer = Leaky(beta, learn_beta=True)
    spk, last = layer(x, mem)
    expected_spk, expected = lif(x.unsqueeze(0), mem, beta=layer.beta, record_mem=False)
    assert (spk.dtype, last.dtype) == (torch.float32, torch.float64)
    assert_bits_equal(spk, expected_spk[0])
    assert_bits_equal(last, expected)
    found, of_unroll = (torch.autograd.grad(t.sum(), [layer.beta])[0] for t in (last, expected))
    assert_bits_equal(found, of_unroll)


@pytest.mark.parametrize(("reset", "delay"), OPTIONS)
def test_a_loop_over_steps_equals_the_reference(reset: str, delay: bool, device: torch.device) -> None:
    def loop(current: Tensor, mem: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
        outputs = []
        for x in current:
            spk, mem = step(x, mem, **{**options, "num_steps": 1, "record_mem": False})
            outputs.append((spk.squeeze(0), mem))
        spks, mems = zip(*outputs, strict=True)
        return torch.stack(spks), torch.stack(mems)

    for dtype in FLOATS:
        case = Case(7, (3, 10), dtype, reset, delay, parameters="neuron")
        tensors = inputs(case, device)
        for t, expected in zip(call(loop, tensors, case), call(reference.lif, tensors, case), strict=True):
            assert_bits_equal(t, expected, str(case))
        check_against_reference(case, device, function=loop)


def test_a_step_holds_nothing_beyond_inputs_and_outputs(device: torch.device) -> None:
    for dtype, delay in itertools.product((*FLOATS, *HALVES), (True, False)):
        case = replace(STEP, dtype=dtype, delay=delay, constant=True)
        tensors, held = leaves(inputs(case, device)), set()

        def pack(t: Tensor, held: set[int] = held) -> Tensor:
            held.add(t.untyped_storage().data_ptr())
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            outputs = call(step, tensors, case)
        known = {t.untyped_storage().data_ptr() for t in (*tensors.values(), *outputs) if t is not None}
        assert held <= known


def test_a_second_derivative_is_refused_by_name(device: torch.device) -> None:
    for delay, function in itertools.product((True, False), (step, of_callable)):
        case = replace(STEP, delay=delay and function is step)
        for name in TENSORS:
            tensors = inputs(case, device)
            asked = tensors[name]
            assert asked is not None
            spk, mem = call(function, {**tensors, name: asked.requires_grad_()}, case)
            (grad,) = torch.autograd.grad(spk.sum() + mem.square().sum(), [asked], create_graph=True)
            with pytest.raises(NotImplementedError, match="double backward"):
                torch.autograd.grad(grad.sum(), [asked])


def test_forward_mode_differentiation_is_refused_not_ignored(device: torch.device) -> None:
    tensors = inputs(STEP, device)
    for function in (step, of_callable):
        with torch.autograd.forward_ad.dual_level():
            current = torch.autograd.forward_ad.make_dual(tensors["current"], torch.ones_like(tensors["current"]))
            with torch.no_grad(), pytest.raises((NotImplementedError, RuntimeError), match=r"jvp|forward"):
                call(function, {**tensors, "current": current}, STEP)


@pytest.mark.parametrize("spike_grad", [SURROGATES["atan"], DISABLED], ids=["atan", "disabled"])
@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
def test_the_step_compiles_without_graph_breaks(delay: bool, spike_grad: Surrogate, device: torch.device) -> None:
    torch._dynamo.reset()
    case = replace(STEP, delay=delay, parameters="neuron", constant=True)

    def two_steps(tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        x, mem, *parameters = tensors.values()
        spk1, mem = fused_lif_step(x, mem, *parameters, 0, delay, spike_grad)  # type: ignore[arg-type]
        spk2, mem = fused_lif_step(x, mem, *parameters, 0, delay, spike_grad)  # type: ignore[arg-type]
        return spk1, spk2, mem, (spk1 * 2 + spk2).sum() + mem.square().sum()

    compiled = torch.compile(two_steps, fullgraph=True, backend="aot_eager")
    results = []
    for function in (two_steps, compiled):
        tensors = leaves(inputs(case, device))
        *outputs, total = function(tensors)
        total.backward()
        results.append((*outputs, *(t.grad for t in tensors.values() if t is not None)))
    for i, (a, b) in enumerate(zip(*results, strict=True)):
        if i < 3:
            assert_bits_equal(b, a)
        else:
            assert_close(b, a, 1e-6, TENSORS[i - 3])


# ---- a derivative that is given -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SURROGATES))
@pytest.mark.parametrize(("reset", "delay"), OPTIONS)
def test_a_given_derivative_equals_the_surrogate(reset: str, delay: bool, name: str, device: torch.device) -> None:
    for dtype, constant, parameters in itertools.product((*FLOATS, *HALVES), (True, False), ("scalar", "element")):
        case = Case(21, (3, 12), dtype, reset, delay, False, constant, parameters, spike_grad=SURROGATES[name])
        args = backward_arguments(case, device)
        threshold = args[7]
        acc = {k: t if t is None else t.to(case.acc) for k, t in inputs(case, device).items()}
        (current, mem, *_), v = acc.values(), []
        assert current is not None
        for t in range(case.steps):  # the membrane that decides each spike
            x = current if constant else current[t]
            options = {**case.options, "reset_delay": True, "num_steps": 1, "record_mem": False}
            given = {**acc, "current": x}
            v.append(reference.lif(**{**given, "mem": mem}, **options)[1])  # type: ignore[arg-type]
            mem = reference.lif(**{**given, "mem": mem}, **{**options, "reset_delay": delay})[1]  # type: ignore[arg-type]
        args[9] = SURROGATES[name].derivative(torch.stack(v) - threshold)
        args[16:19] = [9, 0.0, 0.0]  # no longer looked at
        found = _ops.lif_backward(*args)
        args[9] = None
        args[16:19] = [SURROGATES[name].kernel_id, *SURROGATES[name].parameters()]
        for grad, expected in zip(found, _ops.lif_backward(*args), strict=True):
            assert_close(grad, expected, RELATIVE[dtype], f"{case}")


class Own(Surrogate):
    """A surrogate of a user, asked for its derivative directly."""

    def derivative(self, z: Tensor) -> Tensor:
        return 1 / (1 + z.square())


class Louder(Own):
    """One whose gradient is not its ``derivative``."""

    def __call__(self, z: Tensor) -> Tensor:
        return super().__call__(2 * z)


CALLABLES: dict[str, Any] = {
    "wrapped": lambda z: SURROGATES["atan"](z),
    "snntorch": theirs.fast_sigmoid(slope=4),
    "own": Own(),
    "overridden": Louder(),
    "constant": lambda z: (z > 0).to(z.dtype),
    "other dtype": lambda z: SURROGATES["sigmoid"](z.double()),
}


@pytest.mark.parametrize("name", list(CALLABLES))
@pytest.mark.parametrize("reset", RESETS)
def test_any_callable_with_an_immediate_reset(reset: str, name: str, device: torch.device) -> None:
    for i, (dtype, constant, record_mem, steps) in enumerate(
        itertools.product((*FLOATS, *HALVES), (True, False), (True, False), (0, 1, 20))
    ):
        if name == "snntorch" and dtype == torch.float64:
            continue  # its spikes are float32, to which the reference then rounds their gradients
        case = Case(
            steps, (3, 10), dtype, reset, False, record_mem, constant, ("scalar", "neuron", "mixed")[i % 3], i % 4 != 0,
            CALLABLES[name],
        )  # fmt: skip
        tensors = inputs(case, device, seed=i)
        for asking in (tensors, leaves(tensors)):
            for t, expected in zip(call(of_callable, asking, case), call(reference.lif, asking, case), strict=True):
                assert_bits_equal(t, expected, str(case))
        check_against_reference(case, device, ("both", "spk", "mem", "last")[i % 4], i, function=of_callable)


def test_a_callable_is_asked_once_for_all_steps(device: torch.device) -> None:
    asked = []

    def spike_grad(z: Tensor) -> Tensor:
        asked.append(z.shape)
        return SURROGATES["atan"](z)

    case = Case(9, (3, 10), delay=False, record_mem=False, spike_grad=spike_grad)  # type: ignore[arg-type]
    spk, mem = call(of_callable, leaves(inputs(case, device)), case)
    assert asked == []
    loss_of(spk, mem, case).backward()
    assert asked == [(9, 3, 10)]


def test_random_calls_with_a_callable_against_the_reference(device: torch.device) -> None:
    cases = random_cases(
        60, seed=8, steps=(1, 5, 18, 40), shape=((), (1,), (9,), (0, 4), (3, 10), (2, 3, 7), (2, 301)), delay=(False,),
        dtype=(*FLOATS, *FLOATS, *HALVES), reset=RESETS, record_mem=(True, False), constant=(True, False, False),
        parameters=PARAMETERS, mem=(True, False),
        spike_grad=tuple(c for name, c in CALLABLES.items() if name != "snntorch"),
    )  # fmt: skip
    for i, case in enumerate(cases):
        if case.parameters != "mixed" or len(case.shape) > 1:
            check_against_reference(case, device, seed=i, wild=i % 2 == 0, function=of_callable)


# ---- no surrogate at all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reset", "delay"), OPTIONS)
def test_without_a_surrogate_no_gradient_passes_through_a_spike(reset: str, delay: bool, device: torch.device) -> None:
    for dtype, constant, record_mem in itertools.product((*FLOATS, *HALVES), (True, False), (True, False)):
        case = Case(9, (3, 10), dtype, reset, delay, record_mem, constant, "neuron", spike_grad=DISABLED)
        check_against_reference(case, device)
        tensors = leaves(inputs(case, device))
        tensors["graded_spikes_factor"] = torch.ones(10, dtype=case.acc, device=device)
        spk, mem = call(lif, tensors, case)
        assert not spk.requires_grad
        assert mem.requires_grad
        one = replace(case, steps=1, record_mem=False, constant=True)
        tensors["current"] = torch.rand(3, 10, dtype=dtype, device=device)
        spk, mem = call(step, tensors, one)
        assert not spk.requires_grad
        assert mem.requires_grad
        mem.sum().backward()


@pytest.mark.parametrize(("reset", "delay"), OPTIONS)
def test_without_a_surrogate_a_gradient_that_is_not_finite_stops_at_the_spike(
    reset: str, delay: bool, device: torch.device
) -> None:
    """0 * inf would be NaN."""
    for function in (lif, step):
        case = Case(1, (3, 10), reset=reset, delay=delay, record_mem=False, spike_grad=DISABLED)
        tensors = leaves(inputs(case, device))
        spk, _ = call(function, tensors, case)
        wrt = [t for t in tensors.values() if t is not None]
        *grads, _ = torch.autograd.grad(spk, wrt, torch.full_like(spk, float("inf")))
        assert all((g == 0).all() for g in grads)
