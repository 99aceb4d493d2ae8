"""States that a step keeps in one tensor are apart."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiler.forms import after, steps, tensor
from loop_nets import QUICK_WAYS
from torch import Tensor

import snnfast


def test_what_is_read_of_a_stack_is_what_was_stacked() -> None:
    def loop(xs: list[Tensor], state: Tensor) -> Tensor:
        for x in xs:
            v, z = state.unbind(0)
            v = torch.tanh(v + x - z)
            state = torch.stack((v, v.exp()))
        return state[0] * 2

    after("unstack", loop, steps(2), tensor(2, 2)).expect("""\
unbind = unbind(x)
getitem = unbind[0]
getitem_1 = unbind[1]
add = add(getitem, x_1)
sub = sub(add, getitem_1)
tanh = tanh(sub)
exp = exp(tanh)
add_1 = add(tanh, x_2)
sub_1 = sub(add_1, exp)
tanh_1 = tanh(sub_1)
exp_1 = exp(tanh_1)
mul = mul(tanh_1, 2)
return [mul]""")


def test_rows_of_a_record_are_read_from_it() -> None:
    def loop(xs: list[Tensor]) -> Tensor:
        rec = torch.stack([x.exp() for x in xs])
        return rec[0] + rec[1]

    assert "stack" in after("unstack", loop, steps(2))


def unbound(x: Tensor, state: Tensor) -> tuple[Any, ...]:
    """As an LSNN keeps its states."""
    rec = []
    for x_t in x:
        v, a, z = state.unbind(0)
        a = 0.9 * a + z
        v = 0.8 * v * (1 - z) + x_t
        z = torch.sigmoid(4 * (v - 1 - a))
        state = torch.stack((v, a, z))
        rec.append(z)
    return torch.stack(rec), state


def indexed(x: Tensor, state: Tensor) -> tuple[Any, ...]:
    state = state.movedim(0, -1)
    for x_t in x:
        v = torch.tanh(0.8 * state[..., 0] + x_t - state[..., -1])
        state = torch.stack((v, state[..., 1] + v, torch.sigmoid(v)), -1)
    return (state[..., 0] + state[..., 1] * state[..., 2],)


def without_gradient(x: Tensor, state: Tensor) -> tuple[Any, ...]:
    """What is stacked without gradients has none."""
    for x_t in x:
        v = torch.tanh(0.8 * state[0] + x_t)
        with torch.no_grad():
            state = torch.stack((v, torch.sigmoid(v), torch.exp(-v)))
        v = v + state[1] * x_t
    return v, state[0].requires_grad


def of_a_state_alone(x: Tensor, state: Tensor) -> tuple[Any, ...]:
    """A state that is computed of itself has no gradient, but what is read of the stack has one, of zeros."""
    v, z = state[:2].detach()
    for x_t in x:
        v, z = torch.tanh(v + x_t), 0.9 * z + 0.1
        state = torch.stack((v, z))
        v, z = state
    return z.exp(), v.exp()


def with_a_late_gradient(x: Tensor, state: Tensor) -> tuple[Any, ...]:
    """The second state gets a gradient at the second step."""
    state, rec = state[:2].detach(), []
    for x_t in x:
        v, z = state
        rec.append(z)
        state = torch.stack((torch.tanh(v + x_t - z), 0.9 * z + 0.1 * v))
    return torch.stack(rec), state


def on_one_line(x: Tensor, state: Tensor) -> tuple[Any, ...]:
    v, z = state[:2]
    for x_t in x:
        state = torch.stack((0.9 * v + x_t, 0.8 * z + v))
        v, z = state
    return v.exp(), z.exp()


def read_without_gradient(x: Tensor, state: Tensor) -> tuple[Any, ...]:
    """What is read without gradients has none."""
    for x_t in x:
        with torch.no_grad():
            last, *_ = state.unbind(0)
        v = torch.tanh(0.8 * last * x_t + x_t)
        state = torch.stack((v, torch.sigmoid(v), torch.exp(-v)))
    return v, last.requires_grad


def hooked(x: Tensor, state: Tensor) -> tuple[Any, ...]:
    """A hook sees the gradient of the stack, or of what is read."""
    out: Any = 0
    for t, x_t in enumerate(x):
        last = state[0]
        if t:
            state.register_hook(lambda grad: 0.5 * grad)
            last.register_hook(lambda grad: grad.clamp(-0.1, 0.1))
        v = torch.tanh(0.8 * last * x_t + x_t - state[1])
        out = out + v
        state = torch.stack((v, torch.sigmoid(v), torch.exp(-v)))
    return out, v


def shared(x: Tensor, state: Tensor) -> tuple[Any, ...]:
    """A result is a view of another one."""
    for x_t in x:
        v = torch.tanh(0.8 * state[0] + x_t)
        state = torch.stack((v, torch.sigmoid(v), torch.exp(-v)))
    return state, state[0], v


def written(x: Tensor, state: Tensor) -> tuple[Any, ...]:
    for x_t in x:
        v = torch.tanh(0.8 * state[0] + x_t)
        state = torch.stack((v, torch.sigmoid(v), torch.exp(-v)))
        state[0] *= 0.5
    return state[0] + v, state


LOOPS = [
    unbound, indexed, without_gradient, of_a_state_alone, with_a_late_gradient, on_one_line, read_without_gradient,
    hooked, shared, written,
]  # fmt: skip


def share(results: tuple[Any, ...]) -> list[bool]:
    """Which results have the memory of the first one."""
    memory = [t.untyped_storage().data_ptr() for t in results if isinstance(t, Tensor)]
    return [m == memory[0] for m in memory]


@pytest.mark.needs_extension
@pytest.mark.parametrize("by", QUICK_WAYS)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_with_states_in_one_tensor_has_its_numbers(loop: Callable[..., Any], by: Any) -> None:
    compiled = by(loop)
    for T, grad in itertools.product((7, 7, 9), (True, False)):
        generator = torch.Generator().manual_seed(T)
        x, state = (torch.rand(n, 2, 4, generator=generator).requires_grad_() for n in (T, 3))
        if loop is hooked and not grad:
            continue
        with torch.set_grad_enabled(grad):
            found, expected = compiled(x, state), loop(x, state)
        torch.testing.assert_close(found, expected)
        assert share(found) == share(expected)
        if grad:
            for f, e in zip(found, expected, strict=True):
                assert f.requires_grad == e.requires_grad if isinstance(e, Tensor) else f == e
                if isinstance(e, Tensor) and e.requires_grad:
                    grads = [torch.autograd.grad(t.square().sum(), x, retain_graph=True)[0] for t in (f, e)]
                    torch.testing.assert_close(*grads)


@pytest.mark.needs_extension
@pytest.mark.parametrize("loop", [unbound, indexed, with_a_late_gradient, on_one_line])
def test_states_in_one_tensor_are_one_recurrence(loop: Callable[..., Any]) -> None:
    said = snnfast.explain(loop, torch.rand(9, 2, 4), torch.rand(3, 2, 4))
    (report,) = said.graphs
    assert not report.repeated
    assert any("one recurrence" in line for line in report.merged)
    assert "its graph is for any number of steps" in said.notes
