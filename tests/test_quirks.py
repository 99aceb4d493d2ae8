"""snnTorch's peculiarities: those that users may rely on are kept, those that are bugs of its bookkeeping are not.

docs/snntorch.md has the table; test_quirks_state.py has what concerns states and copies, test_quirks_dtypes.py dtypes.
Where something is kept, both libraries run; where it is mended, snnTorch shows that it was broken.
"""

from typing import Any

import numpy as np
import pytest
import snntorch
import torch
from helpers import FLOATS, RESETS, assert_bits_equal
from snntorch_checks import BOTH, DECAYS, LEARNED, NEURONS, NOT_LAPICQUE, OURS, held, make, own_list_of_neurons  # noqa: F401
from torch._subclasses.fake_tensor import FakeTensorMode

import snnfast
import snnfast.snntorch as snn

# ---- kept


@BOTH
def test_the_membrane_persists_though_the_layer_is_not_asked_to_hold_it(library: Any) -> None:
    lif = library.Leaky(0.5)
    mems = [lif(torch.tensor([0.3]))[1].item() for _ in range(3)]
    assert mems == pytest.approx([0.3, 0.45, 0.525])


@BOTH
def test_a_state_that_is_not_passed_is_the_one_held_since_the_last_step(library: Any) -> None:
    for passed, syn, mem in (({"syn": 0.2}, 0.1, 0.3), ({"mem": 0.2}, 0.2, 0.3), ({}, 0.2, 0.4)):
        layer = library.Synaptic(0.5, 0.5)
        layer(torch.full((1, 1), 0.4))
        given = {name: torch.full((1, 1), value) for name, value in passed.items()}
        _, *states = layer(torch.zeros(1, 1), **given)
        assert [state.item() for state in states] == pytest.approx([syn, mem])


@BOTH
@NOT_LAPICQUE
def test_an_input_of_another_shape_starts_from_zeros(name: str, library: Any) -> None:
    layer = make(library, name, init_hidden=True)
    layer(torch.full((4, 3), 0.8))
    for shape in ((2, 3), (3,)):  # a smaller last batch
        layer(torch.full(shape, 0.8))
        for state in held(layer):
            assert_bits_equal(state, torch.full(shape, 0.8))


@BOTH
def test_of_two_states_only_the_one_of_another_shape_is_replaced_by_zeros(library: Any) -> None:
    _, syn, mem = library.Synaptic(0.5, 0.5)(torch.zeros(2, 3), torch.ones(3), torch.ones(2, 3))
    assert_bits_equal(syn, torch.zeros(2, 3))
    assert_bits_equal(mem, torch.full((2, 3), 0.5))


@BOTH
@pytest.mark.parametrize(
    ("name", "reset", "x", "mem"),
    [("Leaky", "subtract", 0.0, 0.6), ("Leaky", "zero", 0.4, 0.8), ("Leaky", "none", 0.0, 0.6),
     ("Synaptic", "subtract", 0.0, 0.6), ("Synaptic", "zero", 0.3, 0.0), ("Synaptic", "none", 0.0, 0.6)],
)  # fmt: skip
def test_an_immediate_reset_takes_back_what_a_given_membrane_lost_too_early(
    library: Any, name: str, reset: str, x: float, mem: float
) -> None:
    # 1.2 is above the threshold, so the step subtracts 1 from 0.5 * 1.2 + 0; it doesn't spike, and gets it back. With
    # "zero" the membrane is cleared and only the input of a Leaky is left, which the correction doubles.
    layer = make(library, name, beta=0.5, reset_mechanism=reset, reset_delay=False)
    spk, *_, found = layer(torch.tensor([[x]]), mem=torch.tensor([[1.2]]))
    assert not spk.any()
    assert found.item() == pytest.approx(mem)


@BOTH
@pytest.mark.filterwarnings("ignore:Inhibition")
@NOT_LAPICQUE
def test_losers_of_an_inhibition_are_reset_at_the_next_step_and_the_factor_is_ignored(name: str, library: Any) -> None:
    decays = {decay: 0.0 if decay == "alpha" else 1.0 for decay in DECAYS[name]}
    layer = make(library, name, **decays, inhibition=True)
    layer.graded_spikes_factor = torch.tensor(3.0)
    spk, *_ = layer(torch.tensor([[1.5, 1.2, 0.4]]))
    assert spk.tolist() == [[1, 0, 0]]
    *_, mem = layer(torch.zeros(1, 3))
    torch.testing.assert_close(mem, torch.tensor([[0.5, 0.2, 0.4]]))


@BOTH
def test_a_reset_to_zero_leaves_the_synaptic_current_alone(library: Any) -> None:
    _, syn, mem = library.Synaptic(0.5, 0.5, reset_mechanism="zero")(
        torch.full((1, 1), 0.25), torch.full((1, 1), 2.0), torch.full((1, 1), 2.0)
    )
    assert syn.item() == 1.25
    assert mem.item() == 0


@BOTH
def test_a_synaptic_layer_multiplies_by_the_graded_factor_of_a_checkpoint(library: Any) -> None:
    layer = library.Synaptic(0.5, 0.5)
    layer.load_state_dict({**layer.state_dict(), "graded_spikes_factor": torch.tensor(3.0)})
    assert layer(torch.full((1, 1), 1.5))[0].item() == 3


@BOTH
@NOT_LAPICQUE
def test_a_membrane_exactly_at_the_threshold_does_not_spike(name: str, library: Any) -> None:
    spk, *_, mem = make(library, name)(torch.tensor([[1.0]]))
    assert not spk.any()
    assert mem.item() == 1


@BOTH
@pytest.mark.parametrize(
    ("name", "decay", "state"), [("Leaky", "beta", "mem"), ("Synaptic", "beta", "mem"), ("Synaptic", "alpha", "syn")]
)
def test_a_decay_is_clamped_when_used_and_not_where_it_is_kept(library: Any, name: str, decay: str, state: str) -> None:
    for value, expected in ((1.5, 0.8), (-0.5, 0.0)):
        layer = make(library, name, **{decay: value, f"learn_{decay}": True})
        layer(torch.zeros(1, 1), **{state: torch.full((1, 1), 0.8)})
        getattr(layer, state).sum().backward()
        assert getattr(layer, state).item() == pytest.approx(expected)
        assert getattr(layer, decay).grad == 0
        assert getattr(layer, decay).item() == pytest.approx(value)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")], ids=str)
@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
@pytest.mark.parametrize("reset", RESETS)
@NEURONS
def test_infinities_and_nan_go_the_way_of_snntorch(
    name: str, reset: str, delay: bool, value: float, backend: str
) -> None:
    options: dict[str, Any] = {"reset_mechanism": reset, "reset_delay": delay}
    ours, theirs, unrolled = (make(library, name, **options) for library in (snn, snntorch, snn))
    x = torch.tensor([[0.5, value, 2.0], [value, 1.0, 1.0], [1.0, 1.0, value], [1.0, 1.0, 1.0]])
    spk_rec, *records = unrolled.unroll(x)
    for t, step in enumerate(x):
        (spk, *states), (spk_expected, *expected) = ours(step), theirs(step)
        assert_bits_equal(spk, spk_expected)
        assert_bits_equal(spk_rec[t], spk_expected)
        for state, record, wanted in zip(states, records, expected, strict=True):
            torch.testing.assert_close(state, wanted, rtol=0, atol=0, equal_nan=True)
            torch.testing.assert_close(record[t], wanted, rtol=0, atol=0, equal_nan=True)


PARAMETERS: dict[str, Any] = {
    "integer": 1,
    "float": 0.9,
    "list": [0.5, 0.6, 0.7],
    "tuple": (0.5, 0.6, 0.7),
    "float32": np.float32(0.9),
    "float64": np.float64(0.9),
    "array": np.array([0.5, 0.6, 0.7]),
    "tensor": torch.tensor([0.5, 0.6, 0.7]),
    "tensor64": torch.tensor([0.5, 0.6, 0.7], dtype=torch.float64),
    "integers": torch.tensor([1, 0, 1]),
}


@OURS
@pytest.mark.parametrize("kind", PARAMETERS)
@NOT_LAPICQUE
def test_parameters_of_every_kind_become_the_tensors_that_snntorch_makes_of_them(
    name: str, library: Any, kind: str
) -> None:
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
                for state, wanted in zip(states, expected, strict=True):
                    assert_bits_equal(state, wanted)


@NEURONS
def test_a_single_threshold_in_float64_is_subtracted_in_float64(name: str) -> None:
    threshold = np.float64(0.9)
    x, start = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    for library, expected in ((snn, 0.1), (snnfast, 0.1), (snntorch, 1 - float(np.float32(0.9)))):
        *_, mem = make(library, name, beta=1.0, threshold=threshold)(x, mem=start)
        assert mem.dtype == torch.float64
        assert mem.item() == pytest.approx(expected, abs=1e-15)


@NEURONS
def test_an_integer_cannot_be_learned_in_either(name: str) -> None:
    with pytest.raises(TypeError, match=r"beta: only a floating tensor can be learned, got torch\.int64"):
        make(snn, name, beta=1, learn_beta=True)
    with pytest.raises(RuntimeError):
        make(snntorch, name, beta=1, learn_beta=True)


# ---- mended: the reset mechanism


def three_steps(layer: Any) -> list[float]:
    layer.reset_mem()
    return [round(layer(torch.full((1, 1), 0.6))[-1].item(), 4) for _ in range(3)]


def leaks_nothing(library: Any, name: str, **options: Any) -> Any:
    """A layer whose membrane adds up its inputs."""
    decays = {decay: 0.0 if decay == "alpha" else 1.0 for decay in DECAYS[name]}
    return make(library, name, **decays, **options)


@NOT_LAPICQUE
def test_setting_the_reset_mechanism_takes_effect(name: str) -> None:
    ours, theirs = (leaks_nothing(library, name) for library in (snn, snntorch))
    for lif in (ours, theirs):
        lif.reset_mechanism = "none"
        assert lif.reset_mechanism == "none"
        assert lif.reset_mechanism_val == 2
    assert three_steps(ours) == [0.6, 1.2, 1.8]
    assert three_steps(theirs) == [0.6, 1.2, 0.8]
    with pytest.raises(ValueError, match="reset_mechanism"):
        ours.reset_mechanism = "never"


@NOT_LAPICQUE
def test_a_loaded_reset_mechanism_takes_effect(name: str) -> None:
    state = leaks_nothing(snntorch, name, reset_mechanism="none").state_dict()
    ours, theirs = (leaks_nothing(library, name) for library in (snn, snntorch))
    for lif in (ours, theirs):
        lif.load_state_dict(state)
    assert (ours.reset_mechanism, theirs.reset_mechanism) == ("none", "subtract")
    assert three_steps(ours) == [0.6, 1.2, 1.8]
    assert three_steps(theirs) == [0.6, 1.2, 0.8]
    # The same where what is loaded takes the place of the old tensors.
    layer = leaks_nothing(snn, name)
    layer.load_state_dict(state, assign=True)
    assert three_steps(layer) == [0.6, 1.2, 1.8]


@OURS
@pytest.mark.parametrize("reset", RESETS)
@NOT_LAPICQUE
def test_an_immediate_reset_reads_no_value_from_the_device(name: str, library: Any, reset: str) -> None:
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
def test_the_height_of_a_spike_does_not_decide_its_reset(name: str, reset: str, factor: float, backend: str) -> None:
    ours, theirs, plain, unrolled = (
        make(library, name, reset_mechanism=reset, reset_delay=False) for library in (snn, snntorch, snn, snn)
    )
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
def test_a_parameter_larger_than_the_input_is_an_error_here(name: str) -> None:
    x = torch.rand(2, 1)
    for decay in DECAYS[name]:
        with pytest.raises(ValueError, match=f"{decay}: shape"):
            make(snn, name, **{decay: torch.rand(5)})(x)
        assert make(snntorch, name, **{decay: torch.rand(5)})(x)[-1].shape == (2, 5)


@NEURONS
def test_there_is_no_reset_attribute_and_integers_are_no_input(name: str) -> None:
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
