"""snnTorch's surrogates are taken for ours; any other callable is used as fast as it allows, and never wrongly."""

import dataclasses
import itertools
import pickle
import warnings
from typing import Any

import pytest
import snntorch
import torch
from helpers import RESETS, SURROGATES, assert_bits_equal, assert_close
from snntorch import surrogate as theirs
from torch import Tensor, nn

import snnfast
from snnfast import _backend, _spike_grad, functional, reference, surrogate
from snnfast._spike_grad import recognise
from snnfast.surrogate import Surrogate, known_to_kernels

PARAMETERS: dict[str, dict[str, float]] = {
    "atan": {"alpha": 1.5},
    "fast_sigmoid": {"slope": 4.0},
    "sigmoid": {"slope": 3},
    "straight_through_estimator": {},
    "heaviside": {},
    "triangular": {"threshold": 0.5},
    "spike_rate_escape": {"beta": 1.3, "slope": 0.7},
    "SSO": {"mean": 0.1, "variance": 0.3},
    "LSO": {"slope": 0.3},
    "SFS": {"slope": 2.0, "B": 0.2},
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_closures_of_snntorch_are_taken_for_ours(name: str) -> None:
    for parameters in (PARAMETERS[name], {}):
        found = recognise(getattr(theirs, name)(**parameters))
        assert found == getattr(surrogate, name)(**parameters)
        assert known_to_kernels(found) == (name != "SSO")


def test_the_object_of_snntorchs_main_branch_is_taken_for_ours() -> None:
    # The class that atan() returns an instance of there; made here, since 1.0.0 lacks it.
    made = type(
        "ATanSurrogate", (), {"__module__": "snntorch.surrogate", "__init__": lambda s, a: setattr(s, "alpha", a)}
    )
    assert recognise(made(1.25)) == surrogate.atan(alpha=1.25)
    elsewhere = type("ATanSurrogate", (), {"__module__": "mine", "alpha": 2.0})()
    assert recognise(elsewhere) is elsewhere


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


class Steep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (z,) = ctx.saved_tensors
        return grads[0] * torch.exp(-2 * z.abs()) * 0.8


def steep(z: Tensor) -> Tensor:
    return Steep.apply(z)  # type: ignore[no-any-return,no-untyped-call]


class _With(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, soft: Tensor, hard: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


def step_with_gradient_of(soft: Tensor, z: Tensor) -> Tensor:
    """The step, exactly; ``hard + soft - soft.detach()`` would be rounded."""
    return _With.apply(soft, (z > 0).to(z.dtype))  # type: ignore[no-any-return,no-untyped-call]


class PerNeuron(nn.Module):
    """A derivative with a learned number for each of ten neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.linspace(0.2, 1, 10))

    def forward(self, z: Tensor) -> Tensor:
        return step_with_gradient_of(torch.sigmoid(self.slope * z), z)


class Clipped(torch.autograd.Function):
    """Not linear in the incoming gradient."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0].clamp(-0.3, 0.3)


def clipped(z: Tensor) -> Tensor:
    return Clipped.apply(z)  # type: ignore[no-any-return,no-untyped-call]


def neighbours(z: Tensor) -> Tensor:
    """Each neuron's derivative depends on the others of its sample: a soft winner-take-all."""
    return step_with_gradient_of(torch.softmax(z, -1), z)


def over_time(z: Tensor) -> Tensor:
    """The derivative depends on everything that is in the call."""
    return step_with_gradient_of(z / (1 + z.detach().abs().sum()), z)


def by_the_maximum(z: Tensor) -> Tensor:
    return step_with_gradient_of(torch.atan(z / z.detach().abs().max()), z)


def by_the_deviation(z: Tensor) -> Tensor:
    return step_with_gradient_of(torch.atan(z / (z.detach().std(correction=0) + 0.1)), z)


def soft(z: Tensor) -> Tensor:
    return torch.sigmoid(5 * z)


def with_negative_spikes(z: Tensor) -> Tensor:
    return (z > 0).to(z.dtype) - (z < -4).to(z.dtype) + 0 * z


def two_dimensional(z: Tensor) -> Tensor:
    if z.dim() != 2:
        raise ValueError("only [B, N]")
    return steep(z)


def not_strict(z: Tensor) -> Tensor:
    return (z >= 0).to(z.dtype) + 0 * z


def in_float32(z: Tensor) -> Tensor:
    return steep(z.float())


def without_a_gradient(z: Tensor) -> Tensor:
    return (z > 0).to(z.dtype)


FAST_BOTH = {"steep": steep, "in_float32": in_float32, "without_a_gradient": without_a_gradient}
FAST_DELAYED = {"PerNeuron": PerNeuron(), "clipped": clipped, "neighbours": neighbours}
STATISTICS = {"over_time": over_time, "by_the_maximum": by_the_maximum, "by_the_deviation": by_the_deviation}
OTHER_SPIKES = {"not_strict": not_strict, "soft": soft, "with_negative_spikes": with_negative_spikes}
SLOW = {**STATISTICS, **OTHER_SPIKES, "two_dimensional": two_dimensional}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("shape", [(3, 10), (4, 9), (1, 10), (128, 1000), (32, 3, 10)], ids=str)
def test_callables_are_examined_for_what_the_kernels_need(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for spike_grad in (*FAST_BOTH.values(), *FAST_DELAYED.values(), *SLOW.values(), surrogate.SSO()):
        if spike_grad is FAST_DELAYED["PerNeuron"] and shape[-1] != 10:
            continue
        if spike_grad is two_dimensional and len(shape) != 2:
            continue
        state = torch.get_rng_state()
        unfit = _spike_grad._examine(spike_grad, torch.Size(shape), dtype, torch.device("cpu"))
        assert torch.equal(torch.get_rng_state(), state)  # what it draws is given back
        assert (unfit.delayed is None) == (spike_grad not in SLOW.values()), spike_grad
        assert (unfit.immediate is None) == (spike_grad in FAST_BOTH.values() or isinstance(spike_grad, Surrogate))


def test_a_single_neuron_is_enough_to_tell() -> None:
    def random_spikes(z: Tensor) -> Tensor:
        return torch.bernoulli(torch.sigmoid(z.detach())) + 0 * z

    for shape in ((1,), (1, 1), ()):
        for spike_grad in (not_strict, soft, with_negative_spikes, random_spikes):
            unfit = _spike_grad._examine(spike_grad, torch.Size(shape), torch.float32, torch.device("cpu"))
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


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature", "ignore:snnfast. a layer runs step by step")
@pytest.mark.parametrize("name", [*FAST_BOTH, "neighbours", *SLOW])
def test_callables_of_inhibited_layers_have_the_numbers_of_snntorch(name: str) -> None:
    spike_grad = {**FAST_BOTH, **FAST_DELAYED, **SLOW}[name]
    x = torch.rand(5, 4, 10) * 2
    results = []
    for make, unroll in ((snntorch.Leaky, False), (snnfast.Leaky, False), (snnfast.Leaky, True)):
        layer, leaf = make(0.9, inhibition=True, spike_grad=spike_grad), x.clone().requires_grad_()
        if unroll:
            spk, mem_rec = layer.unroll(leaf)
        else:
            mem, steps = torch.zeros(4, 10), []
            for step in leaf:
                s, mem = layer(step, mem)
                steps.append((s, mem))
            spk, mem_rec = (torch.stack(t) for t in zip(*steps, strict=True))
        results.append((spk, mem_rec, torch.autograd.grad(spk.sum() + mem_rec.square().sum(), leaf)[0]))
    for spk, mem_rec, grad in results[1:]:
        assert_bits_equal(spk, results[0][0], "spk")
        assert_bits_equal(mem_rec, results[0][1], "mem")
        assert_close(grad, results[0][2], 1e-5, "current")


def test_a_callable_can_be_used_first_in_inference_mode() -> None:
    for make in (lambda: Named("a", steep), lambda: theirs.custom_surrogate(lambda z, g, s: g * s)):
        for delay in (True, False):
            layer, x = snnfast.Leaky(0.9, spike_grad=make(), reset_delay=delay), torch.rand(4, 3, 10) * 2
            with torch.inference_mode():
                found = (*layer.unroll(x), *layer(x[0], torch.rand(3, 10)))
            assert found[0].any()
            leaf = x.clone().requires_grad_()
            layer.unroll(leaf)[0].sum().backward()
            assert leaf.grad is not None


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

    for lif in (functional.lif, reference.lif):
        with pytest.raises(ZeroDivisionError, match="mine"):
            lif(torch.ones(4, 3), beta=0.9, spike_grad=broken)
    with pytest.raises(TypeError, match=r"^spike_grad: expected a callable that returns"):
        functional.lif(torch.ones(4, 3), beta=0.9, spike_grad=lambda z: 3)  # type: ignore[arg-type,return-value]


def trained_like_snntorch(spike_grad: Any, reset: str, delay: bool, expected_warning: str | None) -> None:
    """Spikes, membranes and all gradients of a layer, unrolled and called step by step, against snnTorch's loop."""
    options = {"spike_grad": spike_grad, "reset_mechanism": reset, "reset_delay": delay, "learn_threshold": True}
    theirs_layer = snntorch.Leaky(torch.linspace(0.5, 1, 10), torch.tensor(0.9), learn_beta=True, **options)
    x = torch.rand(7, 3, 10) * 2 - 0.4
    weights, weights_mem = torch.randn(7, 3, 10), torch.randn(7, 3, 10)
    own = list(spike_grad.parameters()) if isinstance(spike_grad, nn.Module) else []

    def gradients(layer: nn.Module, leaf: Tensor, spk: Tensor, mem: Tensor) -> tuple[Tensor | None, ...]:
        loss = (spk * weights).sum() + (mem * weights_mem).sum()
        return torch.autograd.grad(loss, [leaf, layer.beta, layer.threshold, *own], allow_unused=True)

    leaf = x.clone().requires_grad_()
    mem, spks, mems = torch.rand(3, 10) * 2, [], []
    mem0 = mem
    for step in leaf:
        spk, mem = theirs_layer(step, mem)
        spks.append(spk)
        mems.append(mem)
    spk_expected, mem_expected = torch.stack(spks), torch.stack(mems)
    expected = gradients(theirs_layer, leaf, spk_expected, mem_expected)
    for unroll in (True, False):
        layer = snnfast.Leaky(torch.linspace(0.5, 1, 10), torch.tensor(0.9), learn_beta=True, **options)
        leaf = x.clone().requires_grad_()
        _backend._warned.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if unroll:
                spk_rec, mem_rec = layer.unroll(leaf, mem0)
            else:
                mem, spks, mems = mem0, [], []
                for step in leaf:
                    spk, mem = layer(step, mem)
                    spks.append(spk)
                    mems.append(mem)
                spk_rec, mem_rec = torch.stack(spks), torch.stack(mems)
        messages = [str(w.message) for w in caught if "step by step" in str(w.message)]
        assert len(messages) == (expected_warning is not None), messages
        assert all(expected_warning in m for m in messages if expected_warning)
        assert_bits_equal(spk_rec, spk_expected, "spk")
        assert_bits_equal(mem_rec, mem_expected, "mem")
        found = gradients(layer, leaf, spk_rec, mem_rec)
        for name, a, b in zip(("current", "beta", "threshold", "own"), found, expected, strict=False):
            # No path to a parameter and a gradient of zeros are the same.
            assert a is None or (b is None and not a.any()) or assert_close(a, b, 1e-5, name, scale=1.0) is None
            assert a is not None or b is None or not b.any(), name


CASES = list(itertools.product(RESETS, (True, False)))


@pytest.mark.parametrize(("reset", "delay"), CASES, ids=lambda v: str(v))
@pytest.mark.parametrize("name", FAST_BOTH)
def test_any_callable_has_the_spikes_and_gradients_of_snntorchs_loop(name: str, reset: str, delay: bool) -> None:
    trained_like_snntorch(FAST_BOTH[name], reset, delay, None)


@pytest.mark.parametrize(("reset", "delay"), CASES, ids=lambda v: str(v))
@pytest.mark.parametrize("name", FAST_DELAYED)
def test_a_callable_too_special_for_an_immediate_reset_is_right_all_the_same(
    name: str, reset: str, delay: bool
) -> None:
    reasons = {
        "PerNeuron": "parameters of its own",
        "clipped": "its gradient is not",
        "neighbours": "its gradient is not",
    }
    trained_like_snntorch(FAST_DELAYED[name], reset, delay, None if delay else reasons[name])


@pytest.mark.needs_extension
@pytest.mark.parametrize("name", SLOW)
def test_a_callable_that_the_kernels_cannot_follow_runs_step_by_step_and_says_so(name: str) -> None:
    reasons = {
        **dict.fromkeys(STATISTICS, "depends on the others"),
        **dict.fromkeys(OTHER_SPIKES, "not the step"),
        "two_dimensional": "only [B, N]",
    }
    trained_like_snntorch(SLOW[name], "subtract", True, reasons[name])
    with (
        snnfast.use_backend("fused"),
        pytest.raises(RuntimeError, match="is not available for this layer"),
    ):
        functional.lif(torch.ones(4, 3, 10), beta=0.9, spike_grad=SLOW[name])


def test_sso_has_the_spikes_of_snntorch_and_its_gradients_in_the_mean() -> None:
    x = (torch.rand(5, 4) * 2 - 0.4).repeat(4000, 1, 1).transpose(0, 1).contiguous()  # [T, 4000 samples alike, 4]
    found = []
    for layer in (snnfast.Leaky(0.9, 0.8, theirs.SSO()), snntorch.Leaky(0.9, 0.8, theirs.SSO())):
        leaf = x.clone().requires_grad_()
        if isinstance(layer, snnfast.Leaky):
            spk, _ = layer.unroll(leaf)
        else:
            mem, spks = None, []
            for step in leaf:
                spk, mem = layer(step, mem)
                spks.append(spk)
            spk = torch.stack(spks)
        (grad,) = torch.autograd.grad(spk.sum(), [leaf])
        found.append((spk, grad.mean(1)))
    assert_bits_equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=0.01)


@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
def test_a_callable_is_examined_while_it_is_compiled(delay: bool) -> None:
    for name, spike_grad in {**FAST_BOTH, **SLOW}.items():
        torch._dynamo.reset()
        _backend._warned.clear()
        layer = snnfast.Leaky(0.9, spike_grad=spike_grad, reset_delay=delay)
        x = torch.rand(4, 3, 10) * 2
        compiled = torch.compile(layer.unroll, fullgraph=True, backend="aot_eager")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results = [compiled(x), layer.unroll(x)]
        for a, b in zip(*results, strict=True):
            assert_bits_equal(a, b)
        slow = [str(w.message) for w in caught if "step by step" in str(w.message)]
        assert len(slow) == (1 if name in SLOW or not delay else 0), (name, slow)
