"""Programs with a loop over time: compiled, each has the numbers of its loop, and ``explain`` says what became of it.

Those of ``benchmarks/collection`` are networks after public code, and test_programs.py runs them beside these.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from helpers import THOROUGH
from loop_ops import Masked, Plain, Saved, Summed, through
from running import LEFT_OUT, SETTINGS, Run, check, surroundings
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import snnfast
from benchmarks import collection
from benchmarks.collection.comparison import EXACT, TOLERANCES


@dataclass(frozen=True)
class Entry:
    """A program, and the lines of ``explain``, one behind the other and without places in the code."""

    name: str
    says: str

    def compare(self, dtype: str, grad: bool, device: Any, reports: list[Any]) -> tuple[str | None, str]:
        """What differs from the loop, and what is said. ``reports``: those that are made."""
        raise NotImplementedError


@dataclass(frozen=True)
class Program(Entry):
    """A function of a network and its input.

    ``rounded``: its numbers are those of the loop but for rounding, by a product of all steps or by ``sigmoid``.
    """

    net: Callable[[Callable[[Any, Tensor], Any]], nn.Module]
    loop: Callable[[Any, Tensor], Any]
    shape: tuple[int, ...]
    rounded: bool

    def compare(self, dtype: str, grad: bool, device: Any, reports: list[Any]) -> tuple[str | None, str]:
        call = {"resets": False, "inputs": {"x": ("input", self.shape)}}
        settings = SETTINGS | {
            "dtype": dtype,
            "grad": grad,
            "x_grad": grad,
            "number": 0,
            "calls": [call],
        }
        tolerances, statistics = (TOLERANCES if self.rounded else EXACT)[dtype], Counter[str]()
        make = partial(Run, lambda _: self.net(self.loop), settings, drawn=False, device=device)
        with surroundings(dtype):
            found = check(make, "recording", statistics, tolerances)
            assert not statistics[LEFT_OUT[0]]
            assert statistics["with gradients"] or self.net is not ByHand
            run = make()
            with torch.set_grad_enabled(grad):
                graphs = snnfast.explain(run.net, *run.inputs(call).values()).graphs
        lines = [said(report) for report in graphs] or [CALL_BY_CALL]
        return found, "; ".join(line for line in lines if line != f"refused: {NO_NEURON}")  # of no part of a loop


def said(report: snnfast.GraphReport) -> str:
    """The lines of ``explain`` about a graph."""
    several = [(line, n) for lines in (report.merged, report.repeated) for line, n in Counter(lines).items()]
    lines = [line + f" ({n} times)" * (n > 1) for line, n in several]
    text = "; ".join(lines) if report.refused is None else f"refused: {report.refused}"
    return re.sub(r" \([^()]*\.py:\d+\)", "", text)


PROGRAMS: dict[str, Program] = {}
# How a loop without a layer of neurons is refused.
NO_NEURON = "there is no step of a neuron in it"
CALL_BY_CALL = "refused: it is not recorded as a whole"
NO = f"refused: {NO_NEURON}; each call needs the result of an earlier one"
# Older versions of PyTorch write some of the programs in other calls: one of them a number through a mask as a tensor.
OLD, OTHERWISE = torch.torch_version.TorchVersion(torch.__version__) < "2.15", {"learned_in_place_and_filled"}

# ---- neurons by hand: their calls become one recurrence


class ByHand(nn.Module):
    """A network for loops over neurons that are written by hand."""

    def __init__(self, loop: Callable[[Any, Tensor], Any]) -> None:
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


def by_hand(says: str, rounded: bool = False) -> Callable[..., Any]:
    """Enter a loop of a network ``ByHand``."""

    def enter(loop: Callable[[Any, Tensor], Any]) -> Any:
        PROGRAMS[loop.__name__] = Program(loop.__name__, says, ByHand, loop, (7, 5, 7), rounded)
        return loop

    return enter


def a_step(says: str, start: Any = (None,), returns: str = "both", rounded: bool = False) -> Callable[..., Any]:
    """Enter a loop over a step ``f(net, x, t, *states)``, which returns what is kept, and the states.

    ``start``: the states before the first step, ``None`` for zeros. ``returns``: "kept", the "last" state, or "both".
    """

    def enter(step: Callable[..., Any]) -> Any:
        def loop(net: Any, x: Tensor) -> Any:
            states, kept = [torch.zeros_like(x[0]) if s is None else s for s in start], []
            for t in range(x.shape[0]):
                out, *states = step(net, x, t, *states)
                kept.append(out)
            if returns == "last":
                return states[0]
            return torch.stack(kept) if returns == "kept" else (torch.stack(kept), states[0])

        loop.__name__ = step.__name__
        return by_hand(says, rounded)(loop)

    return enter


@a_step("7 steps of 7 calls: one recurrence", start=(0,), returns="kept")
def soft_reset_of_a_number(net: Any, x: Tensor, t: int, mem: Any) -> Any:
    mem = mem * 0.8 + x[t]
    spk = Masked.apply(mem - 1.0)
    return spk, mem - spk.detach() * 1.0


@a_step("7 steps of 13 calls: one recurrence", start=(None, None), returns="kept", rounded=True)
def adaptive_threshold(net: Any, x: Tensor, t: int, v: Tensor, b: Tensor) -> Any:
    threshold = 1.0 + 1.8 * b
    v = torch.sigmoid(net.decay) * v + x[t]
    spk = Plain.apply((v - threshold) / threshold)
    b = 0.9 * b + 0.1 * spk
    return spk, v - threshold * spk.detach(), b


@a_step("5 steps of 11 calls: one recurrence; 2 x mul: each call needs the result of an earlier one", start=(0, 1.0))
def threshold_that_begins_as_a_number(net: Any, x: Tensor, t: int, v: Any, threshold: Any) -> Any:
    v = 0.9 * v + x[t]
    spk = Plain.apply(v - threshold)
    threshold = threshold * 0.9 + 0.1 + 0.3 * spk.detach()
    return spk, v * (1 - spk.detach()), threshold


@by_hand("7 steps of 14 calls: one recurrence")
def learned_in_place_and_filled(net: Any, x: Tensor) -> Any:
    mem = torch.zeros_like(x[0])
    rec = torch.zeros_like(x)
    for t in range(x.shape[0]):
        mem = mem.clone()
        mem.mul_(net.gain).add_(x[t])
        spk = through(mem - 1)
        mem[spk.detach() > 0.5] = 0.0
        rec[t] = spk
    return rec, mem


@by_hand("5 steps of 9 calls: one recurrence")
def constant_input_and_no_grad(net: Any, x: Tensor) -> Any:
    current, mem, out, trace = x[0], torch.zeros_like(x[0]), [], torch.zeros(7, dtype=x.dtype)
    for _ in range(6):
        mem = net.gain * mem + current
        spk = Saved.apply(mem, torch.tensor(1.0, dtype=x.dtype))
        with torch.no_grad():
            trace = trace * 0.5 + spk
        mem = mem - spk * (1 + 0.1 * trace)
        out.append(spk)
    return torch.stack(out), trace


@a_step("7 steps of 8 calls: one recurrence", start=(None, False))
def booleans(net: Any, x: Tensor, t: int, mem: Tensor, fired: Any) -> Any:
    mem = torch.where(x[0] > x[0] if fired is False else fired, mem * 0.5, mem) + torch.clamp(x[t], -0.5, 1.5)
    fired = (mem > 1) | (mem < -2)
    return fired, mem.masked_fill(fired, 0.1), fired


@by_hand(
    "7 steps of 6 calls: one recurrence, with the linear behind it; 7 steps of 7 calls: one recurrence; 7 x add; "
    "7 x linear",
    rounded=True,
)
def two_layers_with_a_product(net: Any, x: Tensor) -> Any:
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


@by_hand("7 steps of 3 calls: one recurrence")
def surrogate_that_nobody_waits_for(net: Any, x: Tensor) -> Any:
    return torch.stack([Masked.apply(net.gain * x[t], 0.5) * x[t] for t in range(x.shape[0])])


@by_hand("7 steps of 9 calls: one recurrence")
def input_of_the_step_before(net: Any, x: Tensor) -> Any:
    """No gradient in the first two steps, so that dynamo writes the forward pass of their surrogates into the graph."""
    syn = mem = torch.zeros(1, dtype=x.dtype).expand_as(x[0])
    out = []
    for t in range(x.shape[0]):
        spk = Masked.apply(mem - 1)
        mem = (0.9 * mem + syn) * (1 - spk.detach())
        syn = 0.8 * syn + x[t]
        out.append(spk)
    return torch.stack(out), mem


@by_hand("7 steps of 9 calls: one recurrence")
def states_in_one_tensor(net: Any, x: Tensor) -> Any:
    """As networks of LSNNs keep theirs."""
    states, out = torch.zeros(3, *x.shape[1:], dtype=x.dtype), []
    for t in range(x.shape[0]):
        mem, adaptation, spk = states
        mem = (0.9 * mem + x[t]) * (1 - spk)
        adaptation = 0.8 * adaptation + spk
        spk = Plain.apply(mem - 1 - adaptation)
        states = torch.stack((mem, adaptation, spk))
        out.append(spk)
    return torch.stack(out), states


@by_hand(f"{NO}: a program has one dtype, float32 or float64, and a step computes in bool")
def neurons_that_rest_after_a_spike(net: Any, x: Tensor) -> Any:
    spiked, out = x[0] > 2, []
    for t in range(x.shape[0]):
        spiked = ~spiked & (x[t] > 1)
        out.append(net.gain * spiked)
    return torch.stack(out)


@a_step("6 steps of 5 calls: one recurrence", start=(0,))
def first_step_without_a_gradient(net: Any, x: Tensor, t: int, mem: Any) -> Any:
    with torch.set_grad_enabled(t > 0):
        mem = mem * 0.9 + x[t]
    spk = Plain.apply(mem - 1)
    return spk, mem - spk


@by_hand("7 steps of 6 calls: one recurrence")
def no_state_at_first(net: Any, x: Tensor) -> Any:
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


@a_step("7 steps of 14 calls: one recurrence", start=(0.0, 0.0))
def no_states_at_first_and_no_spike(net: Any, x: Tensor, t: int, mem: Any, spk: Any) -> Any:
    """The first step computes its current on another line."""
    if t == 0:  # noqa: SIM108 - as users write it
        mem = net.gain * x[t] * 2
    else:
        mem = (mem - spk) * 0.25 + net.gain * x[t] * 2
    spk = torch.clamp(through(mem), 0, 4)
    return spk / 4, mem, spk


@by_hand("6 steps of 6 calls: one recurrence")
def no_state_and_no_gradient_at_first(net: Any, x: Tensor) -> Any:
    mem = None
    for t in range(x.shape[0]):
        if mem is None:
            with torch.no_grad():
                mem = x[t] * 2
        else:
            mem = mem * 0.9 + x[t] * 2
        mem = mem - Plain.apply(mem - 1.0)
    return mem


@a_step("6 steps of 7 calls: one recurrence", returns="last")
def first_step_that_is_not_elementwise(net: Any, x: Tensor, t: int, mem: Tensor) -> Any:
    mem = (x[t].cumsum(-1) if t == 0 else x[t] * 2 + mem * 0.9) * net.gain
    mem = mem - Plain.apply(mem - 1.0)
    return mem, mem


@by_hand("7 steps of 6 calls: one recurrence")
def layer_whose_membrane_changes(net: Any, x: Tensor) -> Any:
    """Its first step is given no states, and only the spikes of its last step are read."""
    syn = mem = None
    out = []
    for t in range(x.shape[0]):
        spk, syn, mem = net.syn(x[t], syn, mem)
        mem = torch.clamp(mem, min=-1.0) * net.gain
        out.append(mem)
    return torch.stack(out), spk, syn, mem


@a_step("7 steps of 5 calls: one recurrence", returns="last", start=(None, None))
def layer_that_hears_its_spikes(net: Any, x: Tensor, t: int, mem: Tensor, spk: Tensor) -> Any:
    spk, mem = net.lif(x[t] - net.gain * spk, mem)
    return spk, mem, spk


def spikes_and_states(x: Tensor, gain: Any) -> tuple[Tensor, Tensor]:
    mem, spikes, states = torch.zeros_like(x[0]), [], []
    for t in range(x.shape[0]):
        mem = 0.8 * mem * gain + 2 * x[t]
        spk = Masked.apply(mem - 1) * (mem < 3).to(x.dtype)
        mem = mem * (1 - spk)
        spikes.append(spk)
        states.append(mem)
    return torch.stack(spikes), torch.stack(states)


@by_hand("7 steps of 11 calls: one recurrence, with the linear behind it", rounded=True)
def bits_to_a_linear(net: Any, x: Tensor) -> Any:
    spk, mem = spikes_and_states(x, torch.sigmoid(net.decay))
    return net.fc(spk.flatten(0, 1)).unflatten(0, (7, 5)), mem


@by_hand("7 steps of 11 calls: one recurrence, with the linear behind it", rounded=True)
def bits_to_many_outputs(net: Any, x: Tensor) -> Any:
    """Without a bias."""
    weight = net.fc.weight.repeat(6, 1)
    spk, _ = spikes_and_states(x, net.gain)
    return F.linear(spk, weight)


@a_step("7 steps of 10 calls: one recurrence", start=(0.0, 0.0), returns="kept")
def trace_of_the_spikes_behind_them(net: Any, x: Tensor, t: int, mem: Any, trace: Any) -> Any:
    """Two recurrences and what is beside them, which become one."""
    mem = 0.9 * mem + x[t] * net.decay
    spk = Plain.apply(mem - 1.0)
    trace = 0.8 * trace + spk
    return F.relu(trace - 0.5), mem - spk, trace


@by_hand("7 steps of 6 calls: one recurrence")
def the_record_of_the_step_before(net: Any, x: Tensor) -> Any:
    mem, rec = torch.zeros_like(x[0]), torch.zeros_like(x)
    for t in range(x.shape[0]):
        mem = 0.75 * mem * (1 - rec[max(t - 1, 0)]) + x[t]
        rec[t] = Plain.apply(mem - 1)
    return rec


@by_hand("7 steps of 6 calls: one recurrence")
def the_record_of_this_step_with_time_last(net: Any, x: Tensor) -> Any:
    mem, rec = torch.zeros_like(x[0]), x.new_zeros(*x.shape[1:], x.shape[0])
    for t in range(x.shape[0]):
        mem = net.decay.sigmoid() * mem + x[t]
        rec[:, :, t] = Plain.apply(mem - 1)
        mem = mem - rec[:, :, t] * 0.5
    return rec, mem


@by_hand("7 steps of 6 calls: one recurrence, with the linear behind it (3 times)", rounded=True)
def layers_of_the_same_lines_and_width(net: Any, x: Tensor) -> Any:
    for _ in range(3):
        mem, out = torch.zeros_like(x[0]), []
        spk = mem
        for t in range(x.shape[0]):
            mem = mem * 0.75 * (1 - spk) + x[t]
            spk = Plain.apply(mem - 0.5)
            out.append(spk)
        x = net.fc(torch.stack(out)) + 1
    return x


@by_hand(
    "7 steps of 7 calls: one recurrence, with linear between its steps; "
    "7 steps of 6 calls: one recurrence, with linear between its steps; 7 x linear (2 times)",
    rounded=True,
)
def spikes_beside_the_input(net: Any, x: Tensor) -> Any:
    """Two layers; the second one has other lines."""
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


@a_step("7 steps of 6 calls: one recurrence, with linear between its steps", start=(None, None), returns="last")
def recurrent_weights(net: Any, x: Tensor, t: int, mem: Tensor, spk: Tensor) -> Any:
    mem = 0.9 * mem + x[t] + net.fc(spk)
    spk = Plain.apply(mem - 1)
    return spk, mem, spk


@by_hand("7 steps of 14 calls: one recurrence, with einsum and linear and matmul and mm between its steps")
def products_of_several_spellings(net: Any, x: Tensor) -> Any:
    """Products of the spikes, and of the membrane, which the last step writes for nobody."""
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


@a_step("7 steps of 5 calls: one recurrence, with linear between its steps", start=(None, None))
def a_layer_that_hears_itself(net: Any, x: Tensor, t: int, mem: Tensor, spk: Tensor) -> Any:
    spk, mem = net.lif(x[t] + net.fc(spk), mem)
    return spk, mem, spk


@by_hand("7 steps of 14 calls: one recurrence, with linear between its steps", rounded=True)
def layers_of_several_widths(net: Any, x: Tensor) -> Any:
    """The spikes of the second layer hold back the first one, at the next step."""
    there, back = net.fc.weight[:3], net.fc.weight.t()[:, :3] * net.gain
    e, i = torch.zeros_like(x[0]), x.new_zeros(x.shape[1], 3)
    s_e, s_i, out = e, i, []
    for t in range(x.shape[0]):
        e = 0.9 * e * (1 - s_e) + x[t] - F.linear(s_i, back)
        s_e = Plain.apply(e - 0.5)
        i = torch.sigmoid(net.gain) * i - s_i + F.linear(s_e, there, net.decay[:3])
        s_i = Plain.apply(i - 0.25)
        out.append(s_e)
    return torch.stack(out), e, i, s_i


@by_hand("7 steps of 10 calls: one recurrence, with linear between its steps", rounded=True)
def a_layer_that_hears_the_one_behind_it(net: Any, x: Tensor) -> Any:
    """Both are of one width, and of snnfast."""
    mem, syn, high = net.lif.reset_mem(), *net.syn.reset_mem()
    top, out = torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        spk, mem = net.lif(x[t] + net.fc(top), mem)
        top, syn, high = net.syn(net.fc(spk), syn, high)
        out.append(high)
    return torch.stack(out), top


@a_step(
    "7 steps of 18 calls: one recurrence, with linear between its steps; 7 x slice (4 times); 7 x linear",
    start=(None, None),
    rounded=True,
)
def gates_that_are_cut_by_chunk(net: Any, x: Tensor, t: int, h: Tensor, c: Tensor) -> Any:
    wide = torch.cat([net.fc.weight * k for k in (1.0, -0.5, 0.7, 0.2)])
    i, f, g, o = (F.linear(x[t], wide) + F.linear(h, wide, net.decay.repeat(4))).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return i, torch.sigmoid(o) * torch.tanh(c), c


@a_step("7 steps of 12 calls: one recurrence, with mm between its steps; 7 x slice (2 times)", rounded=True)
def gates_that_are_cut_by_slices(net: Any, x: Tensor, t: int, h: Tensor) -> Any:
    wide = torch.cat([net.fc.weight * k for k in (1.0, -0.5)])
    gates = torch.sigmoid(torch.mm(h, wide.t()) * net.gain + net.decay.repeat(2))
    h = gates[:, :7] * h + gates[:, 7:] * x[t]
    return h, h


@a_step(
    "7 steps of 18 calls: one recurrence, with linear between its steps; "
    "7 steps of 14 calls: one recurrence, with linear between its steps; "
    "7 steps of 8 calls: one recurrence, with linear between its steps; 7 x slice (7 times); 7 x linear (4 times)",
    start=(None, None, None, None),
    rounded=True,
)
def cells_of_pytorch(net: Any, x: Tensor, t: int, h: Tensor, c: Tensor, h2: Tensor, h3: Tensor) -> Any:
    wide = torch.cat([net.fc.weight * k for k in (1.0, -0.5, 0.7, 0.2)])
    bias = net.decay.repeat(4)
    h, c = torch.lstm_cell(x[t], (h, c), wide, wide, bias, bias)
    h2 = torch.gru_cell(h, h2, wide[7:], wide[7:], bias[7:])
    h3 = torch.rnn_relu_cell(h2, h3, net.fc.weight, net.fc.weight) - torch.rnn_tanh_cell(
        h2, h3, net.fc.weight, wide[:7]
    )
    return h3 * c, h, c, h2, h3


@a_step(f"{NO}: the result of linear is not cut into equal parts alone", start=(None, None), returns="last")
def gates_of_other_widths(net: Any, x: Tensor, t: int, mem: Tensor, spk: Tensor) -> Any:
    a, b = F.linear(spk, net.fc.weight.repeat(2, 1)[:10]).split([7, 3], 1)
    mem = 0.9 * mem + x[t] + a + b.sum(1, keepdim=True)
    spk = Plain.apply(mem - 1)
    return spk, mem, spk


@a_step(f"{NO}: a layer takes a result of its own step by a product and by itself", start=(None, None), returns="last")
def a_layer_that_takes_spikes_by_a_product_and_by_themselves(
    net: Any, x: Tensor, t: int, mem: Tensor, high: Tensor
) -> Any:
    mem = 0.9 * mem + x[t] - net.fc(high)
    spk = Plain.apply(mem - 1)
    high = 0.8 * high + net.fc(spk) + spk
    return spk, mem, high


@by_hand("6 steps of 8 calls: one recurrence, with linear between its steps")
def a_product_of_what_is_detached(net: Any, x: Tensor) -> Any:
    """The step of the program begins in the midst of that of the loop."""
    mem = spk = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        mem = 0.9 * mem + x[t] - net.fc(0.5 * spk.detach())
        spk = Plain.apply(mem - 1)
    return mem, spk


@a_step(
    f"{NO}: linear is no operator of programs: torch.t is not elementwise, or is not known to programs",
    start=(None, None),
    returns="last",
)
def a_product_with_a_bias_of_one_number(net: Any, x: Tensor, t: int, mem: Tensor, spk: Tensor) -> Any:
    mem = 0.9 * mem + x[t] + F.linear(spk, net.fc.weight, net.gain.view(1))
    spk = Plain.apply(mem - 1)
    return spk, mem, spk


@a_step(f"{NO}: linear runs under no_grad or autocast, unlike the rest of the step", start=(None, None), returns="last")
def a_product_under_no_grad(net: Any, x: Tensor, t: int, mem: Tensor, spk: Tensor) -> Any:
    with torch.no_grad():
        back = net.fc(spk)
    mem = 0.9 * mem + x[t] + back
    spk = Plain.apply(mem - 1)
    return spk, mem, spk


@by_hand(NO)
def a_record_that_is_written_twice(net: Any, x: Tensor) -> Any:
    mem, rec = torch.zeros_like(x[0]), torch.zeros_like(x)
    for t in range(x.shape[0]):
        mem = 0.75 * mem + x[t]
        rec[t] = Plain.apply(mem - 1)
        mem = mem - rec[t]
        rec[0] = mem
    return rec


@by_hand(f"{NO}: linear has another weight or bias at another step")
def spikes_beside_the_input_and_a_weight_that_changes(net: Any, x: Tensor) -> Any:
    mem = spk = torch.zeros_like(x[0])
    weight = torch.cat((net.fc.weight, net.fc.weight), 1).detach()
    for t in range(x.shape[0]):
        weight = weight.view(7, 14)
        mem = 0.9 * mem + F.linear(torch.cat((x[t], spk), dim=1), weight)
        spk = Plain.apply(mem - 1)
        weight[:, 1] += 0.1
    return mem.detach() + x[0]


@by_hand(NO)
def a_record_without_a_gradient(net: Any, x: Tensor) -> Any:
    mem, rec = torch.zeros_like(x[0]), torch.zeros_like(x)
    for t in range(x.shape[0]):
        mem = 0.75 * mem + x[t] * net.gain
        with torch.no_grad():
            rec[t] = mem
            before = rec[t]
        mem = mem - 0.5 * before
    return mem, rec


@a_step(f"{NO}: a step computes tensors of several shapes: [5, 14], [5, 7]", start=(None, None), returns="last")
def spikes_beside_the_input_without_a_gradient(net: Any, x: Tensor, t: int, mem: Tensor, spk: Tensor) -> Any:
    with torch.no_grad():
        both = torch.cat((x[t], spk), dim=1)
    mem = 0.9 * mem + F.linear(both, torch.cat((net.fc.weight, net.fc.weight), 1))
    spk = Plain.apply(mem - 1)
    return spk, mem, spk


@a_step(f"{NO}: linear runs under no_grad or autocast, unlike the rest of the step", start=(None, None), returns="last")
def a_product_under_autocast(net: Any, x: Tensor, t: int, mem: Tensor, spk: Tensor) -> Any:
    with torch.autocast(x.device.type, torch.bfloat16):
        back = net.fc(spk)
    mem = 0.9 * mem + x[t] + back
    spk = Plain.apply(mem - 1)
    return spk, mem, spk


@by_hand(
    f"{NO}: einsum is not elementwise",
)
def a_diagonal_in_place_of_a_product(net: Any, x: Tensor) -> Any:
    square = x[:, :1].expand(-1, 7, -1)
    mem = torch.zeros_like(square[0])
    for t in range(x.shape[0]):
        mem = torch.einsum("ii,ij->ij", mem, net.fc.weight) + 0.5 * square[t]
    return mem


@a_step(f"{NO}: its inputs have other shapes at other steps", returns="last")
def inputs_of_several_shapes(net: Any, x: Tensor, t: int, mem: Tensor) -> Any:
    mem = 0.9 * mem + x[t][: 1 if t % 2 else 5]
    mem = mem - Plain.apply(mem - 1)
    return mem, mem


@a_step(NO, returns="last")
def another_surrogate_each_step(net: Any, x: Tensor, t: int, mem: Tensor) -> Any:
    mem = 0.9 * mem + x[t]
    mem = mem - Masked.apply(mem - 1, 1.0 + 0.1 * t)
    return mem, mem


@a_step(f"{NO}: torch.mean is not elementwise, or is not known to programs (in its derivative)", returns="last")
def derivative_that_is_not_elementwise(net: Any, x: Tensor, t: int, mem: Tensor) -> Any:
    mem = 0.9 * mem + x[t]
    mem = mem - Summed.apply(mem - 1)
    return mem, mem


@a_step(
    f"{NO}: prelu is not elementwise",
    returns="last",
)
def operator_that_knows_its_channels(net: Any, x: Tensor, t: int, mem: Tensor) -> Any:
    """A program is traced with tensors of other sizes, which such an operator refuses."""
    mem = F.prelu(0.9 * mem + x[t] - 1, net.decay)
    return mem, mem


@a_step(f"{NO}: its steps are not all alike", returns="last")
def detached_now_and_then(net: Any, x: Tensor, t: int, mem: Tensor) -> Any:
    mem = 0.9 * mem + x[t]
    mem = mem - Plain.apply(mem - 1)
    return mem, mem.detach() if t % 2 else mem


@a_step("7 steps of 5 calls: one recurrence", returns="last")
def another_first_step(net: Any, x: Tensor, t: int, mem: Tensor) -> Any:
    """It computes the numbers of the others, but not their gradients."""
    mem = (mem.detach() if t == 0 else mem) * 0.9 + (x[t].detach() if t == 0 else x[t])
    mem = mem - Plain.apply(mem - 1)
    return mem, mem


# ---- what a compiled loop must not change: gradients under grad modes, writes, arguments by name, memory

T, B, N = 4, 4, 3  # T == B: a mixed-up dimension has no other shape
LIF = snnfast.Leaky(beta=0.5)

UNROLL = "4 steps of leaky: one unroll"


class OfALayer(nn.Module):
    """A program of a layer without parameters."""

    def __init__(self, loop: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.loop = loop

    def forward(self, x: Tensor) -> Any:
        return self.loop(None, x)


def enter(name: str, function: Callable[[Tensor], Any], more: str) -> None:
    """Enter a program that says ``more`` than that its layer is one unroll; or only why it is refused."""
    loop = lambda _, x: function(x)  # noqa: E731 - called by its network
    says = more if more.startswith(("refused", UNROLL)) else f"{UNROLL}; {more}" if more else UNROLL
    PROGRAMS[name] = Program(name, says, OfALayer, loop, (T, B, N), True)


def program(more: str = "") -> Callable[..., Any]:
    """Enter a function of the input."""
    return lambda function: enter(function.__name__, function, more)


def after(more: str = "") -> Callable[..., Any]:
    """Enter a function of the input, and of the spikes and membranes of every step."""
    return lambda function: enter(function.__name__, lambda x: function(x, *run(x)), more)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def run(x: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Spikes and membranes of every step."""
    mem, s, m = zeros(B, N), [], []
    for t in range(T):
        spk, mem = LIF(x[t], mem)
        s.append(spk)
        m.append(mem)
    return s, m


def without(function: Callable[[], Any]) -> Any:
    """What a function returns, without gradients."""
    with torch.no_grad():
        return function()


# ---- expressions, of the input, and of the spikes and membranes of every step

EXPRESSIONS: dict[str, Callable[[Tensor, list[Tensor], list[Tensor]], Any]] = {
    # grad modes
    "sum of a stack without gradients": lambda x, s, m: torch.stack(m) * (1 + without(lambda: torch.stack(s).sum(0))),
    "sum of a list without gradients": lambda x, s, m: without(lambda: sum(s)) * torch.stack(m),
    "stack without gradients": lambda x, s, m: (lambda r: (r * x, r))(without(lambda: torch.stack(m))),
    "steps of the input without gradients": lambda x, s, m: torch.stack(run(without(lambda: list(x)))[1]) + x,
    "steps in no order without gradients": lambda x, s, m: (
        torch.stack(run(without(lambda: [x[t] for t in (2, 0, 3, 1)]))[1]) + x
    ),
    "unbound without gradients": lambda x, s, m: torch.stack(run(without(lambda: x.unbind(0)))[1]) + x,
    "a step read without gradients": lambda x, s, m: (without(lambda: m[1] * 2) * m[1], m[1], m[2].detach()),
    "views of membranes without gradients": lambda x, s, m: (without(lambda: [mem.flatten() for mem in m]), m[-1]),
    "stacks of expanded steps": lambda x, s, m: (
        (lambda h: (torch.stack(h), torch.stack(h, 1)))([x[t].unbind(0)[0].expand_as(x[t]) for t in range(T)]),
        torch.stack(m),
    ),
    "sum of a stack in both modes": lambda x, s, m: (lambda r: without(lambda: r.sum(0)) * r.sum(0))(torch.stack(s)),
    # arguments by name
    "along an axis": lambda x, s, m: (torch.stack(m, axis=1).softmax(1), torch.cat(m, axis=1)),
    # transforms, and equal elements
    "transforms": lambda x, s, m: torch.stack([torch.vmap(torch.sin)(mem) for mem in m]),
    "medians of spikes": lambda x, s, m: torch.stack([spk.nanmedian() for spk in s]),
    "larger of two": lambda x, s, m: [torch.max(m[t], x[t]) for t in range(T)],
    "medians": lambda x, s, m: torch.stack([mem.median() for mem in m]),
    # memory of the results
    "a stack and the input": lambda x, s, m: (torch.stack(m), torch.stack([x[t] for t in range(T)])),
    "two stacks": lambda x, s, m: (torch.stack(s), torch.stack(s)),
    "stack and cat": lambda x, s, m: (torch.stack(s), torch.cat(s)),
    "stacks along two dimensions": lambda x, s, m: (torch.stack(s), torch.stack(s, 1)),
    "stack and its start": lambda x, s, m: (torch.stack(m), torch.stack(m[:2]), torch.stack(m)[:2]),
    "stacks of copies": lambda x, s, m: [torch.stack(q) for q in (m, [q.clone() for q in m], [q.detach() for q in m])],
    "stack and the last": lambda x, s, m: (torch.stack(s), s[-1], torch.stack(m), m[-1]),
    "a stack and its views": lambda x, s, m: (lambda r: (r, r[0], r.flatten(1)))(torch.stack(m)),
    "a loss at each step": lambda x, s, m: [
        F.mse_loss(m[t], x[t]) + F.l1_loss(x[t], m[t], reduction="sum") for t in range(T)
    ],
    "two sums": lambda x, s, m: (torch.stack(s).sum(0), torch.stack(s).sum(0), sum(s)),
    "a list and its stack": lambda x, s, m: (s, torch.stack(s), m),
    "equal calls": lambda x, s, m: ((m[-1] * 2).view(-1), (m[-1] * 2).view(-1)),
    "views of the last membrane": lambda x, s, m: ([mem.flatten() for mem in m], m[-1]),
    # operators that torch.vmap or a larger batch would get wrong
    "frequencies": lambda x, s, m: [
        F.embedding((q * 2).long().clamp(0, 3), x[0, :, :2] * 1, scale_grad_by_freq=True) for q in s
    ],
    "embeddings": lambda x, s, m: [
        F.embedding((m[t] * 2).long().clamp(0, 3), x[t] * 1, padding_idx=1) for t in range(T)
    ],
    "scattered": lambda x, s, m: torch.stack([m[t].select_scatter(x[t, 0], 0, 1) for t in range(T)]),
    "strides": lambda x, s, m: torch.stack([(m[t] * 2)[1].as_strided((N,), (1,), 0) for t in range(T)]),
    "numbers of another dtype": lambda x, s, m: torch.stack([(q.float() >= q.max()).double() for q in m]),
    "memory format": lambda x, s, m: [q.to(torch.float32, memory_format=torch.contiguous_format) for q in m],
    "images": lambda x, s, m: [F.interpolate(q[:, None], scale_factor=2) for q in m],
    "bits of numbers": lambda x, s, m: [q.detach().view(torch.int64) for q in m],
    # what is merged in another way than most
    "another number at each step": lambda x, s, m: [m[t] * (t + 1.5) for t in range(T)],
    "stacks of one": lambda x, s, m: (torch.stack(m[:1]), torch.stack([m[0], m[0]]), torch.cat([m[1]])),
}
# Those that say more than that the layer is one unroll.
SAYS = {
    "sum of a list without gradients": "3 x add",
    "views of membranes without gradients": "4 x flatten",
    "stacks of expanded steps": "4 x expand_as; 4 x unbind",
    "transforms": CALL_BY_CALL,
    "a stack and the input": "2 x stack",
    "two stacks": "2 x stack",
    "stack and its start": "2 x stack",
    "stack and the last": "2 x stack",
    "equal calls": "2 x view; 2 x mul",
    "medians of spikes": "4 x nanmedian: torch.vmap gives another gradient where elements are equal",
    "larger of two": "4 x max",
    "medians": "4 x median: torch.vmap gives another gradient where elements are equal",
    "stacks of copies": "3 x stack; 4 x detach; 4 x clone",
    "a loss at each step": (
        "4 x add; 4 x l1_loss; 4 x mse_loss; 4 x broadcast_tensors (2 times); 4 x getitem (4 times)"
    ),
    "two sums": "3 x add; 2 x sum",
    "views of the last membrane": "4 x flatten",
    "frequencies": ("4 x clamp; 4 x to; 4 x mul; 4 x embedding: scale_grad_by_freq counts the indices of each step"),
    "embeddings": (
        "4 x clamp; 4 x to; 4 x mul (2 times); 4 x embedding: torch.vmap gives another gradient at padding_idx"
    ),
    "scattered": "4 x select_scatter: torch.vmap gives another gradient",
    "strides": "refused: it reads a tensor by strides (as_strided)",
    "numbers of another dtype": ("4 x to (2 times); 4 x max; 4 x ge: a tensor without dimensions has another dtype"),
    "memory format": "4 x to",
    "images": "4 x upsample_nearest1d; 4 x unsqueeze",
    "bits of numbers": "4 x view; 4 x detach",
    "another number at each step": "4 x mul",
}
for name, expression in EXPRESSIONS.items():
    enter(name, lambda x, of=expression: of(x, *run(x)), SAYS.get(name, ""))

# ---- grad modes


@after("4 steps of leaky: one unroll (2 times)")
def steps_of_a_record_without_gradients(x: Tensor, s: list[Tensor], m: list[Tensor]) -> Any:
    record = torch.stack(m)
    return torch.stack(run(without(lambda: [record[t] for t in range(T)]))[1]) + record


@program("4 x mul")
def given_back_without_gradients(x: Tensor) -> Any:
    mem, m = zeros(B, N), []
    for t in range(T):
        spk, mem = LIF(x[t], mem)
        with torch.set_grad_enabled(t == 0):
            back = F.dropout(spk, 0.5, training=False).flatten(0, 0).contiguous().to(spk.dtype)
        m.append(back * mem)
    return torch.stack(m)


@program(CALL_BY_CALL)
def one_of_several_given_back_without_gradients(x: Tensor) -> Any:
    mem, m = zeros(B, N), []
    for t in range(T):
        xt = x.narrow(0, t, 1)[0]
        with torch.no_grad():
            torch.broadcast_tensors(x, x[t])
            kept = torch.atleast_2d(x[t], x)[1]
        _, mem = LIF(xt, mem)
        m.append(kept[t] * mem)
    return torch.stack(m)


@program("4 steps of 4 calls: one recurrence")
def parts_first_read_without_gradients(x: Tensor) -> Any:
    _, m = run(x)
    total = zeros(B, N)
    for mem in m:
        total = total * 0.9 + mem * without(lambda mem=mem: mem * 0.5)
    return total


# ---- arguments in other orders, and writes


@after(CALL_BY_CALL)
def written_into_a_list_and_a_tuple(x: Tensor, s: list[Tensor], m: list[Tensor]) -> Any:
    total, v, i, r = zeros(B, N), zeros(B), torch.zeros(B, dtype=torch.int64), []
    for t in range(T):
        torch._foreach_add_([total], [m[t].detach()])
        torch.max(m[t].detach(), 1, out=(v, i))
        r.append(total * (v * i).unsqueeze(1))
    return torch.stack(r)


@program("4 x add; 4 x mul; 4 x copy_: it changes a tensor in place")
def written_behind_a_copy(x: Tensor) -> Any:
    mem, rec, total = zeros(B, N), torch.zeros_like(x), zeros(B, N)
    for t in range(T):
        spk, mem = LIF(x[t], mem)
        rec[t] = spk
        spk.mul_(0.5)
        total = total + spk
    return rec, total


@program("4 x copy_: it changes a tensor in place")
def filled_into_what_needs_a_gradient(x: Tensor) -> Any:
    s, _ = run(x.detach())
    record = x * 0.0
    for t in range(T):
        record[t] = s[t]
    return record


@program(CALL_BY_CALL)
def written_through_data_after_it_was_saved(x: Tensor) -> Any:
    mem, m, read = zeros(B, N), [], []
    for t in range(T):
        h = x[t] * 2
        read.append(h.data)  # backward of h * h finds h as it is then, and no error: nothing counts this write
        _, mem = LIF(h * h, mem)
        m.append(mem)
    read[1].mul_(3.0)
    return torch.stack(m)


@program(CALL_BY_CALL)
def changed_in_the_same_way_at_every_step(x: Tensor) -> Any:
    """Most of these change nothing, but not those behind a change of another kind, or of what is copied."""
    ones = [torch.full((N,), -1.0, dtype=torch.float64) for _ in range(5)]
    clamped, halved, copied, given, tracked = ones
    mem, m, read = zeros(B, N), [], []
    for t in range(T):
        clamped.data.clamp_(min=0.25)
        halved.clamp_(min=0.5).mul_(0.5 + t % 2)
        if t == 2:
            given.add_(0.75)
        copied.copy_(given)
        tracked = (tracked * x[0, 0]).clamp_(-0.5, 0.5).clamp_(-0.5, 0.5).abs_().abs_()
        _, mem = LIF(x[t] * clamped + halved - copied, mem)
        m.append(mem)
        read.append((halved.clone() * tracked).sum())
        if t == 1:
            clamped.data.neg_()
    return torch.stack(m), torch.stack(read), *ones


# ---- memory of the results


@after()
def filled_and_stacked(x: Tensor, s: list[Tensor], m: list[Tensor]) -> Any:
    record = torch.zeros_like(x)
    for t in range(T):
        record[t] = s[t]
    return record, torch.stack(s)


@after("2 x stack")
def computed_from_a_stack_along_the_second_dimension(x: Tensor, s: list[Tensor], m: list[Tensor]) -> Any:
    """Contiguous, as in the loop: the caller may take a view."""
    return torch.stack(s, 1) * 2, F.pad(torch.stack(m, 1).relu(), (1, 1))


@after("4 x copy_: it changes a tensor in place")
def steps_of_what_is_filled(x: Tensor, s: list[Tensor], m: list[Tensor]) -> Any:
    record, read = torch.zeros_like(x), []
    for t in range(T):
        record[t] = m[t]
        read.append(record[t])
    return record, read


@program()
def an_image_repeated(x: Tensor) -> Any:
    """As ``spikegen.rate`` does it: how often, it takes from a tensor. What is changed in place is no image."""
    counts = torch.ones(x[0].dim(), dtype=torch.int64).tolist()
    rates, changed = (x[0].repeat([T, *counts]).mul(0.5).sub(0.1).clamp(0, 1) for _ in range(2))
    changed[0] = 0
    return torch.stack(run(rates + changed)[1]), rates, changed


@program("4 x mul; 4 x batch_norm")
def normalised_at_each_step_with_running_averages(x: Tensor) -> Any:
    mem, mean, variance, m = zeros(B, N), zeros(N), zeros(N), []
    for t in range(T):
        _, mem = LIF(2 * F.batch_norm(x[t], mean, variance, training=True), mem)
        m.append(mem)
    return torch.stack(m), mean, variance


CELLS = [kind(N, N, dtype=torch.float64) for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell, nn.GRUCell)]


@program(
    "4 steps of 15 calls: one recurrence, with linear between its steps; 4 x slice (3 times); 4 x linear; 4 x "
    "rnn_tanh_cell; 4 x gru_cell; 4 x getitem (2 times); 4 x lstm_cell",
)
def cells_of_which_one_goes_on_from_the_step_before(x: Tensor) -> Any:
    (lstm, gru, rnn, last), mem, hidden = CELLS, zeros(B, N), zeros(B, N)
    for step in x:
        h, c = lstm(step)
        hidden = last(rnn(h, gru(c, x[0])), hidden)
        _, mem = LIF(5 * hidden, mem)
    return mem, c


@program("4 x unsqueeze")
def a_step_of_a_stack_and_a_cat(x: Tensor) -> Any:
    stacked, steps = torch.stack([x[:, t] for t in range(T)]), []
    mem = zeros(B, N)
    for xt in stacked.unbind():
        _, mem = LIF(xt, mem)
        steps.append(xt)
    return steps[-1], mem, torch.cat([q.unsqueeze(0) for q in steps])


# ---- functions with bodies of their own


def function(forward: Any, backward: Any) -> Any:
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type("Function", (torch.autograd.Function,), methods).apply


changing = function(lambda ctx, x: (x * 2).add_(1), lambda ctx, grad: (grad * 2).mul_(3))
counting = function(lambda ctx, x, count: (count.add_(1), x * 1)[1], lambda ctx, grad: (grad * 2, None))
same = function(lambda ctx, x: x.view_as(x), lambda ctx, grad: grad * 2)


@program(
    "4 steps of 1 calls: one recurrence; 4 x mul: it differs from step to step; 4 x autograd_function: it changes a "
    "tensor in place",
)
def functions_that_change_their_own_or_return_a_view(x: Tensor) -> Any:
    s, m = run([same(x[t] * 1) for t in range(T)])
    return torch.stack(s), [changing(q) for q in m]


@after(
    "refused: 4 steps of leaky: a result of a step is changed in place; 4 x mul: each call needs the "
    "result of an earlier one; 4 x detach: it differs from step to step",
)
def functions_that_change_an_argument(x: Tensor, s: list[Tensor], m: list[Tensor]) -> Any:
    count, r = torch.ones(N, dtype=torch.float64), []
    for t in range(T):
        r.append(m[t].detach() * count)
        r.append(counting(m[t], count))
    return r


@program()
def checkpoints_that_change_their_own(x: Tensor) -> Any:
    def body(a: Tensor) -> Tensor:
        y = a * 2
        y.add_(1)
        return y

    return torch.stack(run([checkpoint(body, x[t], use_reentrant=False) for t in range(T)])[1])


# ---- after public code: the networks of benchmarks/collection

# Their membranes are the output.
SILENT = {"price": ["lif3"], "autoencoder": ["l4"]}
# snnTorch's SLSTM starts every step from zeros where its input has another size than its states.
LAZY = {"muscles": ["slstm1.lstm_cell.weight_hh"], "hybrid": ["slstm.lstm_cell.weight_hh"]}
QUICK = {"static-image", "recurrent-student", "gestures", "spike-counts", "straight-through", "squashed", "stream",
         "lif-with-soft-reset", "refractory", "alpha-function", "recurrent-gradients", "recurrent-convolution",
         "recurrent-unbatched", "recurrent-by-hand", "delayed", "temporal-efficient"}  # fmt: skip
# What becomes of the layers: elsewhere an unroll. Where nothing is given, no call is left to be repeated.
OUTCOMES = {
    "deep-gestures": "unroll", "spike-counts": "unroll", "prints": "unroll", "muscles": "recurrence",
    "stateful-synapses": "recurrence", "norse-cells": "recurrence",
    **dict.fromkeys(("all-steps-on-images", "fashion", "spike-element-wise", "spiking-transformer"), ""),
    **dict.fromkeys(("rows-of-an-image", "spiking-deep-q", "own-charge", "hybrid", "edges", "inhibition",
                     "custom-surrogate", "own-function", "own-function-on-images", "squashed", "masked", "bounded",
                     "leaky-with-feedback", "cell"), "unroll recurrence"),
    **dict.fromkeys(("spatio-temporal", "temporal-efficient", "recurrent-by-hand", "recurrent-adaptive"), "recurrence"),
    **dict.fromkeys(("early-exit", "episodes", "loop-outside", "stream", "progress-bar"), "steps"),
    **{name: "recurrence" for name, p in collection.programs().items() if p.kind in ("neurons", "feedback")},
}  # fmt: skip


@dataclass(frozen=True)
class Collected(Entry):
    """A network of the collection, of which ``explain`` says whether its steps became unrolls or recurrences."""

    program: collection.Program

    @property
    def quick(self) -> bool:
        return self.name in QUICK

    def compare(self, dtype: str, grad: bool, device: Any, reports: list[Any]) -> tuple[str | None, str]:
        found = next(iter(collection.differences(self.program, 4, 3, calls=3 if THOROUGH else 2)), None)
        merged, repeated = (" ".join(line for r in reports for line in getattr(r, of)) for of in ("merged", "repeated"))
        words = [word for word in ("unroll", "recurrence") if f"one {word}" in merged]
        words += ["steps"] * bool(re.search(r"\d steps? of ", repeated))
        words += ["something repeated"] * bool(repeated and self.name not in OUTCOMES)
        return found, " ".join(words)


COLLECTED = {
    name: Collected(name, OUTCOMES.get(name, "unroll"), program) for name, program in collection.programs().items()
}
