"""Steps that lie in memory in another order, such as channels_last, are read and written in place, to the same bits."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import RESETS, SURROGATES, TENSORS, Case, assert_bits_equal, assert_close, call, inputs
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import snnfast
from snnfast import Leaky, MultiStep
from snnfast.functional import lif

# Dimensions of a step, from the outermost in memory to the innermost.
ORDERS = {
    "channels_last": (0, 2, 3, 1),
    "channels_last_3d": (0, 2, 3, 4, 1),
    "batch_last": (1, 2, 3, 0),
    "reversed": (2, 1, 0),
}
SHAPES = {3: (3, 5, 6), 4: (3, 4, 5, 6), 5: (2, 3, 2, 5, 4)}
CHANNELS_LAST = ORDERS["channels_last"]

Tensors = dict[str, Tensor | None]


def in_order(t: Tensor, order: tuple[int, ...]) -> Tensor:
    """The values of ``[*]`` or ``[T, *]`` with its step in this order in memory."""
    lead = t.dim() - len(order)
    dims = [*range(lead), *(lead + d for d in order)]
    return t.detach().permute(dims).contiguous().permute([dims.index(d) for d in range(t.dim())])


def moved(tensors: Tensors, order: tuple[int, ...], names: tuple[str, ...] = ("current", "mem")) -> Tensors:
    return {n: in_order(t, order) if t is not None and n in names else t for n, t in tensors.items()}


class Copies(TorchDispatchMode):
    """What copies the elements of a tensor, while it is entered, and what the ops of snnfast would have to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ops: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name
        if name.startswith("snnfast"):
            self.ops.append(name.split("::")[1])
            self.found += [f"{name}: {t.shape}" for t in args if isinstance(t, Tensor) and not t.is_contiguous()]
        if name in ("aten::clone", "aten::contiguous", "aten::copy_", "aten::_to_copy"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def outputs_and_gradients(tensors: Tensors, case: Case, **options: Any) -> tuple[dict[str, Tensor], Copies]:
    asked = {n: t for n, t in leaves_in_place(tensors).items() if t is not None}
    with Copies() as copies:
        spk, mem = call(lif, {**tensors, **asked}, case) if not options else lif(**asked, **case.options, **options)
    weights = [(in_layout_of(torch.linspace(0.5, 1.5, t.numel()).view(t.shape), t)).to(t) for t in (spk, mem)]
    with copies:
        gradients = torch.autograd.grad((spk, mem), list(asked.values()), weights)
    return {"spk": spk, "mem": mem, **{f"d{n}": g for n, g in zip(asked, gradients, strict=True)}}, copies


def leaves_in_place(tensors: Tensors) -> Tensors:
    """Asking for gradients, without a copy, which would be contiguous."""
    return {n: t if t is None else t.detach().requires_grad_() for n, t in tensors.items()}


def in_layout_of(values: Tensor, like: Tensor) -> Tensor:
    return torch.empty_like(like, dtype=values.dtype).copy_(values.to(like.device))


def strides_in(order: tuple[int, ...], t: Tensor) -> tuple[int, ...]:
    return in_order(torch.empty(t.shape), order).stride()


def assert_in_place(case: Case, order: tuple[int, ...], device: torch.device, **options: Any) -> None:
    """Bits of the contiguous copy, layout of the current, nothing copied but gradients of parameters."""
    plain = inputs(case, device)
    expected, _ = outputs_and_gradients(plain, case, **options)
    found, _ = outputs_and_gradients(moved(plain, order), case, **options)
    for name, t in expected.items():
        assert_bits_equal(found[name], t, f"{case}: {name}")
    for name in ("spk", "mem", "dcurrent", "dmem"):
        if name in found:
            assert found[name].stride() == strides_in(order, found[name]), f"{case}: {name}"
            assert not found[name]._is_view(), f"{case}: {name}"
    alone = {n: t if n in ("current", "mem") else t.detach() for n, t in moved(plain, order).items() if t is not None}
    asked = leaves_in_place({n: t for n, t in alone.items() if n in ("current", "mem")})
    with Copies() as copies:
        spk, mem = lif(**{**alone, **asked}, **case.options, **options)
        weights = (torch.ones_like(spk), torch.ones_like(mem))
        torch.autograd.grad((spk, mem), list(asked.values()), weights)
    assert copies.ops == ["lif_forward", "lif_backward"]
    assert copies.found == [], str(case)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("record_mem", [True, False], ids=["record", "last"])
@pytest.mark.parametrize("constant", [False, True], ids=["sequence", "constant"])
@pytest.mark.parametrize("count", [False, True], ids=["spikes", "count"])
def test_equals_the_contiguous_copy_without_making_one(
    count: bool, constant: bool, record_mem: bool, order: tuple[int, ...], device: torch.device
) -> None:
    shape = SHAPES[len(order)]
    for i, (dtype, delay) in enumerate(
        itertools.product((torch.float32, torch.float64, torch.bfloat16), (True, False))
    ):
        case = Case(20, shape, dtype, RESETS[i % 3], delay, record_mem, constant, mem=i % 2 == 0, count=count)
        assert_in_place(case, order, device)


def test_equals_the_contiguous_copy_whatever_is_kept_for_backward(device: torch.device) -> None:
    case = Case(20, SHAPES[4], record_mem=False)
    assert_in_place(case, CHANNELS_LAST, device, membrane_dtype=torch.bfloat16)
    straight = replace(case, spike_grad=SURROGATES["straight_through_estimator"])
    plain = inputs(straight, device)
    results = []
    for tensors in (plain, moved(plain, CHANNELS_LAST)):
        current = tensors["current"].detach().requires_grad_()  # type: ignore[union-attr]
        spk, _ = call(lif, {**tensors, "current": current}, straight)
        (gradient,) = torch.autograd.grad(
            spk, current, in_layout_of(torch.linspace(0, 1, spk.numel()).view(spk.shape), spk)
        )
        results.append((spk, gradient))
    for a, b in zip(*results, strict=True):
        assert_bits_equal(b, a)
        assert b.stride() == strides_in(CHANNELS_LAST, b)


@pytest.mark.parametrize("parameters", ["one", "neuron", "channel", "batch", "element", "exotic", "mixed"])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_parameters_and_their_gradients(order: tuple[int, ...], parameters: str, device: torch.device) -> None:
    for dtype, record_mem in itertools.product((torch.float32, torch.float64), (True, False)):
        case = Case(6, SHAPES[len(order)], dtype, record_mem=record_mem, parameters=parameters)
        plain = inputs(case, device)
        expected, _ = outputs_and_gradients(plain, case)
        for names in (("current", "mem"), TENSORS):  # parameters in their own order, and in that of the current
            full = tuple(n for n in names if plain[n].dim() >= len(order))  # type: ignore[union-attr]
            found, _ = outputs_and_gradients(moved(plain, order, full), case)
            for name, t in expected.items():
                assert_bits_equal(found[name], t, f"{case}: {name}")


def test_a_parameter_per_channel_is_not_copied(device: torch.device) -> None:
    case = Case(6, SHAPES[4], parameters="channel")
    tensors = moved(inputs(case, device), CHANNELS_LAST)
    with Copies() as copies:
        call(lif, tensors, case)
    assert copies.ops == ["lif_forward"]
    assert copies.found == []


def test_a_membrane_in_another_layout(device: torch.device) -> None:
    case = Case(6, SHAPES[4])
    plain = inputs(case, device)
    expected, _ = outputs_and_gradients(plain, case)
    for current, mem in itertools.permutations(((0, 1, 2, 3), CHANNELS_LAST, (3, 2, 1, 0)), 2):
        tensors = moved(moved(plain, current, ("current",)), mem, ("mem",))
        found, _ = outputs_and_gradients(tensors, case)
        for name, t in expected.items():
            assert_bits_equal(found[name], t, name)
        assert found["spk"].stride() == tensors["current"].stride()  # type: ignore[union-attr]


def test_a_gradient_in_another_layout(device: torch.device) -> None:
    case = Case(6, SHAPES[4], mem=False)
    tensors = moved(inputs(case, device), CHANNELS_LAST)
    current = tensors["current"].detach().requires_grad_()  # type: ignore[union-attr]
    spk, _ = call(lif, {**tensors, "current": current}, case)
    weights = torch.rand(spk.shape, device=device)
    found = [
        torch.autograd.grad(spk, current, w, retain_graph=True)[0] for w in (weights, in_order(weights, CHANNELS_LAST))
    ]
    assert_bits_equal(found[0], found[1])
    assert [g.stride() for g in found] == [current.stride()] * 2
    spk.sum().backward()  # of stride 0
    assert current.grad is not None
    assert current.grad.stride() == current.stride()


def test_what_is_not_dense_with_time_first_is_copied_and_right(device: torch.device) -> None:
    case = Case(6, SHAPES[4])
    plain = inputs(case, device)
    current = plain["current"]
    assert current is not None
    wide = in_order(torch.cat([current, torch.full_like(current, float("nan"))], dim=2), CHANNELS_LAST)
    for other in (
        wide[:, :, : current.shape[2]],  # gaps
        current[:, :, :1].expand_as(current),  # stride 0
        current[:, :1].expand_as(current),
        current.permute(1, 2, 3, 4, 0).contiguous().permute(4, 0, 1, 2, 3),  # time innermost
        current.transpose(0, 1).contiguous().transpose(0, 1),
        in_order(current, CHANNELS_LAST).flip(0)[1:],
        in_order(current, CHANNELS_LAST)[::2],
        in_order(current, CHANNELS_LAST)[:, 1:],
    ):
        mem = plain["mem"][: other.shape[1]]  # type: ignore[index]
        expected, _ = outputs_and_gradients({**plain, "current": other.contiguous(), "mem": mem}, case)
        found, _ = outputs_and_gradients({**plain, "current": other, "mem": mem}, case)
        for name, t in expected.items():
            assert_bits_equal(found[name], t, name)


def test_dimensions_of_one_element_and_of_none(device: torch.device) -> None:
    for shape in itertools.product((1, 3), (1, 2), (0, 1, 4), (1, 2)):
        case = Case(3, shape)
        plain = inputs(case, device)
        for order in itertools.permutations(range(4)):
            tensors = moved(plain, order)
            for a, b in zip(call(lif, tensors, case), call(lif, plain, case), strict=True):
                assert_bits_equal(a, b, f"{case}, {order}")


@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
def test_any_callable_as_surrogate(delay: bool, device: torch.device) -> None:
    case = Case(6, SHAPES[4], delay=delay, parameters="channel")
    atan = snnfast.surrogate.atan()
    case = replace(case, spike_grad=lambda z: atan(z))  # type: ignore[arg-type]
    plain = inputs(case, device)
    results = []
    for tensors in (plain, moved(plain, CHANNELS_LAST)):
        results.append(outputs_and_gradients(tensors, case)[0])
    for name, t in results[0].items():
        if delay and name in ("dthreshold", "dgraded_spikes_factor"):  # summed by PyTorch, in the order of the memory
            assert_close(results[1][name], t, 1e-6, name)
        else:
            assert_bits_equal(results[1][name], t, name)
    for name in ("spk", "mem", "dcurrent"):
        assert results[1][name].stride() == strides_in(CHANNELS_LAST, results[1][name])


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
def test_one_step_at_a_time(delay: bool, order: tuple[int, ...], device: torch.device) -> None:
    case = Case(3, SHAPES[len(order)], parameters="channel", mem=False)
    plain = inputs(case, device)
    layer = Leaky(plain["beta"], plain["threshold"], learn_beta=True, reset_delay=delay).to(device)  # type: ignore[arg-type]
    results = []
    for t in (plain, moved(plain, order)):
        xs = [x.detach().requires_grad_() for x in t["current"]]  # type: ignore[union-attr]
        mem = torch.zeros_like(xs[0])
        spks = []
        with Copies() as copies:
            for x in xs:
                spk, mem = layer(x, mem)
                spks.append(spk)
        results.append((*spks, mem, *torch.autograd.grad(spks, [*xs, layer.beta], [torch.ones_like(s) for s in spks])))
        assert copies.ops == ["lif_step_forward"] * 3
        assert copies.found == []
    for a, b in zip(*results, strict=True):
        assert_bits_equal(b, a)
    assert {t.stride() for t in results[1][:-1]} == {strides_in(order, results[1][0])}
    with Copies() as copies:
        for x in moved(plain, order)["current"]:  # type: ignore[union-attr]
            spk, mem = layer(x.detach().requires_grad_(), torch.zeros_like(x))
            with torch.no_grad():
                assert layer(x)[0].stride() == x.stride()
            torch.autograd.grad(spk, layer.beta, torch.ones_like(spk))
    assert "lif_step_backward" in copies.ops


def test_the_membrane_can_be_detached_and_changed_in_place(device: torch.device) -> None:
    layer = Leaky(0.9, init_hidden=True).to(device)
    x = in_order(torch.rand(5, 2, 3, 4, 4, device=device), CHANNELS_LAST).requires_grad_()
    for call_layer in (lambda: layer(x[0]), lambda: layer.unroll(x), lambda: layer.unroll(x, record_mem=False)):
        call_layer()
        assert layer.mem.requires_grad
        assert layer.mem.stride() == x[0].stride()
        Leaky.detach_hidden()
        assert not layer.mem.requires_grad
    spk, mem = Leaky(0.9).to(device).unroll(x, record_mem=False)
    mem += 1
    (spk.sum() + mem.sum()).backward()
    assert x.grad is not None


def test_without_gradients(device: torch.device) -> None:
    case = Case(6, SHAPES[4], parameters="channel")
    plain = inputs(case, device)
    tensors = moved(plain, CHANNELS_LAST)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode, Copies() as copies:
            found = call(lif, tensors, case)
        assert copies.found == []
        for a, b in zip(found, call(lif, plain, case), strict=True):
            assert_bits_equal(a, b)
            assert a.stride() == tensors["current"].stride()  # type: ignore[union-attr]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("record_mem", [True, False], ids=["record", "last"])
def test_compiles_without_graph_breaks(record_mem: bool, dynamic: bool, device: torch.device) -> None:
    case = Case(6, SHAPES[4], record_mem=record_mem, parameters="scalar" if dynamic else "channel")
    plain = moved(inputs(case, device), CHANNELS_LAST)
    torch._dynamo.reset()
    results = []
    unroll = lambda tensors: call(lif, tensors, case)  # noqa: E731
    step = lambda layer, x, mem: layer(x, mem)  # noqa: E731
    layer = Leaky(0.9).to(device)
    for compiled in (False, True):
        wrap = torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic) if compiled else lambda f: f
        tensors = leaves_in_place(plain)
        spk, mem = wrap(unroll)(tensors)
        gradients = torch.autograd.grad(
            (spk, mem), list(tensors.values()), (torch.ones_like(spk), torch.ones_like(mem))
        )
        stepped = wrap(step)(layer, tensors["current"][0], tensors["mem"])  # type: ignore[index]
        results.append((spk, mem, *stepped, *gradients))
    for a, b in zip(*results, strict=True):
        assert_bits_equal(b, a)
        assert a.stride() == b.stride()


def test_convolutions_stay_channels_last(device: torch.device) -> None:
    first, second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3)
    lifs = Leaky(torch.full((4, 1, 1), 0.9), learn_beta=True), Leaky(0.8)
    net = MultiStep(first, lifs[0], second, lifs[1]).to(device=device, memory_format=torch.channels_last)
    given: list[Tensor] = []
    second.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    x = in_order(torch.rand(5, 3, 2, 8, 8, device=device) * 3, CHANNELS_LAST).requires_grad_()
    with Copies() as copies:
        spk, mem = net(x)
    assert copies.found == []
    assert given[0].is_contiguous(memory_format=torch.channels_last)
    assert not given[0].is_contiguous()
    assert spk.stride() == mem.stride() == strides_in(CHANNELS_LAST, spk)
    gradients = torch.autograd.grad((spk.square().sum() + mem.sum()), [x, *net.parameters()])
    assert gradients[0].stride() == x.stride()
    constant, _ = net(x[0], num_steps=5)
    assert constant.stride() == strides_in(CHANNELS_LAST, constant)
    with snnfast.use_backend("reference"):
        for a, b in zip((spk, mem), net(x), strict=True):
            assert_bits_equal(a, b)
