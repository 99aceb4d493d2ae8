"""snnTorch's peculiarities: those that users may rely on are kept, those that are bugs of its bookkeeping are not.

docs/snntorch.md has the table. Where something is kept, both libraries run.
"""

import gc
import itertools
import re
import sys
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import snntorch
import torch
from helpers import FLOATS, HALVES, RESETS, SURROGATES, assert_all_bits_equal, assert_bits_equal, assert_close
from snntorch import utils
from snntorch_checks import BOTH, DECAYS, EVERY, LEARNED, NEURONS, NOT_LAPICQUE, OURS, STATES, copies_of, held, make
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import snnfast
import snnfast.snntorch as snn
from snnfast.snntorch._drop_ins import DropIn

# ---- kept


@BOTH
def test_a_state_that_is_not_passed_is_the_one_held(library: Any) -> None:
    """Though the layer is not asked to hold it."""
    for passed, syn, mem in (({"syn": 0.2}, 0.1, 0.3), ({"mem": 0.2}, 0.2, 0.3), ({}, 0.2, 0.4)):
        layer = library.Synaptic(0.5, 0.5)
        layer(torch.full((1, 1), 0.4))
        given = {name: torch.full((1, 1), value) for name, value in passed.items()}
        _, *states = layer(torch.zeros(1, 1), **given)
        assert [state.item() for state in states] == pytest.approx([syn, mem])


@BOTH
@NOT_LAPICQUE
def test_a_membrane_at_the_threshold_does_not_spike(name: str, library: Any) -> None:
    spk, *_, mem = make(library, name)(torch.ones(1, 1))
    assert (spk.item(), mem.item()) == (0, 1)


@BOTH
def test_a_graded_factor_of_a_checkpoint_counts(library: Any) -> None:
    layer = library.Synaptic(0.5, 0.5)
    layer.load_state_dict({**layer.state_dict(), "graded_spikes_factor": torch.tensor(3.0)})
    assert layer(torch.full((1, 1), 1.5))[0].item() == 3


PARAMETERS: dict[str, Any] = {
    "integer": 1, "float": 0.9, "list": [0.5, 0.6, 0.7], "tuple": (0.5, 0.6, 0.7), "float32": np.float32(0.9),
    "float64": np.float64(0.9), "array": np.array([0.5, 0.6, 0.7]), "tensor": torch.tensor([0.5, 0.6, 0.7]),
    "tensor64": torch.tensor([0.5, 0.6, 0.7], dtype=torch.float64), "integers": torch.tensor([1, 0, 1]),
}  # fmt: skip


@OURS
@pytest.mark.parametrize("kind", PARAMETERS)
@NOT_LAPICQUE
def test_parameters_of_every_kind(name: str, library: Any, kind: str) -> None:
    values = dict.fromkeys(LEARNED[name], PARAMETERS[kind])
    for learn in (False, True) if "integer" not in kind else (False,):
        flags = {f"learn_{parameter}": learn for parameter in values}
        ours, theirs = (make(made, name, **values, **flags) for made in (library, snntorch))
        assert list(ours.state_dict()) == list(theirs.state_dict())
        for (key, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert_bits_equal(a, b, key)
        # Of a single number in float64 snnTorch's spikes, which are float32, leave only float32: see below.
        for dtype in FLOATS if kind != "float64" else (torch.float32,):
            states = expected = [torch.rand(2, 3, dtype=dtype) for _ in held(ours)]
            for step in torch.rand(4, 2, 3, dtype=dtype) * 2:
                (spk, *states), (spk_expected, *expected) = ours(step, *states), theirs(step, *expected)
                assert_bits_equal(spk.float(), spk_expected.float())  # theirs are float32 where they can be
                assert_all_bits_equal(states, expected)


@NEURONS
def test_a_single_threshold_in_float64(name: str) -> None:
    threshold = np.float64(0.9)
    x, start = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    for library, expected in ((snn, 0.1), (snnfast, 0.1), (snntorch, 1 - float(np.float32(0.9)))):
        *_, mem = make(library, name, beta=1.0, threshold=threshold)(x, mem=start)
        assert mem.dtype == torch.float64
        assert mem.item() == pytest.approx(expected, abs=1e-15)


@NEURONS
def test_an_integer_cannot_be_learned(name: str) -> None:
    with pytest.raises(TypeError, match=r"beta: only a floating tensor can be learned, got torch\.int64"):
        make(snn, name, beta=1, learn_beta=True)
    with pytest.raises(RuntimeError):
        make(snntorch, name, beta=1, learn_beta=True)


# ---- mended: the reset mechanism; test_layers.py sets and loads one


@OURS
@pytest.mark.parametrize("reset", RESETS)
@NOT_LAPICQUE
def test_an_immediate_reset_reads_no_value(name: str, library: Any, reset: str) -> None:
    options: dict[str, Any] = {"reset_mechanism": reset, "reset_delay": False}
    lif = make(library, name, **options, init_hidden=True, output=True)
    with FakeTensorMode(allow_non_fake_inputs=True):  # no tensor has values here
        x = torch.rand(4, 2, 3)
        assert lif(x[0])[0].shape == (2, 3)
        assert lif.unroll(x)[1].shape == (4, 2, 3)
    on_meta = make(library, name, **options).to("meta")
    assert on_meta(torch.rand(2, 3, device="meta"))[1].is_meta
    theirs = make(snntorch, name, **options).to("meta")
    with pytest.raises(RuntimeError, match="meta"):
        theirs(torch.rand(2, 3, device="meta"))


@pytest.mark.parametrize("factor", [0.0, float("inf"), -float("inf"), float("nan")], ids=str)
@pytest.mark.parametrize("reset", RESETS)
@NOT_LAPICQUE
def test_the_height_of_a_spike_decides_no_reset(name: str, reset: str, factor: float, backend: str) -> None:
    made = (make(lib, name, reset_mechanism=reset, reset_delay=False) for lib in (snn, snntorch, snn, snn))
    ours, theirs, plain, unrolled = made
    for layer in (ours, theirs, unrolled):
        layer.graded_spikes_factor = torch.tensor(factor)
    x = torch.rand(4, 2, 3) * 2
    spk_rec, *records = unrolled.unroll(x)
    for t, step in enumerate(x):
        (spk, *states), (_, *without) = ours(step), plain(step)
        assert_bits_equal(spk, spk_rec[t])
        for state, record, wanted in zip(states, records, without, strict=True):
            assert_bits_equal(state, wanted)
            assert_bits_equal(record[t], wanted)
    spk, *_, mem = theirs(x[0])
    torch.testing.assert_close(spk, spk_rec[0], rtol=0, atol=0, equal_nan=True)  # also NaN where none spikes
    assert mem.isnan().all() == (reset != "none")


# ---- different on purpose


@NOT_LAPICQUE
def test_a_parameter_larger_than_the_input(name: str) -> None:
    x = torch.rand(2, 1)
    for decay in DECAYS[name]:
        with pytest.raises(ValueError, match=f"{decay}: shape"):
            make(snn, name, **{decay: torch.rand(5)})(x)
        assert make(snntorch, name, **{decay: torch.rand(5)})(x)[-1].shape == (2, 5)


@NEURONS
def test_no_reset_attribute_and_no_integers(name: str) -> None:
    ours, theirs = (make(library, name) for library in (snn, snntorch))
    for lif in (ours, theirs):
        lif(torch.rand(2, 3))
    assert hasattr(theirs, "reset")
    assert not hasattr(ours, "reset")
    with pytest.raises(TypeError, match="input_"):
        ours(torch.ones(2, 3, dtype=torch.int64))


def test_the_sigmoid_has_no_nan_and_lso_works() -> None:
    x = torch.full((1, 1), -10.0, requires_grad=True)
    snn.Leaky(0.9, spike_grad=snntorch.surrogate.sigmoid(slope=25))(x, torch.zeros(1, 1))[0].sum().backward()
    assert x.grad.isfinite().all()
    x = torch.full((1, 1), 0.5, requires_grad=True)
    snn.Leaky(0.9, spike_grad=snntorch.surrogate.LSO(slope=0.1))(x)[0].sum().backward()
    assert x.grad.item() == pytest.approx(0.1)


# ---- dtypes: where snnTorch rounds to float32 or to half precision, and this package does not


@NEURONS
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_a_float64_state_makes_the_step_float64(name: str, dtype: torch.dtype, backend: str) -> None:
    ours, theirs, x = make(snn, name), make(snntorch, name), (torch.rand(2, 3) * 2).to(dtype)
    states = [torch.rand(2, 3, dtype=torch.float64) for _ in held(ours)]
    (spk, *found), (spk_expected, *expected) = ours(x, *states), theirs(x, *states)
    assert spk.dtype == dtype
    assert_bits_equal(spk.float(), spk_expected)
    for state, wanted in zip(found, expected, strict=True):
        assert state.dtype == torch.float64
        if dtype == torch.float32 and name != "Lapicque":
            assert_bits_equal(state, wanted)
        else:  # snnTorch multiplies the input before it meets the state
            assert_close(state, wanted, 1e-6 if dtype == torch.float32 else 1e-2)
    *_, mem = ours(x, *found[:-1], found[-1].float())  # one of them is enough
    assert mem.dtype == (torch.float32 if len(found) == 1 else torch.float64)


def test_an_inhibited_float64_layer(backend: str) -> None:
    """As snnTorch would, were its spikes not float32."""

    class Corrected(snntorch.Leaky):
        def fire_inhibition(self, batch_size: int, mem: Tensor) -> Tensor:
            return super().fire_inhibition(batch_size, mem).double()

    x, graded = torch.rand(6, 4, 5, dtype=torch.float64) * 2, torch.tensor(1.3, dtype=torch.float64)
    records = []
    for leaky in (snn.Leaky, Corrected, snntorch.Leaky):
        layer = leaky(0.9, inhibition=True, reset_delay=False, graded_spikes_factor=graded)
        mem, record = torch.zeros(4, 5, dtype=torch.float64), []
        with snnfast.use_backend("auto" if backend == "fused" else backend), warnings.catch_warnings(action="ignore"):
            for step in x:
                _, mem = layer(step, mem)
                record.append(mem)
        records.append(torch.stack(record))
    assert_bits_equal(records[0], records[1])
    assert not torch.equal(records[0], records[2])
    assert_close(records[0], records[2], 1e-6)


# ---- mended: layers and their state are freed, copied and found


@OURS
@NEURONS
def test_an_unused_layer_is_freed(name: str, library: Any) -> None:
    gc.collect()  # what other tests left
    cls, layer = getattr(library, name), make(library, name, init_hidden=True)
    layer(torch.rand(2, 3))
    before = len(cls.instances)
    dead, states = weakref.ref(layer), [weakref.ref(state) for state in held(layer)]
    assert any(other is layer for other in cls.instances)
    assert len(cls.instances[:]) == before
    del layer
    assert dead() is None
    assert [state() for state in states] == [None] * len(states)
    assert len(cls.instances._refs) < before + 1  # the list does not grow with those that died
    assert len(cls.instances) == before - 1
    cls.reset_hidden()
    cls.detach_hidden()


@OURS
def test_layers_made_in_threads(library: Any) -> None:
    made = [library.Leaky(0.9) for _ in range(300)]  # a long list takes a while to enter
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    with ThreadPoolExecutor(4) as pool:
        made += pool.map(lambda _: library.Leaky(0.9), range(400))
    sys.setswitchinterval(interval)
    for cls in (library.Leaky, snnfast.Leaky):
        assert {id(layer) for layer in cls.instances} >= {id(layer) for layer in made}
    if library is snn:
        entries = {id(n.layer()) for n in snntorch.SpikingNeuron.instances if isinstance(n, DropIn)}
        assert entries >= {id(layer) for layer in made}


WRONG: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"beta": "x"}, TypeError), ({"threshold": float("nan")}, ValueError), ({"reset_mechanism": "halve"}, ValueError),
    ({"spike_grad": 3}, TypeError), ({"state_quant": 3}, TypeError), ({"beta": 1, "learn_beta": True}, TypeError),
]  # fmt: skip


@OURS
@NEURONS
def test_a_constructor_that_raises(name: str, library: Any) -> None:
    gc.collect()  # what other tests left
    cls = getattr(library, name)
    before = list(cls.instances)
    for options, error in WRONG:
        with pytest.raises(error):
            make(library, name, **options)
    assert list(cls.instances) == before
    assert snntorch.SpikingNeuron.instances == []
    getattr(snn, name).reset_hidden()
    getattr(snntorch, name).detach_hidden()


@OURS
@EVERY
def test_copies_pickles_and_files(name: str, library: Any) -> None:
    """They are equal and independent, and hold what the layer holds, of which a checkpoint has nothing."""
    cls = getattr(library, name)
    options: dict[str, Any] = {"spike_grad": SURROGATES["SFS"], "learn_beta": True, "reset_mechanism": "zero"}
    lif = make(library, name, beta=torch.rand(3) * 0.5, init_hidden=True, **options)
    for step in torch.full((2, 2, 3), 1.5):
        lif(step)
    assert lif.mem.requires_grad
    assert not any(isinstance(state, nn.Parameter) for state in held(lif))
    assert not set(STATES[name]) & {*lif.state_dict(), *dict(lif.named_buffers())}
    copies = copies_of(lif)
    for other in copies:
        assert type(other) is cls
        for state, original in zip(held(other), held(lif), strict=True):
            assert_bits_equal(state, original)
            assert not state.requires_grad
        assert any(layer is other for layer in cls.instances)
    assert lif.mem.requires_grad  # the layer's own graph is left alone
    x = torch.rand(6, 2, 3) * 2
    with torch.no_grad():
        expected = lif.unroll(x)
        for other in copies:
            assert_all_bits_equal(other.unroll(x), expected)
            other.beta.zero_()
    assert lif.beta.any()
    cls.reset_hidden()
    assert not any(state.any() for other in (lif, *copies) for state in held(other))
    for other in copies if library is snn else ():  # which snnTorch's reset reaches, as it does not its own copies
        other(torch.ones(2, 3))
        utils.reset(nn.Sequential(other))
        assert not any(state.any() for state in held(other))


@NEURONS
def test_init_forgets_the_layers_there_are(name: str) -> None:
    old = make(snn, name, init_hidden=True)
    old(torch.ones(2, 3))
    getattr(snn, name).init()
    new = make(snn, name, init_hidden=True)
    new(torch.ones(2, 3))
    getattr(snn, name).reset_hidden()
    assert all(state.any() for state in held(old))
    assert not any(state.any() for state in held(new))


# ---- mended: the held membrane


@BOTH
@pytest.mark.parametrize(("name", "state"), [("Leaky", "mem"), ("Synaptic", "syn"), ("Synaptic", "mem")])
def test_an_error_for_a_state_changes_nothing(library: Any, name: str, state: str) -> None:
    layer = make(library, name, init_hidden=True)
    layer(torch.full((1, 1), 0.4))
    with pytest.raises(TypeError, match=state):
        layer(torch.full((1, 1), 0.4), **{state: torch.full((1, 1), 0.7)})
    for other in STATES[name]:
        expected = 0.7 if library is snntorch and other == state else 0.4
        assert getattr(layer, other).item() == pytest.approx(expected)


@NEURONS
def test_states_are_on_the_device_of_the_input(name: str) -> None:
    x = torch.rand(2, 3, device="meta")
    assert all(state.is_meta for state in make(snn, name)(x))


KINDS: dict[str, dict[str, Any]] = {
    "default": {}, "nodelay": {"reset_delay": False}, "inhibition": {"inhibition": True},
    "callable": {"spike_grad": lambda z: snnfast.surrogate.fast_sigmoid(3.0)(z)},
}  # fmt: skip


@pytest.mark.parametrize("record_mem", [True, False], ids=["record", "last"])
@pytest.mark.parametrize("num_steps", [None, 4], ids=["sequence", "constant"])
@pytest.mark.parametrize(
    ("name", "kind"),  # the spikes of an inhibited recurrent layer come from no kernel
    [case for case in itertools.product(STATES, KINDS) if case[0][0] != "R" or case[1] != "inhibition"],
)
def test_a_held_state_is_never_a_view(
    name: str, num_steps: int | None, record_mem: bool, kind: str, backend: str
) -> None:
    layer = make(snn, name, init_hidden=True, learn_beta=True, **KINDS[kind])
    for dtype in (torch.float32, torch.float16):
        x = torch.rand((2, 3) if num_steps else (4, 2, 3)).to(dtype).requires_grad_()
        _, *records = layer.unroll(x, num_steps=num_steps, record_mem=record_mem)
        for state, record in zip(held(layer)[-len(records) :], records, strict=True):
            assert not state._is_view()
            assert state.requires_grad
            assert state.dtype == torch.float32
            assert_bits_equal(state.to(record.dtype), record[-1] if record_mem else record)
            assert state.untyped_storage().size() == 6 * state.element_size()  # and it keeps no record alive
        getattr(snn, name).detach_hidden()
        assert not any(state.requires_grad for state in held(layer))


# ---- mended: replicas of DataParallel


def replicas(net: nn.Module, number: int) -> list[nn.Module]:
    """What ``torch.nn.parallel.replicate`` makes, on the CPU, which it refuses."""
    modules = list(net.modules())
    made = []
    for _ in range(number):
        copies = {module: module._replicate_for_data_parallel() for module in modules}
        for module, replica in copies.items():
            for name, child in module._modules.items():
                setattr(replica, name, copies[child])
            for name, parameter in module._parameters.items():
                setattr(replica, name, parameter.view_as(parameter))
            for name, buffer in module._buffers.items():
                setattr(replica, name, buffer)
        made.append(copies[net])
    return made


def run_in_replicas(net: nn.Module, x: Tensor) -> Tensor:
    """Spikes ``[T, B, N]`` of halves of a batch in two replicas, one step of each in turn."""
    pair = replicas(net, 2)
    return torch.stack([torch.cat([r(h) for r, h in zip(pair, step.chunk(2), strict=True)]) for step in x])


@NEURONS
def test_a_replica_has_a_state_of_its_own(name: str) -> None:
    def network(library: Any) -> nn.Sequential:
        torch.manual_seed(6)
        return nn.Sequential(nn.Linear(6, 5), make(library, name, init_hidden=True, learn_beta=True))

    x = torch.rand(6, 4, 6) * 3
    whole = network(snntorch)
    expected = torch.stack([whole(step) for step in x])
    net = network(snn)
    spk = run_in_replicas(net, x)
    assert_bits_equal(spk, expected)
    assert all(state.shape == (0,) for state in held(net[1]))  # the original's are left alone
    spk.sum().backward()
    expected.sum().backward()
    assert_close(net[1].beta.grad, whole[1].beta.grad, 1e-5)
    assert_close(net[0].weight.grad, whole[0].weight.grad, 1e-5)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_reset_that_is_proposed_for_snntorch_as_a_neuron_of_your_own(dtype: torch.dtype) -> None:
    """It is the block of ``docs/snntorch.md``, against the proposal written out with PyTorch's calls."""
    page = (Path(__file__).parents[2] / "docs" / "snntorch.md").read_text()
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "LeakySubtractBeta" in b]
    found: dict[str, Any] = {}
    exec(compile(block, "docs/snntorch.md", "exec"), found)
    layer = found["LeakySubtractBeta"](beta=0.83, learn_beta=True).to(dtype)
    x = (torch.rand(25, 8, 100, dtype=dtype) * 2).requires_grad_()
    with snnfast.use_backend("fused"):
        spk_rec, mem_rec = layer.unroll(x)
    beta, threshold = layer.beta.detach().clone().requires_grad_(), torch.tensor(1.0, dtype=dtype)
    spike_grad, mem, expected = snnfast.surrogate.atan(), torch.zeros(8, 100, dtype=dtype), []
    for step in x:
        reset = spike_grad(mem - threshold).clone().detach()
        mem = beta.clamp(0, 1) * mem + step
        mem = mem - reset * threshold * beta.clamp(0, 1)
        expected.append((spike_grad(mem - threshold), mem))
    spikes, membranes = map(torch.stack, zip(*expected, strict=True))
    assert_all_bits_equal([spk_rec, mem_rec], [spikes, membranes])
    assert (membranes > 2).any()  # twice the threshold: the spike after that depends on what the reset has left
    given, of_loop = (
        torch.autograd.grad((spk * 3 + mem.square()).sum(), [x, decay])
        for spk, mem, decay in ((spk_rec, mem_rec, layer.beta), (spikes, membranes, beta))
    )
    for gradient, other in zip(given, of_loop, strict=True):
        assert_close(gradient, other, 1e-4)
