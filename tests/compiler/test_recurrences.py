"""Neurons that a user wrote by hand, in a compiled loop: their calls become one recurrence, with the loop's numbers."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import (
    RESETS,
    SURROGATES,
    Case,
    assert_bits_equal,
    emulated_if_thorough,
    every_other,
    fused,
    gradients_of,
    inputs,
    layer_of,
    leaves,
)
from loop_ops import Masked, Plain, Saved, Summed, through
from neuron_kinds import KINDS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

import snnfast
from snnfast._program.run import Program
from snnfast._unroll.graph import elementwise_step
from snnfast.compiler.backend import merge

pytestmark = [pytest.mark.usefixtures("nothing_compiled"), pytest.mark.needs_extension]


# ---- networks: their loops, and what is said of them


class Net(nn.Module):
    def __init__(self, loop: Callable[..., Any]) -> None:
        super().__init__()
        self.loop = loop
        self.decay = nn.Parameter(torch.linspace(-1, 2, 7))
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.fc = nn.Linear(7, 7)
        height = torch.linspace(0.6, 1.2, 7)
        self.syn = snnfast.Synaptic(0.8, 0.9, threshold=height, learn_threshold=True, reset_mechanism="zero")
        self.lif = snnfast.Leaky(0.9, spike_grad=snnfast.surrogate.fast_sigmoid(), reset_delay=False)

    def forward(self, x: Tensor) -> Any:
        return self.loop(self, x)


NETS: dict[str, Callable[..., Any]] = {}


def network(loop: Callable[..., Any]) -> Callable[..., Any]:
    NETS[loop.__name__] = loop
    return loop


@network
def soft_reset_of_a_number(net: Net, x: Tensor) -> Any:
    mem, out = 0, []
    for t in range(x.shape[0]):
        mem = mem * 0.8 + x[t]
        spk = Masked.apply(mem - 1.0)
        mem = mem - spk.detach() * 1.0
        out.append(spk)
    return torch.stack(out)


@network
def adaptive_threshold(net: Net, x: Tensor) -> Any:
    v, b = torch.zeros_like(x[0]), torch.zeros_like(x[0])
    out = []
    for t in range(x.shape[0]):
        threshold = 1.0 + 1.8 * b
        v = torch.sigmoid(net.decay) * v + x[t]
        spk = Plain.apply((v - threshold) / threshold)
        b = 0.9 * b + 0.1 * spk
        v = v - threshold * spk.detach()
        out.append(spk)
    return torch.stack(out, 1)


@network
def threshold_that_begins_as_a_number(net: Net, x: Tensor) -> Any:
    v, threshold, out = 0, 1.0, []
    for t in range(x.shape[0]):
        v = 0.9 * v + x[t]
        spk = Plain.apply(v - threshold)
        threshold = threshold * 0.9 + 0.1 + 0.3 * spk.detach()
        v = v * (1 - spk.detach())
        out.append(spk)
    return torch.stack(out), v


@network
def learned_in_place_and_filled(net: Net, x: Tensor) -> Any:
    mem = torch.zeros_like(x[0])
    rec = torch.zeros_like(x)
    for t in range(x.shape[0]):
        mem = mem.clone()
        mem.mul_(net.gain).add_(x[t])
        spk = through(mem - 1)
        mem[spk.detach() > 0.5] = 0.0
        rec[t] = spk
    return rec, mem


@network
def constant_input_and_no_grad(net: Net, x: Tensor) -> Any:
    current, mem, out, trace = x[0], torch.zeros_like(x[0]), [], torch.zeros(7, dtype=x.dtype)
    for _ in range(6):
        mem = net.gain * mem + current
        spk = Saved.apply(mem, torch.tensor(1.0, dtype=x.dtype))
        with torch.no_grad():
            trace = trace * 0.5 + spk
        mem = mem - spk * (1 + 0.1 * trace)
        out.append(spk)
    return torch.stack(out), trace


@network
def booleans(net: Net, x: Tensor) -> Any:
    mem, fired, out = torch.zeros_like(x[0]), torch.zeros_like(x[0]) > 0, []
    for t in range(x.shape[0]):
        mem = torch.where(fired, mem * 0.5, mem) + torch.clamp(x[t], -0.5, 1.5)
        fired = (mem > 1) | (mem < -2)
        mem = mem.masked_fill(fired, 0.1)
        out.append(fired)
    return torch.stack(out), mem


@network
def two_layers_with_a_product(net: Net, x: Tensor) -> Any:
    first = second = torch.zeros_like(x[0])
    count = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        first = 0.9 * first + x[t]
        spk = Plain.apply(first - 1)
        first = first - spk
        second = 0.8 * second + net.fc(spk * 0.25)
        out = Masked.apply(second - 0.5)
        second = second * (1 - out.detach())
        count += out
    return count


@network
def surrogate_that_nobody_waits_for(net: Net, x: Tensor) -> Any:
    return torch.stack([Masked.apply(net.gain * x[t], 0.5) * x[t] for t in range(x.shape[0])])


@network
def input_of_the_step_before(net: Net, x: Tensor) -> Any:
    """No gradient in the first two steps, so that dynamo writes the forward pass of their surrogates into the graph."""
    syn = mem = torch.zeros(1, dtype=x.dtype).expand_as(x[0])
    out = []
    for t in range(x.shape[0]):
        spk = Masked.apply(mem - 1)
        mem = (0.9 * mem + syn) * (1 - spk.detach())
        syn = 0.8 * syn + x[t]
        out.append(spk)
    return torch.stack(out), mem


@network
def first_step_without_a_gradient(net: Net, x: Tensor) -> Any:
    mem, out = 0, []
    for t in range(x.shape[0]):
        with torch.set_grad_enabled(t > 0):
            mem = mem * 0.9 + x[t]
        spk = Plain.apply(mem - 1)
        mem = mem - spk
        out.append(spk)
    return torch.stack(out), mem


@network
def no_state_at_first(net: Net, x: Tensor) -> Any:
    mem, out = None, []
    for t in range(x.shape[0]):
        if mem is None:  # noqa: SIM108 - as users write it
            mem = x[t]
        else:
            mem = mem * 0.9 + x[t]
        spk = Plain.apply(mem - 1.0)
        mem = (1 - spk) * mem
        out.append(spk)
    return torch.stack(out), mem


@network
def no_states_at_first_and_no_spike(net: Net, x: Tensor) -> Any:
    """The first step computes its current on another line."""
    mem, spk, out = 0.0, 0.0, []
    for t in range(x.shape[0]):
        if t == 0:  # noqa: SIM108
            mem = net.gain * x[t] * 2
        else:
            mem = (mem - spk) * 0.25 + net.gain * x[t] * 2
        spk = torch.clamp(through(mem), 0, 4)
        out.append(spk / 4)
    return torch.stack(out), mem


@network
def no_state_and_no_gradient_at_first(net: Net, x: Tensor) -> Any:
    mem = None
    for t in range(x.shape[0]):
        if mem is None:
            with torch.no_grad():
                mem = x[t] * 2
        else:
            mem = mem * 0.9 + x[t] * 2
        mem = mem - Plain.apply(mem - 1.0)
    return mem


@network
def layer_whose_membrane_changes(net: Net, x: Tensor) -> Any:
    """Its first step is given no states, and only the spikes of its last step are read."""
    syn = mem = None
    out = []
    for t in range(x.shape[0]):
        spk, syn, mem = net.syn(x[t], syn, mem)
        mem = torch.clamp(mem, min=-1.0) * net.gain
        out.append(mem)
    return torch.stack(out), spk, syn, mem


@network
def layer_that_hears_its_spikes(net: Net, x: Tensor) -> Any:
    spk = mem = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        spk, mem = net.lif(x[t] - net.gain * spk, mem)
    return mem, spk


def spikes_and_states(x: Tensor, gain: Any) -> tuple[Tensor, Tensor]:
    mem, spikes, states = torch.zeros_like(x[0]), [], []
    for t in range(x.shape[0]):
        mem = 0.8 * mem * gain + 2 * x[t]
        spk = Masked.apply(mem - 1) * (mem < 3).to(x.dtype)
        mem = mem * (1 - spk)
        spikes.append(spk)
        states.append(mem)
    return torch.stack(spikes), torch.stack(states)


@network
def bits_to_a_linear(net: Net, x: Tensor) -> Any:
    spk, mem = spikes_and_states(x, torch.sigmoid(net.decay))
    return net.fc(spk.flatten(0, 1)).unflatten(0, (7, 5)), mem


@network
def bits_to_many_outputs(net: Net, x: Tensor) -> Any:
    weight = net.fc.weight.repeat(6, 1)
    spk, _ = spikes_and_states(x, net.gain)
    return F.linear(spk, weight)


@network
def trace_of_the_spikes_behind_them(net: Net, x: Tensor) -> Any:
    """Two recurrences and what is beside them, which become one."""
    mem, trace, out = 0.0, 0.0, []
    for t in range(x.shape[0]):
        mem = 0.9 * mem + x[t] * net.decay
        spk = Plain.apply(mem - 1.0)
        mem = mem - spk
        trace = 0.8 * trace + spk
        out.append(F.relu(trace - 0.5))
    return torch.stack(out)


@network
def the_record_of_the_step_before(net: Net, x: Tensor) -> Any:
    mem, rec = torch.zeros_like(x[0]), torch.zeros_like(x)
    for t in range(x.shape[0]):
        mem = 0.75 * mem * (1 - rec[max(t - 1, 0)]) + x[t]
        rec[t] = Plain.apply(mem - 1)
    return rec


@network
def the_record_of_this_step_with_time_last(net: Net, x: Tensor) -> Any:
    mem, rec = torch.zeros_like(x[0]), x.new_zeros(*x.shape[1:], x.shape[0])
    for t in range(x.shape[0]):
        mem = net.decay.sigmoid() * mem + x[t]
        rec[:, :, t] = Plain.apply(mem - 1)
        mem = mem - rec[:, :, t] * 0.5
    return rec, mem


@network
def layers_of_the_same_lines_and_width(net: Net, x: Tensor) -> Any:
    for _ in range(3):
        mem, out = torch.zeros_like(x[0]), []
        spk = mem
        for t in range(x.shape[0]):
            mem = mem * 0.75 * (1 - spk) + x[t]
            spk = Plain.apply(mem - 0.5)
            out.append(spk)
        x = net.fc(torch.stack(out)) + 1
    return x


@network
def spikes_beside_the_input(net: Net, x: Tensor) -> Any:
    """Of two layers; the second one has other lines."""
    mem = spk = first = last = torch.zeros_like(x[0])
    weight, out = torch.cat((net.fc.weight, net.fc.weight.t() * net.gain), 1), []
    for t in range(x.shape[0]):
        mem = 0.9 * mem + F.linear(torch.cat((x[t], spk), dim=1), weight, net.fc.bias)
        spk = Plain.apply(mem - 1)
        mem = mem - spk
        first = 0.75 * first + F.linear(torch.cat((last, spk), -1), weight)
        last = Plain.apply(first - 0.5)
        out.append(first)
    return torch.stack(out), mem


# ---- what stays as it is, and why


@network
def recurrent_weights(net: Net, x: Tensor) -> Any:
    mem, spk = torch.zeros_like(x[0]), torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        mem = 0.9 * mem + x[t] + net.fc(spk)
        spk = Plain.apply(mem - 1)
    return mem


@network
def products_of_several_spellings(net: Net, x: Tensor) -> Any:
    """Of the spikes, and of the membrane, which the last step writes for nobody."""
    mem = spk = torch.zeros_like(x[0])
    weight, out, currents = net.fc.weight, [], []
    for t in range(x.shape[0]):
        current = x[t] + spk @ weight + torch.mm(mem, weight.t())
        current = current + torch.einsum("bi,ij->bj", (spk, weight)) + F.linear(spk, weight)
        spk = Plain.apply(mem - 0.5)
        mem = net.decay.sigmoid() * mem + current * net.gain - spk
        out.append(spk)
        currents.append(current)
    return torch.stack(out), torch.stack(currents)


@network
def a_layer_that_hears_itself(net: Net, x: Tensor) -> Any:
    mem, spk, out = net.lif.init_leaky(), torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        spk, mem = net.lif(x[t] + net.fc(spk), mem)
        out.append(spk)
    return torch.stack(out), mem


@network
def a_product_of_what_is_detached(net: Net, x: Tensor) -> Any:
    """The step of the program begins in the midst of that of the loop."""
    mem = spk = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        mem = 0.9 * mem + x[t] - net.fc(0.5 * spk.detach())
        spk = Plain.apply(mem - 1)
    return mem, spk


@network
def a_product_with_a_bias_of_one_number(net: Net, x: Tensor) -> Any:
    mem = spk = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        mem = 0.9 * mem + x[t] + F.linear(spk, net.fc.weight, net.gain.view(1))
        spk = Plain.apply(mem - 1)
    return mem


@network
def a_product_under_no_grad(net: Net, x: Tensor) -> Any:
    mem = spk = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        with torch.no_grad():
            back = net.fc(spk)
        mem = 0.9 * mem + x[t] + back
        spk = Plain.apply(mem - 1)
    return mem


@network
def a_record_that_is_written_twice(net: Net, x: Tensor) -> Any:
    mem, rec = torch.zeros_like(x[0]), torch.zeros_like(x)
    for t in range(x.shape[0]):
        mem = 0.75 * mem + x[t]
        rec[t] = Plain.apply(mem - 1)
        mem = mem - rec[t]
        rec[0] = mem
    return rec


@network
def spikes_beside_the_input_and_a_weight_that_changes(net: Net, x: Tensor) -> Any:
    mem = spk = torch.zeros_like(x[0])
    weight = torch.cat((net.fc.weight, net.fc.weight), 1).detach()
    for t in range(x.shape[0]):
        weight = weight.view(7, 14)
        mem = 0.9 * mem + F.linear(torch.cat((x[t], spk), dim=1), weight)
        spk = Plain.apply(mem - 1)
        weight[:, 1] += 0.1
    return mem.detach() + x[0]


@network
def a_record_without_a_gradient(net: Net, x: Tensor) -> Any:
    mem, rec = torch.zeros_like(x[0]), torch.zeros_like(x)
    for t in range(x.shape[0]):
        mem = 0.75 * mem + x[t] * net.gain
        with torch.no_grad():
            rec[t] = mem
            before = rec[t]
        mem = mem - 0.5 * before
    return mem, rec


@network
def spikes_beside_the_input_without_a_gradient(net: Net, x: Tensor) -> Any:
    mem = spk = torch.zeros_like(x[0])
    weight = torch.cat((net.fc.weight, net.fc.weight), 1)
    for t in range(x.shape[0]):
        with torch.no_grad():
            both = torch.cat((x[t], spk), dim=1)
        mem = 0.9 * mem + F.linear(both, weight)
        spk = Plain.apply(mem - 1)
    return mem


@network
def a_product_under_autocast(net: Net, x: Tensor) -> Any:
    mem = spk = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        with torch.autocast(x.device.type, torch.bfloat16):
            back = net.fc(spk)
        mem = 0.9 * mem + x[t] + back
        spk = Plain.apply(mem - 1)
    return mem


@network
def a_diagonal_in_place_of_a_product(net: Net, x: Tensor) -> Any:
    square = x[:, :1].expand(-1, 7, -1)
    mem = torch.zeros_like(square[0])
    for t in range(x.shape[0]):
        mem = torch.einsum("ii,ij->ij", mem, net.fc.weight) + 0.5 * square[t]
    return mem


@network
def another_surrogate_each_step(net: Net, x: Tensor) -> Any:
    mem = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        mem = 0.9 * mem + x[t]
        mem = mem - Masked.apply(mem - 1, 1.0 + 0.1 * t)
    return mem


@network
def derivative_that_is_not_elementwise(net: Net, x: Tensor) -> Any:
    mem = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        mem = 0.9 * mem + x[t]
        mem = mem - Summed.apply(mem - 1)
    return mem


@network
def operator_that_knows_its_channels(net: Net, x: Tensor) -> Any:
    """A program is traced with tensors of other sizes, which such an operator refuses."""
    mem = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        mem = F.prelu(0.9 * mem + x[t] - 1, net.decay)
    return mem


@network
def detached_now_and_then(net: Net, x: Tensor) -> Any:
    mem = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        mem = 0.9 * mem + x[t]
        mem = mem - Plain.apply(mem - 1)
        if t % 2:
            mem = mem.detach()
    return mem


@network
def another_first_step(net: Net, x: Tensor) -> Any:
    """It computes the numbers of the others, but not their gradients."""
    mem = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        mem = (mem.detach() if t == 0 else mem) * 0.9 + (x[t].detach() if t == 0 else x[t])
        mem = mem - Plain.apply(mem - 1)
    return mem


REPEATED = {
    "a_product_under_no_grad": "linear runs under no_grad or autocast, unlike the rest of the step",
    "a_product_under_autocast": "linear runs under no_grad or autocast, unlike the rest of the step",
    "spikes_beside_the_input_and_a_weight_that_changes": "",
    "spikes_beside_the_input_without_a_gradient": "",
    "a_record_without_a_gradient": "",
    "a_record_that_is_written_twice": "",
    "a_diagonal_in_place_of_a_product": "takes tensors of its own sizes alone",
    "a_product_with_a_bias_of_one_number": "linear",
    "another_surrogate_each_step": "",
    "derivative_that_is_not_elementwise": "torch.mean is not elementwise",
    "operator_that_knows_its_channels": "takes tensors of its own sizes alone: Mismatch of parameter numbers",
    "detached_now_and_then": "its steps are not all alike",
}
PARTLY = {
    "first_step_without_a_gradient": 6, "no_state_and_no_gradient_at_first": 6, "a_product_of_what_is_detached": 6,
}  # fmt: skip
STEPS = {
    "another_first_step": 6, "constant_input_and_no_grad": 6, "the_record_of_this_step_with_time_last": 6, **PARTLY,
}  # fmt: skip
if torch.__version__.startswith("2.11"):
    # It writes a number through a mask as a tensor.
    REPEATED["learned_in_place_and_filled"] = "an operator takes tensors of its own sizes alone"
    PARTLY["input_of_the_step_before"] = STEPS["input_of_the_step_before"] = 6
    # It knows the line of a call alone: of two products in one, the first step has the second.
    PARTLY["threshold_that_begins_as_a_number"] = STEPS["threshold_that_begins_as_a_number"] = 5
FUSED = {
    "bits_to_a_linear", "bits_to_many_outputs", "layers_of_the_same_lines_and_width", "two_layers_with_a_product",
}  # fmt: skip
ROUNDED = {"adaptive_threshold", "spikes_beside_the_input", *FUSED}  # by a product, or sigmoid


def results(net: Any, function: Any, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    found = function(x)
    outputs = list(found) if isinstance(found, tuple) else [found]
    return outputs, gradients_of(outputs, [x, *net.parameters()])


def compiled(net: Net) -> tuple[Any, list[Any]]:
    """A network that is compiled, and the reports of its graphs, of which there are none before its first call."""
    reports = []

    def backend(gm: torch.fx.GraphModule, example_inputs: Any) -> Any:
        merged, report = merge(gm)
        reports.append(report)
        return merged.forward

    return torch.compile(net, backend=backend), reports


def compare(loop: Callable[..., Any], x: Tensor) -> Any:
    """Outputs, gradients and the report of a compiled network are those of the network as it is."""
    net = Net(loop).to(x.device, x.dtype)
    other = copy.deepcopy(net)
    function, reports = compiled(net)
    (ours, our_gradients), (theirs, gradients) = results(net, function, x), results(other, other, x)
    for a, b in zip(ours, theirs, strict=True):
        assert a.requires_grad == b.requires_grad
        assert a.is_contiguous() or not b.is_contiguous()
        if loop.__name__ in ROUNDED:
            torch.testing.assert_close(a, b)
        else:
            assert_bits_equal(a, b)
    tolerance = 1e-10 if x.dtype == torch.float64 else 1e-5
    for a, b in zip(our_gradients, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))
    assert any(g.any() for g in gradients) or not any(t.requires_grad for t in theirs)
    (report,) = reports
    return report


# In turns: what the kernels compute in each dtype is in test_program.py.
NETS_AND_DTYPES = [
    pytest.param(name, dtype, id=f"{name}-{dtype}".replace("torch.", ""), marks=[pytest.mark.thorough] * (i % 2 != j))
    for i, name in enumerate(NETS)
    for j, dtype in enumerate((torch.float32, torch.float64))
]


@emulated_if_thorough
@pytest.mark.parametrize(("name", "dtype"), NETS_AND_DTYPES)
def test_a_neuron_by_hand_has_the_numbers_of_the_loop(name: str, dtype: torch.dtype, device: torch.device) -> None:
    x = torch.randn(7, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1.2 + 0.4
    report = compare(NETS[name], x.to(device, dtype).requires_grad_())
    assert not report.failed
    if name in REPEATED:
        assert REPEATED[name] in str(report)
        assert not report.merged
    else:
        recurrences = [line for line in report.merged if "one recurrence" in line]
        assert recurrences, str(report)
        assert len(recurrences) == 1 or name != "trace_of_the_spikes_behind_them"
        assert any("with the linear behind it" in line for line in recurrences) == (name in FUSED), str(report)
        steps = STEPS.get(name, 7)
        found = {int(line.split()[0]) for line in recurrences}
        assert found <= {steps, 7}, str(report)
        assert not report.repeated or name in PARTLY


@pytest.mark.parametrize(
    "name", ["soft_reset_of_a_number", "two_layers_with_a_product", "adaptive_threshold", "bits_to_a_linear"]
)
def test_loops_on_a_gpu_become_recurrences(name: str) -> None:
    with FakeTensorMode(), torch.device("cuda"):
        function, reports = compiled(Net(NETS[name]))
        found = function(torch.randn(7, 5, 7).requires_grad_())
    assert "one recurrence" in str(*reports)
    assert all(t.device.type == "cuda" for t in pytree.tree_leaves(found))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("first", [None, 0.0], ids=["zeros", "number"])
def test_views_of_a_neuron_whose_current_is_in_another_order(first: float | None, backend: Any) -> None:
    def loop(net: Net, x: Tensor) -> Any:
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

    with snnfast.use_backend(backend):
        report = compare(loop, (torch.rand(6, 3, 5, 7, 4) * 2).movedim(-1, 2).requires_grad_())
    assert any("one recurrence" in line for line in report.merged)


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
    wanted = results(net, net, x)
    found = results(net, snnfast.compile(net), x)
    torch.testing.assert_close(found, wanted)
    assert f"{steps} steps of 7 calls" in str(*reports)
    assert f"one recurrence ({steps} times)" in str(*reports)


@pytest.mark.parametrize("name", ["soft_reset_of_a_number", "constant_input_and_no_grad", "recurrent_weights"])
def test_any_batch_size(name: str) -> None:
    net = Net(NETS[name])
    function, reports = compiled(net)
    for batch in (5, 4, 3, 0):
        x = torch.randn(7, batch, 7, requires_grad=True)
        ours, theirs = (results(net, f, x) for f in (function, net.forward))
        for a, b in zip(ours[0], theirs[0], strict=True):
            assert_bits_equal(a, b)
        torch.testing.assert_close(ours[1], theirs[1])
        assert reports[-1].merged


@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("neuron", KINDS)
def test_the_step_of_a_layer_is_a_program_with_the_bits_of_its_kernel(neuron: str, reset: str, delay: bool) -> None:
    for spike_grad in every_other(SURROGATES.values(), neuron, delay):
        case = Case(neuron, "step", reset=reset, delay=delay, spike_grad=spike_grad, parameters="neuron")
        ours, theirs = (leaves(inputs(case)) for _ in range(2))
        wanted = fused(theirs, case)
        options, ops = layer_of(case, theirs)._options(), case.kind.ops

        def step(*given: Tensor, ops: Any = ops, options: Any = options) -> tuple[Tensor, ...]:
            found = elementwise_step(ops.name, given[0], list(given[1:]), options.packed, *options.derivative, "auto")
            return (*found, *found[not ops.has_spike_feedback :])

        program = Program(step, 1, len(ops.states), len(ops.parameters))
        records = program.unroll(*(ours[name] for name in case.names), steps=case.steps)
        found = dict(zip(case.kind.results, records, strict=False))
        for name, t in wanted.items():
            assert_bits_equal(found[name], t, f"{case} {name}")
        for outputs in (found, wanted):
            sum((t * (1 + i)).sum() for i, t in enumerate(outputs.values())).backward()  # type: ignore[union-attr]
        for name in case.names:
            torch.testing.assert_close(ours[name].grad, theirs[name].grad, msg=lambda m, name=name: f"{name}: {m}")
