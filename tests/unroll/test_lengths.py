"""A ragged batch equals a call for each sample alone: bit for bit forward, to rounding backward."""

import functools
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from callables import steep
from fuzz import quantized
from gradient_checks import FLOWS, Function, check_against_reference
from helpers import (
    HALVES,
    KINDS,
    THOROUGH,
    VARIANTS,
    Case,
    Outputs,
    assert_all_bits_equal,
    assert_all_close,
    assert_bits_equal,
    assert_close,
    assert_same_outputs,
    emulated_if_thorough,
    expected,
    fused,
    gradients_of,
    inputs,
    leaves,
    random_cases,
)
from ops import call_op, forward_arguments
from snntorch_checks import CONNECTIONS, RECURRENT, connected, current_of
from torch import Tensor, nn

import snnfast
from snnfast import Leaky, MultiStep, Residual, RLeaky, Synaptic, functional, reference, use_backend
from snnfast._core import ops as _ops

every_neuron = pytest.mark.parametrize("neuron", KINDS)
SHAPES = ((3, 10), (5, 64), (4,), (2, 3, 7), (3, 2, 3, 3), (6, 1), (2, 130))


def some(number: int, seed: int, **choices: Any) -> Iterator[tuple[Case, Tensor]]:
    choices = {"shape": SHAPES, "steps": (1, 2, 5, 16, 18, 33, 40), **choices}
    for i, case in enumerate(random_cases(number, seed, **choices)):
        yield case, some_lengths(case.steps, case.shape[0], seed=i)


# ---- ragged batches, and what they are defined by: a call for each sample alone


def some_lengths(steps: int, samples: int, seed: int = 0) -> Tensor:
    """From 0 to ``steps``; with both of them where there are samples enough, and neighbours of equal length."""
    draw = random.Random(seed)
    lengths = [draw.randint(0, steps) for _ in range(samples)]
    for i in range(1, samples):
        if draw.random() < 0.3:
            lengths[i] = lengths[i - 1]
    if samples > 2:
        lengths[draw.randrange(samples)], lengths[0] = steps, min(lengths[0], steps - 1)
    return torch.tensor(lengths)


def ragged(lengths: Tensor) -> Function:
    """What the kernels make of a case with these lengths."""
    return functools.partial(fused, lengths=lengths)


def alone(lengths: Tensor, function: Function = expected) -> Function:
    """Each sample by a call of its own, as long as it is, with its last state behind it."""

    def joined(tensors: Mapping[str, Any], case: Case) -> Outputs:
        found = [_one(function, tensors, case, b, n) for b, n in enumerate(lengths.tolist())]
        over_time = dict.fromkeys(case.names, case.record_mem) | {"spk": not case.has("count")}
        return {name: torch.cat([one[name] for one in found], 1 if over_time[name] else 0) for name in found[0]}

    return joined


def _one(function: Callable[..., Outputs], tensors: Mapping[str, Any], case: Case, b: int, n: int) -> Outputs:
    """Sample ``b``, padded to the steps of the batch."""
    own: dict[str, Any] = {}
    for name, t in tensors.items():
        if t is None:
            own[name] = None
        elif name == "current" and not case.has("constant"):
            own[name] = t[:n, b : b + 1]
        else:  # a parameter of fewer dimensions than a step is the same for all samples
            own[name] = t[b : b + 1] if t.dim() == len(case.shape) and t.shape[0] > 1 else t
    found = function(own, replace(case, steps=n, shape=(1, *case.shape[1:])))
    if not case.has("count"):
        found["spk"] = padded(found["spk"], case.steps)
    for name in case.kind.results[1:] if case.record_mem else ():
        found[name] = padded(found[name], case.steps, found[name][-1] if n else own[name])
    return found


def padded(record: Tensor, steps: int, row: Tensor | None = None) -> Tensor:
    """``[n, B, *]`` with a row behind it, by default zeros, again and again."""
    row = record.new_zeros(record.shape[1:]) if row is None else row.to(record.dtype)
    return torch.cat([record, row.expand(steps - len(record), *row.shape)])


# ---- numbers


def check(some_cases: Iterator[tuple[Case, Tensor]], device: torch.device, call: Any, one: Any = expected) -> None:
    """Outputs bit for bit, and gradients to rounding."""
    flows = itertools.cycle(FLOWS)
    for i, (case, lengths) in enumerate(some_cases):
        check_against_reference(case, device, next(flows), i, function=call(lengths), oracle=alone(lengths, one))


MORE: dict[str, dict[str, Any]] = {
    "plain": {},
    "inhibition": {"inhibition": True},
    "quantized": {"state_quant": quantized},
}


@every_neuron
@pytest.mark.parametrize("more", MORE.values(), ids=MORE)
def test_the_reference_is_each_sample_alone(neuron: str, more: dict[str, Any]) -> None:
    reference = partial(expected, **more)
    shape = ((3, 10), (4, 6)) if "inhibition" in more else SHAPES
    drawn = some(12, seed=1, neuron=(neuron,), variant=("unroll", "constant", "count"), shape=shape)
    check(drawn, torch.device("cpu"), lambda lengths: partial(reference, lengths=lengths), reference)


@every_neuron
@pytest.mark.parametrize("variant", [v for v in VARIANTS if "step" not in v])
def test_the_kernels_are_each_sample_alone(variant: str, neuron: str, device: torch.device) -> None:
    if Case(neuron, variant).fitted().variant != variant:
        pytest.skip("the neuron has no such variant")
    check(some(20 if THOROUGH else 4, seed=3, neuron=(neuron,), variant=(variant,)), device, ragged)


@pytest.mark.needs_extension
def test_threads_instruction_sets_and_stores_past_the_caches_change_no_bit(isa: str, stream_bytes: Any) -> None:
    draw = torch.Generator().manual_seed(1)
    for shape, dtype in itertools.product(((7, 1000), (9, 640), (33, 10), (3, 4032)), (torch.float32, *HALVES)):
        case = Case("leaky", "unroll", 40, shape, dtype, record_mem=shape[0] != 9)
        lengths = torch.randint(0, 41, shape[:1], generator=draw)
        tensors, results = leaves(inputs(case)), []
        for threads, least in ((1, 1 << 60), (1, 0), (2, 0), (5, 1 << 60)):
            torch.set_num_threads(threads)
            stream_bytes(least)
            outputs = ragged(lengths)(tensors, case)
            loss = sum((i + 1) * t.double().square().sum() for i, t in enumerate(outputs.values()))
            results.append([*outputs.values(), *torch.autograd.grad(loss, list(tensors.values()))])  # type: ignore[arg-type]
        for result in results[1:]:
            assert_all_bits_equal(result, results[0])


@emulated_if_thorough
def test_what_is_in_the_padding_does_not_matter(device: torch.device) -> None:
    for case, lengths in some(12, seed=6, variant=("unroll", "callable"), record_mem=(True,), states=(True,)):
        tensors = leaves(inputs(case, device))
        padding = torch.arange(case.steps).view(-1, 1) >= lengths
        padding = padding.to(device).view(*padding.shape, *(1,) * (len(case.shape) - 1))
        results = []
        for value in (0.0, float("nan"), float("inf")):
            with torch.no_grad():
                tensors["current"].masked_fill_(padding, value)  # type: ignore[union-attr]
            found = ragged(lengths)(tensors, case)
            loss = sum((i + 1) * t.double().sum() for i, t in enumerate(found.values()))
            results.append([*found.values(), *torch.autograd.grad(loss, list(tensors.values()))])  # type: ignore[arg-type]
        for other in results[1:]:
            assert_all_bits_equal(other, results[0])
        assert not results[0][len(case.kind.results)].masked_select(padding).any()


@emulated_if_thorough
@every_neuron
def test_a_batch_of_whole_samples_is_a_dense_call(neuron: str, device: torch.device) -> None:
    for whole in (torch.full((3,), 9), torch.full((3,), 9, dtype=torch.int8)):
        case = Case(neuron)
        tensors = inputs(case, device)
        assert_same_outputs(ragged(whole)(tensors, case), alone(whole)(tensors, case), case)


# ---- the reference in place of the kernels


@pytest.mark.needs_extension
def test_a_transform_goes_by_the_reference_and_says_so() -> None:
    x, lengths = torch.rand(2, 9, 3, 4), torch.tensor([2, 9, 5])
    with pytest.warns(UserWarning, match="no rule of a torch.func transform for lengths"):
        found = torch.vmap(lambda x: functional.lif(x, beta=0.9, lengths=lengths)[1])(x)
    for i in range(2):
        assert_bits_equal(found[i], functional.lif(x[i], beta=0.9, lengths=lengths)[1])


# ---- the ops


@every_neuron
def test_the_ops_take_the_nearest_of_0_and_all_steps(neuron: str, device: torch.device) -> None:
    case = Case(neuron, steps=9, shape=(4, 5))
    ops, arguments = case.kind.ops, forward_arguments(case, device)
    found, wanted = (
        call_op(ops.forward, {**arguments, "lengths": torch.tensor(lengths, device=device)})
        for lengths in ([-7, 99, 3, 9], [0, 9, 3, 9])
    )
    saved = len(found) - 1  # nobody reads it beyond the length
    assert_all_bits_equal(found[:saved], wanted[:saved])


def test_wrong_lengths_are_refused_by_the_ops(device: torch.device) -> None:
    case = Case(shape=(3, 4))
    arguments = forward_arguments(case, device)
    good = torch.tensor([1, 2, 3], device=device)
    for wrong in (good[:2], good.int(), good.double(), good.view(3, 1), torch.stack([good, good], 1)[:, 0]):
        with pytest.raises(RuntimeError, match="lengths: expected contiguous int64"):
            call_op(_ops.NEURONS["leaky"].forward, {**arguments, "lengths": wrong})
    arguments["x"] = arguments["x"].transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(RuntimeError, match="lengths: need samples one after the other in memory"):
        call_op(_ops.NEURONS["leaky"].forward, {**arguments, "lengths": good})


def test_the_definition_needs_no_kernels() -> None:
    spk, mem = reference.lif(torch.full((3, 2), 0.6), beta=1.0, lengths=torch.tensor([2, 3]))
    assert spk.tolist() == [[0, 0], [1, 1], [0, 0]]
    torch.testing.assert_close(mem, torch.tensor([[0.6, 0.6], [1.2, 1.2], [1.2, 0.8]]))


# ---- layers

LENGTHS = torch.tensor([4, 9, 0, 7, 9])
STEPS, SAMPLES = 9, len(LENGTHS)


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
        assert_bits_equal(spk[:, b : b + 1], padded(own, STEPS))
        for name in kind.ops.states:
            wanted = getattr(one, name) if n else torch.zeros(1, 6)
            assert_bits_equal(getattr(layer, name)[b : b + 1], wanted, name)
    for name, t in zip(kind.ops.states[kind.ops.has_spike_feedback :], states, strict=True):
        assert_bits_equal(t[-1] if record_mem else t, getattr(layer, name))


# ---- spikes as bits


def pytorchs_products(grad_fn: Any) -> int:
    """How many products of PyTorch's are between a tensor and the tensors that it is computed from."""
    before = sum(pytorchs_products(function) for function, _ in grad_fn.next_functions if function is not None)
    return before + (type(grad_fn).__name__ in ("AddmmBackward0", "LinearBackward0"))


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
        assert [pytorchs_products(t.grad_fn) for t in (out, numbers)] == [0, 1]  # it is the product of bits
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
            made = [padded(own, len(x)), *(padded(r, len(x), r[-1] if n else None) for r in records)]
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
        joined.append([padded(own, STEPS), padded(own_mem, STEPS, own_mem[-1] if n else None)])
        joined[-1] += [padded(t, STEPS) for t in own_spikes]
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
