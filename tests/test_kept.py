"""What forward keeps in place of the current: rounded membranes (``membrane_dtype``), or the spikes as bits."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gradient_checks import FLOWS, check_against_reference, gradients
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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snnfast import Leaky, MultiStep, _ops, reference
from snnfast.functional import lif
from snnfast.surrogate import DISABLED, Surrogate, straight_through_estimator

rounded_lif = functools.partial(lif, membrane_dtype=torch.bfloat16)

STEPS = (0, 1, 2, 4, 5, 8, 9, 16, 17, 40)
# Derivatives that depend on no more than the side of the threshold.
BY_SIDE = ("straight_through_estimator", "heaviside", "triangular", "LSO")
BUT_BETA = ("current", "mem", "threshold", "graded_spikes_factor")  # whose gradient takes the membranes themselves


# ---- rounded membranes --------------------------------------------------------------------------------------------


class _StepAtRounded(torch.autograd.Function):
    """The step at ``z``, with its derivative at ``at``."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, at: Tensor, spike_grad: Surrogate) -> Tensor:
        ctx.save_for_backward(at)
        ctx.spike_grad = spike_grad
        return (z > 0).to(z)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        (at,) = ctx.saved_tensors
        return grads[0] * ctx.spike_grad.derivative(at), None, None


def rounded_oracle(
    current: Tensor,
    mem: Tensor | None = None,
    *,
    beta: Tensor,
    threshold: Tensor,
    graded_spikes_factor: Tensor,
    spike_grad: Surrogate,
    reset_mechanism: str,
    reset_delay: bool,
    num_steps: int | None,
    record_mem: bool,
    reduce: str | None,
) -> tuple[Tensor, Tensor]:
    """The unroll whose backward pass knows of a membrane only its distance from the threshold, in bfloat16."""
    assert reset_delay
    full = current.to(beta.dtype)  # at once: the gradients of all steps are added in this dtype
    steps = full.unbind(0) if num_steps is None else (full,) * num_steps
    shape, acc = (current.shape if num_steps is not None else current.shape[1:]), beta.dtype
    v = torch.zeros(shape, dtype=acc, device=current.device) if mem is None else mem
    known = v.detach()  # the initial membrane is not rounded
    b, spk_rec, mem_rec = beta.clamp(0, 1), [], []
    for x in steps:
        reset = (v - threshold > 0).to(acc).detach()
        left, known_left = ((1 - reset) * v, (1 - reset) * known) if reset_mechanism == "zero" else (v, known)
        v = (b.detach() * left + (b - b.detach()) * known_left) + x
        if reset_mechanism == "subtract":
            v = v - reset * threshold
        z = (v - threshold).detach()
        known = z.to(torch.bfloat16).to(acc) + threshold.detach()
        spk_rec.append(_StepAtRounded.apply(v - threshold, known - threshold.detach(), spike_grad))  # type: ignore[no-untyped-call]
        mem_rec.append(v)
    if not steps:
        spk, mem_all = v.new_zeros((0, *shape)), v.new_zeros((0, *shape))
    else:
        spk, mem_all = torch.stack(spk_rec) * graded_spikes_factor, torch.stack(mem_rec)
    if reduce == "sum":
        spk = spk.sum(0)
    return spk.to(current.dtype), mem_all.to(current.dtype) if record_mem else v


def check_rounded(case: Case, device: torch.device, flow: str = "both", seed: int = 0, wild: bool = False) -> None:
    """The same outputs to the last bit, and the gradients of the oracle."""
    tensors = leaves(inputs(case, device, seed, wild), BUT_BETA)
    for name, a, b in zip(("spk", "mem"), call(rounded_lif, tensors, case), call(lif, tensors, case), strict=True):
        assert_bits_equal(a, b, f"{case}: {name}")
    check_against_reference(case, device, flow, seed, wild, BUT_BETA, rounded_lif, rounded_oracle)


ROUNDED_CASES = [
    Case(17, (3, 10), dtype, reset, True, record_mem, constant, "neuron", count=count)
    for dtype, reset, record_mem, constant, count in itertools.product(
        FLOATS + HALVES, RESETS, (True, False), (True, False), (True, False)
    )
]


@pytest.mark.parametrize("case", ROUNDED_CASES, ids=str)
def test_rounded_with_every_option(case: Case, device: torch.device) -> None:
    for flow in FLOWS:
        check_rounded(case, device, flow)


@pytest.mark.parametrize("steps", STEPS, ids=lambda n: f"T{n}")
def test_rounded_with_every_number_of_steps(steps: int, device: torch.device) -> None:
    for i, (record_mem, constant, count) in enumerate(itertools.product((True, False), repeat=3)):
        dtype, reset = (FLOATS + HALVES)[i % 4], RESETS[i % 3]
        check_rounded(Case(steps, (2, 33), dtype, reset, True, record_mem, constant, "neuron", count=count), device)


@pytest.mark.parametrize("name", list(SURROGATES))
def test_rounded_with_every_surrogate(name: str, device: torch.device) -> None:
    for i, (reset, record_mem, constant) in enumerate(itertools.product(RESETS, (True, False), (True, False))):
        case = Case(
            9, (3, 10), FLOATS[i % 2], reset, True, record_mem, constant, PARAMETERS[i % len(PARAMETERS)], i % 4 != 3,
            SURROGATES[name], i % 5 == 0,
        )  # fmt: skip
        check_rounded(case, device, seed=i, wild=i % 2 == 0)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 0), (2, 257), (2, 3, 4, 5), (4, 1030)], ids=str)
def test_rounded_with_every_shape(shape: tuple[int, ...], device: torch.device) -> None:
    for i, dtype in enumerate(FLOATS + HALVES):
        kind = ("channel", "element", "neuron", "scalar")[i]
        check_rounded(Case(6, shape, dtype, RESETS[i % 3], True, i > 1, i == 2, kind), device, seed=i)


def test_rounded_random_calls(device: torch.device) -> None:
    cases = random_cases(
        40, seed=7, steps=STEPS, shape=((1,), (9,), (3, 10), (2, 3, 7), (2, 301)), dtype=(*FLOATS, *FLOATS, *HALVES),
        reset=RESETS, record_mem=(True, False), constant=(True, False, False), parameters=PARAMETERS[:-1],
        mem=(True, False), spike_grad=tuple(SURROGATES.values()), count=(True, False),
    )  # fmt: skip
    for i, case in enumerate(cases):
        check_rounded(case, device, FLOWS[i % 4], seed=i, wild=i % 2 == 0)


def exact_and_rounded(
    case: Case, tensors: dict[str, Tensor | None], flow: str = "both"
) -> Iterator[tuple[str, Any, Any]]:
    """Gradients from what is kept otherwise, and from rounded membranes."""
    exact, found = (gradients(f, leaves(tensors, BUT_BETA), case, flow) for f in (lif, rounded_lif))
    assert exact.keys() == found.keys()
    yield from ((name, exact[name], found[name]) for name in exact)


@pytest.mark.parametrize("name", BY_SIDE)
@pytest.mark.parametrize("reset", RESETS)
def test_rounding_moves_no_membrane_across_the_threshold(reset: str, name: str, device: torch.device) -> None:
    """Where only sides of the threshold matter, gradients are equal bit for bit, even an ulp beside it."""
    for dtype, threshold in itertools.product(
        FLOATS, (1.0, 0.7, -1.0, -0.3, 0.0, 1e-30, -1e-30, 1e-38, 1e30, -1e30, 3e38, 2.0**-149)
    ):
        limits = torch.finfo(dtype)
        at = torch.tensor(threshold, dtype=dtype)
        above, below = (torch.nextafter(at, torch.tensor(end, dtype=dtype)) for end in (limits.max, limits.min))
        # The first membrane is the first current.
        first = torch.stack(
            [at, above, below, at + limits.tiny, at - limits.tiny, at * 1.001, at * 0.999, at * 2, at * 0, -at]
        )
        current = torch.stack([first, first.flip(0) * 0.5, first.roll(1)])
        case = Case(3, (10,), dtype, reset, spike_grad=SURROGATES[name])
        tensors = {
            "current": current.to(device), "mem": torch.zeros(10, dtype=dtype, device=device),
            "beta": torch.tensor(1.0, dtype=dtype), "threshold": at,
            "graded_spikes_factor": torch.tensor(1.5, dtype=dtype),
        }  # fmt: skip
        for which, exact, found in exact_and_rounded(case, tensors):  # type: ignore[arg-type]
            assert_bits_equal(found, exact, f"{dtype}, threshold {threshold}: {which}")


def test_membranes_too_close_for_a_float_stay_on_their_side(device: torch.device) -> None:
    """Also with denormal numbers flushed to zero, as many set it for speed."""
    first = torch.tensor([1e-300, -1e-300, 5e-324, -5e-324, 1e-40, -1e-40, 1e-45, 0.0], dtype=torch.float64)
    current = torch.stack([first, torch.ones_like(first)]).to(device)
    zero = torch.tensor(0.0, dtype=torch.float64)
    tensors = {"current": current, "mem": None, "beta": zero + 0.5, "threshold": zero, "graded_spikes_factor": zero + 1}
    for flush, name in itertools.product((False, True), BY_SIDE):
        case = Case(2, (8,), torch.float64, "zero", mem=False, spike_grad=SURROGATES[name])
        if flush and not torch.set_flush_denormal(True):
            pytest.skip("this processor can't flush denormal numbers")
        try:
            for which, exact, found in exact_and_rounded(case, tensors):
                assert_bits_equal(found, exact, f"{name}, flush {flush}: {which}")
        finally:
            torch.set_flush_denormal(False)


@pytest.mark.parametrize("reset", ["zero", "none"])
def test_rounded_with_a_threshold_out_of_reach(reset: str, device: torch.device) -> None:
    for dtype, threshold in itertools.product(FLOATS, (float("inf"), -float("inf"))):
        case = Case(5, (3, 10), dtype, reset)
        tensors = {**inputs(case, device), "threshold": torch.tensor(threshold, dtype=dtype)}
        for which, exact, found in exact_and_rounded(case, tensors):
            assert_bits_equal(found, exact, f"{dtype}, threshold {threshold}: {which}")


@pytest.mark.parametrize("threshold", [1.0, 1e3, 1e9, float("inf"), -float("inf")])
def test_where_beta_learns_nothing_is_rounded(threshold: float, device: torch.device) -> None:
    """A rounded distance from a large threshold says nothing of the membrane, which beta's gradient is made of."""
    for dtype, record_mem in itertools.product(FLOATS, (True, False)):
        case = Case(25, (4, 10), dtype, "none", record_mem=record_mem)
        tensors = {**inputs(case, device), "threshold": torch.tensor(threshold, dtype=dtype)}
        exact, found = (gradients(f, leaves(tensors, TENSORS[:3]), case, "mem") for f in (lif, rounded_lif))
        for name in exact:
            assert_bits_equal(found[name], exact[name], f"{case}: {name}")  # type: ignore[arg-type]


def test_rounded_hands_on_what_is_not_finite(device: torch.device) -> None:
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 0.5], device=device)
    for name, reset in itertools.product(SURROGATES, RESETS):
        case = Case(1, (6,), torch.float32, reset, mem=False, spike_grad=SURROGATES[name])
        tensors = {**inputs(case, device), "current": values.unsqueeze(0)}
        for which, exact, found in exact_and_rounded(case, tensors):
            assert_close(found, exact, 2**-8, f"{name}: {which}")


SMOOTH = ("atan", "fast_sigmoid", "sigmoid", "spike_rate_escape")


@pytest.mark.parametrize("name", SMOOTH)
def test_error_of_the_derivative(name: str, device: torch.device) -> None:
    """At most that of its argument, 2^-8, times how steep it is: 2^-7 where the derivative falls as a square."""
    spike_grad = SURROGATES[name]
    x = torch.cat([torch.linspace(-4, 6, 20001), 1 + torch.logspace(-7, 0, 2000)]).to(device).unsqueeze(0)
    case = Case(1, tuple(x.shape[1:]), mem=False, spike_grad=spike_grad)
    results = []
    for function in (lif, rounded_lif):
        current = x.clone().requires_grad_()
        spk, _ = function(current, beta=0.9, **case.options)
        results += torch.autograd.grad(spk.sum(), [current])
    exact, found = results
    z = (x - 1).double().requires_grad_()
    (slope,) = torch.autograd.grad(spike_grad.derivative(z).sum(), [z])
    assert ((found - exact).abs() <= 2**-7.9 * (slope * z).abs() + 1e-6 * exact).all()
    if name in ("atan", "fast_sigmoid"):
        error = ((found - exact) / exact).abs().max().item()
        assert 2**-8 < error < 2**-7


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("reset", RESETS)
def test_rounded_gradients_are_close_to_the_exact_ones(reset: str, name: str, device: torch.device) -> None:
    for dtype, steps in itertools.product(FLOATS, (2, 9, 40)):
        case = Case(steps, (8, 50), dtype, reset, parameters="neuron", spike_grad=SURROGATES[name])
        for which, exact, found in exact_and_rounded(case, inputs(case, device)):
            assert_close(found, exact, 2**-8, f"{case}: {which}")


# ---- bits ---------------------------------------------------------------------------------------------------------


def op_gradients(case: Case, device: torch.device, keep: int, spike_grad: Surrogate, needs: int) -> list[Tensor]:
    tensors = inputs(case, device)
    x, mem0, beta, threshold, graded = (tensors[name] for name in TENSORS)
    shared = (beta, threshold, graded)
    spk, mem, kept = _ops.lif_forward(
        x, mem0, *shared, case.steps if case.constant else None, RESETS.index(case.reset), True, case.record_mem,
        case.count, keep,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(t.shape, generator=generator).to(t) for t in (spk, mem)]
    return _ops.lif_backward(
        *weights, x if keep == _ops.KEEP_CHECKPOINTS else None, None, kept, mem0, *shared, None, case.steps,
        case.constant, RESETS.index(case.reset), True, case.count, keep, spike_grad.kernel_id, 0.0, 0.0, needs,
    )  # fmt: skip


@pytest.mark.parametrize("spike_grad", [straight_through_estimator(), DISABLED], ids=["straight", "disabled"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("steps", [*range(0, 19), 24, 25, 31, 32, 33, 40, 41, 65], ids=lambda n: f"T{n}")
def test_gradients_from_bits_equal_those_from_checkpoints(
    steps: int, reset: str, spike_grad: Surrogate, device: torch.device
) -> None:
    for i, (record_mem, count, shape) in enumerate(
        itertools.product((True, False), (True, False), ((3, 10), (2, 64), (1, 77)))
    ):
        dtype, kind = (FLOATS + HALVES)[i % 4], ("neuron", "scalar", "element")[i % 3]
        case = Case(steps, shape, dtype, reset, True, record_mem, i % 5 == 0, kind, count=count)
        needs = 1 | 2 | 8  # x, mem0, threshold
        exact, found = (
            op_gradients(case, device, keep, spike_grad, needs) for keep in (_ops.KEEP_CHECKPOINTS, _ops.KEEP_BITS)
        )
        for name, a, b in zip(BUT_BETA, found, exact, strict=False):
            assert_bits_equal(a, b, f"{case}: {name}")


def test_bits_through_autograd(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    forward = _ops.lif_forward
    monkeypatch.setattr(_ops, "lif_forward", lambda *args: kept.append(args[-1]) or forward(*args))
    for dtype, reset, constant, spike_grad in itertools.product(
        FLOATS + HALVES, RESETS, (True, False), (straight_through_estimator(), DISABLED)
    ):
        case = Case(20, (3, 10), dtype, reset, True, False, constant, "neuron", spike_grad=spike_grad)
        kept.clear()
        check_against_reference(case, device, wrt=("current", "mem", "threshold"))
        assert kept == [_ops.KEEP_BITS]
        for name in ("beta", "graded_spikes_factor"):  # these need the membranes
            check_against_reference(case, device, wrt=("current", name))
            assert kept.pop() == _ops.KEEP_CHECKPOINTS


@pytest.mark.parametrize("threshold", [float("inf"), -float("inf")])
def test_bits_with_a_threshold_out_of_reach(threshold: float, device: torch.device) -> None:
    """Above -infinity is every finite membrane, and a number must stand for one."""
    for dtype, reset, spike_grad in itertools.product(
        FLOATS, ("zero", "none"), (straight_through_estimator(), DISABLED)
    ):
        case = Case(9, (3, 10), dtype, reset, record_mem=False, spike_grad=spike_grad)
        tensors = {**inputs(case, device), "threshold": torch.tensor(threshold, dtype=dtype)}
        wrt = ("current", "mem", "threshold")
        found, expected = (gradients(f, leaves(tensors, wrt), case, "mem") for f in (lif, reference.lif))
        for name in wrt:
            zero = torch.zeros_like(tensors[name])  # type: ignore[arg-type]
            a, b = (zero if g[name] is None else g[name] for g in (found, expected))
            assert_close(a, b, 1e-6, f"{case}: {name}")


def test_bits_have_the_second_derivative_of_the_reference(device: torch.device) -> None:
    """None: with respect to the current the gradient is constant, and what it depends on otherwise is refused."""
    case = Case(9, (3, 10), record_mem=False, spike_grad=straight_through_estimator())
    for function in (lif, reference.lif):
        tensors = {**inputs(case, device), "current": leaves(inputs(case, device))["current"]}
        spk, _ = call(function, tensors, case)
        (grad,) = torch.autograd.grad(spk.sum(), [tensors["current"]], create_graph=True)  # type: ignore[list-item]
        assert not grad.requires_grad or not any(
            g is not None and g.any()
            for g in torch.autograd.grad(grad.sum(), [tensors["current"]], allow_unused=True)  # type: ignore[list-item]
        )


# ---- memory -------------------------------------------------------------------------------------------------------


def bytes_held(case: Case, device: torch.device, **options: Any) -> float:
    """Between forward and backward, for each neuron and step. The parameters are the layer's own."""
    held: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    current = inputs(case, device)["current"].requires_grad_()  # type: ignore[union-attr]
    parameters = [torch.tensor(value) for value in (0.9, 1.0, 1.0)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        outputs = lif(
            current, beta=parameters[0], threshold=parameters[1], graded_spikes_factor=parameters[2],
            **{**case.options, **options},
        )  # fmt: skip
    assert outputs[0].requires_grad or outputs[1].requires_grad
    own = {t.untyped_storage().data_ptr() for t in parameters}
    return sum(size for at, size in held.items() if at not in own) / (case.steps * 400)


@pytest.mark.parametrize("steps", [25, 100], ids=lambda n: f"T{n}")
def test_bytes_held_for_backward(steps: int, device: torch.device) -> None:
    for reset in RESETS:
        last = Case(steps, (4, 100), reset=reset, record_mem=False)
        constant = Case(steps, (4, 100), reset=reset, record_mem=False, constant=True)
        assert 4 < bytes_held(last, device) <= 4.3
        assert bytes_held(constant, device) <= 4 / steps + 0.3
        for case in (last, constant):
            assert 2 <= bytes_held(case, device, membrane_dtype=torch.bfloat16) <= 2.2
            for spike_grad in (straight_through_estimator(), DISABLED):
                assert 0.1 < bytes_held(case, device, spike_grad=spike_grad) <= 0.13


def test_rounding_holds_neither_the_current_nor_the_recorded_membrane(device: torch.device) -> None:
    for dtype in FLOATS + HALVES:
        assert bytes_held(Case(25, (4, 100), dtype), device, membrane_dtype=torch.bfloat16) <= 2.2


# ---- errors -------------------------------------------------------------------------------------------------------

X = torch.rand(4, 3, 10)
WRONG: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"membrane_dtype": "bfloat16"}, TypeError),
    ({"membrane_dtype": True}, TypeError),
    ({"membrane_dtype": 16}, TypeError),
    ({"membrane_dtype": torch.float16}, ValueError),
    ({"membrane_dtype": torch.float32}, ValueError),
    ({"membrane_dtype": torch.int8}, ValueError),
    ({"reset_delay": False}, ValueError),
    ({"inhibition": True}, ValueError),
    ({"state_quant": lambda mem: mem}, ValueError),
    ({"spike_grad": lambda z: SURROGATES["atan"](z)}, ValueError),
]


def label(value: Any) -> str | None:
    return "-".join(value) + "-" + str(next(iter(value.values())))[:14] if isinstance(value, dict) else None


@pytest.mark.parametrize(("options", "error"), WRONG, ids=label)
def test_what_rounding_does_not_do_is_an_error(options: dict[str, Any], error: type[Exception], backend: str) -> None:
    dtype = options.get("membrane_dtype", torch.bfloat16)
    own = {name: value for name, value in options.items() if name != "membrane_dtype"}
    layer = Leaky(0.9, **own)
    for function in (
        lambda: lif(X, beta=0.9, membrane_dtype=dtype, **own),
        lambda: reference.lif(X, beta=0.9, membrane_dtype=dtype, **own),
        lambda: layer.unroll(X, membrane_dtype=dtype),
        lambda: MultiStep(nn.Linear(10, 10), layer)(X, membrane_dtype=dtype),
    ):
        with pytest.raises(error, match=r"^membrane_dtype: "):
            function()


def test_layers_hand_it_on(device: torch.device) -> None:
    x = (torch.rand(25, 3, 10) * 2).to(device)
    net = MultiStep(nn.Linear(10, 20), Leaky(0.8), nn.Linear(20, 6), Leaky(0.7, surrogate_disable=True)).to(device)
    layer = Leaky(0.9, torch.full((10,), 0.9), learn_threshold=True).to(device)
    for module, call_ in ((net, net), (layer, layer.unroll)):
        results = []
        for dtype in (None, torch.bfloat16):
            held = 0

            def pack(t: Tensor) -> Tensor:
                nonlocal held
                held += t.dtype == torch.bfloat16
                return t

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                spk, mem = call_(x, membrane_dtype=dtype)
            assert held == (0 if dtype is None else 2 if module is net else 1)
            results.append((spk, mem, *torch.autograd.grad(mem.square().sum() + spk.sum(), list(module.parameters()))))
        for i, (exact, found) in enumerate(zip(*results, strict=True)):
            if i < 2:
                assert_bits_equal(found, exact)
            else:
                assert_close(found, exact, 2**-7)


def test_the_reference_ignores_it() -> None:
    results = []
    for options in ({}, {"membrane_dtype": torch.bfloat16}):
        x = X.clone().requires_grad_()
        spk, mem = reference.lif(x, beta=0.9, **options)
        results.append((spk, mem, *torch.autograd.grad(spk.sum() + mem.sum(), [x])))
    for a, b in zip(*results, strict=True):
        assert_bits_equal(a, b)


def test_no_second_derivative_of_a_rounded_membrane(device: torch.device) -> None:
    for wrt in ("current", "threshold"):
        tensors = inputs(Case(), device)
        leaf = tensors[wrt] = tensors[wrt].requires_grad_()  # type: ignore[union-attr]
        spk, mem = call(rounded_lif, tensors, Case())
        with pytest.raises(NotImplementedError, match="second derivative"):
            torch.autograd.grad(spk.sum() + mem.sum(), [leaf], create_graph=True)


# ---- tracing, and anything at all ---------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["rounded", "bits"])
@pytest.mark.parametrize("constant", [False, True], ids=["sequence", "constant"])
def test_compiled_without_graph_breaks_equals_eager(constant: bool, what: str, device: torch.device) -> None:
    for dtype, record_mem in ((torch.float32, False), (torch.float16, True)):
        torch._dynamo.reset()
        spike_grad = SURROGATES["atan"] if what == "rounded" else straight_through_estimator()
        case = Case(20, (3, 10), dtype, "zero", True, record_mem, constant, "neuron", spike_grad=spike_grad)
        function = rounded_lif if what == "rounded" else lif
        wrt = TENSORS if what == "rounded" else ("current", "mem", "threshold")

        def loss(tensors: dict[str, Tensor], case: Case = case, function: Any = function) -> tuple[Tensor, ...]:
            spk, mem = function(**tensors, **case.options)
            return spk, mem, (spk * 2).sum() + mem.square().sum()

        results = []
        for run in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
            tensors = {n: t.requires_grad_(n in wrt) for n, t in inputs(case, device).items() if t is not None}
            spk, mem, total = run(tensors)
            total.backward()
            results.append((spk, mem, *(tensors[name].grad for name in wrt)))
        for name, a, b in zip(("spk", "mem", *wrt), *results, strict=True):
            assert_bits_equal(b, a, f"{case}: {name}")


finite = st.floats(-3, 3, width=32)


@pytest.mark.parametrize("reset", RESETS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_any_numbers(reset: str, device: torch.device, data: st.DataObject) -> None:
    """Outputs and resets are exact to the last bit, gradients those of the oracle."""
    steps, size = data.draw(st.integers(1, 20), "T"), data.draw(st.integers(1, 5), "N")
    name = data.draw(st.sampled_from([*BY_SIDE, "atan"]), "surrogate")
    threshold, beta = data.draw(finite, "threshold"), data.draw(st.floats(0, 1, width=32), "beta")
    # Often at the threshold or right beside it.
    at = torch.tensor(threshold)
    beside = st.sampled_from([threshold, *(torch.nextafter(at, at + d).item() for d in (-1, 1))])
    values = st.lists(st.one_of(finite, beside), min_size=steps * size, max_size=steps * size)
    current = torch.tensor(data.draw(values, "current")).reshape(steps, size).to(device)
    case = Case(steps, (size,), reset=reset, record_mem=data.draw(st.booleans(), "record"), spike_grad=SURROGATES[name])
    tensors = {
        "current": current, "mem": None, "beta": torch.tensor(beta), "threshold": at,
        "graded_spikes_factor": torch.tensor(1.0),
    }  # fmt: skip
    for a, b in zip(call(rounded_lif, tensors, case), call(lif, tensors, case), strict=True):
        assert_bits_equal(a, b)
    expected = gradients(rounded_oracle, leaves(tensors), case)
    for which, exact, found in exact_and_rounded(case, tensors):
        if name == "atan":
            assert_close(found, expected[which], 1e-5, which, scale=10)  # it may be a sum of large numbers that cancel
        elif which != "beta":
            assert_bits_equal(found, exact, which)
