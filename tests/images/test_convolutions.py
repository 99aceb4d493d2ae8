"""Convolutions over time: the numbers and strides of the loop, in whatever order the steps lie in memory between."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import assert_all_bits_equal, assert_all_close, assert_bits_equal, emulated_if_thorough, gradients_of
from loop_ops import Masked
from multistep_checks import eighths, exact, loop, of_their_own
from snntorch_checks import as_tuple
from torch import Tensor, nn

import snnfast
from snnfast import Leaky, MultiStep, Residual, surrogate
from snnfast._images import channels_last, pool2d

T, B = 4, 3
LAYERS: dict[str, Callable[[], list[nn.Module]]] = {
    "pooled": lambda: [conv(2, 5, 3), nn.MaxPool2d(2), lif(), conv(5, 7, 3), nn.MaxPool2d(2), lif()],
    "one channel": lambda: [conv(1, 4, 3), nn.MaxPool2d(2), lif(), conv(4, 3, 3), lif()],
    "flattened": lambda: [conv(2, 4, 3), nn.AvgPool2d(2), lif(), nn.Flatten(), exact(nn.Linear(100, 6)), lif()],
    "no neuron last": lambda: [conv(2, 4, 3), lif(), conv(4, 4, 3)],
    "groups": lambda: [conv(2, 6, 3, groups=2, padding=1), lif(), conv(6, 6, 3, groups=6), nn.MaxPool2d(3, 2, 1)],
    "strided": lambda: [conv(2, 6, 3, stride=2), lif(), conv(6, 4, 3, dilation=2), lif()],
    "pooling": lambda: [conv(2, 4, 4), nn.MaxPool2d(3, 2, ceil_mode=True), lif(), nn.MaxPool2d(2, dilation=2), lif()],
    "neurons of channels": lambda: [conv(2, 4, 3), Leaky(torch.tensor([0.5, 0.25, 0.5, 1.0]).view(4, 1, 1)), lif()],
    "normalised": lambda: [conv(2, 4, 3), nn.BatchNorm2d(4).eval(), nn.ReLU(), lif(), nn.Dropout(0.0), lif()],
    "residual": lambda: [conv(2, 4, 3), Residual(conv(4, 4, 3, padding=1), lif(), shortcut=conv(4, 4, 1)), lif()],
    "residual at first": lambda: [Residual(conv(2, 2, 3, padding=1)), nn.MaxPool2d(2), lif()],
    "viewed": lambda: [conv(2, 4, 3), lif(), View(), lif()],
}  # fmt: skip


class View(nn.Module):
    """Takes steps that lie in memory in the order of their dimensions, and no other."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1)


def conv(*args: Any, **kwargs: Any) -> nn.Module:
    return exact(nn.Conv2d(*args, **kwargs))


def lif() -> nn.Module:
    return Leaky(0.5, spike_grad=surrogate.fast_sigmoid(slope=4.0))


def net_of(name: str) -> MultiStep:
    torch.manual_seed(0)
    return MultiStep(*LAYERS[name]())


def channels(net: MultiStep) -> int:
    return next(m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d))


def image(net: MultiStep) -> Tensor:
    return (eighths(T, B, channels(net), 12, 12) * 2).requires_grad_()


def gradients(results: Any, net: nn.Module, x: Tensor) -> list[Tensor]:
    return gradients_of(results, [x, *net.parameters()])


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("snnfast._images.channels_last", "snnfast.compiler.emit.channels_last"):
        monkeypatch.setattr(f"{module}.profits", lambda x, weight: False)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What convolutions and max pooling are given, and return, from now on."""
    tensors: list[Tensor] = []

    def recording(forward: Any) -> Any:
        def call(layer: Any, x: Tensor) -> Tensor:
            tensors.extend((x, forward(layer, x)))
            return tensors[-1]

        return call

    for kind in (nn.Conv2d, nn.MaxPool2d):
        monkeypatch.setattr(kind, "forward", recording(kind.forward))
    apply = pool2d._MaxPooling.apply
    by_kernels = recording(lambda how, x: apply(x, *how))
    monkeypatch.setattr(pool2d._MaxPooling, "apply", lambda x, *how: by_kernels(how, x))
    return tensors


@emulated_if_thorough
@pytest.mark.parametrize("constant", [False, True], ids=["sequence", "constant"])
@pytest.mark.parametrize("name", LAYERS)
def test_results_gradients_and_strides_are_those_of_the_plain_path(
    name: str, constant: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = net_of(name).to(device)
    x = (image(net).detach()[0] if constant else image(net).detach()).to(device).requires_grad_()
    steps = {"num_steps": T} if constant else {}
    found = as_tuple(net(x, **steps))
    found_gradients = gradients([t.cpu() for t in found], net, x)
    plain(monkeypatch)
    expected = as_tuple(net(x, **steps))
    for a, b in zip(found, expected, strict=True):
        assert_bits_equal(a, b)
        assert a.stride() == b.stride()
    assert_all_close(found_gradients, gradients([t.cpu() for t in expected], net, x), relative=1e-5)


@pytest.mark.parametrize("name", [name for name in LAYERS if "residual" not in name])
def test_results_and_gradients_are_those_of_the_loop(name: str) -> None:
    net = net_of(name)
    x = image(net)
    found, expected = as_tuple(net(x)), loop(net.layers, x)
    assert_all_bits_equal(found, expected)
    assert_all_close(gradients(found, net, x), gradients(expected, net, x), relative=1e-5)


@pytest.mark.needs_extension
def test_convolutions_and_pooling_are_given_channels_last_steps(seen: list[Tensor]) -> None:
    net = net_of("one channel")
    net(image(net))
    assert len(seen) == 6
    for x in seen:
        assert x.stride()[1] == 1, "the channels of a pixel lie side by side"


def test_states_and_spikes_that_are_returned_lie_in_the_order_of_their_dimensions() -> None:
    net = net_of("pooled")
    _, _, states, spikes = net(image(net), return_states=True, return_spikes=True)
    assert all(t.is_contiguous() for t in (*states, *spikes))
    found = net(image(net), reduce="sum", record_mem=False)
    assert all(t.is_contiguous() for t in found)
    assert net[0:3](image(net))[0].is_contiguous()
    assert Residual(conv(2, 2, 3, padding=1))(image(net)).is_contiguous()


def test_a_held_membrane_goes_on_in_any_order() -> None:
    torch.manual_seed(0)
    layers = conv(2, 4, 3), Leaky(0.5, init_hidden=True), conv(4, 4, 3), Leaky(0.5, init_hidden=True)
    net, x = MultiStep(*layers), eighths(T, B, 2, 12, 12)
    whole, _ = net(x)
    snnfast.reset(net)
    parts = torch.cat([net(part)[0] for part in x.split(2)])
    assert_bits_equal(parts, whole)


OBSERVED = of_their_own(lambda: nn.MaxPool2d(2))


@pytest.mark.parametrize("name", OBSERVED)
def test_a_layer_that_may_look_is_given_what_it_was_given_before(name: str, seen: list[Tensor]) -> None:
    MultiStep(conv(2, 4, 3), OBSERVED[name](), lif())(eighths(T, B, 2, 12, 12))
    assert seen[2].is_contiguous()


@pytest.mark.parametrize("what", ["weights", "input"])
def test_an_order_that_the_user_chose_stays(what: str) -> None:
    net = net_of("pooled")
    x = image(net).detach()
    expected, _ = net(x)
    if what == "weights":
        net = net.to(memory_format=torch.channels_last)
    else:
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (T, B))
    spk, mem = net(x)
    assert spk.stride()[2] == mem.stride()[2] == 1
    assert_bits_equal(spk, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_left_alone(dtype: torch.dtype, seen: list[Tensor]) -> None:
    net = net_of("pooled").to(dtype)
    net(image(net).to(dtype))
    assert all(x.is_contiguous() for x in seen)


def test_convolutions_of_other_dimensions_are_as_they_were() -> None:
    one = MultiStep(exact(nn.Conv1d(2, 4, 3)), nn.MaxPool1d(2), lif())
    three = MultiStep(exact(nn.Conv3d(2, 4, 3)), nn.MaxPool3d(2), lif())
    for net, x in ((one, eighths(T, B, 2, 12)), (three, eighths(T, B, 2, 6, 6, 6))):
        found = net(x)
        assert_all_bits_equal(found, loop(net.layers, x))
        assert all(t.is_contiguous() for t in found)


# ---- the compiled loop


class Loop(nn.Module):
    """Tutorial 6's loop, small, which also returns what is inside."""

    def __init__(self, flat: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.lif1 = conv(1, 4, 3), lif()
        self.conv2, self.lif2 = conv(4, 6, 3), lif()
        self.fc, self.lif3, self.flat = exact(nn.Linear(24, 3)), lif(), flat

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()  # type: ignore
        rec1, rec2, rec3 = [], [], []
        for step in range(len(x)):
            spk1, mem1 = self.lif1(F.max_pool2d(self.conv1(x[step]), 2), mem1)
            spk2, mem2 = self.lif2(F.max_pool2d(self.conv2(spk1), 2), mem2)
            flat = spk2.view(len(spk2), -1) if self.flat == "view" else torch.flatten(spk2, 1)
            spk3, mem3 = self.lif3(self.fc(flat), mem3)
            rec1.append(spk1)
            rec2.append(mem2)
            rec3.append(spk3)
        return torch.stack(rec1), torch.stack(rec2, 1), torch.stack(rec3), mem1


class WrittenByHand(Loop):
    """The neurons of many papers, with the same convolutions, and a mean over the image."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        mem1 = spk1 = torch.zeros(x.shape[1], 4, 14, 14)
        mem2, rec = 0.0, []
        for step in range(len(x)):
            mem1 = mem1 * 0.5 * (1 - spk1) + self.conv1(x[step])
            spk1 = Masked.apply(mem1 - 0.5)
            mem2 = mem2 * 0.5 + self.conv2(F.avg_pool2d(spk1, 2))
            spk2 = Masked.apply(mem2 - 0.5)
            mem2 = mem2 - spk2.detach()
            rec.append(F.avg_pool2d(spk2, 2).mean((2, 3)))
        return torch.stack(rec), mem1, mem2


@pytest.mark.needs_extension
@pytest.mark.parametrize("flat", ["view", "flatten", "by hand"])
def test_a_compiled_loop_turns_its_input_once_and_is_the_plain_path(flat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    turned: list[Tensor] = []
    turn = channels_last.to_channels_last
    monkeypatch.setattr("snnfast.compiler.emit.channels_last.to_channels_last", lambda x: turned.append(x) or turn(x))
    x = (eighths(T, B, 1, 16, 16) * 2).requires_grad_()
    results = []
    for turns in (True, False):
        torch._dynamo.reset()
        if not turns:
            plain(monkeypatch)
        net = WrittenByHand(flat) if flat == "by hand" else Loop(flat)
        found = torch.compile(net, backend="snnfast")(x)
        assert_all_bits_equal(found, net(x))
        results.append((found, gradients(found, net, x)))
    assert [t.shape for t in turned] == [(T * B, 1, 16, 16)], "once, and the rest follows"
    for a, b in zip(*(found for found, _ in results), strict=True):
        assert a.stride() == b.stride()
    assert_all_close(*(grads for _, grads in results), relative=1e-5)


class AllSteps(Loop):
    """All steps of a layer, and then those of the next one, with the batch before time (as in TET) or behind it."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        time = int(self.flat.startswith("batch"))
        first = self.steps(self.conv1, x.transpose(0, 1) if time else x, time)
        pooled = F.avg_pool2d(first.flatten(0, 1), 2)
        return first, self.steps(self.conv2, pooled.unflatten(0, first.shape[:2]), time)

    def steps(self, layer: nn.Module, x: Tensor, time: int) -> Tensor:
        y = layer(x.flatten(0, 1).contiguous())
        viewed = self.flat.endswith("view")
        y = y.view(*x.shape[:2], *y.shape[1:]) if viewed else y.reshape(-1, x.shape[1], *y.shape[1:])
        mem, rec = 0.0, []
        for t in range(x.shape[time]):
            mem = mem * 0.5 + y.select(time, t)
            spk = Masked.apply(mem - 0.5)
            mem = mem - spk.detach()
            rec.append(spk)
        return torch.stack(rec, time)


@pytest.mark.needs_extension
@pytest.mark.parametrize("flat", ["batch first, view", "batch first", "time first, view", "time first"])
def test_all_steps_of_a_layer_keep_the_order_that_its_convolution_gave(
    flat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned: list[Tensor] = []
    turn, back = channels_last.to_channels_last, channels_last.in_usual_order
    monkeypatch.setattr("snnfast.compiler.emit.channels_last.to_channels_last", lambda x: turned.append(x) or turn(x))
    monkeypatch.setattr("snnfast.compiler.emit.channels_last.in_usual_order", lambda x: turned.append(x) or back(x))
    x = (eighths(T, B, 1, 16, 16) * 2).requires_grad_()
    net = AllSteps(flat)
    found, wanted = torch.compile(net, backend="snnfast")(x), net(x)
    assert_all_bits_equal(found, wanted)
    assert [t.stride() for t in found] == [t.stride() for t in wanted]
    assert [t.shape for t in turned] == [(T * B, 1, 16, 16), *(t.shape for t in found)], "once, and back for the user"
    assert_all_close(gradients(found, net, x), gradients(wanted, net, x), relative=1e-5)


@pytest.mark.needs_extension
@pytest.mark.parametrize("dims", [None, (1, 2), (2, 3)], ids=["flat", "channels and rows", "rows and columns"])
def test_a_normalisation_of_a_view_of_a_convolution_has_its_numbers(dims: tuple[int, int] | None) -> None:
    def forward(net: Loop, x: Tensor) -> Tensor:
        current = net.conv1(x.flatten(0, 1))
        current = norm(current.view(len(current), -1) if dims is None else current.transpose(*dims))
        mem, rec = 0.0, []
        for step in range(len(x)):
            mem = mem * 0.5 + current.unflatten(0, x.shape[:2])[step]
            rec.append(mem)
        return torch.stack(rec)

    net, x = Loop(""), eighths(T, B, 1, 16, 16)
    norm = (nn.BatchNorm1d(784) if dims is None else nn.BatchNorm2d(14 if dims == (1, 2) else 4)).eval()
    with torch.no_grad():
        norm.running_var.uniform_(0.5, 2.0)
        torch.testing.assert_close(snnfast.compile(forward)(net, x), forward(net, x))


@pytest.mark.needs_extension
def test_results_of_a_compiled_loop_that_share_memory_share_it_behind_a_convolution() -> None:
    def forward(net: Loop, x: Tensor) -> Any:
        current = net.conv1(x.flatten(0, 1))
        steps = current.unflatten(0, x.shape[:2])
        mem, rec = 0.0, []
        for step in range(len(x)):
            mem = mem * 0.5 + steps[step]
            spk = Masked.apply(mem - 0.5)
            mem = mem - spk.detach()
            rec.append(spk)
        record = torch.stack(rec)
        return current, steps, record, record.flatten(0, 1), record[1], mem

    net, x = Loop(""), eighths(T, B, 1, 16, 16)
    with torch.no_grad():
        found, wanted = snnfast.compile(forward)(net, x), forward(net, x)
        for a, b in zip(found, wanted, strict=True):
            a.add_(1)
            b.add_(1)
    assert_all_bits_equal(found, wanted)
