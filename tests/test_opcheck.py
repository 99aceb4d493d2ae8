"""The ops keep PyTorch's rules for custom operators: schema, fake shapes, tracing and compilation."""

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import FLOATS, HALVES, RESETS, TENSORS, Case, assert_bits_equal, assert_close, call, inputs, leaves
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from snnfast import Leaky, MultiStep, _ops, use_backend
from snnfast.functional import lif

OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def contiguous(t: Tensor) -> Tensor:
    return t


def permuted(t: Tensor) -> Tensor:
    order = tuple(reversed(range(t.dim())))
    return t.permute(order).contiguous().permute(order)


def channels_last(t: Tensor) -> Tensor:
    """What a convolution in that format returns, one step ``[B, C, H, W]`` or all of them."""
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else permuted(t)


def expanded(t: Tensor) -> Tensor:
    return t[..., :1].expand(t.shape) if t.dim() else t


def forward_arguments(
    case: Case, device: torch.device, layout: Any = contiguous, keep: int = _ops.KEEP_CHECKPOINTS
) -> list[Any]:
    tensors = inputs(case, device)
    return [
        *(t if t is None else layout(t) for t in tensors.values()), case.steps if case.constant else None,
        RESETS.index(case.reset), case.delay, case.record_mem, case.count, keep,
    ]  # fmt: skip


def backward_arguments(
    case: Case,
    device: torch.device,
    layout: Any = contiguous,
    needs: int = 31,
    given: bool = False,
    keep: int | None = None,
) -> list[Any]:
    """From what ``keep`` says; else from the recorded membrane where that is the trajectory, else from checkpoints."""
    if keep is None:
        from_mem = case.record_mem and case.delay and case.dtype in FLOATS
        keep = _ops.KEEP_NOTHING if from_mem else _ops.KEEP_CHECKPOINTS
    args = forward_arguments(case, device, layout, keep)
    spk, mem, kept = _ops.lif_forward(*args)
    current, mem0, *parameters = args[:5]
    saved = (
        current if keep == _ops.KEEP_CHECKPOINTS else None,
        mem if keep == _ops.KEEP_NOTHING else None,
        None if keep == _ops.KEEP_NOTHING else kept,
    )
    derivative = layout(torch.rand((case.steps, *case.shape), dtype=case.acc, device=device)) if given else None
    surrogate = 3 if keep == _ops.KEEP_BITS else 0
    return [
        layout(torch.rand_like(spk)), layout(torch.rand_like(mem)), *saved, mem0, *parameters, derivative,
        case.steps, case.constant, *args[6:8], case.count, keep, surrogate, 2.0, 0.0, needs,
    ]  # fmt: skip


@pytest.mark.parametrize("record_mem", [True, False], ids=["record", "last"])
@pytest.mark.parametrize("layout", [contiguous, permuted, channels_last, expanded])
def test_opcheck(layout: Any, record_mem: bool, device: torch.device) -> None:
    ops = _ops.namespace(_ops.NAMESPACE)
    for constant, count in itertools.product((False, True), (False, True)):
        case = Case(20, (2, 3, 4), record_mem=record_mem, constant=constant, parameters="element", count=count)
        forward = forward_arguments(case, device, layout)
        torch.library.opcheck(ops.lif_forward.default, forward, test_utils=OPCHECKS)
        for needs, given in ((31, False), (31, True), (10, False)):
            backward = backward_arguments(case, device, layout, needs, given)
            torch.library.opcheck(ops.lif_backward.default, backward, test_utils=OPCHECKS)
        for keep, needs in ((_ops.KEEP_ROUNDED, 27), (_ops.KEEP_BITS, 11)):
            forward = forward_arguments(case, device, layout, keep)
            torch.library.opcheck(ops.lif_forward.default, forward, test_utils=OPCHECKS)
            backward = backward_arguments(case, device, layout, needs, keep=keep)
            torch.library.opcheck(ops.lif_backward.default, backward, test_utils=OPCHECKS)


def shapes(results: Sequence[Tensor]) -> list[Any]:
    return [(t.shape, t.dtype, t.stride(), t.device.type) for t in results]


def test_fake_results_have_the_shapes_of_real_ones(device: torch.device) -> None:
    stride = _ops.checkpoint_stride()
    for i, (steps, shape, dtype, delay, record_mem, constant, count) in enumerate(
        itertools.product(
            (0, 1, stride, stride + 1), ((), (0, 3), (2, 5)), (*FLOATS, *HALVES), (True, False), (True, False),
            (True, False), (True, False),
        )
    ):  # fmt: skip
        case = Case(steps, shape, dtype, RESETS[i % 3], delay, record_mem, constant, mem=i % 5 != 0, count=count)
        keeps = range(4) if delay else range(2)
        calls = [(_ops.lif_forward, forward_arguments(case, device, keep=keep)) for keep in keeps]
        calls.append((_ops.lif_backward, backward_arguments(case, device, needs=i % 32, given=i % 3 == 0)))
        calls += [(_ops.lif_backward, backward_arguments(case, device, needs=11, keep=keep)) for keep in keeps[2:]]
        for op, args in calls:
            with FakeTensorMode() as mode:
                fake = op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args))
            assert shapes(fake) == shapes(op(*args)), str(case)


@pytest.mark.needs_extension
def test_fake_tensors_on_cuda_need_no_gpu() -> None:
    if not _ops.extension.cuda:
        pytest.skip("built without CUDA")
    # torch without CUDA aborts on autograd with such tensors, so the ops are called themselves.
    args = backward_arguments(Case(20, record_mem=False), torch.device("cpu"))
    with FakeTensorMode(), torch.no_grad(), use_backend("fused"):
        spk, mem = lif(torch.empty(9, 3, 10, device="cuda"), beta=torch.empty(10, device="cuda"), record_mem=False)
        grads = _ops.lif_backward(
            *(torch.empty(a.shape, dtype=a.dtype, device="cuda") if isinstance(a, Tensor) else a for a in args)
        )
    assert (spk.shape, mem.shape, spk.device.type) == ((9, 3, 10), (3, 10), "cuda")
    assert [g.shape for g in grads] == [(20, 3, 10), *[(3, 10)] * 4]
    assert {g.device.type for g in grads} == {"cuda"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("record_mem", [True, False], ids=["record", "last"])
@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
def test_compiled_without_graph_breaks_equals_eager(
    delay: bool, record_mem: bool, dtype: torch.dtype, device: torch.device
) -> None:
    torch._dynamo.reset()
    case = Case(20, (3, 10), dtype, "subtract", delay, record_mem, parameters="neuron")

    def loss(tensors: dict[str, Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
        spk, mem = call(lif, tensors, case)
        return spk, mem, (spk * 2).sum() + mem.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for seed in (0, 1):
        results = []
        for function in (loss, compiled):
            tensors = leaves(inputs(case, device, seed))
            *outputs, total = function(tensors)
            total.backward()
            results.append((*outputs, *(t.grad for t in tensors.values() if t is not None)))
        for name, a, b in zip(("spk", "mem", *TENSORS), *results, strict=True):
            if name in ("spk", "mem"):
                assert_bits_equal(b, a, name)
            else:
                assert_close(b, a, 1e-6, name)


def test_compiled_inference_equals_eager(device: torch.device) -> None:
    torch._dynamo.reset()
    case = Case(20, (3, 10), constant=True)
    tensors = inputs(case, device)
    compiled = torch.compile(lambda tensors: call(lif, tensors, case), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for a, b in zip(compiled(tensors), call(lif, tensors, case), strict=True):
            assert_bits_equal(a, b)


@pytest.mark.parametrize("name", ["forward", "forward_held", "unroll", "unroll_held", "multistep"])
def test_layers_compile_without_graph_breaks(name: str, device: torch.device) -> None:
    torch._dynamo.reset()
    x = (torch.rand(7, 3, 10) * 2).to(device)
    held = name.endswith("held")
    layer = Leaky(0.9, learn_beta=True, init_hidden=held).to(device)
    expected_layer = copy.deepcopy(layer)
    if name == "multistep":
        layer, expected_layer = MultiStep(nn.Flatten(), layer), MultiStep(nn.Flatten(), expected_layer)
    functions = [n.unroll if name.startswith("unroll") else n for n in (layer, expected_layer)]
    compiled = torch.compile(functions[0], fullgraph=True, backend="aot_eager")
    for _ in range(2):  # the second call goes on from what the layer holds
        found, expected = compiled(x), functions[1](x)
        for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (found, expected)), strict=True):
            assert_bits_equal(a, b)
    if held:
        assert_bits_equal(layer.mem, expected_layer.mem)


def test_meta_tensors_give_the_shapes(device: torch.device) -> None:
    for record_mem in (True, False):
        spk, mem = lif(torch.empty(9, 3, 10, device="meta"), beta=0.9, record_mem=record_mem)
        assert spk.is_meta
        assert mem.is_meta
        assert (spk.shape, mem.shape) == ((9, 3, 10), (9, 3, 10) if record_mem else (3, 10))
