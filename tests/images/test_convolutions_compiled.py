"""Convolutions and poolings of spikes in a graph of ``torch.compile`` choose their kernels at each call."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_all_close
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from snnfast import Leaky, MultiStep, use_events

pytestmark = [pytest.mark.needs_extension, pytest.mark.usefixtures("nothing_compiled")]
T, B = 4, 3
KERNELS = {
    "snnfast::event_conv2d", "snnfast::event_conv2d_weight", "snnfast::max_pooling", "snnfast::max_pooling_backward",
}  # fmt: skip
DENSE = {name for name in KERNELS if "conv2d" not in name}


def net_of(threshold: float) -> MultiStep:
    """With few spikes before the second convolution where the threshold is high."""
    torch.manual_seed(0)
    return MultiStep(
        nn.Conv2d(1, 8, 3), Leaky(0.5, threshold=threshold), nn.MaxPool2d(2),
        nn.Conv2d(8, 32, 3), Leaky(0.5, threshold=0.1), nn.Flatten(), nn.Linear(32 * 9, 10), Leaky(0.5),
    )  # fmt: skip


def image(batch: int = B) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(T, batch, 1, 12, 12).requires_grad_()


def results(call: Callable[[Tensor], Any], net: nn.Module, x: Tensor) -> tuple[list[Tensor], set[str]]:
    """Outputs and gradients; and the kernels that ran."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        spk, mem = call(x)
        grads = torch.autograd.grad(mem.square().sum() + spk.sum(), [x, *net.parameters()])
    return [spk, mem, *grads], KERNELS & {event.name for event in profiled.events()}


@pytest.mark.parametrize(
    "backend", ["snnfast", *(pytest.param(b, marks=pytest.mark.thorough) for b in ("eager", "aot_eager", "inductor"))]
)
def test_the_numbers_and_the_kernels_are_those_without_it(backend: str) -> None:
    for threshold, kernels in ((0.8, KERNELS), (0.0, DENSE)):
        net, x = net_of(threshold), image()
        expected, there = results(net, net, x)
        assert there == kernels
        found, there = results(torch.compile(net, backend=backend, fullgraph=True), net, x)
        assert there == kernels
        assert_all_close(found, expected, relative=1e-5)
        assert [t.stride() for t in found[:2]] == [t.stride() for t in expected[:2]]


@pytest.mark.thorough
def test_one_graph_takes_many_and_few_spikes_and_any_batch() -> None:
    """What is traced does not depend on the numbers."""
    net = net_of(0.8)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True, dynamic=True)
    for scale, batch, kernels in ((1.0, B, KERNELS), (30.0, B, DENSE), (1.0, 5, KERNELS), (1.0, 6, KERNELS)):
        x = (image(batch).detach() * scale).requires_grad_()
        with torch._dynamo.config.patch(error_on_recompile=scale > 1):
            found, there = results(compiled, net, x)
        assert there == kernels
        assert_all_close(found, results(net, net, x)[0], relative=1e-5)
    with use_events(False):
        assert results(compiled, net, image())[1] == DENSE


@pytest.mark.parametrize("needs", [(True, True, True), (False, True, False), (True, False, True)])
@pytest.mark.parametrize("share", [0.05, 0.9])
def test_opcheck(share: float, needs: tuple[bool, bool, bool]) -> None:
    torch.manual_seed(0)
    x = (torch.rand(2, 8, 6, 7) < share).float().contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(32, 8, 3, 3), torch.randn(32)
    grad, ops = torch.randn(2, 32, 2, 7), torch.ops.snnfast
    torch.library.opcheck(ops.conv2d_forward, (x, weight, bias, [2, 1], [0, 1]))
    torch.library.opcheck(ops.conv2d_backward, (grad, x, weight, [2, 1], [0, 1], [32], list(needs)))
    # The op of the graph calls these two while it is traced, and counts events otherwise.
    inputs = [t.requires_grad_(need) for t, need in zip((x, weight, bias), needs, strict=True)]
    for given in ((*inputs, [2, 1], [0, 1]), *[(x, weight, None, [1, 1], [0, 0])] * needs[0]):
        torch.library.opcheck(ops.conv2d, given, test_utils=("test_schema", "test_aot_dispatch_dynamic"))


def test_opcheck_of_a_pooling() -> None:
    x = (torch.rand(2, 8, 6, 7) < 0.9).float().contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.library.opcheck(torch.ops.snnfast.max_pool2d, (x, [2, 2], [2, 3]))


def arguments_of_backward() -> dict[str, Any]:
    x, weight, grad = torch.rand(3, 2, 6, 6), torch.rand(4, 2, 3, 3), torch.rand(3, 4, 4, 4)
    sizes: dict[str, Any] = {"stride": [1, 1], "padding": [0, 0], "biases": [4], "needs": [True] * 3}
    return {"grad": grad, "x": x, "weight": weight, **sizes}


WRONG: list[tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = [
    ("biases", lambda a: {"grad": a["grad"][:0], "x": a["x"][:0], "biases": None}),  # PyTorch's own op aborts
    ("grad", lambda a: {"grad": a["grad"][:0], "x": a["x"][:1]}),  # and ends by a signal
    ("grad", lambda a: {"grad": a["grad"][:1]}),
    ("grad", lambda a: {"grad": a["grad"][:, :3]}),
    ("grad", lambda a: {"weight": torch.rand(4, 2, 9, 9)}),
    ("grad", lambda a: {"grad": a["grad"].double()}),
    ("weight", lambda a: {"weight": a["weight"].half()}),
    ("x, weight", lambda a: {"x": a["x"][:, :1]}),
    ("x, weight", lambda a: {"x": a["x"][0], "grad": a["grad"][0]}),
    ("stride, padding, needs", lambda a: {"stride": [0, 1]}),
    ("stride, padding, needs", lambda a: {"padding": [-1, 0]}),
    ("stride, padding, needs", lambda a: {"needs": [True] * 2}),
    ("biases", lambda a: {"biases": [5]}),
    ("biases", lambda a: {"biases": None}),
]


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("name", "wrong"), WRONG, ids=[f"{i}-{name[:8]}" for i, (name, _) in enumerate(WRONG)])
def test_the_backward_op_names_a_wrong_argument(
    name: str, wrong: Callable[[dict[str, Any]], dict[str, Any]], order: torch.memory_format
) -> None:
    given = arguments_of_backward()
    given["x"] = (given["x"] > 0.95).float().contiguous(memory_format=order)
    torch.ops.snnfast.conv2d_backward(**given)
    with pytest.raises(ValueError, match=f"^{name}: "):
        torch.ops.snnfast.conv2d_backward(**{**given, **wrong(given)})


def test_the_backward_op_takes_an_empty_batch_and_a_convolution_without_a_bias() -> None:
    given = arguments_of_backward()
    empty = {**given, "x": given["x"][:0], "grad": given["grad"][:0]}
    assert [t.shape for t in torch.ops.snnfast.conv2d_backward(**empty)] == [(0, 2, 6, 6), (4, 2, 3, 3), (4,)]
    without = {"biases": None, "needs": [True, True, False]}
    for call in (given, empty):
        assert len(torch.ops.snnfast.conv2d_backward(**{**call, **without})) == 2
