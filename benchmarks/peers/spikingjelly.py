"""SpikingJelly 2: ``LIFNode`` over all steps, with every implementation that its dispatcher has for the device."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..registry import Case
from .base import KINDS, Neuron, Peer, Unsupported, only

PREFIX = "SpikingJelly"
SURROGATES = {"atan": ("ATan", 2.0), "sigmoid": ("Sigmoid", 25.0), "fast_sigmoid": ("SoftSign", 25.0)}


def make(case: Case, device: torch.device, implementation: str | None = None) -> Neuron:
    from spikingjelly.activation_based import functional, neuron, surrogate

    only(case, learn_beta=(False,), reset_mechanism=("subtract", "zero"), surrogate=tuple(SURROGATES))
    kind, alpha = SURROGATES[case.options.surrogate]
    choose = _chooser(implementation)

    def node(mode: str) -> Any:
        return neuron.LIFNode(
            tau=1 / (1 - case.options.beta),
            decay_input=False,
            v_reset=None if case.options.reset_mechanism == "subtract" else 0.0,
            surrogate_function=getattr(surrogate, kind)(alpha=alpha),
            detach_reset=True,
            step_mode=mode,
        ).to(device)

    multi, single = node("m"), node("s")

    def unroll(x: Tensor, record_mem: bool) -> tuple[Tensor, ...]:
        choose()
        functional.reset_net(multi)
        multi.store_v_seq = record_mem
        spk_rec = multi(x)
        return (spk_rec, multi.v_seq) if record_mem else (spk_rec,)

    def step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        choose()
        if state is None:
            functional.reset_net(single)
        return single(x), True  # the layer keeps its state

    return Neuron(unroll, step)


def _chooser(implementation: str | None) -> Callable[[], None]:
    """A function that makes the dispatcher take an implementation.

    SpikingJelly reads SJ_LIF_CUDA_IMPLEMENTATION once, when it is imported; taking turns needs a change in between.
    """
    if implementation is None:
        return lambda: None
    try:
        from spikingjelly._ops import lif

        selection = lif._selection
        selected: dict[int, Any] = {}
        _ = selection._requested, selection._selections
    except (ImportError, AttributeError) as error:
        raise Unsupported(f"this version has no switch ({error}); set SJ_LIF_CUDA_IMPLEMENTATION") from error

    def choose() -> None:
        selection._requested, selection._selections = implementation, selected

    choose()
    try:
        selection._get_cuda_selection(torch.device("cuda", torch.cuda.current_device()))
    except RuntimeError as error:
        raise Unsupported(str(error)) from error
    return choose


def make_compiled(case: Case, device: torch.device) -> Neuron:
    if case.T > 32 and device.type == "cpu":
        raise Unsupported("compiles all steps, for minutes beyond 32 of them")
    return Neuron(torch.compile(make(case, device).unroll, dynamic=False))


def nearest(case: Case) -> dict[str, Any]:
    return {"reset_delay": False}


NOTE = (
    "LIFNode(tau=1/(1-beta), decay_input=False, detach_reset=True): the reset comes in the step of the spike, before "
    "the decay; a spike at >= the threshold; soft reset for subtract, hard for zero. Compared with snnfast's "
    "reset_delay=False, which after a spike at more than twice the threshold subtracts it once more before it decides "
    "on the next. tau is exact, beta = 1 - 1/tau is rounded. fast_sigmoid is SoftSign, slope / 2 of it"
)
INSTALL = "pip install spikingjelly"
PEERS = [
    Peer(
        PREFIX, "spikingjelly", "spikingjelly", INSTALL, make, NOTE, nearest, devices=("cpu",),
        kinds=(*KINDS, "jelly"),
    ),
    Peer(
        f"{PREFIX}, compiled", "spikingjelly", "spikingjelly", INSTALL, make_compiled, NOTE, nearest, compiled=True,
        devices=("cpu",), kinds=("layer",),
    ),
    *(
        Peer(
            f"{PREFIX}, {name}", "spikingjelly", "spikingjelly", INSTALL + how, partial(make, implementation=name),
            NOTE, nearest, devices=("cuda",),
        )
        for name, how in (
            ("cuda", " --no-binary spikingjelly --no-build-isolation, with SJ_BUILD_NATIVE_CUDA=1"),
            ("triton", " triton"),
            ("torch", ""),
        )
    ),
]  # fmt: skip
