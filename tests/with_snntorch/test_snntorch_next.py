"""What snnTorch's main branch has after 1.0.0 goes through, and what the fused neurons can't do with it is said."""

from collections import OrderedDict
from typing import Any

import pytest
import snntorch
import torch
from helpers import assert_all_close, assert_bits_equal, assert_close
from multistep_checks import Loop
from torch import Tensor, nn

import snnfast
import snnfast.snntorch as snn
from snnfast import MultiStep, surrogate
from snnfast.snntorch._drop_ins import DropIn


class SynapticDelay(nn.Module):
    """Step mode: ``[B, C]`` and a buffer of the last inputs. Otherwise ``[T, B, C]``, and nothing is held."""

    def __init__(
        self, max_delay: int, delay: float | Tensor = 0.0, learn_delay: bool = False, step_mode: bool = True
    ) -> None:
        super().__init__()
        self.max_delay, self.step_mode = max_delay, step_mode
        value = torch.as_tensor(delay, dtype=torch.float32)
        if learn_delay:
            self.delay = nn.Parameter(value)
        else:
            self.register_buffer("delay", value)
        self.register_buffer("_buffer", torch.zeros(0), persistent=False)

    def reset_delay(self) -> Tensor:
        self._buffer = torch.zeros_like(self._buffer)
        return self._buffer

    def _weights(self, x: Tensor) -> Tensor:
        """``[max_delay + 1, C]``: how much of the input of so many steps ago comes out."""
        lags = torch.arange(self.max_delay + 1, dtype=x.dtype, device=x.device).unsqueeze(1)
        return (1 - (lags - self.delay.clamp(0, self.max_delay).expand(x.shape[-1])).abs()).clamp(min=0)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != (2 if self.step_mode else 3):
            raise ValueError(f"step_mode={self.step_mode}: got {tuple(x.shape)}")
        weights = self._weights(x)
        if not self.step_mode:
            padded = torch.cat([x.new_zeros(self.max_delay, *x.shape[1:]), x])
            return sum(padded[self.max_delay - k :][: len(x)] * w for k, w in enumerate(weights))  # type: ignore[return-value]
        shape = (self.max_delay + 1, *x.shape)
        before = self._buffer if self._buffer.shape == shape else x.new_zeros(shape)
        self._buffer = torch.cat([x.unsqueeze(0), before[:-1]])
        return (self._buffer * weights.unsqueeze(1)).sum(0)


SynapticDelay.__module__ = "snntorch._neurons.synapticdelay"  # where it is, by which it is known


class ATanSurrogate:
    """An object, where 1.0.0 has a closure."""

    def __init__(self, alpha: float = 2.0) -> None:
        self.alpha = alpha

    def __call__(self, z: Tensor) -> Tensor:
        return snntorch.surrogate.ATan.apply(z, self.alpha)  # type: ignore[no-any-return]


ATanSurrogate.__module__ = "snntorch.surrogate"


class Custom(snntorch.SpikingNeuron):
    """As ``neuron_from_equations`` makes them."""

    def __init__(self) -> None:
        super().__init__(init_hidden=True)
        self.register_buffer("v", torch.zeros(0), persistent=False)

    def reset_state(self) -> None:
        self.v = torch.zeros_like(self.v)

    def forward(self, input_: Tensor) -> Tensor:
        self.v = 0.5 * self.v + input_ if self.v.shape == input_.shape else input_
        return self.fire(self.v)


Custom.__module__ = "snntorch._neurons.customneuron"


def test_convert() -> None:
    atan, adaptive = ATanSurrogate(3.0), snntorch.Leaky(0.9)
    adaptive._homeostasis_enabled = True
    net = nn.Sequential(snntorch.Leaky(0.9, spike_grad=atan), SynapticDelay(3, 1.5), Custom(), adaptive)
    report = snn.convert(net)
    assert report.swapped == ("0",)
    follows = "its threshold follows its spikes (enable_homeostasis)"
    assert report.left == {"2": "snnfast has no kernel for Custom", "3": follows}
    assert net[0].spike_grad == surrogate.atan(alpha=3.0)
    snn.revert(net)
    assert net[0].spike_grad is atan


def test_homeostasis_is_an_error_that_says_what_can() -> None:
    assert not any(hasattr(library.Leaky, "enable_homeostasis") for library in (snn, snntorch))

    class Theirs(snntorch.Synaptic):
        def enable_homeostasis(self) -> None: ...

    made = type("Synaptic", (DropIn, snnfast.Synaptic, Theirs), {})(0.9, 0.8)
    with pytest.raises(NotImplementedError, match=r"^enable_homeostasis: the fused step .*: use snntorch\.Synaptic$"):
        made.enable_homeostasis()


def test_reset_reaches_the_new_layers() -> None:
    net = nn.Sequential(nn.Sequential(SynapticDelay(3, 1.0), Custom(), snn.Leaky(0.9)))
    for _ in range(3):
        net(torch.rand(3, 4) + 1)
    states = (net[0][0]._buffer, net[0][1].v, net[0][2].mem)
    assert all(state.any() for state in states)
    snnfast.reset(net)
    assert not any(state.any() for state in (net[0][0]._buffer, net[0][1].v, net[0][2].mem))


def test_a_new_neuron_over_time_is_refused() -> None:
    with pytest.raises(TypeError, match=r"layers: Custom is or has a neuron of snnTorch \(Custom\), .*keep the loop"):
        MultiStep(nn.Linear(4, 5), Custom())


# ---- SynapticDelay among layers over time


def made(**options: Any) -> SynapticDelay:
    return SynapticDelay(3, torch.tensor([0.0, 0.5, 1.0, 2.25, 3.0]), **options)


def looped(**options: Any) -> Loop:
    return Loop(nn.Linear(4, 5), made(**options), snnfast.Leaky(0.9))


@pytest.mark.parametrize("step_mode", [True, False], ids=["steps", "sequence"])
def test_a_delay_over_time(step_mode: bool, backend: str) -> None:
    loop = looped(learn_delay=True)
    over_time = MultiStep(loop[0], made(learn_delay=True, step_mode=step_mode), loop[2])
    x = torch.rand(8, 3, 4) * 4
    expected, found = loop(x)[0], over_time(x)[0]
    assert_bits_equal(found, expected)
    assert expected.any()
    gradients = []
    for spk, delay in ((expected, loop[1]), (found, over_time[1])):
        gradients.append(torch.autograd.grad(spk.square().sum(), [loop[0].weight, delay.delay]))
    assert_all_close(*gradients, relative=1e-4)


def test_a_delay_goes_on_from_what_it_holds() -> None:
    loop, x = looped(), torch.rand(8, 3, 4) * 4
    over_time = MultiStep(loop[0], made(), loop[2])
    expected, _ = loop(x)
    first, states = over_time(x[:3], return_states=True)[0::2]
    second = over_time(x[3:], states=states)[0]
    assert_bits_equal(torch.cat([first, second]), expected)
    assert over_time[1]._buffer.any()
    snnfast.reset(over_time)
    assert not over_time[1]._buffer.any()
    assert_bits_equal(over_time(x)[0], expected)


def test_a_delay_that_a_module_calls_is_refused() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = made()

    with pytest.raises(TypeError, match=r"layers: Holder calls a SynapticDelay in its forward, .*a method unroll"):
        MultiStep(nn.Linear(4, 5), Holder())
    with pytest.raises(ValueError, match=r"step_mode=True: got"):
        MultiStep(made())(torch.rand(6, 3, 2, 5))


def test_a_delay_in_from_sequential() -> None:
    x, delay = torch.rand(8, 3, 4) * 4, made()
    layers = OrderedDict(fc=nn.Linear(4, 5), delay=delay, lif=snntorch.Leaky(0.9, init_hidden=True, output=True))
    expected = torch.stack([nn.Sequential(layers)(step)[0] for step in x])
    delay.reset_delay()
    layers["lif"].reset_mem()
    over_time = MultiStep.from_sequential(nn.Sequential(layers))
    assert_bits_equal(over_time(x)[0], expected)
    with pytest.raises(ValueError, match=r"net\.2: the same SynapticDelay as net\.0"):
        MultiStep.from_sequential(nn.Sequential(delay, nn.Linear(5, 5), delay))


# ---- and in a compiled loop


@pytest.mark.needs_extension
@pytest.mark.parametrize("learn", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["fixed", "learned"])
def test_a_delay_in_a_compiled_loop(learn: bool) -> None:
    x = torch.rand(6, 3, 4) * 4
    eager, compiled = looped(learn_delay=learn), looped(learn_delay=learn)
    compiled.load_state_dict(eager.state_dict())
    run = torch.compile(compiled, backend="snnfast")
    for _ in range(2):  # the second time from what the first one left
        (expected, _), (found, _) = eager(x), run(x)
        assert_bits_equal(found, expected)
        assert_close(compiled[1]._buffer, eager[1]._buffer, 1e-6)
        for loop, spk in ((eager, expected), (compiled, found)):
            loop.zero_grad()
            spk.square().sum().backward()
        for (name, a), b in zip(eager.named_parameters(), compiled.parameters(), strict=True):
            assert_close(b.grad, a.grad, 1e-5, name)
        for loop in (eager, compiled):
            loop[1]._buffer = loop[1]._buffer.detach()  # type: ignore[union-attr]
    assert expected.any()
