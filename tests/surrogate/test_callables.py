"""Any callable as surrogate has snnTorch's numbers, whether the kernels can follow it or it runs step by step."""

import itertools
import warnings
from typing import Any

import pytest
import snntorch
import torch
from callables import FAST_BOTH, FAST_DELAYED, OTHER_SPIKES, SLOW, STATISTICS, steep
from helpers import RESETS, assert_all_bits_equal, assert_close
from snntorch_checks import loop
from torch import Tensor, nn

import snnfast
from snnfast import functional
from snnfast._core import backend


def trained_like_snntorch(spike_grad: Any, reset: str, delay: bool, expected_warning: str | None) -> None:
    """Spikes, membranes and all gradients of a layer, unrolled and called step by step, against snnTorch's loop."""
    options = {"spike_grad": spike_grad, "reset_mechanism": reset, "reset_delay": delay, "learn_threshold": True}
    x, mem, weights, weights_mem = torch.rand(7, 3, 10) * 2 - 0.4, torch.rand(3, 10) * 2, *torch.randn(2, 7, 3, 10)
    own = list(spike_grad.parameters()) if isinstance(spike_grad, nn.Module) else []

    def trained(library: Any, call: Any) -> tuple[tuple[Tensor, Tensor], tuple[Tensor | None, ...]]:
        layer = library.Leaky(torch.linspace(0.5, 1, 10), torch.tensor(0.9), learn_beta=True, **options)
        leaf = x.clone().requires_grad_()
        spk, mem_rec = call(layer, leaf, mem)
        loss = (spk * weights).sum() + (mem_rec * weights_mem).sum()
        return (spk, mem_rec), torch.autograd.grad(loss, [leaf, layer.beta, layer.threshold, *own], allow_unused=True)

    expected, expected_gradients = trained(snntorch, loop)
    for call in (snnfast.Leaky.unroll, loop):
        backend._warned.clear()
        with warnings.catch_warnings(record=True, action="always") as caught:
            found, gradients = trained(snnfast, call)
        messages = [str(w.message) for w in caught if "step by step" in str(w.message)]
        assert len(messages) == (expected_warning is not None), messages
        assert all(expected_warning in m for m in messages if expected_warning)
        assert_all_bits_equal(found, expected)
        for name, a, b in zip(("current", "beta", "threshold", "own"), gradients, expected_gradients, strict=False):
            # No path to a parameter and a gradient of zeros are the same.
            assert a is None or (b is None and not a.any()) or assert_close(a, b, 1e-5, name, scale=1.0) is None
            assert a is not None or b is None or not b.any(), name


# Why a callable runs step by step: with an immediate reset only, or always.
IMMEDIATE = {"PerNeuron": "parameters of its own", **dict.fromkeys(("clipped", "neighbours"), "its gradient is not")}
ALWAYS = {
    **dict.fromkeys(STATISTICS, "depends on the others"),
    **dict.fromkeys(OTHER_SPIKES, "not the step"),
    "two_dimensional": "only [B, N]",
}


@pytest.mark.parametrize("name", [*FAST_BOTH, *FAST_DELAYED])
def test_any_callable_has_the_spikes_and_gradients_of_snntorchs_loop(name: str) -> None:
    for reset, delay in itertools.product(RESETS, (True, False)):
        trained_like_snntorch({**FAST_BOTH, **FAST_DELAYED}[name], reset, delay, None if delay else IMMEDIATE.get(name))


@pytest.mark.needs_extension
@pytest.mark.parametrize("name", SLOW)
def test_a_callable_that_the_kernels_cannot_follow_runs_step_by_step_and_says_so(name: str) -> None:
    trained_like_snntorch(SLOW[name], "subtract", True, ALWAYS[name])
    with snnfast.use_backend("fused"), pytest.raises(RuntimeError, match="is not available for this layer"):
        functional.lif(torch.ones(4, 3, 10), beta=0.9, spike_grad=SLOW[name])


@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
def test_without_gradients_the_kernel_makes_the_spikes(delay: bool) -> None:
    calls = []

    def counted(z: Tensor) -> Tensor:
        calls.append(z.shape)
        return steep(z)

    options = {"graded_spikes_factor": 1.5, "reset_delay": delay}
    layer, other = snnfast.Leaky(0.9, spike_grad=counted, **options), snntorch.Leaky(0.9, spike_grad=steep, **options)
    x, mem = torch.rand(5, 4, 10) * 2, torch.zeros(4, 10)
    layer.unroll(x)  # tried out
    calls.clear()
    with torch.no_grad():
        spk, mem_rec = layer.unroll(x)
        expected = loop(other, x, mem)
        count, _ = layer.unroll(x, reduce="sum")
        first, _ = layer(x[0], mem)
    assert not calls
    assert_all_bits_equal((spk, mem_rec, count, first), (*expected, spk.sum(0), spk[0]))


@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
def test_a_callable_is_examined_while_it_is_compiled(delay: bool) -> None:
    for name in (*FAST_BOTH, "over_time", "soft", "two_dimensional") if delay else ("steep", "soft"):
        spike_grad = {**FAST_BOTH, **SLOW}[name]
        torch._dynamo.reset()
        backend._warned.clear()
        layer = snnfast.Leaky(0.9, spike_grad=spike_grad, reset_delay=delay)
        x = torch.rand(4, 3, 10) * 2
        compiled = torch.compile(layer.unroll, fullgraph=True, backend="aot_eager")
        with warnings.catch_warnings(record=True, action="always") as caught:
            results = [compiled(x), layer.unroll(x)]
        assert_all_bits_equal(*results)
        slow = [str(w.message) for w in caught if "step by step" in str(w.message)]
        assert len(slow) == (1 if name in SLOW or not delay else 0), (name, slow)
