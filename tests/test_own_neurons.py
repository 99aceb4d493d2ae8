"""Layers of step functions: ``@snnfast.neuron`` and ``snnfast.spike``."""
# ruff: noqa: B008, N802, N812

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import emulated_if_thorough
from random_steps import Rectangle
from torch import Tensor, nn

import snnfast
from snnfast import surrogate
from snnfast._program.trace import NotElementwiseError

T, B, N = 21, 3, 37
CPU = torch.device("cpu")


@snnfast.neuron
def PaperLIF(x: Tensor, mem: Tensor, *, tau: float = 0.5, threshold: float = 1.0) -> Any:
    """TET's LIFSpike: hard reset at once, attached; a triangle."""
    mem = mem * tau + x
    spk = Rectangle.apply(mem - threshold)
    return spk, (1.0 - spk) * mem


@snnfast.neuron
def SoftLIF(x: Tensor, mem: Tensor, *, beta: float = 0.9, threshold: float = 1.0) -> Any:
    mem = beta * mem + x
    spk = snnfast.spike(mem - threshold, surrogate.fast_sigmoid())
    return spk, mem - threshold * spk.detach()


@snnfast.neuron
def DecayInputLIF(
    x: Tensor, v: Tensor, *, tau: float = 2.0, v_reset: float = -0.1, spike_grad: Any = surrogate.atan()
) -> Any:
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
def AdaptiveThreshold(
    x: Tensor, u: Tensor, b: Tensor, *, alpha: float = 0.9, rho: float = 0.95, gain: float = 1.8
) -> Any:
    """ALIF of Yin et al."""
    theta = 0.1 + gain * b
    u = alpha * u + (1 - alpha) * x
    spk = snnfast.spike(u - theta, surrogate.sigmoid(4))
    return spk, u - spk * theta, rho * b + (1 - rho) * spk


@snnfast.neuron
def PLIF(x: Tensor, v: Tensor, *, decay: Any) -> Any:
    """Parametric LIF, whose decay is a sigmoid outside."""
    h = v + (x - v) * decay
    spk = surrogate.atan()(h - 1.0)
    return spk, h * (1.0 - spk.detach())


@snnfast.neuron
def Izhikevich(
    x: Tensor,
    v: Tensor = -65.0,
    u: Tensor = -13.0,
    *,
    a: float = 0.02,
    b: float = 0.2,
    c: float = -65.0,
    d: float = 8.0,
) -> Any:  # type: ignore[assignment]
    v = v + 0.5 * (0.04 * v**2 + 5 * v + 140 - u + 10 * x)
    u = u + 0.5 * a * (b * v - u)
    spk = snnfast.spike(v - 30.0, surrogate.fast_sigmoid())
    fired = spk > 0
    return spk, torch.where(fired, c, v), torch.where(fired, u + d, u)


@snnfast.neuron
def IntegerLIF(x: Tensor, v: Tensor, *, levels: int = 4) -> Any:
    """I-LIF of SpikeYOLO: spikes are integers, with a straight-through derivative."""
    v = 0.25 * v + x
    clipped = torch.minimum(torch.relu(v), levels)
    spk = clipped + (clipped.round() - clipped).detach()
    return spk, v - spk


@snnfast.neuron
def AdLIF(x: Tensor, u: Tensor, w: Tensor, *, a: float = 0.3, b: float = 0.2) -> Any:
    """SpikingLIF of Bittar and Garner."""
    before = snnfast.spike(u - 1.0, surrogate.fast_sigmoid())
    u = 0.9 * (u - before) + 0.6 * (x - w)
    w = 0.95 * w + a * u + b * before
    return snnfast.spike(u - 1.0, surrogate.fast_sigmoid()), u, w


@snnfast.neuron
def LIAF(x: Tensor, v: Tensor) -> Any:
    """Leaky integrate and analog fire: what fires is an analog value."""
    v = 0.3 * v + x
    fired = (v > 0.5).float().to(v.dtype)
    return F.leaky_relu(v, 0.1), v * (1 - fired)


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
def Ternary(x: Tensor, v: Tensor) -> Any:
    v = 0.5 * v + F.hardtanh(x, -2.0, 2.0)
    spk = snnfast.spike(v - 0.5, surrogate.atan()) - snnfast.spike(-v - 0.5, surrogate.atan())
    return spk, torch.clamp(v - spk, min=-1.0, max=1.0)


@snnfast.neuron
def Refractory(x: Tensor, v: Tensor, left: Tensor, *, pause: int = 2) -> Any:
    active = left <= 0
    v = torch.where(active, 0.9 * v + x, v)
    spk = snnfast.spike(v - 1.0, surrogate.triangular()) * active
    return spk, v * (1 - spk), torch.where(spk > 0, pause, (left - 1).clamp(min=0))


OWN = [
    PaperLIF, SoftLIF, DecayInputLIF, CurrentLIF, AdaptiveThreshold, PLIF, Izhikevich, IntegerLIF, AdLIF, LIAF, Traced,
    Ternary, Refractory,
]  # fmt: skip


def made(kind: Any, **options: Any) -> Any:
    """A layer with one parameter learned, if it has any."""
    names = kind.neuron.parameters
    if kind is PLIF:
        options["decay"] = torch.sigmoid(torch.linspace(-1, 1, N))
    if names and kind is not Refractory and kind is not IntegerLIF:
        options[f"learn_{names[0]}"] = True
    return kind(**options)


def sequence(dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return (torch.randn(T, B, N, generator=g) * 0.8 + 0.4).to(device, dtype).requires_grad_()


def train(call: Callable[[Any, Tensor], Any], layer: Any, x: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
    results = list(call(layer, x))
    g = torch.Generator().manual_seed(1)
    loss = sum((r * torch.randn(r.shape, generator=g).to(r)).sum() for r in results if r.requires_grad)
    leaves = [x, *layer.parameters()]
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)  # type: ignore[arg-type]
    return [r.cpu() for r in results], [g if g is None else g.cpu() for g in grads]


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
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    for ours_of, theirs_of in zip(grads, wanted, strict=True):
        assert ours_of is not None
        assert theirs_of is not None
        torch.testing.assert_close(ours_of, theirs_of, rtol=tolerance, atol=tolerance * float(theirs_of.abs().max()))


@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.__name__)
def test_reference_and_steps_equal_unroll(kind: Any) -> None:
    layer, x = made(kind), sequence().detach()
    ours = layer.unroll(x)
    with snnfast.use_backend("reference"):
        for a, b in zip(ours, layer.unroll(x), strict=True):
            assert torch.equal(a, b)
    layer.reset_mem()
    layer(x[0])
    layer.reset_mem()
    rows = [layer(step) for step in x]
    for a, b in zip(ours, zip(*rows, strict=True), strict=True):
        assert torch.equal(a, torch.stack(b))


# ---- the six neurons of the table


@snnfast.neuron
def Leaky(x: Tensor, mem: Tensor, *, beta: float = 0.9, threshold: float = 1.0) -> Any:
    reset = (mem - threshold > 0).float().to(x.dtype)
    mem = beta.clamp(0, 1) * mem + x - reset * threshold  # type: ignore[attr-defined]
    return snnfast.spike(mem - threshold, surrogate.atan()), mem


@snnfast.neuron
def Synaptic(x: Tensor, syn: Tensor, mem: Tensor, *, alpha: Any = 0.8, beta: Any = 0.9, threshold: float = 1.0) -> Any:
    reset = (mem - threshold > 0).float().to(x.dtype)
    syn = alpha.clamp(0, 1) * syn + x
    mem = beta.clamp(0, 1) * mem + syn - reset * threshold
    return snnfast.spike(mem - threshold, surrogate.atan()), syn, mem


@snnfast.neuron
def Lapicque(
    x: Tensor,
    mem: Tensor,
    *,
    R: Any = 5.0,
    rate: Any = 0.5,
    time_step: Any = 0.1,
    decay: Any = 0.9,
    threshold: float = 1.0,
) -> Any:
    reset = (mem - threshold > 0).float().to(x.dtype)
    mem = x * R * rate * time_step + decay * mem - reset * threshold
    return snnfast.spike(mem - threshold, surrogate.atan()), mem


@snnfast.neuron
def Alpha(
    x: Tensor,
    syn_exc: Tensor,
    syn_inh: Tensor,
    mem: Tensor,
    *,
    alpha: Any = 0.9,
    beta: Any = 0.8,
    tau: Any = 1.0,
    threshold: float = 1.0,
) -> Any:
    reset = (mem - threshold > 0).float().to(x.dtype)
    before = syn_inh
    syn_exc = alpha.clamp(0, 1) * syn_exc + x
    syn_inh = beta.clamp(0, 1) * syn_inh - x
    v = tau * (syn_exc + syn_inh)
    syn_exc, syn_inh, mem = syn_exc - threshold * reset, syn_inh - syn_inh * reset, v - -before * reset
    return snnfast.spike(mem - threshold, surrogate.atan()), syn_exc, syn_inh, mem


@snnfast.neuron
def RLeaky(x: Tensor, spk: Tensor, mem: Tensor, *, V: Any = 0.7, beta: Any = 0.9, threshold: float = 1.0) -> Any:
    reset = (mem - threshold > 0).float().to(x.dtype)
    mem = beta.clamp(0, 1) * mem + x + spk * V - reset * threshold
    spk = snnfast.spike(mem - threshold, surrogate.atan())
    return spk, spk, mem


@snnfast.neuron
def RSynaptic(
    x: Tensor,
    spk: Tensor,
    syn: Tensor,
    mem: Tensor,
    *,
    V: Any = 0.7,
    alpha: Any = 0.8,
    beta: Any = 0.9,
    threshold: float = 1.0,
) -> Any:
    reset = (mem - threshold > 0).float().to(x.dtype)
    syn = alpha.clamp(0, 1) * syn + x + spk * V
    mem = beta.clamp(0, 1) * mem + syn - reset * threshold
    spk = snnfast.spike(mem - threshold, surrogate.atan())
    return spk, spk, syn, mem


TABLE: list[tuple[Any, Any]] = [
    (Leaky, lambda: snnfast.Leaky(0.9, learn_threshold=True)),
    (Synaptic, lambda: snnfast.Synaptic(0.8, 0.9, learn_threshold=True)),
    (Alpha, lambda: snnfast.Alpha(0.9, 0.8, learn_threshold=True, reset_mechanism="subtract")),
    (RLeaky, lambda: snnfast.RLeaky(0.9, V=0.7, all_to_all=False, learn_threshold=True)),
    (RSynaptic, lambda: snnfast.RSynaptic(0.8, 0.9, V=0.7, all_to_all=False, learn_threshold=True)),
]


@pytest.mark.needs_extension
@pytest.mark.parametrize(("kind", "kernel"), TABLE, ids=[kind.__name__ for kind, _ in TABLE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_equals_kernel(kind: Any, kernel: Any, dtype: torch.dtype) -> None:
    theirs = kernel()
    values = {name: getattr(theirs, name).detach() for name in kind.neuron.parameters if hasattr(theirs, name)}
    if kind is Alpha:
        values["tau"] = theirs._values()[2].detach()
    ours, x = kind(**values, learn_threshold=True), sequence(dtype)
    recorded = lambda layer, x: layer.unroll(x)  # noqa: E731
    skip = lambda layer, x: (r for i, r in enumerate(layer.unroll(x)) if i != 1)  # noqa: E731 - the spike as a state
    (a, grads), (b, wanted) = (
        train(skip if kind in (RLeaky, RSynaptic) else recorded, ours, x),
        train(recorded, theirs, x),
    )
    for mine, kernels in zip(a, b, strict=True):
        assert torch.equal(mine, kernels)
    wanted_of = [wanted[0], dict(zip(dict(theirs.named_parameters()), wanted[1:], strict=True))["threshold"]]
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    for mine, kernels in zip(grads, wanted_of, strict=True):
        assert mine is not None
        assert kernels is not None
        torch.testing.assert_close(mine, kernels, rtol=tolerance, atol=tolerance * float(kernels.abs().max()))


@pytest.mark.needs_extension
def test_lapicque_equals_kernel() -> None:
    theirs = snnfast.Lapicque(R=5.0, C=2.0, time_step=0.1)
    names = theirs.neuron.parameters[:-1]
    values = dict(zip(names, theirs._values(), strict=False))
    ours, x = Lapicque(**values), sequence()
    for a, b in zip(ours.unroll(x), theirs.unroll(x), strict=True):
        assert torch.equal(a, b)


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
    spk, v, u = free(x[0], whole[1][-1], whole[2][-1])
    assert spk.shape == v.shape == u.shape == (B, N)
    with pytest.raises(TypeError, match="v: must not be passed"):
        held(x[0], whole[1][-1])
    held.reset_mem()
    assert torch.equal(Izhikevich(init_hidden=True, output=True)(x[0])[1], free.unroll(x)[1][0])


def test_passes_states_on() -> None:
    layer, x = CurrentLIF(), sequence().detach()
    whole = layer.unroll(x)
    first = layer.unroll(x[:10], record_mem=False)
    second = layer.unroll(x[10:], *first[1:])
    assert torch.equal(whole[1][10:], second[1])


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
    alone = [r.cpu() for r in layer.unroll(x[:5, :1])]
    for ragged, of_one in zip(results, alone, strict=True):
        assert torch.equal(ragged[:5, :1], of_one)
    assert not results[0][5:, 0].any()
    assert torch.equal(results[1][5:, 0], results[1][4, 0].expand(T - 5, N))
    assert all(g is not None and g.isfinite().all() for g in grads)
    with snnfast.use_backend("reference"):
        theirs, wanted = train(lambda layer, x: layer.unroll(x, lengths=lengths), layer, padded)
    for a, b in zip(results, theirs, strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(grads, wanted)


@pytest.mark.parametrize("num_steps", [0, 7])
def test_constant_input(num_steps: int, device: torch.device) -> None:
    layer, x = AdLIF(learn_a=True).to(device), sequence(device=device)[0].detach().requires_grad_()
    ours, theirs = layer.unroll(x, num_steps=num_steps), layer.unroll(x.expand(num_steps, B, N))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
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

    layer = smooth(learn_k=True).double()

    def run(x: Tensor, v: Tensor, k: Tensor) -> Any:
        layer.k.data = k.data
        return torch.func.functional_call(layer, {"k": k}, (x, v)) if x.dim() == 1 else _unrolled(layer, x, v, k)

    x, v = (
        torch.randn(5, 3, dtype=torch.float64, requires_grad=True),
        torch.randn(3, dtype=torch.float64, requires_grad=True),
    )
    k = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, v, k))
    assert torch.autograd.gradgradcheck(run, (x, v, k))


def _unrolled(layer: Any, x: Tensor, v: Tensor, k: Tensor) -> Any:
    from snnfast._program.run import Program

    program = Program(lambda x, v, k: type(layer).step(x, v, k=k), 1, 1, 1)
    outputs, last = program([x], [v], [k], len(x))
    return (*outputs, *last)


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
    assert torch.equal(snnfast.spike(z, Rectangle.apply), (z > 0).float())
    with pytest.raises(TypeError, match=r"surrogate.atan\(\)"):
        snnfast.spike(z, surrogate.atan)


def test_under_transforms() -> None:
    layer, x = SoftLIF(), sequence().detach()
    with pytest.warns(UserWarning, match="step by step under a torch.func transform"):
        grads = torch.func.vmap(torch.func.grad(lambda x: layer.unroll(x, record_mem=False)[0].sum()), in_dims=1)(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(grads, torch.autograd.grad(layer.unroll(leaf)[0].sum(), leaf)[0].transpose(0, 1))


def test_in_compiled_code(nothing_compiled: None) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(N, 8), DecayInputLIF(learn_tau=True)

        def forward(self, x: Tensor) -> Tensor:
            v, rows = torch.zeros(B, 8), []
            for step in x:
                spk, v = self.lif(self.fc(step), v)
                rows.append(spk)
            return torch.stack(rows)

    net, x = Net(), sequence().detach()[:4]
    by_loop = net(x)
    assert torch.equal(by_loop, net.lif.unroll(net.fc(x))[0])
    unroll = torch.compile(lambda x: net.lif.unroll(x)[0], backend="eager")
    with pytest.warns(UserWarning, match="step by step where torch.compile traces it"):
        assert torch.equal(by_loop, unroll(net.fc(x)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing in it is merged yet
        compiled = snnfast.compile(net)
        torch.testing.assert_close(by_loop, compiled(x))


@pytest.mark.needs_extension
def test_parameter_sums_do_not_depend_on_threads() -> None:
    layer, found = SoftLIF(learn_beta=True), []
    x = torch.rand(20, 64, 300)
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        (grad,) = torch.autograd.grad(layer.unroll(x)[1].square().sum(), layer.beta)
        found.append(grad)
    torch.set_num_threads(before)
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
    ):
        with pytest.raises(NotElementwiseError, match=message):
            kind().unroll(x)
        with snnfast.use_backend("reference"):
            kind().unroll(x)


def test_errors_name_the_argument() -> None:
    with pytest.raises(TypeError, match="expected an input and at least one state"):
        snnfast.neuron(lambda x: x)
    with pytest.raises(TypeError, match=r"got \*\*options"):
        snnfast.neuron(lambda x, v, **options: (x, v))
    with pytest.raises(TypeError, match="forward: is an attribute of the layer"):
        snnfast.neuron(lambda x, forward: (x, forward))
    with pytest.raises(TypeError, match="v: expected a number that the state begins with"):
        snnfast.neuron(lambda x, v=None: (x, v))
    with pytest.raises(TypeError, match="bta: SoftLIF has no such parameter, but beta, threshold"):
        SoftLIF(bta=0.5)
    with pytest.raises(TypeError, match="decay: PLIF needs a value"):
        PLIF()
    layer, x = SoftLIF(), sequence().detach()
    with pytest.raises(ValueError, match="mem: expected the shape of one step"):
        layer.unroll(x, torch.zeros(2))
    with pytest.raises(TypeError, match="states: expected mem, got 2"):
        layer.unroll(x, None, None)
    with pytest.raises(ValueError, match="beta: shape"):
        SoftLIF(beta=torch.rand(5)).unroll(x)
    with pytest.raises(TypeError, match="current: expected"):
        layer.unroll(x.long())
    with pytest.raises(ValueError, match="reduce"):
        layer.unroll(x, reduce="mean")
    with pytest.raises(TypeError, match=r"expected it to return \(spk, v\)"):
        snnfast.neuron(lambda x, v: x)().unroll(x)
