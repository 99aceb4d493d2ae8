"""The record of a call: all that goes from a layer, or a function of :mod:`snnfast.functional`, to the ops."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from snnfast._core.backend import exporting
from snnfast._core.linear import Linear
from snnfast._core.norm import Norm
from snnfast._core.ops import LAST_AT, RECORD_AT, REDUCE_AT, SEQUENCE, STEP, TIME_AT, Neuron
from snnfast.surrogate.examine import SpikeGrad

StateQuant = Callable[[Tensor], Tensor]
States = tuple[Tensor | None, ...]
Parameters = tuple[Tensor, ...]


class Options(NamedTuple):
    """Checked options of a layer, the same from call to call."""

    spike_grad: SpikeGrad
    reset: int  # a place in RESET_MECHANISMS
    reset_delay: bool
    inhibition: bool
    state_quant: StateQuant | None
    kernels_do_all: bool  # spike_grad is one of theirs, and there is no inhibition or state_quant
    packed: int  # reset and reset_delay as options of the ops
    derivative: tuple[int, float, float]  # of the spike, as the backward ops take it


class Request(NamedTuple):
    """The steps of one call, and the results that it asks for, checked."""

    time: int  # a place in TIMES: what time is in the shape of the current
    steps: int
    record: int  # states to return of every step, as bits
    last: bool  # whether to return all states after the last step
    reduce: bool  # sum the spikes over time
    packed: int  # all of these but the steps as options of the forward op
    backward_packed: int  # time and reduce as options of the backward op


def make_request(time: int, steps: int, record: int, last: bool, reduce: bool) -> Request:
    shared = time << TIME_AT | reduce << REDUCE_AT
    return Request(time, steps, record, last, reduce, shared | last << LAST_AT | record << RECORD_AT, shared)


ONE_STEP = make_request(STEP, 1, record=0, last=True, reduce=False)


class Convolution(NamedTuple):
    """How a convolution goes over the spikes."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class Connections(NamedTuple):
    """The recurrent layer of an ``all_to_all`` neuron. It stands where ``V`` would in the parameters.

    Where the weights are not known, ``call`` may be any module: each step then has a graph of its own.
    """

    call: Callable[[Tensor], Tensor]
    weight: Tensor | None = None  # [N, N], or [C, C, kH, kW]
    bias: Tensor | None = None
    convolution: Convolution | None = None  # a linear layer, where there is none


class UnrollCall(NamedTuple):
    """A call of all time steps, or of one.

    :func:`snnfast._unroll.run.run` computes it. The record never reaches autograd, which would keep its tensors.
    """

    neuron: Neuron
    options: Options
    request: Request
    current: Tensor  # [T, *], or [*] of a constant current or of one step
    states: States  # [*] each
    parameters: Parameters  # broadcastable to [*] each; those that vary with time have time as the first dimension
    linear: Linear | None = None  # behind the neurons
    lengths: Tensor | None = None  # [B]: the steps of each sample
    norm: Norm | None = None  # of the current, before the neurons
    connections: Connections | None = None  # between the neurons
    varies: bool = False  # a parameter has values for every step


def step_shape(call: UnrollCall) -> torch.Size:
    """The shape of one step of the current."""
    return call.current.shape[1:] if call.request.time == SEQUENCE else call.current.shape


def needs_graph(call: UnrollCall) -> bool:
    """Whether autograd records a call: a tensor of it asks for a gradient. An exported program has none."""
    if not torch.is_grad_enabled():
        return False
    if call.current.requires_grad:
        return not exporting()
    for t in call.parameters:  # plain loops: any() takes three times as long
        if t.requires_grad:
            return not exporting()
    for state in call.states:
        if state is not None and state.requires_grad:
            return not exporting()
    if call.linear is None or not any(t is not None and t.requires_grad for t in call.linear[:2]):
        return False
    return not exporting()


def count_states(neuron: Neuron, record: int) -> int:
    """How many states are recorded. (torch.compile does not trace ``bin`` with torch 2.11.)"""
    return sum([record >> i & 1 for i in range(len(neuron.states))])
