"""The way from a layer to its kernel is short: one function checks, one calls the op."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from helpers import NEURONS, Case, inputs, layer_of, leaves

import snnfast

PACKAGE = str(Path(snnfast.__file__).parent)
MOST = 4  # frames of the package between a layer's method and the op


@pytest.mark.needs_extension
@pytest.mark.parametrize("method", ["unroll", "forward"])
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "nograd"])
def test_few_frames_lie_before_an_op(grad: bool, neuron: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(neuron)
    tensors, ops = leaves(inputs(case), case.names if grad else ()), case.kind.ops
    layer, states = layer_of(case, tensors), [tensors[name] for name in ops.states]
    x = tensors["current"]
    assert x is not None
    x = x if method == "unroll" else x[0]
    depth: list[list[str]] = []
    forward = ops.forward

    def op(*args: Any) -> Any:
        return forward(*args)

    def walk(frame: FrameType | None, event: str, _: Any) -> None:
        if event != "call" or frame is None or frame.f_code is not op.__code__:
            return
        between: list[str] = []
        frame = frame.f_back
        while frame is not None and frame.f_code is not getattr(type(layer), method).__code__:
            if frame.f_code.co_filename.startswith(PACKAGE):
                between.append(frame.f_code.co_qualname)
            frame = frame.f_back
        assert frame is not None
        depth.append(between)

    monkeypatch.setattr(ops, "forward", op)
    with snnfast.use_backend("fused"):
        call = getattr(layer, method)
        call(x, *states)  # what is examined and checked at the first call alone does not count
        sys.setprofile(walk)
        try:
            call(x, *states)
        finally:
            sys.setprofile(None)
    assert len(depth) == 1
    assert len(depth[0]) <= MOST, depth[0]


@pytest.mark.needs_extension
@pytest.mark.parametrize("neuron", NEURONS)
def test_a_call_runs_one_op_forward_and_one_backward(neuron: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variant in ("unroll", "constant", "count", "step"):
        case = Case(neuron, variant, 1 if variant == "step" else 9)
        ran: list[str] = []

        def spied(op: Any, direction: str, ran: list[str] = ran) -> Any:
            def spy(*args: Any) -> Any:
                ran.append(direction)
                return op(*args)

            return spy

        with monkeypatch.context() as patched, snnfast.use_backend("fused"):
            ops = case.kind.ops
            for direction in ("forward", "backward"):
                patched.setattr(ops, direction, spied(getattr(ops, direction), direction))
            tensors = leaves(inputs(case))
            layer, states = layer_of(case, tensors), [tensors[name] for name in ops.states]
            x, options = tensors["current"], {name: case.options[name] for name in ("num_steps", "reduce")}
            assert x is not None
            outputs = layer(x[0], *states) if variant == "step" else layer.unroll(x, *states, **options)
            torch.autograd.grad(sum(t.sum() for t in outputs), [t for t in tensors.values() if t is not None])  # type: ignore[arg-type]
        assert ran == ["forward", "backward"]
