"""Neurons that a user wrote by hand, in a compiled loop: their calls become one recurrence, of any size and order.

What becomes of each kind of loop is in programs.py.
"""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from helpers import assert_all_close
from loop_nets import QUICK_WAYS
from loop_ops import Masked, Saved
from programs import PROGRAMS, ByHand
from running import assert_alike
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

import snnfast
from benchmarks.collection.comparison import EXACT, TOLERANCES
from benchmarks.collection.surrogates import SuperSpike

pytestmark = [pytest.mark.usefixtures("nothing_compiled"), pytest.mark.needs_extension]


@pytest.mark.parametrize("way", QUICK_WAYS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("order", ["usual", "channels_last"])
def test_samples_first_are_not_copied(order: str, backend: Any, way: Any) -> None:
    def layer(x: Tensor) -> Tensor:  # [B, T, *], as in TET
        mem: Any = 0
        spikes = []
        for t in range(x.shape[1]):
            mem = mem * 0.5 + x[:, t, ...]
            spk = Masked.apply(mem - 1.0)
            mem = (1 - spk) * mem
            spikes.append(spk)
        return torch.stack(spikes, dim=1)

    def loop(net: Any, x: Tensor) -> Any:
        y = layer(layer(x) * 1.5)
        return y.flatten(0, 1), y

    net, x = ByHand(loop), torch.rand(3, 6, 8, 5, 7) * 2
    if order == "channels_last":
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    x = x.requires_grad_()
    compiled = way(copy.deepcopy(net))
    with snnfast.use_backend(backend):
        for _ in range(2):
            assert_alike(compiled, net, x, EXACT["float32"])
        if backend == "reference" or order != "usual":  # a result of the user is contiguous, as that of the loop
            return
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
            flat, y = compiled(x)
            torch.autograd.grad((flat * flat).sum() + (y * y).sum(), x)
    copies = [e for e in profiled.events() if e.name in ("aten::copy_", "aten::clone")]
    assert not [e for e in copies if torch.Size(e.input_shapes[0]).numel() == x.numel()]


@pytest.mark.parametrize("way", QUICK_WAYS)
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("outputs", [3, 90])
def test_a_linear_behind_a_neuron_whose_samples_come_first(outputs: int, binary: bool, way: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(1200, outputs)

        def forward(self, x: Tensor) -> Any:
            mem, rec, traces = torch.zeros(x.shape[0], 1200), [], []
            for t in range(x.shape[1]):
                mem = mem * 0.8 + x[:, t]
                spk = Masked.apply(mem - 1.0)
                mem = mem - spk.detach()
                rec.append(self.fc(spk if binary else spk * mem))
                traces.append(mem)
            return torch.stack(rec, 1), torch.stack(traces, 1)

    torch.manual_seed(0)
    net, x = Net(), (torch.rand(3, 25, 1200) * 2).requires_grad_()
    compiled = way(copy.deepcopy(net))
    for _ in range(2):
        assert_alike(compiled, net, x, TOLERANCES["float32"])


@pytest.mark.parametrize("way", QUICK_WAYS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_views_of_a_neuron_whose_samples_come_first(backend: Any, way: Any) -> None:
    def loop(net: Any, x: Tensor) -> Any:
        mem = torch.zeros(3, 4, 35)
        rec, mems = [], []
        for t in range(x.shape[1]):
            mem = mem * 0.8 + x[:, t]
            spk = Masked.apply(mem - 1.0)
            mem = mem - spk.detach()
            rec.append(spk)
            mems.append(mem)
        record = torch.stack(rec)
        return record, record.view(len(rec), -1), rec[2].view(-1), mem.view(3, -1), torch.stack(mems, 1).view(3, -1)

    net, x = ByHand(loop), (torch.rand(3, 6, 4, 35) * 2).requires_grad_()
    compiled = way(copy.deepcopy(net))
    with snnfast.use_backend(backend):
        for _ in range(2):
            assert_alike(compiled, net, x, EXACT["float32"])


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("first", [None, 0.0], ids=["zeros", "number"])
def test_views_of_a_neuron_whose_current_is_in_another_order(
    first: float | None, backend: Any, reports: list[Any]
) -> None:
    def loop(net: Any, x: Tensor) -> Any:
        mem: Any = torch.zeros(3, 4, 5, 7) if first is None else first
        rec = []
        for t in range(len(x)):
            mem = mem * 0.8 + x[t]
            spk = Masked.apply(mem - 1.0)
            mem = mem - spk.detach()
            rec.append(spk)
        record = torch.stack(rec)
        if first is None:  # zeros are contiguous, and so is what is made of them
            return record, record.view(len(x), 3, -1), rec[2].view(-1), mem.view(3, -1)
        return record.movedim(2, -1).view(len(x), -1, 4), mem.movedim(1, -1).view(-1), torch.stack(rec, 1)

    net, x = ByHand(loop), (torch.rand(6, 3, 5, 7, 4) * 2).movedim(-1, 2).requires_grad_()
    with snnfast.use_backend(backend):
        assert_alike(torch.compile(net, backend="snnfast"), net, x, EXACT["float32"])
    assert ("one recurrence" in " ".join(map(str, reports))) == (backend == "auto")


class Together(nn.Module):
    """A layer without a state on all steps at once, and a neuron that loops over them, as in TET."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(7, 7)

    def forward(self, x: Tensor) -> Tensor:
        current = self.fc(x.flatten(0, 1)).view(x.shape)
        mem, out = 0, []
        for t in range(x.shape[1]):
            mem = mem * 0.5 + current[:, t, ...]
            spk = Masked.apply(mem - 0.3)
            mem = (1 - spk) * mem
            out.append(spk)
        return torch.stack(out, dim=1) + x


@pytest.mark.parametrize("steps", [4, *(pytest.param(n, marks=pytest.mark.thorough) for n in (5, 6))])
def test_several_layers_of_one_class_are_no_steps(steps: int, reports: list[Any]) -> None:
    net, x = nn.Sequential(*(Together() for _ in range(steps))), torch.rand(3, steps, 7, requires_grad=True)
    assert_alike(snnfast.compile(copy.deepcopy(net)), net, x, TOLERANCES["float32"])
    assert f"{steps} steps of 6 calls" in " ".join(map(str, reports))
    assert f"one recurrence ({steps} times)" in " ".join(map(str, reports))


@pytest.mark.parametrize("way", QUICK_WAYS)
def test_a_loop_that_runs_again_has_its_own_results_of_each_step(way: Any) -> None:
    def loop(net: Any, x: Tensor) -> Any:
        for _ in range(2):  # nobody reads the last spikes of the first one
            mem: Any = 0
            trace = torch.full_like(x[0], 0.25)
            for xt in x.unbind():
                mem = (mem * 0.75 + xt) * 0.5
                spk = Masked.apply(mem - 0.25)
                mem = mem * (1.0 - spk)
                trace = trace * 0.5 + spk
            x = x * 1.5
        return trace

    net, x = ByHand(loop), torch.linspace(-0.5, 1.5, 72).view(18, 4).T.reshape(4, 3, 6).requires_grad_()
    compiled = way(copy.deepcopy(net))
    for _ in range(2):
        assert_alike(compiled, net, x, EXACT["float32"])


@pytest.mark.parametrize("name", ["soft_reset_of_a_number", "constant_input_and_no_grad", "recurrent_weights"])
def test_any_batch_size(name: str, reports: list[Any]) -> None:
    net = ByHand(PROGRAMS[name].loop)
    function = torch.compile(net, backend="snnfast")
    for batch in (5, 4, 3, 0):
        assert_alike(function, net.forward, torch.randn(7, batch, 7, requires_grad=True), EXACT["float32"])
        assert reports[-1].merged


def test_a_first_state_in_a_record_that_is_filled_later() -> None:
    """The program keeps it for its backward pass, and the record it is a part of changes."""
    torch.manual_seed(0)
    fc = nn.Linear(4, 4).double()

    def loop(x: Tensor) -> Tensor:
        mem, record = torch.zeros(2, 4, dtype=x.dtype), torch.zeros(2, 4, 5, dtype=x.dtype)
        for t in range(5):
            with torch.set_grad_enabled(t > 0):
                mem = 0.5 * mem + fc(x[t]) + record[..., max(t - 1, 0)] * 0.5
                spk = Saved.apply(mem - 0.25, torch.zeros_like(mem))
                record[..., t] = spk
        return spk * mem

    x = torch.rand(5, 2, 4, dtype=torch.float64, requires_grad=True)
    found, expected = (torch.autograd.grad(f(x).sum(), [x, *fc.parameters()]) for f in (snnfast.compile(loop), loop))
    assert_all_close(found, expected, 1e-12)


class Filling(nn.Module):
    """A neuron whose spikes have no surrogate, in a record that is read without gradients meanwhile."""

    def __init__(self, recurrent: bool, view: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4) if recurrent else nn.Identity()
        self.view = view

    def forward(self, x: Tensor) -> Any:
        mem = spk = torch.zeros_like(x[0])
        filled, begin = torch.zeros(6, 2, 4), torch.zeros(2, 2, 4)
        for t in range(5):
            with self.view():
                before = filled[t]
            if t == 0:
                begin[0].add_(torch.tanh(mem))  # which has no gradient in the first step
            mem = 0.5 * mem + x[t] + self.fc(spk)
            spk = (mem > 0.5).to(mem.dtype)
            mem = mem - spk
            filled[t].add_(spk)
            filled.unbind(0)[t + 1].copy_(spk)
        with self.view():
            return mem, before, filled[2:], begin[0], torch.tanh(mem)


@pytest.mark.parametrize("recurrent", [False, True], ids=["", "with a product"])
@pytest.mark.parametrize("view", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_spikes_without_a_surrogate_bring_no_gradient_to_a_record(view: Any, recurrent: bool) -> None:
    net, x = Filling(recurrent, view), torch.rand(5, 2, 4, requires_grad=True)
    assert_alike(snnfast.compile(copy.deepcopy(net)), net, x, TOLERANCES["float32"])


@pytest.mark.parametrize("name", ["adaptive_threshold", "recurrent_weights", "bits_to_a_linear"])
def test_in_a_checkpoint(name: str) -> None:
    """It hands each saved tensor out once."""
    net, x = ByHand(PROGRAMS[name].loop), torch.randn(7, 5, 7).requires_grad_()
    again = partial(checkpoint, torch.compile(net, backend="snnfast"), use_reentrant=False)
    again.named_parameters = net.named_parameters  # type: ignore[attr-defined]
    for _ in range(2):
        assert_alike(again, net, x, TOLERANCES["float32"])


def lif(x: Tensor) -> Tensor:
    mem, out = torch.zeros_like(x[0]), torch.zeros_like(x[0])
    for x_t in x:
        mem = 0.9 * mem + x_t
        spk = SuperSpike.apply(mem - 1.0)
        mem = mem - spk
        out = out + spk * mem
    return out


@pytest.mark.parametrize("loop", [lif, lambda x: SuperSpike.apply(x[0]) * x[1]], ids=["recurrence", "one call"])
@pytest.mark.parametrize("by", QUICK_WAYS)
def test_second_derivatives_go_through_the_derivative_of_a_surrogate(loop: Any, by: Any) -> None:
    """As in meta-learning, or where the gradient of the input is a part of the loss."""
    x = torch.rand(6, 3, 5, dtype=torch.float64, requires_grad=True)

    def second(function: Any) -> Tensor:
        (first,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    compiled = by(lambda x: loop(x))
    for _ in range(2):
        torch.testing.assert_close(second(compiled), second(loop))
