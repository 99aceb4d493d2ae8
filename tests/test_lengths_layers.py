"""Ragged batches in layers, connected neurons, sequences, and spikes as bits to a linear layer."""

from typing import Any

import pytest
import torch
from callables import steep
from helpers import (
    KINDS,
    Case,
    assert_all_bits_equal,
    assert_all_close,
    assert_bits_equal,
    assert_close,
    gradients_of,
    inputs,
    leaves,
)
from snntorch_checks import CONNECTIONS, RECURRENT, connected, current_of
from torch import Tensor, nn

import snnfast
from snnfast import Leaky, MultiStep, Residual, RLeaky, Synaptic, use_backend

LENGTHS = torch.tensor([4, 9, 0, 7, 9])
STEPS, SAMPLES = 9, len(LENGTHS)
every_neuron = pytest.mark.parametrize("neuron", KINDS)


def padded(record: Tensor, n: int, steps: int, like_last: bool) -> Tensor:
    """``[n, 1, *]`` with its last row, or with zeros, behind it."""
    last = record[-1:] if like_last and n else record.new_zeros(1, *record.shape[1:])
    return torch.cat([record, last.expand(steps - n, *last.shape[1:])])


# ---- layers


@every_neuron
@pytest.mark.parametrize("record_mem", [True, False])
def test_held_states(neuron: str, record_mem: bool, backend: str) -> None:
    kind = KINDS[neuron]
    decays = dict.fromkeys(kind.decays, 0.5)
    layer, one = (kind.layer(*decays.values(), init_hidden=True) for _ in range(2))
    x = torch.rand(STEPS, SAMPLES, 6) * 2
    spk, *states = layer.unroll(x, record_mem=record_mem, lengths=LENGTHS)
    for b, n in enumerate(LENGTHS.tolist()):
        one.reset_mem()
        own, *_ = one.unroll(x[:n, b : b + 1])
        assert_bits_equal(spk[:, b : b + 1], padded(own, n, STEPS, like_last=False))
        for name in kind.ops.states:
            wanted = getattr(one, name) if n else torch.zeros(1, 6)
            assert_bits_equal(getattr(layer, name)[b : b + 1], wanted, name)
    for name, t in zip(kind.ops.states[kind.ops.has_spike_feedback :], states, strict=True):
        assert_bits_equal(t[-1] if record_mem else t, getattr(layer, name))


# ---- spikes as bits


@pytest.mark.needs_extension
@pytest.mark.parametrize("variant", ["unroll", "constant", "bits"])
@every_neuron
def test_spikes_as_bits_to_a_linear_layer(neuron: str, variant: str) -> None:
    case = Case(neuron, variant, 19, (4, 5, 12)).fitted()
    lengths = torch.tensor([3, 19, 0, 8])
    for outputs in (3, 40):
        tensors = leaves(inputs(case), case.wrt)
        weight = torch.randn(outputs, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
        bias = torch.randn(outputs, generator=torch.Generator().manual_seed(2)).requires_grad_()
        options = {**case.options, "lengths": lengths}
        asking = [t for t in (*tensors.values(), weight, bias) if t is not None and t.requires_grad]
        out, *states = case.kind.function(**tensors, **options, weight=weight, bias=bias)
        spk, *expected = case.kind.function(**tensors, **options)
        numbers = nn.functional.linear(spk, weight, bias)
        assert type(out.grad_fn).__name__ != type(numbers.grad_fn).__name__  # it is the product of bits
        for b, n in enumerate(lengths.tolist()):
            assert_bits_equal(out[n:, b], bias.expand_as(out[n:, b]))
        assert_close(out, numbers, 1e-5)
        assert_all_bits_equal(states, expected)
        assert_all_close(
            gradients_of([out, *states], asking), gradients_of([numbers, *expected], asking), relative=1e-4
        )


# ---- connected neurons


def connected_calls(name: str, kind: str, **options: Any) -> tuple[Any, Tensor, Tensor]:
    layer = connected(snnfast, name, kind, learn_beta=True, **options)
    x = current_of(kind)
    lengths = torch.tensor([7, 19, 0, 12])[: x.shape[1]]
    return layer, x, lengths


WITH_A_BATCH = [kind for kind in CONNECTIONS if kind != "one sample"]
MARKS = {kind: [pytest.mark.thorough] * (kind not in ("linear", "conv")) for kind in WITH_A_BATCH}


# Connections of every kind, and what runs step by step; hooks are of connections that may be any module.
ALONE = [
    *(pytest.param(kind, {}, id=kind, marks=marks) for kind, marks in MARKS.items()),
    *(
        pytest.param("linear", options, id="-".join(options))
        for options in (
            {"inhibition": True}, {"inhibition": True, "reset_delay": False}, {"spike_grad": steep},
            {"reset_delay": False}, {"hooked": True},
        )
    ),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:snnfast. a layer runs step by step")
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("kind", "options"), ALONE)
@RECURRENT
def test_connected_neurons_and_each_sample_alone(name: str, kind: str, options: dict[str, Any], backend: str) -> None:
    """In float64, where the order of sums decides no spike; the states are those that the layer holds."""
    hooked = "hooked" in options
    layer, x, lengths = connected_calls(name, kind, init_hidden=True, **({} if hooked else options))
    layer, x = layer.double(), x.double().requires_grad_()
    if hooked:
        layer.recurrent.register_forward_hook(lambda *_: None)
    asking, joined = [x, *layer.parameters()], []
    with use_backend(backend):
        spk, *states = layer.unroll(x, lengths=lengths)
        found = [spk, *states, *(getattr(layer, state) for state in layer.neuron.states)]
        snnfast.reset(layer)
        count, *last = layer.unroll(x, lengths=lengths, reduce="sum", record_mem=False)
        assert_all_close((count, *last), (spk.sum(0), *(record[-1] for record in states)), relative=1e-12)
        for b, n in enumerate(lengths.tolist()):
            snnfast.reset(layer)
            own, *records = layer.unroll(x[:n, b : b + 1])
            last = [getattr(layer, state) if n else own.new_zeros(1, *x.shape[2:]) for state in layer.neuron.states]
            made = [padded(own, n, len(x), like_last=False), *(padded(r, n, len(x), like_last=True) for r in records)]
            joined.append([*made, *last])
    wanted = [torch.cat(t, 1 if i < 1 + len(states) else 0) for i, t in enumerate(zip(*joined, strict=True))]
    assert_all_close(found, wanted, relative=1e-12)
    gradients = gradients_of(found, asking)
    assert_all_close(gradients, gradients_of(wanted, asking), relative=1e-10)
    for b, n in enumerate(lengths.tolist()):
        assert not gradients[0][n:, b].any()


def test_connected_neurons_without_a_batch(backend: str) -> None:
    layer, x = RLeaky(0.9, linear_features=10), torch.rand(9, 10)
    with pytest.raises(ValueError, match=r"^lengths: needs steps with a batch dimension"):
        layer.unroll(x, lengths=torch.arange(10) % 9)


# ---- sequences


def network(**options: Any) -> MultiStep:
    torch.manual_seed(5)
    return MultiStep(
        nn.Linear(6, 8), Leaky(0.8, learn_beta=True, **options), nn.Linear(8, 8), Synaptic(0.5, 0.7, **options),
        Residual(nn.Linear(8, 8), Leaky(0.9, **options)), nn.Linear(8, 4), RLeaky(0.9, linear_features=4, **options),
    ).double()  # fmt: skip


@pytest.mark.parametrize("num_steps", [None, STEPS])
def test_a_sequence(num_steps: int | None, backend: str) -> None:
    net = network()
    x = torch.rand(*(() if num_steps else (STEPS,)), SAMPLES, 6, dtype=torch.float64).mul(4).requires_grad_()
    more: dict[str, Any] = {"return_states": True, "return_spikes": True}
    spk, mem, states, spikes = net(x, num_steps, lengths=LENGTHS, **more)
    found = [spk, mem, *spikes]
    assert all(t.any() for t in spikes)
    joined = []
    for b, n in enumerate(LENGTHS.tolist()):
        own, own_mem, last, own_spikes = net(
            x[b : b + 1] if num_steps else x[:n, b : b + 1], n if num_steps else None, **more
        )
        joined.append([padded(t, n, STEPS, i == 1) for i, t in enumerate((own, own_mem, *own_spikes))])
        for state, one in zip(states, last, strict=True):
            for a, c in zip(*((s if isinstance(s, tuple) else (s,)) for s in (state, one)), strict=True):
                assert_close(a[b : b + 1], c, 1e-12)
    wanted = [torch.cat(t, 1) for t in zip(*joined, strict=True)]
    assert_all_close(found, wanted, relative=1e-12)
    asking = [x, *net.parameters()]
    assert_all_close(gradients_of(found, asking), gradients_of(wanted, asking), relative=1e-10)
    count, last_mem = net(x, num_steps, lengths=LENGTHS, reduce="sum", record_mem=False)
    assert_close(count, spk.sum(0), 1e-12)
    assert_close(last_mem, mem[-1], 1e-12)


def test_parts_of_a_sequence(backend: str) -> None:
    """A sample that has ended takes part with a length of 0."""
    net, x = network(), torch.rand(STEPS, SAMPLES, 6, dtype=torch.float64) * 4
    spk, mem = net(x, lengths=LENGTHS)
    states, parts, done = None, [], 0
    for part in x.split(4):
        *out, states = net(part, states=states, return_states=True, lengths=(LENGTHS - done).clamp(0, len(part)))
        parts.append(out)
        done += len(part)
    assert_all_close(map(torch.cat, zip(*parts, strict=True)), (spk, mem), relative=1e-12)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lif = Leaky(0.5)

    def unroll(self, x: Tensor) -> Tensor:
        return self.lif.unroll(x)[0]


class OwnWithLengths(Own):
    def unroll(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return self.lif.unroll(x, lengths=lengths)[0]


class Shift(nn.Module):
    def unroll(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x[:1]), x[:-1]])


def test_modules_with_an_unroll(backend: str) -> None:
    x = torch.rand(STEPS, SAMPLES, 6) * 2
    wanted = Leaky(0.5).unroll(x, lengths=LENGTHS)[0]
    assert_bits_equal(MultiStep(OwnWithLengths())(x, lengths=LENGTHS), wanted)
    assert_bits_equal(MultiStep(OwnWithLengths())(x), Leaky(0.5).unroll(x)[0])
    with pytest.raises(ValueError, match=r"^lengths: Own has an unroll of its own"):
        MultiStep(Own())(x, lengths=LENGTHS)
    assert MultiStep(Shift(), Leaky(0.5))(x, lengths=LENGTHS)[0].shape == x.shape  # it has no neuron


def test_lengths_are_checked_where_no_layer_takes_them(backend: str) -> None:
    net, x = MultiStep(nn.Linear(6, 5)), torch.rand(STEPS, SAMPLES, 6)
    for wrong, error in (([1], TypeError), (LENGTHS[:2], ValueError), (LENGTHS + 1, ValueError)):
        with pytest.raises(error, match=r"^lengths\b"):
            net(x, lengths=wrong)
