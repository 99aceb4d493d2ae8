"""Layers of step functions: ``@snnfast.neuron`` and ``snnfast.spike``."""
# ruff: noqa: B008, N802

import copy
import ctypes
import math
import pickle
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_all_bits_equal, emulated_if_thorough, gradients_of
from loop_ops import Masked
from multistep_checks import Loop
from torch import Tensor, nn

import snnfast
from snnfast import surrogate
from snnfast._program import run as program_run
from snnfast._program.engines import ENGINES
from snnfast._program.run import Program
from snnfast._program.trace import trace

T, B, N = 21, 3, 37
CPU = torch.device("cpu")


@snnfast.neuron
def PaperLIF(x: Tensor, mem: Tensor, *, tau: float = 0.5, threshold: float = 1.0) -> Any:
    """TET's LIFSpike: hard reset at once, attached; a triangle."""
    mem = mem * tau + x
    spk = Masked.apply(mem - threshold)
    return spk, (1.0 - spk) * mem


@snnfast.neuron
def SoftLIF(x: Tensor, mem: Tensor, *, beta: float = 0.9, threshold: float = 1.0) -> Any:
    mem = beta * mem + x
    spk = snnfast.spike(mem - threshold, surrogate.fast_sigmoid())
    return spk, mem - threshold * spk.detach()


@snnfast.neuron
def DecayInputLIF(x: Tensor, v: Tensor, *, tau=2.0, v_reset=-0.1, spike_grad: Any = surrogate.atan()) -> Any:
    """SpikingJelly's LIFNode with detach_reset."""
    h = v + (x - (v - v_reset)) / tau
    spk = snnfast.spike(h - 1.0, spike_grad)
    d = spk.detach()
    return spk, d * v_reset + (1.0 - d) * h


@snnfast.neuron
def CurrentLIF(x: Tensor, v: Tensor, i: Tensor, *, dt_mem: float = 0.1, dt_syn: float = 0.2) -> Any:
    """Norse's LIFCell."""
    i = i + x
    v = v + dt_mem * ((0.0 - v) + i)
    spk = snnfast.spike(v - 0.3, surrogate.fast_sigmoid())
    return spk, (1.0 - spk) * v, i - dt_syn * i


@snnfast.neuron
def PLIF(x: Tensor, v: Tensor, *, decay: Any) -> Any:
    """Parametric LIF, whose decay is a sigmoid outside."""
    h = v + (x - v) * decay
    spk = surrogate.atan()(h - 1.0)
    return spk, h * (1.0 - spk.detach())


@snnfast.neuron
def Izhikevich(x: Tensor, v=-65.0, u=-13.0, *, a=0.02, b=0.2, c=-65.0, d=8.0) -> Any:
    v = v + 0.5 * (0.04 * v**2 + 5 * v + 140 - u + 10 * x)
    u = u + 0.5 * a * (b * v - u)
    spk = snnfast.spike(v - 30.0, surrogate.fast_sigmoid())
    fired = spk > 0
    return spk, torch.where(fired, c, v), torch.where(fired, u + d, u)


@snnfast.neuron
def AdLIF(x: Tensor, u: Tensor, w: Tensor, *, a: float = 0.3, b: float = 0.2) -> Any:
    """SpikingLIF of Bittar and Garner."""
    before = snnfast.spike(u - 1.0, surrogate.fast_sigmoid())
    u = 0.9 * (u - before) + 0.6 * (x - w)
    w = 0.95 * w + a * u + b * before
    return snnfast.spike(u - 1.0, surrogate.fast_sigmoid()), u, w


@snnfast.neuron
def Traced(x: Tensor, mem: Tensor, trace: Tensor, *, beta: float = 0.8) -> Any:
    """A LIF with a trace of its spikes; writes in place."""
    mem = mem.clone()
    mem *= beta
    mem += x
    spk = torch.zeros_like(mem)
    spk[mem > 1.0] = 1.0
    mem[spk > 0] = 0.0
    trace.mul_(0.9).add_(spk)
    return spk + 0.0 * mem, mem, trace


@snnfast.neuron
def Refractory(x: Tensor, v: Tensor, left: Tensor, *, pause: int = 2) -> Any:
    active = left <= 0
    v = torch.where(active, 0.9 * v + x, v)
    spk = snnfast.spike(v - 1.0, surrogate.triangular()) * active
    return spk, v * (1 - spk), torch.where(spk > 0, pause, (left - 1).clamp(min=0))


OWN = [PaperLIF, SoftLIF, DecayInputLIF, CurrentLIF, PLIF, Izhikevich, AdLIF, Traced, Refractory]


def made(kind: Any, **options: Any) -> Any:
    """A layer with one parameter learned, if it has any."""
    names = kind.neuron.parameters
    if kind is PLIF:
        options["decay"] = torch.sigmoid(torch.linspace(-1, 1, N))
    if names and kind is not Refractory:
        options[f"learn_{names[0]}"] = True
    return kind(**options)


def sequence(dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return (torch.randn(T, B, N, generator=g) * 0.8 + 0.4).to(device, dtype).requires_grad_()


def train(call: Callable[[Any, Tensor], Any], layer: Any, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    results = list(call(layer, x))
    return [r.cpu() for r in results], [g.cpu() for g in gradients_of(results, [x, *layer.parameters()])]


def by_hand(layer: Any, x: Tensor) -> list[Tensor]:
    """The loop that a user writes around the step function."""
    states: Any = [torch.full(x.shape[1:], begin, dtype=x.dtype) for begin in layer.initial.values()]
    values = {name: getattr(layer, name).to(x.dtype) for name in layer.neuron.parameters}
    options = {name: getattr(layer, name) for name in layer.options}
    rows = []
    for step in x:
        spk, *states = type(layer).step(step, *(s.clone() for s in states), **values, **options)
        rows.append([spk, *states])
    return [torch.stack(row) for row in zip(*rows, strict=True)]


@emulated_if_thorough
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.__name__)
def test_equals_loop(kind: Any, dtype: torch.dtype, device: torch.device) -> None:
    ours, grads = train(lambda layer, x: layer.unroll(x), made(kind).to(device), sequence(dtype, device))
    theirs, wanted = train(by_hand, made(kind), sequence(dtype))
    assert_all_bits_equal(ours, theirs)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    for ours_of, theirs_of in zip(grads, wanted, strict=True):
        torch.testing.assert_close(ours_of, theirs_of, rtol=tolerance, atol=tolerance * float(theirs_of.abs().max()))


@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.__name__)
def test_reference_and_steps_equal_unroll(kind: Any) -> None:
    layer, x = made(kind), sequence().detach()
    ours = layer.unroll(x)
    with snnfast.use_backend("reference"):
        assert_all_bits_equal(ours, layer.unroll(x))
    layer.reset_mem()
    layer(x[0])
    layer.reset_mem()
    rows = [layer(step) for step in x]
    assert_all_bits_equal(ours, (torch.stack(row) for row in zip(*rows, strict=True)))


# ---- the layer


def test_signature_makes_layer() -> None:
    layer = Izhikevich(a=0.1, learn_b=True)
    assert repr(layer) == "Izhikevich(a=0.1, b=0.2, c=-65, d=8, init_hidden=False)"
    assert list(layer.state_dict()) == ["b", "a", "c", "d"]
    assert [name for name, _ in layer.named_parameters()] == ["b"]
    assert isinstance(layer, nn.Module)
    assert Izhikevich.__doc__ is None
    assert PaperLIF.__doc__ == "TET's LIFSpike: hard reset at once, attached; a triangle."
    assert "tensor" in repr(made(PLIF).decay)


def test_state_dict_pickle_and_copy() -> None:
    layer, other = SoftLIF(beta=torch.full((N,), 0.7), learn_beta=True), SoftLIF(beta=torch.zeros(N), learn_beta=True)
    other.load_state_dict(layer.state_dict())
    x = sequence().detach()
    for copied in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied.unroll(x)[1], layer.unroll(x)[1])
    assert layer in list(SoftLIF.instances)


def test_held_states() -> None:
    x = sequence().detach()
    free, held = Izhikevich(), Izhikevich(init_hidden=True)
    whole, parts = free.unroll(x), [held.unroll(part) for part in x.split(8)]
    assert torch.equal(whole[0], torch.cat([part[0] for part in parts]))
    assert torch.equal(held.v, whole[1][-1])
    snnfast.reset(held)
    assert torch.equal(held.v, torch.full((B, N), -65.0))
    assert torch.equal(torch.stack([held(step) for step in x]), whole[0])
    assert torch.equal(free.unroll(x[8:], whole[1][7], whole[2][7])[0], whole[0][8:])
    spk, v, u = free(x[0], whole[1][-1], whole[2][-1])
    assert spk.shape == v.shape == u.shape == (B, N)
    with pytest.raises(TypeError, match="v: must not be passed"):
        held(x[0], whole[1][-1])
    held.reset_mem()
    assert torch.equal(Izhikevich(init_hidden=True, output=True)(x[0])[1], free.unroll(x)[1][0])


def test_lengths(device: torch.device) -> None:
    layer, x = AdLIF(learn_a=True).to(device), sequence(device=device)
    lengths = torch.tensor([5, 0, T], device=device)
    padded = x.detach().clone()
    padded[5:, 0] = torch.nan
    padded[:, 1] = torch.nan
    padded.requires_grad_()
    results, grads = train(lambda layer, x: layer.unroll(x, lengths=lengths), layer, padded)
    for ragged, of_one in zip(results, layer.unroll(x[:5, :1]), strict=True):
        assert torch.equal(ragged[:5, :1], of_one.cpu())
    assert not results[0][5:, 0].any()
    assert torch.equal(results[1][5:, 0], results[1][4, 0].expand(T - 5, N))
    assert all(g.isfinite().all() for g in grads)
    with snnfast.use_backend("reference"):
        theirs, wanted = train(lambda layer, x: layer.unroll(x, lengths=lengths), layer, padded)
    assert_all_bits_equal(results, theirs)
    torch.testing.assert_close(grads, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half(dtype: torch.dtype, device: torch.device) -> None:
    layer, x = CurrentLIF(learn_dt_mem=True).to(device), sequence(dtype, device)
    (spk, v, i), grads = train(lambda layer, x: layer.unroll(x), layer, x)
    wide = layer.unroll(x.detach().float())
    assert spk.dtype == v.dtype == grads[0].dtype == dtype  # type: ignore[union-attr]
    for ours, theirs in zip((spk, v, i), wide, strict=True):
        assert torch.equal(ours, theirs.to(CPU, dtype))
    assert layer.unroll(x, record_mem=False)[1].dtype == torch.float32
    with snnfast.use_backend("reference"):
        _, wanted = train(lambda layer, x: layer.unroll(x), layer, x)
    torch.testing.assert_close(grads[0], wanted[0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("shape", [(0, 4), (5, 0), (5, 0, 3), (1, 1), (4,), (3, 2, 2, 2, 2)])
def test_any_shape(shape: tuple[int, ...], device: torch.device) -> None:
    layer = SoftLIF(learn_beta=True).to(device)
    x = torch.rand(shape, device=device, requires_grad=True)
    spk, mem = layer.unroll(x)
    assert spk.shape == mem.shape == shape
    mem.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape


def test_used_twice() -> None:
    layer, x = SoftLIF(learn_beta=True), sequence()
    twice = layer.unroll(layer.unroll(x)[1])[1].sum()
    beta = layer.beta
    a = torch.autograd.grad(twice, [x, beta], retain_graph=True)
    b = torch.autograd.grad(twice, [x, beta])
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
    with snnfast.use_backend("reference"):
        torch.testing.assert_close(a, torch.autograd.grad(layer.unroll(layer.unroll(x)[1])[1].sum(), [x, beta]))


def test_second_derivative() -> None:
    @snnfast.neuron
    def smooth(x: Tensor, v: Tensor, *, k: float = 0.5) -> Any:
        v = torch.tanh(k * v + x) * torch.sigmoid(x)
        return v * v + 0.5 * (-v.abs()).exp(), v

    def run(x: Tensor, v: Tensor, k: Tensor) -> Any:
        program = Program(lambda x, v, k: smooth.step(x, v, k=k), 1, 1, 1)
        outputs, last = program([x], [v], [k], len(x))
        return (*outputs, *last)

    x, v, k = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((5, 3), (3,), ()))
    assert torch.autograd.gradcheck(run, (x, v, k))
    assert torch.autograd.gradgradcheck(run, (x, v, k))
    outputs = run(run(x, v, k)[0], v, k)  # the second call's arguments are computed from one another
    again = torch.autograd.grad(outputs[0].sum(), k, create_graph=True)
    torch.testing.assert_close(again, torch.autograd.grad(outputs[0].sum(), k))


def test_in_multistep() -> None:
    net = snnfast.MultiStep(nn.Linear(N, 20), PaperLIF(learn_tau=True), nn.Linear(20, 5), AdLIF(init_hidden=False))
    x = sequence().detach()
    spk, u, w = net(x)
    assert spk.shape == u.shape == w.shape == (T, B, 5)
    states, rows = [None, (None, None)], []
    for part in x.split(8):
        *results, states = net(part, states=states, return_states=True)
        rows.append(results[0])
    assert torch.equal(torch.cat(rows), spk)
    u.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    count = net(x[0], num_steps=9, reduce="sum", lengths=torch.tensor([9, 4, 0]))[0]
    assert count.shape == (B, 5)


def test_spike() -> None:
    class Smooth:
        def derivative(self, z: Tensor) -> Tensor:
            return torch.exp(-(z**2))

    z = torch.linspace(-1, 1, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(snnfast.spike(z, Smooth()).sum(), z)
    torch.testing.assert_close(grad, torch.exp(-(z.detach() ** 2)))
    assert torch.equal(snnfast.spike(z, Masked.apply), (z > 0).float())
    with pytest.raises(TypeError, match=r"surrogate.atan\(\)"):
        snnfast.spike(z, surrogate.atan)


def test_under_transforms() -> None:
    layer, x = SoftLIF(), sequence().detach()
    with pytest.warns(UserWarning, match="step by step under a torch.func transform"):
        grads = torch.func.vmap(torch.func.grad(lambda x: layer.unroll(x, record_mem=False)[0].sum()), in_dims=1)(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(grads, torch.autograd.grad(layer.unroll(leaf)[0].sum(), leaf)[0].transpose(0, 1))


def test_in_compiled_code(nothing_compiled: None) -> None:
    fc, lif = net = Loop(nn.Linear(N, 8), DecayInputLIF(learn_tau=True))
    x = sequence().detach()[:4]
    by_loop, _ = net(x)
    assert torch.equal(by_loop, lif.unroll(fc(x))[0])
    unroll = torch.compile(lambda x: lif.unroll(x)[0], backend="eager")
    with pytest.warns(UserWarning, match="step by step where torch.compile traces it"):
        assert torch.equal(by_loop, unroll(fc(x)))
    with warnings.catch_warnings(action="ignore"):
        assert "one recurrence" in str(snnfast.explain(net, x))
        for function, found in ((net, by_loop), (lambda x: lif.unroll(fc(x))[0], by_loop)):
            result = torch.compile(function, backend="snnfast")(x)
            torch.testing.assert_close(result[0] if isinstance(result, tuple) else result, found)


@pytest.mark.needs_extension
def test_parameter_sums_do_not_depend_on_threads() -> None:
    layer, x, found = SoftLIF(learn_beta=True), torch.rand(20, 64, 300), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found += torch.autograd.grad(layer.unroll(x)[1].square().sum(), layer.beta)
    assert torch.equal(*found)


# ---- what a step sees beside its arguments


class Slope(torch.autograd.Function):
    slope = 25.0

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return grad / (Slope.slope * z.abs() + 1) ** 2


def test_a_program_is_of_the_shapes_and_modes_of_its_call() -> None:
    """Numbers that a step reads elsewhere are in test_what_steps_read.py."""

    @snnfast.neuron
    def asking(x: Tensor, v: Tensor) -> Any:
        if x.shape[0] not in (2, 3):
            raise ValueError("two or three samples are expected")
        v = 0.9 * v + x / x.shape[-1]
        spk = torch.sigmoid(v) if torch.is_grad_enabled() else (v > 0.5).to(x.dtype)
        return spk + torch.zeros(x.shape, dtype=x.dtype, device=x.device), v if x.size(0) > 2 else -v

    layer = asking()
    for shape in ((4, 2, 9), (4, 3, 5)):
        x = torch.linspace(-1, 2, math.prod(shape), dtype=torch.float64).view(shape).requires_grad_()
        with warnings.catch_warnings(action="error"):  # a program runs
            ours = layer.unroll(x)
        theirs = by_hand(layer, x)
        torch.testing.assert_close(list(ours), theirs, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(gradients_of(list(ours), [x]), gradients_of(theirs, [x]))
        with torch.no_grad():
            torch.testing.assert_close(list(layer.unroll(x)), by_hand(layer, x), rtol=1e-14, atol=1e-14)


def test_options_that_are_equal_may_differ() -> None:
    @snnfast.neuron
    def told(x: Tensor, v: Tensor, *, mode: Any = True) -> Any:
        return v * (2.0 if mode is True else 1.5 if isinstance(mode, int) else 1.0), v + x

    x = torch.ones(2, 1, 1)
    assert [float(told(mode=mode).unroll(x)[0].sum()) for mode in (True, 1, 1.0, True)] == [2.0, 1.5, 1.0, 2.0]


def test_the_derivative_is_of_the_moment_of_the_forward_pass() -> None:
    @snnfast.neuron
    def sloped(x: Tensor, v: Tensor) -> Any:
        return Slope.apply(0.9 * v + x), 0.9 * v + x

    x = torch.full((3, 1, 2), 0.6, requires_grad=True)
    try:
        (wanted,) = torch.autograd.grad(sloped().unroll(x)[0].sum(), x)
        result = sloped().unroll(x)
        Slope.slope = 1.0
        assert torch.equal(torch.autograd.grad(result[0].sum(), x, retain_graph=True)[0], wanted)
        with pytest.raises(RuntimeError, match="has changed since the forward pass"):
            torch.autograd.grad(result[0].sum(), x, create_graph=True)
    finally:
        Slope.slope = 25.0


def test_what_can_not_be_watched_runs_as_the_loop() -> None:
    calls = [0]

    def counting(x: Tensor, v: Tensor) -> Any:
        calls[0] += 1
        return v * calls[0], v + x

    def drawing(x: Tensor, v: Tensor) -> Any:
        return v * random.random(), v + x

    def reading(x: Tensor, v: Tensor, *, height: Any = ctypes.c_double(2.0)) -> Any:
        return v * height.value, v + x

    def asking(x: Tensor, v: Tensor) -> Any:
        return v * (2.0 if v.requires_grad else 1.0), v + x

    x = torch.ones(3, 1, 2, requires_grad=True)
    for step, message in (
        (counting, "it changes what it sees"),
        (drawing, "it calls random.random, which may return something else each time"),
        (reading, "an object of the type c_double, whose changes can't be seen"),
        (asking, "asks a tensor for its requires_grad"),
    ):
        layer = snnfast.neuron(step)()
        with snnfast.use_backend("fused"), pytest.raises(RuntimeError, match=message):
            layer.unroll(x)
        results = []
        for run in (lambda layer=layer: list(layer.unroll(x)), lambda layer=layer: by_hand(layer, x)):
            random.seed(0)
            calls[0] = 0
            results.append(run())
        assert_all_bits_equal(*results)  # what the trace drew and counted is put back


def test_a_step_that_is_no_program_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(program_run, "trace", lambda *given: made.append(given) or trace(*given))  # type: ignore[func-returns-value]

    @snnfast.neuron
    def mixing(x: Tensor, v: Tensor) -> Any:
        v = v + x
        return v - v.mean(), v

    layer, x = mixing(), torch.rand(3, 2, 4)
    with warnings.catch_warnings(action="ignore"):
        for _ in range(3):
            layer.unroll(x)
    assert len(made) == 1


def test_evaluation_keeps_no_states_for_a_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    original = ENGINES["cpu"].forward

    def forward(*given: Any) -> Any:
        kept.append(given[8])
        return original(*given)

    monkeypatch.setattr(ENGINES["cpu"], "forward", forward)
    layer, x = SoftLIF(learn_beta=True), sequence().detach()
    with torch.no_grad():
        layer.unroll(x)
    layer.unroll(x)
    assert kept == [False, True]


def test_a_result_needs_a_gradient_where_that_of_the_loop_does() -> None:
    @snnfast.neuron
    def counting(x: Tensor, count: Tensor, v: Tensor) -> Any:
        v = 0.9 * v + x
        spk = (v > 0.5).to(x.dtype)
        return spk, count + spk, v - spk

    x = sequence(torch.float64)
    for results in (counting().unroll(x), by_hand(counting(), x)):
        assert [t.requires_grad for t in results] == [False, False, True]


def test_what_only_the_derivative_calls_is_known() -> None:
    @snnfast.neuron
    def signed(x: Tensor, v: Tensor) -> Any:
        v = (0.9 * v + x).clone()
        v.view_as(v).mul_(0.5)  # PyTorch copies the strides
        return torch.sgn(v) * v.abs(), v

    x = sequence(torch.float64)
    with snnfast.use_backend("fused"):
        ours = signed().unroll(x)
    theirs = by_hand(signed(), x)
    assert_all_bits_equal(ours, theirs)
    torch.testing.assert_close(gradients_of(list(ours), [x]), gradients_of(theirs, [x]))


def test_a_gradient_that_nobody_asks_for_needs_no_old_value() -> None:
    @snnfast.neuron
    def scaled(x: Tensor, v: Tensor, *, w: float = 0.5) -> Any:
        v = 0.9 * v + x
        out = v * w  # whose gradient of w needs v
        v.mul_(0.5)
        return out, v

    x = sequence(torch.float64)
    with snnfast.use_backend("fused"):
        ours = scaled().unroll(x)
    torch.testing.assert_close(gradients_of(list(ours), [x]), gradients_of(by_hand(scaled(), x), [x]))


# ---- errors


def test_what_is_not_elementwise_runs_as_the_loop() -> None:
    @snnfast.neuron
    def mixing(x: Tensor, v: Tensor) -> Any:
        v = v + x
        return v - v.mean(), v

    @snnfast.neuron
    def branching(x: Tensor, v: Tensor) -> Any:
        if (x > 0).any():
            v = v + 1
        return v, v

    outside = torch.rand(N)

    @snnfast.neuron
    def reaching_out(x: Tensor, v: Tensor) -> Any:
        return v + outside, v

    @snnfast.neuron
    def noisy(x: Tensor, v: Tensor) -> Any:
        return torch.rand_like(x), v

    x = sequence().detach()
    for kind, message in (
        (mixing, r"torch.mean is not elementwise.*test_own_neurons.py:\d+"),
        (branching, "torch.any is not elementwise"),
        (reaching_out, "a tensor from outside of the step: pass it as a parameter"),
        (noisy, "torch.rand_like is not elementwise"),
        (snnfast.neuron(lambda x, v: (x.round(decimals=1), v)), "torch.round with these arguments is not"),
    ):
        with pytest.warns(UserWarning, match=f"runs step by step because a program can't compute it.*{message}"):
            ours = kind().unroll(x)
        with snnfast.use_backend("fused"), pytest.raises(RuntimeError, match=message):
            kind().unroll(x)
        if kind is not noisy:
            assert_all_bits_equal(ours, by_hand(kind(), x))


ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: snnfast.neuron(lambda x: x), TypeError, "expected an input and at least one state"),
    (lambda: snnfast.neuron(lambda x, v, **options: (x, v)), TypeError, r"got \*\*options"),
    (lambda: snnfast.neuron(lambda x, forward: (x, forward)), TypeError, "forward: is an attribute of the layer"),
    (lambda: snnfast.neuron(lambda x, v=None: (x, v)), TypeError, "v: expected a number that the state begins with"),
    (lambda: SoftLIF(bta=0.5), TypeError, "bta: SoftLIF has no such parameter, but beta, threshold"),
    (lambda: PLIF(), TypeError, "decay: PLIF needs a value"),
    (lambda: SoftLIF().unroll(sequence(), torch.zeros(2)), ValueError, "mem: expected the shape of one step"),
    (lambda: SoftLIF().unroll(sequence(), None, None), TypeError, "states: expected mem, got 2"),
    (lambda: SoftLIF(beta=torch.rand(5)).unroll(sequence()), ValueError, "beta: shape"),
    (lambda: SoftLIF().unroll(sequence().long()), TypeError, "current: expected"),
    (lambda: SoftLIF().unroll(sequence(), reduce="mean"), ValueError, "reduce"),
    (lambda: snnfast.neuron(lambda x, v: x)().unroll(sequence()), TypeError, r"expected it to return \(spk, v\)"),
    (lambda: snnfast.neuron(lambda x, v: (x, 1.0))().unroll(sequence()), TypeError, "expected it to return tensors"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "error", "message"), ERRORS, ids=[message[:9] for _, _, message in ERRORS])
def test_errors_name_the_argument(wrong: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        wrong()
