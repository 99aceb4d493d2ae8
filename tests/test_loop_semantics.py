"""What a compiled loop must not change: gradients under grad modes, writes, arguments by name, random draws, memory.

Each program is a function of an input ``[T, B, N]`` with one layer in float64, written as a user may. It is compared
with itself as it stands: outputs, whether they require gradients, gradients, and which results share memory.
"""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import assert_close
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import snnfast
from snnfast._loop.backend import merge

pytestmark = pytest.mark.usefixtures("nothing_compiled")

T, B, N = 4, 4, 3  # T == B: a mixed-up dimension has no other shape
LIF = snnfast.Leaky(beta=0.5)

PROGRAMS: dict[str, Callable[[Tensor], Any]] = {}


def program(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    PROGRAMS[function.__name__] = function
    return function


def run(x: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Spikes and membranes of every step."""
    mem, s, m = torch.zeros(B, N, dtype=torch.float64), [], []
    for t in range(T):
        spk, mem = LIF(x[t], mem)
        s.append(spk)
        m.append(mem)
    return s, m


# ---- grad modes


@program
def sum_of_a_stack_without_gradients(x: Tensor) -> Any:
    s, m = run(x)
    with torch.no_grad():
        rate = torch.stack(s).sum(0)
    return (torch.stack(m) * (1 + rate)).sum()


@program
def sum_of_a_stack_in_both_modes(x: Tensor) -> Any:
    s, _ = run(x)
    spikes = torch.stack(s)
    with torch.no_grad():
        rate = spikes.sum(0)
    return rate * spikes.sum(0)


@program
def stack_without_gradients(x: Tensor) -> Any:
    _, m = run(x)
    with torch.no_grad():
        r = torch.stack(m)
    return r * x, r


@program
def sum_of_a_list_without_gradients(x: Tensor) -> Any:
    s, m = run(x)
    with torch.no_grad():
        rate = sum(s)
    return rate * torch.stack(m)


@program
def steps_of_the_input_without_gradients(x: Tensor) -> Any:
    with torch.no_grad():
        xs = [x[t] for t in range(T)]
    s, m = run(xs)
    return torch.stack(m) + x, torch.stack(s)


@program
def unbound_without_gradients(x: Tensor) -> Any:
    with torch.no_grad():
        xs = x.unbind(0)
    return torch.stack(run(xs)[1]) + x


@program
def steps_of_a_record_without_gradients(x: Tensor) -> Any:
    record = torch.stack(run(x)[1])
    with torch.no_grad():
        q = [record[t] for t in range(T)]
    return torch.stack(run(q)[1]) + record


@program
def filled_without_gradients(x: Tensor) -> Any:
    record = torch.zeros_like(x)
    _, m = run(x)
    with torch.no_grad():
        for t in range(T):
            record[t] = m[t]
    return record * x, record


@program
def changed_in_place_without_gradients(x: Tensor) -> Any:
    v = run(x)[1][-1] * 1.0
    with torch.no_grad():
        v.mul_(3.0)
    return v


@program
def changed_through_a_view_without_gradients(x: Tensor) -> Any:
    mem, m = torch.zeros(B, N, dtype=torch.float64), []
    for t in range(T):
        _, mem = LIF(x[t], mem)
        v = mem * 1.0
        with torch.no_grad():
            view = torch.broadcast_tensors(v, x[t])[0]
            torch.nn.init.constant_(view, 0.5)
        m.append(v * x[t])
    return torch.stack(m)


@program
def accumulated_without_gradients(x: Tensor) -> Any:
    trace, mem = torch.zeros(B, N, dtype=torch.float64), torch.zeros(B, N, dtype=torch.float64)
    loss = x.new_zeros(())
    for t in range(T):
        spk, mem = LIF(x[t], mem)
        with torch.no_grad():
            trace = 0.5 * trace + spk
        loss = loss + (mem * trace).sum()
    return loss, trace


@program
def gradients_inside_of_none(x: Tensor) -> Any:
    _, m = run(x)
    with torch.no_grad():
        a = torch.stack(m).mean(0)
        with torch.enable_grad():
            b = torch.stack(m).sum(0)
        c = b * 2
    return a * b, c


@program
def switched_by_a_statement(x: Tensor) -> Any:
    s, m = run(x)
    torch.set_grad_enabled(False)
    rate = torch.stack(s).mean(0)
    torch.set_grad_enabled(True)
    return torch.stack(m) * rate


@torch.no_grad()
def _rate(s: list[Tensor]) -> Tensor:
    return torch.stack(s, dim=1).sum(1)


@program
def helper_without_gradients(x: Tensor) -> Any:
    s, m = run(x)
    return _rate(s) * torch.stack(m)


@program
def given_back_without_gradients(x: Tensor) -> Any:
    mem, m = torch.zeros(B, N, dtype=torch.float64), []
    for t in range(T):
        spk, mem = LIF(x[t], mem)
        with torch.set_grad_enabled(t == 0):
            same = F.dropout(spk, 0.5, training=False).flatten(0, 0).contiguous().to(spk.dtype)
        m.append(same * mem)
    return torch.stack(m)


@program
def a_step_read_without_gradients_and_returned(x: Tensor) -> Any:
    _, m = run(x)
    with torch.no_grad():
        seen = m[1] * 2
    return seen * m[1], m[1], m[2].detach()


# ---- arguments by other names, and in other orders


@program
def stacked_along_an_axis(x: Tensor) -> Any:
    _, m = run(x)
    return torch.stack(m, axis=1), torch.stack(m, axis=1).softmax(1).pow(2).sum()  # type: ignore[call-overload]


@program
def joined_along_an_axis(x: Tensor) -> Any:
    return torch.cat(run(x)[1], axis=1)  # type: ignore[call-overload]


@program
def unbound_along_an_axis(x: Tensor) -> Any:
    return torch.stack(run(x.unbind(axis=1))[1])  # type: ignore[call-arg]


@program
def keywords_in_changing_order(x: Tensor) -> Any:
    y, mem, m = x.flip(0), torch.zeros(B, N, dtype=torch.float64), []
    for t in range(T):
        one = torch.sub(input=x[t], other=y[t])
        spk, mem = LIF(one if t % 2 else torch.sub(other=y[t], input=x[t]), mem)
        m.append(mem + spk)
    return torch.stack(m)


# ---- writes


@program
def written_into_a_list(x: Tensor) -> Any:
    s, _ = run(x)
    acc, r = torch.zeros(B, N, dtype=torch.float64), []
    for t in range(T):
        torch._foreach_add_([acc], [s[t].detach()])
        r.append(acc * 1.0)
    return torch.stack(r)


@program
def written_into_a_tuple(x: Tensor) -> Any:
    _, m = run(x.detach())
    v, i, r = torch.zeros(B, dtype=torch.float64), torch.zeros(B, dtype=torch.int64), []
    for t in range(T):
        torch.max(m[t], 1, out=(v, i))
        r.append(v * i)
    return torch.stack(r)


@program
def written_by_an_operator(x: Tensor) -> Any:
    s, _ = run(x.detach())
    v, r = torch.zeros(B, N, dtype=torch.float64), []
    for t in range(T):
        torch.ops.aten.add.out(v, s[t], out=v)
        r.append(v * 1.0)
    return torch.stack(r)


@program
def changed_by_name(x: Tensor) -> Any:
    _, m = run(x)
    r = []
    for t in range(T):
        v = m[t] - 0.3
        torch.relu_(input=v)
        w = m[t] - 0.2
        F.relu(input=w, inplace=True)
        r.append(v + w)
    return torch.stack(r)


# ---- transforms, and equal elements


@program
def transforms(x: Tensor) -> Any:
    _, m = run(x)
    return torch.stack([torch.vmap(torch.sin)(mem) for mem in m])


@program
def medians_of_equal_elements(x: Tensor) -> Any:
    s, m = run(x)
    return torch.stack([spk.nanmedian() for spk in s]), torch.stack([mem.median() for mem in m])


# ---- memory of the results


@program
def a_stack_and_the_input(x: Tensor) -> Any:
    return torch.stack(run(x)[1]), torch.stack([x[t] for t in range(T)])


@program
def two_stacks(x: Tensor) -> Any:
    s, _ = run(x)
    return torch.stack(s), torch.stack(s)


@program
def stack_and_cat(x: Tensor) -> Any:
    s, _ = run(x)
    return torch.stack(s), torch.cat(s)


@program
def stacks_along_two_dimensions(x: Tensor) -> Any:
    s, _ = run(x)
    return torch.stack(s), torch.stack(s, 1)


@program
def stack_and_its_start(x: Tensor) -> Any:
    _, m = run(x)
    return torch.stack(m), torch.stack(m[:2]), torch.stack(m)[:2]


@program
def filled_and_stacked(x: Tensor) -> Any:
    s, _ = run(x)
    record = torch.zeros_like(x)
    for t in range(T):
        record[t] = s[t]
    return record, torch.stack(s)


@program
def stacks_of_copies(x: Tensor) -> Any:
    _, m = run(x)
    return torch.stack(m), torch.stack([q.clone() for q in m]), torch.stack([q.detach() for q in m])


@program
def stack_and_the_last(x: Tensor) -> Any:
    s, m = run(x)
    return torch.stack(s), s[-1], torch.stack(m), m[-1]


@program
def two_sums(x: Tensor) -> Any:
    s, _ = run(x)
    return torch.stack(s).sum(0), torch.stack(s).sum(0), sum(s)


@program
def a_list_and_its_stack(x: Tensor) -> Any:
    s, m = run(x)
    return s, torch.stack(s), m


@program
def a_stack_and_its_view(x: Tensor) -> Any:
    _, m = run(x)
    record = torch.stack(m)
    return record, record[0], record.flatten(1)


@program
def equal_calls(x: Tensor) -> Any:
    _, m = run(x)
    return (m[-1] * 2).view(-1), (m[-1] * 2).view(-1)


# ---- functions with bodies of their own


class Changing(torch.autograd.Function):
    """Changes tensors of its own, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x * 2
        y.add_(1)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        grad = grad * 2
        grad.mul_(3)
        return grad


class Counting(torch.autograd.Function):
    """Changes one of its arguments."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: Tensor) -> Tensor:
        count.add_(1)
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return grad * 2, None


class Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * 2


@program
def functions_that_change_their_own(x: Tensor) -> Any:
    return [Changing.apply(q) for q in run(x)[1]]  # type: ignore[no-untyped-call]


@program
def functions_that_change_an_argument(x: Tensor) -> Any:
    count, r = torch.ones(N, dtype=torch.float64), []
    _, m = run(x)
    for t in range(T):
        r.append(m[t].detach() * count)
        r.append(Counting.apply(m[t], count))  # type: ignore[no-untyped-call]
    return r


@program
def functions_that_return_a_view(x: Tensor) -> Any:
    return torch.stack(run([Same.apply(x[t] * 1) for t in range(T)])[1])  # type: ignore[no-untyped-call]


@program
def checkpoints_that_change_their_own(x: Tensor) -> Any:
    def body(a: Tensor) -> Tensor:
        y = a * 2
        y.add_(1)
        return y

    return torch.stack(run([checkpoint(body, x[t], use_reentrant=False) for t in range(T)])[1])


# ---- operators that torch.vmap or a larger batch would get wrong


@program
def frequencies_of_each_step(x: Tensor) -> Any:
    s, _ = run(x)
    w = x[0, :, :2] * 1
    return [F.embedding((q * 2).long().clamp(0, 3), w, scale_grad_by_freq=True) for q in s]


@program
def embeddings_of_each_step(x: Tensor) -> Any:
    _, m = run(x)
    return [F.embedding((m[t] * 2).long().clamp(0, 3), x[t] * 1, padding_idx=1) for t in range(T)]


@program
def scattered_into_each_step(x: Tensor) -> Any:
    _, m = run(x)
    return torch.stack([m[t].select_scatter(x[t, 0], 0, 1) for t in range(T)])


@program
def read_by_strides(x: Tensor) -> Any:
    _, m = run(x)
    return torch.stack([(m[t] * 2)[1].as_strided((N,), (1,), 0) for t in range(T)])


@program
def compared_with_numbers_of_another_dtype(x: Tensor) -> Any:
    _, m = run(x)
    return torch.stack([(m[t].float() >= m[t].max()).double() for t in range(T)])


@program
def conversions_with_a_memory_format(x: Tensor) -> Any:
    _, m = run(x)
    return torch.stack([m[t].to(torch.float32, memory_format=torch.contiguous_format) for t in range(T)])


@program
def filled_into_what_needs_a_gradient(x: Tensor) -> Any:
    s, _ = run(x.detach())
    record = x * 0.0
    for t in range(T):
        record[t] = s[t]
    return record


@program
def views_of_the_last_membrane(x: Tensor) -> Any:
    _, m = run(x)
    return [mem.flatten() for mem in m], m[-1]


@program
def a_step_of_a_stack_and_a_cat(x: Tensor) -> Any:
    stacked, steps = torch.stack([x[:, t] for t in range(T)]), []
    mem = torch.zeros(B, N, dtype=torch.float64)
    for xt in stacked.unbind():
        _, mem = LIF(xt, mem)
        steps.append(xt)
    return steps[-1], mem, torch.cat([q.unsqueeze(0) for q in steps])


def shared(results: list[Tensor]) -> set[tuple[int, int]]:
    """Pairs of results of which one changes when the other is written."""
    found = set()
    with torch.no_grad():
        for i, a in enumerate(results):
            before = [r.detach().clone() for r in results]
            a.detach().add_(1)
            found |= {(i, k) for k, r in enumerate(results) if not torch.equal(r.detach(), before[k])}
    return found


@pytest.mark.parametrize("needs_grad", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("function", PROGRAMS.values(), ids=PROGRAMS)
def test_a_compiled_function_does_what_it_says(function: Any, needs_grad: bool) -> None:
    x = torch.rand(T, B, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.5

    def outcome(f: Any) -> Any:
        with torch.set_grad_enabled(needs_grad):
            given = x.clone().requires_grad_(needs_grad)
            outputs = [o for o in tree_leaves(f(given)) if isinstance(o, Tensor)]
        grads = None
        asking = [o for o in outputs if o.requires_grad]
        if asking:
            weights = [torch.linspace(0.5, 1.5, o.numel(), dtype=o.dtype).view_as(o) for o in asking]
            (grads,) = torch.autograd.grad(asking, [given], weights, allow_unused=True)
        flags = [o.requires_grad for o in outputs]
        copies = [o.detach().clone() for o in outputs]
        return copies, flags, grads, shared([*outputs, given])

    reports = []

    def backend(gm: Any, example_inputs: Any) -> Any:
        merged, report = merge(gm)
        reports.append(report)
        return merged.forward

    outputs, flags, grads, memory = outcome(function)
    found = outcome(torch.compile(function, backend=backend))
    assert not any("fault of snnfast" in (r.refused or "") for r in reports), reports
    for i, (a, b) in enumerate(zip(found[0], outputs, strict=True)):
        assert_close(a, b, 1e-12, f"output {i}")
    assert found[1] == flags
    assert (found[2] is None) == (grads is None)
    if grads is not None:
        assert_close(found[2], grads, 1e-12, "gradient")
    assert found[3] == memory


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "binomial": lambda x: torch.binomial(x * 20, x),
    "gamma": lambda x: torch._standard_gamma(x + 1),
    "dirichlet": lambda x: torch._sample_dirichlet(x + 1),
    "poisson": lambda x: torch.poisson(x * 9),
    "bernoulli": torch.bernoulli,
    "normal": lambda x: torch.normal(x, 1.0),
    "multinomial": lambda x: torch.multinomial(x, 2).double().sum(1, keepdim=True).expand(B, N) * torch.rand(()),
    "rrelu": lambda x: F.rrelu(-x, training=True),
    "dropout": lambda x: F.dropout(x, 0.5),
    "exponential_": lambda x: torch.empty_like(x).exponential_(),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_every_step_draws_its_own_numbers_of_a_constant_input(draw: Any) -> None:
    lif = snnfast.Leaky(beta=0.5)

    def f(x: Tensor) -> Any:
        mem, m = torch.zeros(B, N, dtype=torch.float64), []
        for _ in range(T):
            _, mem = lif(x, mem)
            m.append(draw(x))
        return m, mem

    with torch.no_grad():
        drawn, _ = torch.compile(f, backend="snnfast")(torch.rand(B, N, dtype=torch.float64) * 0.8 + 0.1)
    for a, b in itertools.combinations(drawn, 2):
        assert not torch.equal(a, b)
