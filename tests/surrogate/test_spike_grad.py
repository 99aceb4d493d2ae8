"""snnTorch's surrogates are taken for ours; any other callable is examined for what the kernels need of it."""

import dataclasses
import pickle
from typing import Any

import pytest
import snntorch
import torch
from callables import (
    FAST_BOTH,
    FAST_DELAYED,
    SLOW,
    not_strict,
    soft,
    steep,
    step_with_gradient_of,
    two_dimensional,
    with_negative_spikes,
)
from helpers import SURROGATES, assert_close
from snntorch import surrogate as theirs
from snntorch_checks import DECAYS, OTHER_DECAYS, make
from torch import Tensor, nn

import snnfast
import snnfast.snntorch as snn
from snnfast import functional, reference, surrogate
from snnfast.surrogate import Surrogate, examine, known_to_kernels
from snnfast.surrogate.examine import recognise

PARAMETERS = {name: vars(s) for name, s in SURROGATES.items()} | {"SSO": {"mean": 0.1, "variance": 0.3}}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_closures_of_snntorch_are_taken_for_ours(name: str) -> None:
    for parameters in (PARAMETERS[name], {}):
        found = recognise(getattr(theirs, name)(**parameters))
        assert found == getattr(surrogate, name)(**parameters)
        assert known_to_kernels(found) == (name != "SSO")


def test_a_custom_surrogate_of_snntorch_and_a_disabled_one_are_taken_for_ours() -> None:
    def function(z: Tensor, grad: Tensor, spk: Tensor) -> Tensor:
        return grad * spk

    assert recognise(theirs.custom_surrogate(function)) == surrogate.custom_surrogate(function)
    assert recognise(snntorch.Leaky(0.9, surrogate_disable=True).spike_grad) is surrogate.DISABLED


def test_what_only_looks_like_snntorchs_is_left_alone() -> None:
    def inner(x: Tensor) -> Tensor:
        return x

    slope = torch.tensor(2.0, requires_grad=True)
    for spike_grad in (inner, torch.relu, nn.ReLU(), theirs.fast_sigmoid(slope)):
        assert recognise(spike_grad) is spike_grad


def test_the_apply_of_a_function_is_one_object_that_can_be_pickled() -> None:
    applied = recognise(theirs.Heaviside.apply)
    assert applied is recognise(theirs.Heaviside.apply)
    assert pickle.loads(pickle.dumps(applied)) is applied
    assert applied(torch.tensor([-1.0, 1.0])).tolist() == [0, 1]
    for ours in SURROGATES.values():
        assert recognise(ours) is ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("shape", [(3, 10), (4, 9), (1, 10), (32, 1000), (32, 3, 10)], ids=str)
def test_callables_are_examined_for_what_the_kernels_need(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for spike_grad in (*FAST_BOTH.values(), *FAST_DELAYED.values(), *SLOW.values(), surrogate.SSO()):
        if spike_grad is FAST_DELAYED["PerNeuron"] and shape[-1] != 10:
            continue
        if spike_grad is two_dimensional and len(shape) != 2:
            continue
        state = torch.get_rng_state()
        unfit = examine._examine(spike_grad, torch.Size(shape), dtype, torch.device("cpu"))
        assert torch.equal(torch.get_rng_state(), state)  # what it draws is given back
        assert (unfit.delayed is None) == (spike_grad not in SLOW.values()), spike_grad
        assert (unfit.immediate is None) == (spike_grad in FAST_BOTH.values() or isinstance(spike_grad, Surrogate))


def test_a_single_neuron_is_enough_to_tell() -> None:
    def random_spikes(z: Tensor) -> Tensor:
        return torch.bernoulli(torch.sigmoid(z.detach())) + 0 * z

    for shape in ((1,), (1, 1), ()):
        for spike_grad in (not_strict, soft, with_negative_spikes, random_spikes):
            unfit = examine._examine(spike_grad, torch.Size(shape), torch.float32, torch.device("cpu"))
            assert unfit.delayed is not None, spike_grad


class Flips(nn.Module):
    """Soft in eval mode, and with a number that may be learned or not."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.7), requires_grad=False)

    def forward(self, z: Tensor) -> Tensor:
        return step_with_gradient_of(torch.atan(self.slope * z), z) if self.training else torch.sigmoid(z)


@dataclasses.dataclass(frozen=True)
class Named:
    """All of them are equal."""

    name: str
    function: Any = dataclasses.field(compare=False)

    def __call__(self, z: Tensor) -> Tensor:
        return self.function(z)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:snnfast. a layer runs step by step")
def test_a_verdict_holds_only_for_what_was_tried() -> None:
    def equal_to_the_reference(spike_grad: Any, shape: tuple[int, ...], delay: bool = True) -> None:
        x = torch.rand(4, *shape) * 2
        results = []
        for lif in (functional.lif, reference.lif):
            leaf = x.clone().requires_grad_()
            spk, mem = lif(leaf, beta=0.9, threshold=0.5, spike_grad=spike_grad, reset_delay=delay)
            own = list(spike_grad.parameters()) if isinstance(spike_grad, nn.Module) else []
            own = [p for p in own if p.requires_grad]
            results.append(
                (spk, mem, *torch.autograd.grad(spk.sum() + mem.square().sum(), [leaf, *own], allow_unused=True))
            )
        for name, a, b in zip(("spk", "mem", "current", "own"), *results, strict=False):
            assert_close(a, b, 1e-5, name)

    fresh = Named("soft", soft)
    equal_to_the_reference(fresh, (0, 10))  # an empty batch tells nothing
    equal_to_the_reference(fresh, (3, 10))

    def per_sample(z: Tensor) -> Tensor:
        rows = z.flatten(1)
        return step_with_gradient_of((rows / (1 + rows.detach().abs().mean(0))).view_as(z), z)

    equal_to_the_reference(per_sample, (1, 2, 5))
    equal_to_the_reference(per_sample, (8, 2, 5))

    flips = Flips()
    equal_to_the_reference(flips, (3, 10), delay=False)
    flips.slope.requires_grad_()
    equal_to_the_reference(flips, (3, 10), delay=False)
    equal_to_the_reference(flips.eval(), (3, 10))

    equal_to_the_reference(Named("same", steep), (3, 10))
    equal_to_the_reference(Named("same", soft), (3, 10))


def test_a_callable_can_be_used_first_in_inference_mode() -> None:
    for made in (lambda: Named("a", steep), lambda: theirs.custom_surrogate(lambda z, g, s: g * s)):
        for delay in (True, False):
            layer, x = snnfast.Leaky(0.9, spike_grad=made(), reset_delay=delay), torch.rand(4, 3, 10) * 2
            with torch.inference_mode():
                found = (*layer.unroll(x), *layer(x[0], torch.rand(3, 10)))
            assert found[0].any()
            leaf = x.clone().requires_grad_()
            layer.unroll(leaf)[0].sum().backward()
            assert leaf.grad is not None


@pytest.mark.needs_extension
def test_a_closure_that_is_assigned_is_examined_once() -> None:
    calls = []

    def function(z: Tensor, grad: Tensor, spk: Tensor) -> Tensor:
        calls.append(z.shape)
        return grad * spk

    layer = snnfast.Leaky(0.9)
    layer.spike_grad = theirs.custom_surrogate(function)
    with torch.no_grad():
        _, mem = layer(torch.rand(3, 10))
        after_one = len(calls)
        for step in torch.rand(3, 3, 10):
            _, mem = layer(step, mem)
    assert len(calls) == after_one > 0


def test_an_option_is_checked_when_it_is_assigned() -> None:
    layer = snnfast.Leaky(0.9)
    layer.spike_grad = theirs.fast_sigmoid(slope=5)
    assert layer._options().kernels_do_all
    for name, wrong in (("spike_grad", 3), ("state_quant", "8 bits")):
        with pytest.raises(TypeError, match=name):
            setattr(layer, name, wrong)
        setattr(layer, name, None)
    assert layer(torch.rand(3, 10))[0].shape == (3, 10)


@pytest.mark.needs_extension
def test_a_large_layer_is_tried_with_fewer_samples_unless_the_callable_knows_the_batch() -> None:
    seen = []

    def noted(z: Tensor) -> Tensor:
        seen.append(tuple(z.shape))
        return steep(z)

    spk, _ = functional.lif(torch.rand(3, 64, 4000) * 2, beta=0.9, spike_grad=noted)
    assert seen[-1] == (3, 64, 4000)
    assert all(shape[-2:] == (8, 4000) for shape in seen[:-1])
    slope = torch.rand(64, 1) + 0.5
    by_sample = Named("by sample", lambda z: surrogate.atan()(z * slope))
    with snnfast.use_backend("fused"):
        assert functional.lif(torch.rand(3, 64, 4000) * 2, beta=0.9, spike_grad=by_sample)[0].shape == spk.shape


def test_an_error_of_the_callable_itself_is_the_users_to_see() -> None:
    def broken(z: Tensor) -> Tensor:
        raise ZeroDivisionError("mine")

    returns = "^spike_grad: expected a callable that returns .*"
    for spike_grad, error, message in (
        (broken, ZeroDivisionError, "mine"),
        (lambda z: 3, TypeError, rf"{returns}a torch.Tensor, got int"),
        (lambda z: (z > 0).float().mean(-1, keepdim=True), ValueError, rf"{returns}\(3, 5\), got \(3, 1\)"),
        (lambda z: surrogate.atan()(z).flatten(), ValueError, rf"{returns}\(3, 5\), got \(15,\)"),
        (lambda z: surrogate.atan()(z)[:1], ValueError, rf"{returns}\(3, 5\), got \(1, 5\)"),
    ):
        for lif in (functional.lif, reference.lif):
            with pytest.raises(error, match=message):
                lif(torch.ones(4, 3, 5), beta=0.9, spike_grad=spike_grad)


FORGOTTEN: dict[str, tuple[Any, str]] = {
    **{f"ours.{name}": (getattr(surrogate, name), rf"surrogate\.{name}\(\)") for name in PARAMETERS},
    **{f"theirs.{name}": (getattr(theirs, name), rf"surrogate\.{name}\(\)") for name in PARAMETERS},
    "ours.custom": (surrogate.custom_surrogate, r"surrogate\.custom_surrogate\(function\)"),
    "theirs.custom": (theirs.custom_surrogate, r"surrogate\.custom_surrogate\(function\)"),
    "class": (Flips, r"Flips\(\)"),
    "function": (theirs.ATan, r"ATan\.apply"),
}


@pytest.mark.parametrize("kind", FORGOTTEN)
def test_brackets_that_were_forgotten_are_an_error_when_the_layer_is_made(kind: str) -> None:
    spike_grad, remedy = FORGOTTEN[kind]
    for name in (*DECAYS, *OTHER_DECAYS):
        for library in (snnfast, snn):
            with pytest.raises(TypeError, match=rf"^spike_grad: .*; pass {remedy}$"):
                make(library, name, spike_grad=spike_grad)
        function = getattr(functional, {"Leaky": "lif"}.get(name, name.lower()))
        decays = {decay: value for decay, value in (DECAYS | OTHER_DECAYS)[name].items() if decay in ("alpha", "beta")}
        with pytest.raises(TypeError, match=rf"^spike_grad: .*; pass {remedy}$"):
            function(torch.ones(4, 3), **decays, spike_grad=spike_grad)


def test_convert_leaves_a_layer_whose_brackets_were_forgotten() -> None:
    layer = snntorch.Leaky(0.9, spike_grad=theirs.atan)
    assert snn.convert(layer).left[""].endswith("pass surrogate.atan()")
    assert type(layer) is snntorch.Leaky
