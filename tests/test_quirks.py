"""snnTorch's peculiarities: those that users may rely on are kept, those that are bugs of its bookkeeping are not.

docs/snntorch.md has the table. Where something is kept, both libraries run; where it is mended, snnTorch shows that it
was broken.
"""

import copy
import gc
import io
import pickle
import threading
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
import snntorch
import torch
from helpers import FLOATS, HALVES, RESETS, assert_bits_equal, assert_close
from snntorch import utils
from snntorch.functional import loss
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import snnfast
import snnfast.snntorch as snn

BOTH = pytest.mark.parametrize("library", [snn, snntorch], ids=["ours", "theirs"])
OURS = pytest.mark.parametrize("library", [snn, snnfast], ids=["snnfast.snntorch", "snnfast"])


@pytest.fixture(autouse=True)
def own_list_of_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    """snnTorch keeps every neuron for good: none of another test's here."""
    monkeypatch.setattr(snntorch.SpikingNeuron, "instances", [])


# ---- kept


@BOTH
def test_the_membrane_persists_though_the_layer_is_not_asked_to_hold_it(library: Any) -> None:
    lif = library.Leaky(0.5)
    mems = [lif(torch.tensor([0.3]))[1].item() for _ in range(3)]
    assert mems == pytest.approx([0.3, 0.45, 0.525])


@BOTH
def test_an_input_of_another_shape_starts_from_zeros(library: Any) -> None:
    lif = library.Leaky(0.5, init_hidden=True)
    lif(torch.full((4, 3), 0.8))
    lif(torch.full((2, 3), 0.8))  # a smaller last batch
    assert_bits_equal(lif.mem, torch.full((2, 3), 0.8))
    lif(torch.full((3,), 0.8))
    assert_bits_equal(lif.mem, torch.full((3,), 0.8))


@BOTH
@pytest.mark.parametrize(("reset", "x", "mem"), [("subtract", 0.0, 0.6), ("zero", 0.4, 0.8), ("none", 0.0, 0.6)])
def test_an_immediate_reset_takes_back_what_a_given_membrane_lost_too_early(
    library: Any, reset: str, x: float, mem: float
) -> None:
    # 1.2 is above the threshold, so the step subtracts 1 from 0.5 * 1.2 + 0; it doesn't spike, and gets it back. With
    # "zero" the membrane is cleared and only the input is left, which the correction doubles.
    lif = library.Leaky(0.5, reset_mechanism=reset, reset_delay=False)
    spk, found = lif(torch.tensor([[x]]), torch.tensor([[1.2]]))
    assert not spk.any()
    assert found.item() == pytest.approx(mem)


@BOTH
@pytest.mark.filterwarnings("ignore:Inhibition")
def test_losers_of_an_inhibition_are_reset_at_the_next_step_and_the_factor_is_ignored(library: Any) -> None:
    lif = library.Leaky(1.0, inhibition=True, graded_spikes_factor=3.0)
    spk, mem = lif(torch.tensor([[1.5, 1.2, 0.4]]), torch.zeros(1, 3))
    assert spk.tolist() == [[1, 0, 0]]
    _, mem = lif(torch.zeros(1, 3), mem)
    torch.testing.assert_close(mem, torch.tensor([[0.5, 0.2, 0.4]]))


@BOTH
def test_a_membrane_exactly_at_the_threshold_does_not_spike(library: Any) -> None:
    spk, mem = library.Leaky(1.0)(torch.tensor([[1.0]]), torch.zeros(1, 1))
    assert not spk.any()
    assert mem.item() == 1


@BOTH
def test_beta_is_clamped_when_used_and_not_where_it_is_kept(library: Any) -> None:
    for beta, expected in ((1.5, 0.8), (-0.5, 0.0)):
        lif = library.Leaky(beta, learn_beta=True)
        _, mem = lif(torch.zeros(1, 1), torch.full((1, 1), 0.8))
        mem.sum().backward()
        assert mem.item() == pytest.approx(expected)
        assert lif.beta.grad == 0
        assert lif.beta.item() == beta


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")], ids=str)
@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
@pytest.mark.parametrize("reset", RESETS)
def test_infinities_and_nan_go_the_way_of_snntorch(reset: str, delay: bool, value: float, backend: str) -> None:
    options: dict[str, Any] = {"reset_mechanism": reset, "reset_delay": delay}
    ours, theirs, unrolled = snn.Leaky(0.9, **options), snntorch.Leaky(0.9, **options), snn.Leaky(0.9, **options)
    x = torch.tensor([[0.5, value, 2.0], [value, 1.0, 1.0], [1.0, 1.0, value], [1.0, 1.0, 1.0]])
    mem = mem_expected = None
    spk_rec, mem_rec = unrolled.unroll(x)
    for t, step in enumerate(x):
        spk, mem = ours(step, mem)
        spk_expected, mem_expected = theirs(step, mem_expected)
        assert_bits_equal(spk, spk_expected)
        assert_bits_equal(spk_rec[t], spk_expected)
        torch.testing.assert_close(mem, mem_expected, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(mem_rec[t], mem_expected, rtol=0, atol=0, equal_nan=True)


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
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_every_kind_become_the_tensors_that_snntorch_makes_of_them(library: Any, name: str) -> None:
    value = PARAMETERS[name]
    for learn in (False, True) if "integer" not in name else (False,):
        flags = {"learn_beta": learn, "learn_threshold": learn, "learn_graded_spikes_factor": learn}
        ours = library.Leaky(value, value, graded_spikes_factor=value, **flags)
        theirs = snntorch.Leaky(value, value, graded_spikes_factor=value, **flags)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        for (key, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert_bits_equal(a, b, key)
        # Of a single number in float64 snnTorch's spikes, which are float32, leave only float32: see below.
        for dtype in FLOATS if name != "float64" else (torch.float32,):
            mem = mem_expected = torch.rand(2, 3, dtype=dtype)
            for step in torch.rand(4, 2, 3, dtype=dtype) * 2:
                spk, mem = ours(step, mem)
                spk_expected, mem_expected = theirs(step, mem_expected)
                assert_bits_equal(mem, mem_expected)
                assert_bits_equal(spk.float(), spk_expected.float())  # theirs are float32 where they can be


def test_a_single_threshold_in_float64_is_subtracted_in_float64() -> None:
    threshold = np.float64(0.9)
    x, start = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    for library, expected in ((snn, 0.1), (snnfast, 0.1), (snntorch, 1 - float(np.float32(0.9)))):
        _, mem = library.Leaky(1.0, threshold)(x, start)
        assert mem.dtype == torch.float64
        assert mem.item() == pytest.approx(expected, abs=1e-15)


def test_an_integer_cannot_be_learned_in_either() -> None:
    with pytest.raises(TypeError, match=r"beta: only a floating tensor can be learned, got torch\.int64"):
        snn.Leaky(1, learn_beta=True)
    with pytest.raises(RuntimeError):
        snntorch.Leaky(1, learn_beta=True)


# ---- mended: the reset mechanism


def three_steps(lif: Any) -> list[float]:
    mem = torch.zeros(1, 1)
    mems = []
    for _ in range(3):
        _, mem = lif(torch.full((1, 1), 0.6), mem)
        mems.append(round(mem.item(), 4))
    return mems


def test_setting_the_reset_mechanism_takes_effect() -> None:
    ours, theirs = snn.Leaky(1.0), snntorch.Leaky(1.0)
    for lif in (ours, theirs):
        lif.reset_mechanism = "none"
        assert lif.reset_mechanism == "none"
        assert lif.reset_mechanism_val == 2
    assert three_steps(ours) == [0.6, 1.2, 1.8]
    assert three_steps(theirs) == [0.6, 1.2, 0.8]
    with pytest.raises(ValueError, match="reset_mechanism"):
        ours.reset_mechanism = "never"


def test_a_loaded_reset_mechanism_takes_effect() -> None:
    state = snntorch.Leaky(1.0, reset_mechanism="none").state_dict()
    ours, theirs = snn.Leaky(1.0), snntorch.Leaky(1.0)
    for lif in (ours, theirs):
        lif.load_state_dict(state)
    assert (ours.reset_mechanism, theirs.reset_mechanism) == ("none", "subtract")
    assert three_steps(ours) == [0.6, 1.2, 1.8]
    assert three_steps(theirs) == [0.6, 1.2, 0.8]
    # The same where what is loaded takes the place of the old tensors.
    lif = snn.Leaky(1.0)
    lif.load_state_dict(state, assign=True)
    assert three_steps(lif) == [0.6, 1.2, 1.8]


@OURS
@pytest.mark.parametrize("reset", RESETS)
def test_an_immediate_reset_reads_no_value_from_the_device(library: Any, reset: str) -> None:
    lif = library.Leaky(0.9, reset_mechanism=reset, reset_delay=False, init_hidden=True, output=True)
    with FakeTensorMode(allow_non_fake_inputs=True):  # no tensor has values here
        x = torch.rand(4, 2, 3)
        assert lif(x[0])[0].shape == (2, 3)
        assert lif.unroll(x)[1].shape == (4, 2, 3)
    on_meta = library.Leaky(0.9, reset_mechanism=reset, reset_delay=False).to("meta")
    assert on_meta(torch.rand(2, 3, device="meta"))[1].is_meta
    theirs = snntorch.Leaky(0.9, reset_mechanism=reset, reset_delay=False).to("meta")
    with pytest.raises(RuntimeError, match="meta"):
        theirs(torch.rand(2, 3, device="meta"))


# ---- mended: layers and their state are freed, copied and found


@OURS
def test_a_layer_that_is_no_longer_used_is_freed(library: Any) -> None:
    gc.collect()  # what other tests left
    lif = library.Leaky(0.9, init_hidden=True)
    lif(torch.rand(2, 3))
    before = len(library.Leaky.instances)
    dead, held = weakref.ref(lif), weakref.ref(lif.mem)
    assert any(other is lif for other in library.Leaky.instances)
    assert len(library.Leaky.instances[:]) == before
    del lif
    assert dead() is None
    assert held() is None
    assert len(library.Leaky.instances) == before - 1
    library.Leaky.reset_hidden()
    library.Leaky.detach_hidden()
    theirs = snntorch.Leaky(0.9)
    dead = weakref.ref(theirs)
    del theirs
    gc.collect()
    assert dead() is not None


@OURS
def test_the_list_of_layers_does_not_grow_with_those_that_died(library: Any) -> None:
    gc.collect()
    for _ in range(50):
        library.Leaky(0.9)
    assert len(library.Leaky.instances._refs) <= len(library.Leaky.instances) + 1


def test_unpatched_loops_over_the_neurons_pass_by_the_dead_ones() -> None:
    layers = [snn.Leaky(0.9, init_hidden=True, learn_beta=True) for _ in range(5)]
    theirs = snntorch.Leaky(0.9, init_hidden=True, learn_beta=True)
    for lif in (*layers, theirs):
        lif(torch.ones(2, 3))
    del lif, layers[3], layers[0]
    snntorch.Leaky.detach_hidden()
    assert not any(lif.mem.requires_grad for lif in (*layers, theirs))
    utils.reset(nn.Sequential(layers[0]))
    assert not any(lif.mem.any() for lif in (*layers, theirs))
    snntorch.Synaptic.reset_hidden()
    snntorch.Alpha.detach_hidden()


@OURS
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"beta": "x"}, TypeError),
        ({"beta": 0.9, "threshold": float("nan")}, ValueError),
        ({"beta": 0.9, "reset_mechanism": "halve"}, ValueError),
        ({"beta": 0.9, "spike_grad": 3}, TypeError),
        ({"beta": 0.9, "state_quant": 3}, TypeError),
        ({"beta": 1, "learn_beta": True}, TypeError),
    ],
    ids=str,
)
def test_a_constructor_that_raises_leaves_nothing_behind(library: Any, options: Any, error: type[Exception]) -> None:
    gc.collect()  # what other tests left
    before = list(library.Leaky.instances)
    with pytest.raises(error):
        library.Leaky(**options)
    assert list(library.Leaky.instances) == before
    assert snntorch.SpikingNeuron.instances == []
    snn.Leaky.reset_hidden()
    snntorch.Leaky.detach_hidden()


def test_a_constructor_of_snntorch_that_raises_breaks_its_reset() -> None:
    with pytest.raises(ValueError, match="reset_mechanism"):
        snntorch.Leaky(0.9, reset_mechanism="halve")
    with pytest.raises(AttributeError):
        snntorch.Leaky.reset_hidden()


@OURS
def test_layers_are_copied_pickled_and_saved_after_a_step_with_gradients(library: Any) -> None:
    lif = library.Leaky(torch.rand(3), init_hidden=True, learn_beta=True, reset_mechanism="zero")
    lif(torch.rand(2, 3))
    assert lif.mem.requires_grad
    file = io.BytesIO()
    torch.save(lif, file)
    file.seek(0)
    copies = [copy.deepcopy(lif), pickle.loads(pickle.dumps(lif)), torch.load(file, weights_only=False)]
    for other in copies:
        assert type(other) is library.Leaky
        assert_bits_equal(other.mem, lif.mem)
        assert not other.mem.requires_grad
        assert any(layer is other for layer in library.Leaky.instances)
    assert lif.mem.requires_grad  # the layer's own graph is left alone
    library.Leaky.reset_hidden()
    assert not any(other.mem.any() for other in (lif, *copies))
    theirs = snntorch.Leaky(0.9, init_hidden=True, learn_beta=True)
    theirs(torch.rand(2, 3))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(theirs)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(snntorch.Leaky(0.9))


def test_the_unpatched_reset_reaches_a_copy() -> None:
    lif = copy.deepcopy(snn.Leaky(0.9, init_hidden=True))
    lif(torch.ones(2, 3))
    utils.reset(nn.Sequential(lif))
    assert not lif.mem.any()
    theirs = copy.deepcopy(snntorch.Leaky(0.9, init_hidden=True))
    theirs(torch.ones(2, 3))
    utils.reset(nn.Sequential(theirs))
    assert theirs.mem.any()


def test_init_forgets_the_layers_that_exist_and_no_later_ones() -> None:
    try:
        for library in (snn, snntorch):
            old = library.Leaky(0.9, init_hidden=True)
            old(torch.ones(2, 3))
            library.Leaky.init()
            new = library.Leaky(0.9, init_hidden=True)
            new(torch.ones(2, 3))
            library.Leaky.reset_hidden()
            assert old.mem.any()
            assert new.mem.any() == (library is snntorch)
    finally:
        # snnTorch's gives the class a list of its own, which stays empty.
        del snntorch.Leaky.instances


# ---- mended: the held membrane


@BOTH
def test_an_error_for_a_membrane_that_must_not_be_passed_changes_nothing(library: Any) -> None:
    lif = library.Leaky(0.5, init_hidden=True)
    lif(torch.full((1, 1), 0.4))
    with pytest.raises(TypeError):
        lif(torch.full((1, 1), 0.4), torch.full((1, 1), 0.7))
    assert lif.mem.item() == pytest.approx(0.4 if library is snn else 0.7)


MODES: dict[str, dict[str, Any]] = {
    "record": {},
    "last": {"record_mem": False},
    "constant": {"num_steps": 4},
    "constant-last": {"num_steps": 4, "record_mem": False},
}
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "nodelay": {"reset_delay": False},
    "inhibition": {"inhibition": True},
    "callable": {"spike_grad": lambda z: snnfast.surrogate.fast_sigmoid(3.0)(z)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_the_held_membrane_is_never_a_view_after_an_unroll(mode: str, kind: str, backend: str) -> None:
    lif = snn.Leaky(0.9, init_hidden=True, learn_beta=True, **KINDS[kind])
    for dtype in (torch.float32, torch.float16):
        x = torch.rand((2, 3) if "num_steps" in MODES[mode] else (4, 2, 3)).to(dtype)
        _, mem = lif.unroll(x, **MODES[mode])
        assert not lif.mem._is_view()
        assert lif.mem.requires_grad
        assert lif.mem.dtype == torch.float32
        assert_bits_equal(lif.mem.to(mem.dtype), mem if "last" in mode else mem[-1])
        snn.Leaky.detach_hidden()
        assert not lif.mem.requires_grad
        assert lif.mem.untyped_storage().size() == 6 * lif.mem.element_size()  # and it keeps no record alive


def test_truncated_backpropagation_across_unrolls_has_the_gradients_of_snntorch(backend: str) -> None:
    grads = []
    for library in (snn, snntorch):
        torch.manual_seed(4)
        fc, lif = nn.Linear(6, 5), library.Leaky(0.9, init_hidden=True, output=True, learn_beta=True)
        for chunk in torch.rand(3, 4, 2, 6).mul(2):
            if library is snn:
                spk, mem = lif.unroll(fc(chunk))
            else:
                spk, mem = (torch.stack(r) for r in zip(*(lif(fc(step)) for step in chunk), strict=True))
            (spk.sum() + mem.square().sum()).backward()
            library.Leaky.detach_hidden()
        grads.append((fc.weight.grad, fc.bias.grad, lif.beta.grad))
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, 1e-5)


@pytest.mark.parametrize("learn", [False, True])
def test_training_goes_on_from_a_membrane_held_since_inference_mode(learn: bool, backend: str) -> None:
    for unroll in (False, True):
        lif = snn.Leaky(0.9, init_hidden=True, learn_beta=learn)
        x = torch.rand(2, 2, 3)
        with torch.inference_mode():
            lif.unroll(x) if unroll else lif(x[0])
        leaf = x.requires_grad_()
        spk = lif.unroll(leaf)[0] if unroll else lif(leaf[0])
        spk.sum().backward()
        assert leaf.grad.any()


@pytest.mark.parametrize("learn", [False, True])
def test_the_held_membrane_moves_with_the_layer(learn: bool) -> None:
    lif = snn.Leaky(0.9, init_hidden=True, learn_beta=learn)
    lif(torch.rand(2, 3))
    values = lif.mem.detach().clone()
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        lif.to(dtype)
        assert lif.mem.dtype == dtype
        assert lif.mem.requires_grad == learn
        torch.testing.assert_close(lif.mem.detach(), values.to(dtype), rtol=0.01, atol=0)
    assert lif.to("meta").mem.is_meta
    assert lif.to_empty(device="cpu").mem.shape == (2, 3)
    assert "mem" not in dict(lif.named_buffers())
    assert "mem" not in lif.state_dict()


# ---- mended: dtypes


@OURS
@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES], ids=str)
def test_spikes_and_records_have_the_dtype_of_the_input_and_states_that_of_the_arithmetic(
    library: Any, dtype: torch.dtype, backend: str
) -> None:
    acc = torch.float32 if dtype in HALVES else dtype
    for options in ({}, {"reset_delay": False}, {"surrogate_disable": True}, {"inhibition": True}):
        lif = library.Leaky(0.9, **options)
        x = (torch.rand(4, 2, 3) * 2).to(dtype)
        for spk, mem in (lif.unroll(x), lif.unroll(x, torch.zeros(2, 3))):
            assert spk.dtype == mem.dtype == dtype
        for spk, mem in (lif(x[0]), lif(x[0], torch.zeros(2, 3)), lif.unroll(x, record_mem=False)):
            assert (spk.dtype, mem.dtype) == (dtype, acc)


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES], ids=str)
def test_in_snntorch_spikes_are_float32_and_membranes_at_least_that(dtype: torch.dtype) -> None:
    for reset in RESETS:
        spk, mem = snntorch.Leaky(0.9, reset_mechanism=reset)(torch.rand(2, 3).to(dtype))
        assert spk.dtype == torch.float32
        at_least = torch.float32 if dtype in HALVES and reset != "none" else dtype
        assert mem.dtype == at_least


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES], ids=str)
def test_the_losses_of_snntorch_take_spikes_of_every_dtype(dtype: torch.dtype) -> None:
    x = (torch.rand(4, 2, 3) * 2).to(dtype).requires_grad_()
    targets = torch.tensor([0, 2])
    made_by_snntorch = [loss.ce_rate_loss(), loss.ce_count_loss(), loss.ce_max_membrane_loss()]
    if not torch.__version__.startswith("2.11"):  # whose mse_loss takes no two dtypes
        made_by_snntorch.append(loss.mse_count_loss())
    for made in made_by_snntorch:
        spk, _ = snn.Leaky(0.9).unroll(x)
        made(spk, targets).sum().backward()
        assert x.grad.dtype == dtype
        assert x.grad.isfinite().all()


def test_our_squared_errors_take_spikes_of_every_dtype_with_every_torch() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        spk = torch.rand(4, 2, 3).to(dtype).requires_grad_()
        snnfast.losses.mse_count_loss()(spk, torch.tensor([0, 2])).backward()
        assert spk.grad.dtype == dtype


def test_under_autocast_spikes_are_as_low_as_the_layer_before_made_them(backend: str) -> None:
    fc, lif = nn.Linear(6, 5), snn.Leaky(0.9, init_hidden=True, output=True, learn_beta=True)
    x = torch.rand(4, 2, 6) * 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cur = fc(x)
        assert cur.dtype == torch.bfloat16
        spk, mem = lif.unroll(cur)
        assert spk.dtype == mem.dtype == torch.bfloat16
        stepped = snn.Leaky(0.9, init_hidden=True, output=True)
        steps = [stepped(step) for step in cur]
        assert {(s.dtype, m.dtype) for s, m in steps} == {(torch.bfloat16, torch.float32)}
        theirs = snntorch.Leaky(0.9, init_hidden=True, output=True)
        spk_expected = torch.stack([theirs(step)[0] for step in cur])
    assert spk_expected.dtype == theirs.mem.dtype == torch.float32
    assert spk.any()
    assert_bits_equal(spk.float(), spk_expected)  # the state is float32, as snnTorch's
    assert_bits_equal(torch.stack([s for s, _ in steps]).float(), spk_expected)
    assert_bits_equal(stepped.mem, theirs.mem)
    (spk.sum() + mem.sum()).backward()
    assert fc.weight.grad.dtype == lif.beta.grad.dtype == torch.float32
    assert fc.weight.grad.any()


def test_an_inhibited_float64_layer_divides_by_its_graded_factor_in_float64(backend: str) -> None:
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


def test_a_replica_has_a_state_of_its_own() -> None:
    def make(library: Any) -> nn.Sequential:
        torch.manual_seed(6)
        return nn.Sequential(nn.Linear(6, 5), library.Leaky(0.9, init_hidden=True, learn_beta=True))

    x = torch.rand(6, 4, 6) * 3
    whole = make(snntorch)
    expected = torch.stack([whole(step) for step in x])
    net = make(snn)
    spk = run_in_replicas(net, x)
    assert_bits_equal(spk, expected)
    assert net[1].mem.shape == (0,)  # the original's is left alone
    spk.sum().backward()
    expected.sum().backward()
    assert_close(net[1].beta.grad, whole[1].beta.grad, 1e-5)
    assert_close(net[0].weight.grad, whole[0].weight.grad, 1e-5)
    with pytest.raises((AssertionError, RuntimeError, AttributeError)):  # theirs all work on the original's state
        assert_bits_equal(run_in_replicas(make(snntorch), x), expected)


def test_replicas_run_at_the_same_time() -> None:
    lif = snn.Leaky(0.9, init_hidden=True)
    x = torch.rand(20, 2, 3) * 2
    expected = snn.Leaky(0.9).unroll(x)[0]
    results: dict[int, Tensor] = {}

    def run(i: int, replica: nn.Module) -> None:
        results[i] = torch.stack([replica(step) for step in x])

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(replicas(lif, 4))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert_bits_equal(results[i], expected)


# ---- different on purpose


def test_a_parameter_larger_than_the_input_is_an_error_here() -> None:
    x = torch.rand(2, 1)
    with pytest.raises(ValueError, match="beta: shape"):
        snn.Leaky(torch.rand(5))(x)
    assert snntorch.Leaky(torch.rand(5))(x)[1].shape == (2, 5)


def test_there_is_no_reset_attribute_and_integers_are_no_input() -> None:
    ours, theirs = snn.Leaky(0.9), snntorch.Leaky(0.9)
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
