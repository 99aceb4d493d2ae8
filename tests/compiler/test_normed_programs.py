"""Batch normalisation in training before neurons that were written by hand: one call, if nothing else reads it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_all_bits_equal, assert_all_close, assert_bits_equal, assert_close, pairs
from norm_checks import Shape, images, norm_of
from torch import Tensor, nn

import snnfast
from benchmarks.collection.neurons import Levels
from snnfast._core import ops
from snnfast._program import run
from snnfast._program.instructions import NUMBERS
from snnfast.compiler.parts import program

pytestmark = [pytest.mark.needs_extension, pytest.mark.usefixtures("nothing_compiled")]

# Of a step, [B, C, *]: whole blocks of neurons, or not; few channels, or more than a block; one channel, or one sample.
SHAPES: dict[str, Shape] = {
    "blocks": (4, 16, 8, 8), "odd": (7, 5, 3, 3), "channel": (2, 1, 16, 17), "sample": (1, 3, 9, 9),
    "wide": (2, 300, 3, 2), "parts": (20, 20, 10, 10),
}  # fmt: skip
LAYOUTS = ("usual", "channels_last")
Neuron = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]  # the net, a current and the membrane: spikes, membrane


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each call that was of both in one."""
    found: list[None] = []
    numbers_of = run.numbers_of
    monkeypatch.setattr(run, "numbers_of", lambda *given: (found.append(None), numbers_of(*given))[1])
    return found


def levels(net: Any, y: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
    mem = 0.5 * mem + y
    spk = Levels.apply(mem)
    return spk, mem - spk.detach()


def smooth(net: Any, y: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
    mem = 0.5 * mem + torch.tanh(y)
    return mem.square(), mem


class Steps(nn.Module):
    """Each step has statistics of its own."""

    def __init__(self, norm: nn.Module, neuron: Neuron = levels) -> None:
        super().__init__()
        self.norm, self.neuron = norm, neuron
        self.rate = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:  # [T, B, C, *]
        mem, rec = torch.zeros_like(x[0]), []
        for step in x:
            spk, mem = self.neuron(self, self.norm(step), mem)
            rec.append(spk)
        return torch.stack(rec)


class AtOnce(Steps):
    """All steps are one batch."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        mem, rec = torch.zeros_like(y[0]), []
        for step in y:
            spk, mem = self.neuron(self, step, mem)
            rec.append(spk)
        return torch.stack(rec)


class BySample(AtOnce):
    """Likewise, and the steps of a sample lie side by side."""

    def forward(self, x: Tensor) -> Tensor:
        by_sample = x.transpose(0, 1)
        batch = by_sample.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        y = self.norm(batch).unflatten(0, by_sample.shape[:2])
        mem, rec = torch.zeros_like(y[:, 0]), []
        for t in range(y.shape[1]):
            spk, mem = self.neuron(self, y[:, t], mem)
            rec.append(spk)
        return torch.stack(rec)


KINDS: list[type[Steps]] = [Steps, AtOnce, BySample]


def apart(net: nn.Module) -> Any:
    """A compiled network, in which the two are two calls."""
    compiled = snnfast.compile(net)

    def call(*given: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(program, "fuse_norm_of_series", lambda *_: None)
            return compiled(*given)

    return call


def results(by: Any, net: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Any]]:
    """The spikes and the running averages; and the gradients of the input and of all parameters."""
    net, x = copy.deepcopy(net), x.detach().requires_grad_()
    compiled = by(net)
    spk = compiled(x)
    grad = torch.randn(spk.shape, generator=torch.Generator().manual_seed(2)).to(spk.dtype)
    asked = [x, *(p for p in net.parameters() if p.requires_grad)]
    return [spk, *net.buffers()], list(torch.autograd.grad(spk, asked, grad, allow_unused=True))


def assert_as_apart(net: nn.Module, x: Tensor) -> None:
    """Not a bit of the spikes and the averages differs, and the gradients are the same to rounding."""
    found, grads = results(snnfast.compile, net, x)
    wanted, others = results(apart, net, x)
    assert_all_bits_equal(found, wanted)
    for a, b in zip(grads, others, strict=True):
        if a is None:  # also where two calls make zeros
            assert b is None or not b.any()
        else:
            assert_close(a, b, 5e-6, scale=1.0)


# ---- numbers


@pytest.mark.parametrize(("kind", "name"), pairs(KINDS, SHAPES))
def test_no_spike_differs_from_the_two_by_themselves(
    kind: type[Steps], name: str, isa: str, calls: list[None], stream_bytes: Any
) -> None:
    shape = SHAPES[name]
    layouts = LAYOUTS if kind is Steps else LAYOUTS[1:]
    for layout in layouts:
        for steps, least in ((6, 0), (17, 1 << 60)):  # also written past the caches
            stream_bytes(least)
            x = images(steps, shape, layout=layout)
            assert_as_apart(kind(norm_of(x)), x)
    of_images = kind is Steps or shape[1] > 1  # the order of one channel is the usual one, too
    assert len(calls) == 2 * len(layouts) * of_images


def test_vectors_and_volumes(calls: list[None]) -> None:
    for shape in ((40, 30), (5, 7, 11), (2, 6, 3, 4, 5)):
        x = images(5, shape)
        assert_as_apart(Steps(norm_of(x)), x)
    assert len(calls) == 3


@pytest.mark.parametrize(("kind", "steps"), pairs(KINDS, (3, 15, 16, 17, 32, 50)))
def test_of_any_number_of_steps(kind: type[Steps], steps: int, calls: list[None]) -> None:
    x = images(steps, (3, 12, 6, 5), layout="channels_last")
    assert_as_apart(kind(norm_of(x)), x)
    assert len(calls) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_a_compiled_loop_is_as_exact_as_the_loop(kind: type[Steps], mean: float, calls: list[None]) -> None:
    x = images(6, (16, 8, 9, 9), layout="channels_last") + mean
    net, every = kind(norm_of(x), smooth), []
    for by, dtype in (
        (snnfast.compile, torch.float32),
        (lambda net: net, torch.float32),
        (lambda net: net, torch.float64),
    ):
        found, grads = results(by, copy.deepcopy(net).to(dtype), x.to(dtype))
        every.append([t.detach().double() for t in (*found, *grads) if t is not None])
    assert len(calls) == 1
    for ours, theirs, exact in zip(*every, strict=True):
        errors = [float((t - exact).norm() / exact.norm()) for t in (ours, theirs)]
        assert errors[0] <= 2 * max(errors[1], 2.0**-23)


@pytest.mark.parametrize(
    ("kind", "options"),
    pairs(KINDS, [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}, {"eps": 0.1}]),
)
def test_every_option_of_the_normalisation(kind: type[Steps], options: dict[str, Any]) -> None:
    for x in (images(4, (3, 4, 4, 4), layout="channels_last"), images(31, (2, 16, 5, 8), layout="channels_last")):
        net = kind(norm_of(x, **options))
        assert_as_apart(net, x)
        (_, *found), (_, *wanted) = results(snnfast.compile, net, x)[0], results(lambda net: net, net, x)[0]
        assert_all_close(found, wanted, 1e-5)


@pytest.mark.parametrize(("kind", "shape"), pairs(KINDS, [(40, 20, 12, 12), (90, 33, 5, 5)]))
def test_no_bit_depends_on_threads_or_the_instruction_set(kind: type[Steps], shape: Shape, isa: str) -> None:
    x, every = images(6, shape, layout="channels_last"), []
    for threads, used in ((1, ops.extension.isa_available()[0]), (1, isa), (2, isa), (5, isa)):
        torch.set_num_threads(threads)
        ops.extension.set_isa(used)
        found, grads = results(snnfast.compile, kind(norm_of(x)), x)
        every.append([*found, *(g for g in grads if g is not None)])
    for again in every[1:]:
        assert_all_bits_equal(again, every[0])


def test_a_second_derivative_is_that_of_the_loop(calls: list[None]) -> None:
    for kind in KINDS:
        x = images(3, (4, 4, 3, 2), layout="channels_last").requires_grad_()
        net, found = kind(norm_of(x), smooth), []
        wanted = [x, *net.norm.parameters()]
        for by in (snnfast.compile, lambda net: net):
            y = by(copy.copy(net))(x)
            first = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
            found.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), wanted)])
        for a, b in zip(*found, strict=True):
            assert_close(a, b, 1e-4)
    assert len(calls) == len(KINDS)


@pytest.mark.parametrize("asks", ["x", "weight", "bias", "weight bias"])
def test_what_asks_for_no_gradient_changes_no_other(asks: str, calls: list[None]) -> None:
    x = images(4, (3, 12, 5, 5), layout="channels_last")
    net, grad, found = Steps(norm_of(x)), torch.randn(x.shape), []
    for some in ("x weight bias", asks):
        of = {"x": x.detach(), "weight": net.norm.weight, "bias": net.norm.bias}
        for name, t in of.items():
            t.requires_grad_(name in some.split())
        y = snnfast.compile(copy.copy(net))(of["x"])
        found.append(dict(zip(some.split(), torch.autograd.grad(y, [of[n] for n in some.split()], grad), strict=True)))
    for name, g in found[1].items():
        assert_bits_equal(g, found[0][name])
    assert len(calls) == 2


def test_without_gradients(calls: list[None]) -> None:
    x = images(20, (3, 4, 4, 4))
    net = Steps(norm_of(x))
    with torch.no_grad():
        assert_bits_equal(snnfast.compile(copy.deepcopy(net))(x), apart(copy.deepcopy(net))(x))
    assert len(calls) == 1


def test_backward_does_not_hold_what_is_normalised() -> None:
    def held(by: Any) -> int:
        nodes, storages = [by(copy.deepcopy(net))(x).grad_fn], {}
        for node in nodes:
            nodes += [n for n, _ in node.next_functions if n is not None and n not in nodes]
            kept = getattr(node, "saved_tensors", [getattr(node, name) for name in dir(node) if "_saved_" in name[:7]])
            for t in kept:
                if isinstance(t, Tensor):
                    storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return sum(storages.values())

    x = images(8, (8, 16, 12, 12)).requires_grad_()
    net, size = Steps(norm_of(x)), x.numel() * x.element_size()
    assert held(apart) - held(snnfast.compile) == pytest.approx(size, rel=0.01)


# ---- programs of several inputs


NEURONS: dict[str, Neuron] = {
    "a parameter": lambda net, y, mem: levels(net, y, net.rate * mem),
    "the gradient of the spikes": lambda net, y, mem: (mem + y, mem * 0.5 + 1),
    "no gradient": lambda net, y, mem: levels(net, net.rate * (y > mem).to(y.dtype), mem),
    "no state": lambda net, y, mem: levels(net, y, torch.zeros_like(mem)),
    "the membrane": lambda net, y, mem: (0.9 * mem + y, 0.9 * mem + y),
}


@pytest.mark.parametrize(("name", "kind"), pairs(NEURONS, KINDS))
def test_other_neurons(name: str, kind: type[Steps], stream_bytes: Any) -> None:
    for steps, least in ((5, 1 << 60), (18, 0)):
        stream_bytes(least)
        x = images(steps, (3, 12, 5, 5), layout="channels_last")
        assert_as_apart(kind(norm_of(x), NEURONS[name]), x)


class Two(nn.Module):
    """Also what is normalised is an input."""

    def __init__(self, norm: nn.Module, first: bool) -> None:
        super().__init__()
        self.norm, self.first = norm, first

    def forward(self, x: Tensor) -> Tensor:
        mem, rec = torch.zeros_like(x[0]), []
        for step in x:
            y = self.norm(step)
            mem = 0.5 * mem + y + step if self.first else 0.5 * mem + step + y
            spk = Levels.apply(mem)
            mem = mem - spk.detach()
            rec.append(spk)
        return torch.stack(rec)


@pytest.mark.parametrize("first", [True, False])
def test_two_inputs(first: bool, calls: list[None], stream_bytes: Any) -> None:
    for layout in LAYOUTS:
        for steps, least in ((5, 1 << 60), (18, 0)):
            stream_bytes(least)
            x = images(steps, (3, 12, 5, 5), layout=layout)
            assert_as_apart(Two(norm_of(x), first), x)
    assert len(calls) == 4


class Read(nn.Module):
    """A linear layer reads the spikes."""

    def __init__(self, norm: nn.Module, outputs: int) -> None:
        super().__init__()
        self.norm, self.fc = norm, nn.Linear(48, outputs)

    def forward(self, x: Tensor) -> Tensor:
        mem, rec = torch.zeros_like(x[0]), []
        for step in x:
            mem = 0.5 * mem + self.norm(step)
            spk = (mem > 0.5).to(x.dtype) + 0 * mem
            mem = mem - spk.detach()
            rec.append(self.fc(spk))
        return torch.stack(rec)


@pytest.mark.parametrize("outputs", [10, 50])
def test_with_a_linear_layer_behind(outputs: int, calls: list[None]) -> None:
    x = images(5, (60, 48))
    assert_as_apart(Read(norm_of(x), outputs), x)
    assert len(calls) == 1


# ---- which calls


class ReadTwice(Steps):
    def forward(self, x: Tensor) -> Tensor:
        mem, rec = torch.zeros_like(x[0]), []
        for step in x:
            y = self.norm(step)
            spk, mem = self.neuron(self, y, mem)
            rec.append(spk + y.mean())
        return torch.stack(rec)


APART: dict[str, tuple[type[Steps], str, Callable[[nn.Module, Tensor], Tensor]]] = {
    "evaluation": (Steps, "usual", lambda net, x: snnfast.compile(net.eval())(x)),
    "float64": (Steps, "usual", lambda net, x: snnfast.compile(net.double())(x.double())),
    "read twice": (ReadTwice, "usual", lambda net, x: snnfast.compile(net)(x)),
    "all steps in the usual order": (AtOnce, "usual", lambda net, x: snnfast.compile(net)(x)),
}


@pytest.mark.parametrize("name", APART)
def test_what_does_not_fit_runs_one_by_one(name: str, calls: list[None]) -> None:
    kind, layout, call = APART[name]
    x = images(4, (3, 4, 4, 4), layout=layout)
    net = kind(norm_of(x))
    found = call(copy.deepcopy(net), x)
    assert not calls
    net = net.to(found.dtype).train(name != "evaluation")
    assert_close(found, net(x.to(found.dtype)), 1e-5)


def test_under_the_reference_backend_it_runs_by_itself(calls: list[None]) -> None:
    x = images(4, (3, 4, 4, 4), layout="channels_last")
    for kind in KINDS:
        net = kind(norm_of(x))
        with snnfast.use_backend("reference"):
            found = snnfast.compile(copy.deepcopy(net))(x)
        assert_close(found, net(x), 1e-5)
    assert not calls


def test_the_op_checks_what_is_normalised() -> None:
    # v = v + x, of 12 neurons: 3 channels of 4 in the usual order; as tests/program/test_program.py describes it
    words = torch.tensor([1, 1, 0, 0, 1, 1, 1, 2, 2, NUMBERS["add"], 2, 1, 0, 0, 0], dtype=torch.int32)
    rows, numbers = torch.rand(5, 12), torch.rand(5, 3, 4)
    constants = torch.empty(0, dtype=torch.float64)

    def forward(rows: Tensor, *normed: Any) -> Tensor:
        given = [rows], [torch.zeros(12, dtype=rows.dtype)], [], words, constants, 5, 12, False, -1, 1
        return torch.ops.snnfast.program_forward(rows[0], *given, *normed)[0]  # type: ignore[no-any-return]

    scale, bias, mean, _ = numbers.repeat_interleave(4, 1).unbind(-1)
    assert_bits_equal(forward(rows, numbers, 0, 4)[0], (rows[0] - mean[0]) * scale[0] + bias[0])
    for wrong, normed in (
        (rows, (numbers, 1, 4)), (rows, (numbers, -1, 4)), (rows, (numbers[:4], 0, 4)), (rows, (numbers, 0, 0)),
        (rows, (numbers[..., :3], 0, 4)), (rows, (numbers.double(), 0, 4)), (rows, (numbers[:, :0], 0, 4)),
        (rows, (numbers, 0, 3)), (rows, (numbers, 0, 1 << 62)), (rows[:1], (numbers, 0, 4)),
        (rows.double(), (numbers, 0, 4)),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=r"(normed|numbers|inner): "):
            forward(wrong, *normed)


def test_explain_tells_of_it() -> None:
    x = images(4, (3, 4, 4, 4), layout="channels_last")
    for kind in KINDS:
        assert "one recurrence, with the batch normalisation before it" in str(snnfast.explain(kind(norm_of(x)), x))
