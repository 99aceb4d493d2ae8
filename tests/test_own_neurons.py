"""Layers of step functions: ``@snnfast.neuron`` and ``snnfast.spike``."""
# ruff: noqa: B008, N802

import copy
import pickle
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
from snnfast._program.run import Program
from snnfast._program.trace import NotElementwiseError

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


def test_reduce_counts() -> None:
    layer, x = SoftLIF(learn_beta=True), sequence()
    spk, mem = layer.unroll(x, record_mem=False)
    count, last = layer.unroll(x, reduce="sum", record_mem=False)
    assert torch.equal(count, spk.sum(0))
    assert torch.equal(last, mem)
    weights = torch.randn(B, N)
    ours = torch.autograd.grad((count * weights).sum(), x)
    theirs = torch.autograd.grad((layer.unroll(x)[0] * weights).sum(), x)
    torch.testing.assert_close(ours, theirs)


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


@pytest.mark.parametrize("num_steps", [0, 7])
def test_constant_input(num_steps: int, device: torch.device) -> None:
    layer, x = AdLIF(learn_a=True).to(device), sequence(device=device)[0].detach().requires_grad_()
    ours, theirs = layer.unroll(x, num_steps=num_steps), layer.unroll(x.expand(num_steps, B, N))
    assert_all_bits_equal(ours, theirs)
    if num_steps:
        torch.testing.assert_close(torch.autograd.grad(ours[1].sum(), x), torch.autograd.grad(theirs[1].sum(), x))


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


def test_options_are_each_layers() -> None:
    x = sequence()
    one, other = DecayInputLIF(), DecayInputLIF(spike_grad=surrogate.straight_through_estimator())
    a, b = (torch.autograd.grad(layer.unroll(x)[0].sum(), x)[0] for layer in (one, other))
    assert not torch.equal(a, b)


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
        for function, found in ((net, by_loop), (lambda x: lif.unroll(fc(x))[0], by_loop)):
            report = str(snnfast.explain(function, x))
            # torch 2.11 knows the line of a call alone, and one line copies all arguments.
            assert "one recurrence" in report or torch.__version__.startswith("2.11")
            result = snnfast.compile(function)(x)
            torch.testing.assert_close(result[0] if isinstance(result, tuple) else result, found)


@pytest.mark.needs_extension
def test_parameter_sums_do_not_depend_on_threads() -> None:
    layer, x, found = SoftLIF(learn_beta=True), torch.rand(20, 64, 300), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found += torch.autograd.grad(layer.unroll(x)[1].square().sum(), layer.beta)
    assert torch.equal(*found)


# ---- errors


def test_what_is_not_elementwise_is_named() -> None:
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
    def random(x: Tensor, v: Tensor) -> Any:
        return torch.rand_like(x), v

    x = sequence().detach()
    for kind, message in (
        (mixing, r"torch.mean is not elementwise.*test_own_neurons.py:\d+"),
        (branching, "torch.any is not elementwise"),
        (reaching_out, "a tensor from outside of the step: pass it as a parameter"),
        (random, "torch.rand_like is not elementwise"),
        (snnfast.neuron(lambda x, v: (x.round(decimals=1), v)), "torch.round with these arguments is not"),
    ):
        with pytest.raises(NotElementwiseError, match=message):
            kind().unroll(x)
        with snnfast.use_backend("reference"):
            kind().unroll(x)


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
    (lambda: snnfast.neuron(lambda x, v: (x * torch.tensor([1, 2]), v))().unroll(torch.rand(5, 2)), ValueError,
     "step: torch.lift_fresh with these arguments is not elementwise"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "error", "message"), ERRORS, ids=[message[:9] for _, _, message in ERRORS])
def test_errors_name_the_argument(wrong: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        wrong()
