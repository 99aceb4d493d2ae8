"""snnTorch's peculiarities: those that users may rely on are kept, those that are bugs of its bookkeeping are not.

docs/snntorch.md has the table; test_quirks_state.py has what concerns states and copies.
Where something is kept, both libraries run; where it is mended, snnTorch shows that it was broken.
"""

import warnings
from typing import Any

import numpy as np
import pytest
import snntorch
import torch
from helpers import FLOATS, HALVES, RESETS, assert_all_bits_equal, assert_bits_equal, assert_close
from snntorch.functional import loss
from snntorch_checks import BOTH, DECAYS, LEARNED, NEURONS, NOT_LAPICQUE, OURS, STATES, held, make
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import snnfast
import snnfast.snntorch as snn

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


NOW: dict[str, Any] = {"reset_delay": False}
# One step: options, the input and the states before it, and what is found after it. A membrane above 1.0 is to be
# reset: at once if there is no delay, and where the step then does not spike, what was taken comes back. With "zero",
# only the input of a Leaky is left, which that doubles.
STEPS: dict[str, tuple[str, dict[str, Any], float, dict[str, float], dict[str, float]]] = {
    "subtract": ("Leaky", NOW, 0.0, {"mem": 1.2}, {"spk": 0, "mem": 0.6}),
    "zero": ("Leaky", {**NOW, "reset_mechanism": "zero"}, 0.4, {"mem": 1.2}, {"spk": 0, "mem": 0.8}),
    "none": ("Leaky", {**NOW, "reset_mechanism": "none"}, 0.0, {"mem": 1.2}, {"spk": 0, "mem": 0.6}),
    "syn-subtract": ("Synaptic", NOW, 0.0, {"mem": 1.2}, {"spk": 0, "mem": 0.6}),
    "syn-zero": ("Synaptic", {**NOW, "reset_mechanism": "zero"}, 0.3, {"mem": 1.2}, {"spk": 0, "mem": 0}),
    "syn-none": ("Synaptic", {**NOW, "reset_mechanism": "none"}, 0.0, {"mem": 1.2}, {"spk": 0, "mem": 0.6}),
    "no reset of syn": ("Synaptic", {"reset_mechanism": "zero"}, 0.25, {"syn": 2, "mem": 2}, {"syn": 1.25, "mem": 0}),
    "at the threshold": ("Leaky", {}, 1.0, {}, {"spk": 0, "mem": 1}),
    "syn at the threshold": ("Synaptic", {}, 1.0, {}, {"spk": 0, "mem": 1}),
}


@BOTH
@pytest.mark.parametrize("step", STEPS)
def test_one_step_in_numbers(library: Any, step: str) -> None:
    name, options, x, before, after = STEPS[step]
    decays = dict.fromkeys(DECAYS[name], 0.5)
    layer = make(library, name, **decays, **options)
    spk, *_ = layer(torch.tensor([[x]]), **{state: torch.tensor([[float(value)]]) for state, value in before.items()})
    found = {"spk": spk.item(), **{state: getattr(layer, state).item() for state in STATES[name]}}
    assert {key: found[key] for key in after} == pytest.approx(after)


@BOTH
def test_a_graded_factor_of_a_checkpoint_counts(library: Any) -> None:
    layer = library.Synaptic(0.5, 0.5)
    layer.load_state_dict({**layer.state_dict(), "graded_spikes_factor": torch.tensor(3.0)})
    assert layer(torch.full((1, 1), 1.5))[0].item() == 3


@BOTH
@pytest.mark.filterwarnings("ignore:Inhibition")
@NOT_LAPICQUE
def test_losers_of_an_inhibition_are_reset_later(name: str, library: Any) -> None:
    decays = {decay: 0.0 if decay == "alpha" else 1.0 for decay in DECAYS[name]}
    layer = make(library, name, **decays, inhibition=True)
    layer.graded_spikes_factor = torch.tensor(3.0)
    spk, *_ = layer(torch.tensor([[1.5, 1.2, 0.4]]))
    assert spk.tolist() == [[1, 0, 0]]
    *_, mem = layer(torch.zeros(1, 3))
    torch.testing.assert_close(mem, torch.tensor([[0.5, 0.2, 0.4]]))


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
    far = torch.full((1, 1), -10.0)
    for library, surrogates in ((snn, snntorch.surrogate), (snntorch, snntorch.surrogate)):
        x = far.clone().requires_grad_()
        spk, _ = library.Leaky(0.9, spike_grad=surrogates.sigmoid(slope=25))(x, torch.zeros(1, 1))
        spk.sum().backward()
        assert x.grad.isnan().any() == (library is snntorch)
    x = torch.full((1, 1), 0.5, requires_grad=True)
    snn.Leaky(0.9, spike_grad=snntorch.surrogate.LSO(slope=0.1))(x)[0].sum().backward()
    assert x.grad.item() == pytest.approx(0.1)
    with pytest.raises(TypeError):
        snntorch.Leaky(0.9, spike_grad=snntorch.surrogate.LSO(slope=0.1))(x)


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


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES], ids=str)
def test_losses_take_spikes_of_every_dtype(dtype: torch.dtype) -> None:
    x, targets = (torch.rand(4, 2, 3) * 2).to(dtype).requires_grad_(), torch.tensor([0, 2])
    made = [loss.ce_rate_loss(), loss.ce_count_loss(), loss.ce_max_membrane_loss(), snnfast.losses.mse_count_loss()]
    if not torch.__version__.startswith("2.11"):  # whose mse_loss takes no two dtypes
        made.append(loss.mse_count_loss())
    for criterion in made:
        criterion(snn.Leaky(0.9).unroll(x)[0], targets).sum().backward()
        assert x.grad.dtype == dtype
        assert x.grad.isfinite().all()


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
        with snnfast.use_backend("auto" if backend == "fused" else backend), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for step in x:
                _, mem = layer(step, mem)
                record.append(mem)
        records.append(torch.stack(record))
    assert_bits_equal(records[0], records[1])
    assert not torch.equal(records[0], records[2])
    assert_close(records[0], records[2], 1e-6)
