"""A first step that differs is taken in where it is the same step with numbers as states."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiler.forms import after_merging, tensor
from loop_nets import WAYS
from torch import Tensor

import snnfast
from snnfast.compiler.parts import first_step

pytestmark = pytest.mark.usefixtures("nothing_compiled")


def beginning(first: Callable[[Tensor], Tensor]) -> Any:
    """A neuron by hand, with another formula for its first membrane."""

    def loop(x: Tensor) -> list[Tensor]:
        mem, out = first(x[0]), []
        for t in range(5):
            mem = mem * 0.9 + x[t] if t else mem
            spk = (mem > 1).float()
            mem = mem - spk
            out.append(spk)
        return out

    return loop


def test_a_first_membrane_that_is_the_input() -> None:
    after_merging("distribute", beginning(lambda x: x), tensor(5, 2)).expect("""\
loop of 5 steps
  a = mul(f[-1], 0.9)  Program; from step 1; first f[-1]: -0.0
  b = x_1[t]  Index
  c = add(a, b)  Program; from step 1
  d = gt(c, 1)  Program
  e = to(d, torch.float32)  Program
  f = sub(c, e)  Program""")


def test_a_first_membrane_of_another_formula_stays_outside() -> None:
    after_merging("distribute", beginning(lambda x: x.tanh()), tensor(5, 2)).expect("""\
loop of 5 steps
  a = mul(f[-1], 0.9)  Program; from step 1; first f[-1]: sub_1
  b = x_1[t]  Index
  c = add(a, b)  Program; from step 1
  d = gt(c, 1)  Program; from step 1
  e = to(d, torch.float32)  Program; from step 1
  f = sub(c, e)  Program; from step 1""")


@pytest.mark.parametrize(
    ("first", "said"), [(lambda x: x, "5 steps of 5 calls"), (lambda x: x.tanh(), "4 steps of 5 calls")]
)
def test_explain_tells_the_steps_of_the_program(first: Callable[[Tensor], Tensor], said: str) -> None:
    (report,) = snnfast.explain(beginning(first), tensor(5, 2)).graphs
    (line,) = report.merged
    assert line.startswith(said)


def of_tensor(first: Tensor) -> Any:
    """A neuron as Norse's, whose first membrane may broadcast, so that its first distance from rest has its shape."""

    def loop(x: Tensor) -> Tensor:
        mem, out = first, []
        for t in range(5):
            mem = mem + 0.2 * ((0.1 - mem) + x[t])
            spk = (mem > 1).float()
            mem = mem - spk
            out.append(spk + mem)
        return torch.stack(out)

    return loop


def test_a_first_membrane_of_one_number_for_all_neurons() -> None:
    after_merging("distribute", of_tensor(torch.zeros(1)), tensor(5, 2)).expect("""\
loop of 5 steps
  a = rsub(h[-1], 0.1)  Program; from step 1; first h[-1]: x_1
  b = x_2[t]  Index
  c = add(a, b)  Program
  d = mul(c, 0.2)  Program
  e = add(h[-1], d)  Program; first h[-1]: x_1
  f = gt(e, 1)  Program
  g = to(f, torch.float32)  Program
  h = sub(e, g)  Program
  i = add(g, h)  Program""")


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 1), (3, 4)])
@pytest.mark.parametrize("by", WAYS)
def test_a_first_membrane_that_broadcasts_has_the_numbers_and_the_gradient_of_the_loop(
    shape: tuple[int, ...], by: Any
) -> None:
    first = torch.rand(shape).requires_grad_()
    loop, x = of_tensor(first), 2 * torch.rand(5, 3, 4)
    compiled = by(loop)
    for _ in range(2):
        found = [(out, *torch.autograd.grad(out.square().sum(), first)) for out in (compiled(x), loop(x))]
        torch.testing.assert_close(*found)


def test_a_first_state_that_is_computed_of_the_first_step_is_none() -> None:
    def loop(x: Tensor) -> Tensor:
        out: list[Tensor] = []
        b = x[0]
        for t in range(5):
            a = x[t].sin()
            b = (b if t else a.flip(0)) * 0.9 + a
            b = b - (b > 1).float()
            out.append(b + a)
        return torch.stack(out)

    x = 2 * torch.rand(5, 3, 4)
    torch.testing.assert_close(snnfast.compile(loop)(x), loop(x))
    (report,) = snnfast.explain(loop, x).graphs
    assert any("one recurrence" in line for line in report.merged)


def of_three_states(x: Tensor) -> tuple[Tensor, ...]:
    """A loop whose steps can begin at each of its calls, with many first states to try."""
    h, a, b, rec = torch.zeros(3, 4), torch.zeros(3, 4), x.new_zeros(3, 4), []
    for _ in range(len(x)):
        b = 0.9 * b + b
        b = b - (b > 1).float()
        v = h - b * 0.9
        w = v.clamp(-1, 1)
        with torch.no_grad():
            u = w * 0.5 + w
        b = 0.9 * b + 0.1 * torch.relu(2 * h + u - 2)
        rec.append(v * 0.5 + w)
        h = a * 0.5 + h * 0.2
    return torch.stack(rec), h, b


def test_first_states_are_found_with_one_trace_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = []
    monkeypatch.setattr(
        first_step, "trace", lambda *args, traced=first_step.trace: traces.append(args) or traced(*args)
    )
    x = torch.rand(9, 3, 4, requires_grad=True)
    torch.testing.assert_close(snnfast.compile(of_three_states)(x), of_three_states(x))
    assert len(traces) < 200


@pytest.mark.thorough
def test_a_chain_of_calls_before_a_loop_may_be_of_any_length() -> None:
    parity = [i.bit_count() % 2 for i in range(1201)]  # of which the differences never repeat (A. Thue, 1906)
    calls = [(torch.tanh, torch.sin, torch.cos)[b - a] for a, b in itertools.pairwise(parity)]

    def loop(x: Tensor) -> Tensor:
        mem = x[0]
        for call in calls:
            mem = call(mem)
        for x_t in x:
            mem = torch.tanh(0.9 * mem + x_t)
        return mem

    x = torch.rand(9, 2, 3)
    torch.testing.assert_close(snnfast.compile(loop)(x), loop(x))
    (report,) = snnfast.explain(loop, x).graphs
    assert any("one recurrence" in line for line in report.merged)


@pytest.mark.parametrize("begins", [1, 2, 3])
def test_a_state_that_is_detached_from_some_step_on_has_the_gradient_of_the_steps_before(begins: int) -> None:
    def loop(x: Tensor) -> Tensor:
        mem: Any = 0
        rec = []
        for t in range(len(x)):
            if t >= begins:
                mem = mem.detach()
            mem = 0.5 * mem + x[t]
            spk = (mem - 1 > 0).to(mem.dtype)
            mem = mem.masked_fill(spk > 0, 0.5)
            rec.append(mem)
        return torch.stack(rec)

    compiled = [by(loop) for by in WAYS]
    for _ in range(4):
        x = (torch.rand(6, 3, 2, dtype=torch.float64) * 1.5).requires_grad_()
        weights = torch.rand(6, 3, 2, dtype=torch.float64)
        found = [torch.autograd.grad((f(x) * weights).sum(), x)[0] for f in (loop, *compiled)]
        torch.testing.assert_close(found[1], found[0])
        torch.testing.assert_close(found[2], found[0])
