"""A recorded ``autograd.Function`` computes with the numbers that it reads now, whatever way it reads them by."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from compiler.internals import ByRecording
from helpers import pairs
from torch import Tensor
from ways_to_read import REFUSED, SEEN, spike_whose_backward, undone

import snnfast

pytestmark = [pytest.mark.needs_extension]

WAYS = (
    "global", "global of a helper", "closure", "default", "mutable default", "attribute", "attribute of an attribute",
    "attribute by a text", "attribute that hides that of the class", "another class of an object", "slot", "property",
    "class", "base of a class", "another base", "object made inside", "metaclass", "__getattr__ of a metaclass",
    "attribute of a member of an Enum", "dataclass", "dict", "dict in a list", "list", "set", "deque", "NumPy array",
    "module of one's own", "__getattr__ of a module", "import from", "import as", "attrgetter", "partial of getattr",
    "attribute of an nn.Module", "mode of an nn.Module", "number of threads", "sys.modules", "environment", "getenv",
    "globals", "context variable", "tensor",
)  # fmt: skip


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    with undone():
        yield


def forward(read: Callable[[], float]) -> Any:
    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            ctx.k = read()
            return (z > 0).to(z.dtype) * ctx.k

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * ctx.k

    return Spike


def loop(x: Tensor, spike: Callable[[Tensor], Tensor], change: Callable[[int], None] = lambda t: None) -> Tensor:
    mem, rec = torch.zeros_like(x[0]), []
    for t in range(len(x)):
        change(t)
        mem = 0.9 * mem + x[t]
        spk = spike(mem - 1)
        mem = mem - spk
        rec.append(spk)
    return torch.stack(rec)


def numbers(function: Callable[..., Tensor], *args: Any) -> list[Tensor]:
    x = torch.linspace(-0.5, 1.5, 42).view(7, 2, 3).requires_grad_()
    found = function(x, *args)
    return [found, *torch.autograd.grad((found * torch.arange(42.0).view(7, 2, 3)).sum(), x)]


@pytest.mark.parametrize(("name", "function_of"), pairs(WAYS, [forward, spike_whose_backward]))
def test_a_number_that_changes_between_calls_is_read(name: str, function_of: Any) -> None:
    module = {**SEEN, **REFUSED}[name].open()
    spike = function_of(module["read"]).apply
    recorded = ByRecording(lambda x: loop(x, spike))
    for change in (lambda: None, lambda: None, module["change"], lambda: None):
        change()
        wanted = numbers(loop, spike)
        torch.testing.assert_close(numbers(recorded), wanted)


@pytest.mark.parametrize(("name", "function_of"), pairs(WAYS, [forward, spike_whose_backward]))
def test_a_number_that_changes_within_a_call_is_read(name: str, function_of: Any) -> None:
    found = []
    for compiled in (False, True):
        module = {**SEEN, **REFUSED}[name].open()
        spike = function_of(module["read"]).apply
        function = ByRecording(loop) if compiled else loop
        found.append(numbers(function, spike, lambda t, module=module: module["change"]() if t == 4 else None))
    torch.testing.assert_close(*found)


class Config:
    slope = 1.0


class Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype) * Config.slope

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return grad / (Config.slope * z.abs() + 1)


@pytest.fixture
def slope() -> Iterator[None]:
    yield
    Config.slope = 1.0


def test_a_number_for_each_step(slope: None) -> None:
    def change(t: int) -> None:
        Config.slope = 1.0 + t / 4

    recorded = ByRecording(loop)
    for _ in range(4):
        wanted = numbers(loop, Read.apply, change)
        torch.testing.assert_close(numbers(recorded, Read.apply, change), wanted)


def test_numbers_that_take_turns(slope: None) -> None:
    def spike(z: Tensor) -> Tensor:
        found = z * 0
        for Config.slope in (0.5, 2.0):
            found = found + Read.apply(z)
        return found

    recorded = ByRecording(loop)
    for _ in range(4):
        wanted = numbers(loop, spike)
        torch.testing.assert_close(numbers(recorded, spike), wanted)


def test_a_number_for_the_time_of_a_block(slope: None) -> None:
    def within(x: Tensor) -> Tensor:
        before, Config.slope = Config.slope, 3.0
        try:
            return loop(x, Read.apply)
        finally:
            Config.slope = before

    recorded = ByRecording(within)
    for Config.slope in (1.0, 1.0, 2.0, 1.0):
        wanted = numbers(within)
        torch.testing.assert_close(numbers(recorded), wanted)
        assert Config.slope in (1.0, 2.0)


def test_a_number_that_is_set_to_itself_changes_nothing(slope: None) -> None:
    def change(t: int) -> None:
        Config.slope = float("1.5")

    recorded = ByRecording(loop)
    for _ in range(4):
        wanted = numbers(loop, Read.apply, change)
        torch.testing.assert_close(numbers(recorded, Read.apply, change), wanted)
    notes = snnfast.explain(lambda x: loop(x, Read.apply, change), torch.rand(7, 2, 3)).notes
    assert not any("change" in note for note in notes)


def test_a_class_for_each_step() -> None:
    def fire_function(gamma: float) -> Any:
        class Fire(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, z: Tensor) -> Tensor:
                ctx.save_for_backward(z)
                return (z > 0).to(z.dtype)

            @staticmethod
            def backward(ctx: Any, grad: Tensor) -> Tensor:
                (z,) = ctx.saved_tensors
                return grad * gamma * (1 - z.abs()).relu()

        return Fire.apply

    recorded = ByRecording(loop)
    for gamma in (0.3, 0.3, 0.5):
        found = [numbers(f, lambda z, gamma=gamma: fire_function(gamma)(z)) for f in (loop, recorded)]
        torch.testing.assert_close(*found)


def test_a_function_that_changes_what_it_reads_does_so_as_in_the_loop() -> None:
    class Counting(torch.autograd.Function):
        calls = 0

        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            Counting.calls += 1
            return z * Counting.calls

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * 2

    recorded, found = ByRecording(loop), []
    for function in (loop, recorded):
        Counting.calls = 0
        found.append([numbers(function, Counting.apply) for _ in range(3)])
        assert Counting.calls == 21
    torch.testing.assert_close(*found)


def test_why_is_said() -> None:
    module = REFUSED["environment"].open()
    spike = spike_whose_backward(module["read"]).apply
    notes = snnfast.explain(lambda x: loop(x, spike), torch.rand(7, 2, 3)).notes
    assert "Spike: it reads os.environ, whose changes can't be seen" in notes


def fire(width: Any) -> Any:
    """A class that is made anew at each step, as public code makes it."""

    class Fire(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return (x > 0).to(x.dtype)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return grad * (1 - x.abs() / width).clamp(min=0)

    return Fire


def test_classes_that_are_made_at_each_step_are_one_if_they_are_alike() -> None:
    def loop(x: Tensor, widths: list[float]) -> Tensor:
        mem, out = torch.zeros_like(x[0]), []
        for x_t, width in zip(x, itertools.cycle(widths), strict=False):
            mem = 0.9 * mem + x_t
            spk = fire(width).apply(mem - 0.5)
            mem = mem - 0.5 * spk
            out.append(spk)
        return torch.stack(out)

    recorded = ByRecording(loop)
    for T, widths in (
        (9, [0.5]),
        (9, [0.5]),
        (13, [0.5]),
        (9, [2.0]),
        (9, [2.0]),
        (9, [2.0]),
        (9, [0.5, 2.0]),
        (9, [1]),
    ):
        found = []
        for function in (loop, recorded):
            x = torch.rand(T, 2, 5, generator=torch.Generator().manual_seed(T)).requires_grad_()
            found.append(torch.autograd.grad(function(x, widths).pow(2).sum(), x)[0])
        torch.testing.assert_close(*found)
    assert recorded.plans[0].is_general


def test_a_class_whose_variable_changes_is_another_one() -> None:
    """Its backward pass reads the variable as it is then."""

    def loop(x: Tensor, late: float) -> Tensor:
        width, mem, out = 0.5, torch.zeros_like(x[0]), []
        for x_t in x:

            class Fire(torch.autograd.Function):
                @staticmethod
                def forward(ctx: Any, x: Tensor) -> Tensor:
                    ctx.save_for_backward(x)
                    return (x > 0).to(x.dtype)

                @staticmethod
                def backward(ctx: Any, grad: Tensor) -> Tensor:
                    (x,) = ctx.saved_tensors
                    return grad * (1 - x.abs() / width).clamp(min=0)

            mem = 0.9 * mem + x_t
            spk: Any = Fire.apply(mem - 0.5)
            mem = mem - 0.5 * spk
            out.append(spk)
        width = late
        return torch.stack(out)

    recorded = ByRecording(loop)
    for late in (0.5, 0.5, 2.0, 2.0, 0.5):
        found = []
        for function in (loop, recorded):
            x = torch.rand(9, 2, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
            found.append(torch.autograd.grad(function(x, late).pow(2).sum(), x)[0])
        torch.testing.assert_close(*found)
