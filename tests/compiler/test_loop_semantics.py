"""What a compiled loop must not change: gradients under grad modes, writes, arguments by name, random draws, memory.

Each program is a function of an input ``[T, B, N]`` with one layer in float64, written as a user may. It is compared
with itself as it stands: outputs, whether they require gradients, gradients, and which results share memory.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import assert_bits_equal
from loop_fuzz import LEFT_OUT, SETTINGS, Run, Watched, check, surroundings
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import snnfast
from snnfast.compiler.kernels import bernoulli

pytestmark = pytest.mark.usefixtures("nothing_compiled")

T, B, N = 4, 4, 3  # T == B: a mixed-up dimension has no other shape
LIF = snnfast.Leaky(beta=0.5)

PROGRAMS: dict[str, Callable[[Tensor], Any]] = {}


def program(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    PROGRAMS[function.__name__] = function
    return function


def after(function: Any) -> Any:
    """A program of the input, and of the spikes and membranes of every step."""
    PROGRAMS[function.__name__] = lambda x: function(x, *run(x))
    return function


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def run(x: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Spikes and membranes of every step."""
    mem, s, m = zeros(B, N), [], []
    for t in range(T):
        spk, mem = LIF(x[t], mem)
        s.append(spk)
        m.append(mem)
    return s, m


def without(function: Callable[[], Any]) -> Any:
    """What a function returns, without gradients."""
    with torch.no_grad():
        return function()


# ---- programs that one expression says: of the input, and of the spikes and membranes of every step

EXPRESSIONS: dict[str, Callable[[Tensor, list[Tensor], list[Tensor]], Any]] = {
    # grad modes
    "sum of a stack without gradients": lambda x, s, m: torch.stack(m) * (1 + without(lambda: torch.stack(s).sum(0))),
    "sum of a list without gradients": lambda x, s, m: without(lambda: sum(s)) * torch.stack(m),
    "stack without gradients": lambda x, s, m: (lambda r: (r * x, r))(without(lambda: torch.stack(m))),
    "steps of the input without gradients": lambda x, s, m: torch.stack(run(without(lambda: list(x)))[1]) + x,
    "steps in no order without gradients": lambda x, s, m: (
        torch.stack(run(without(lambda: [x[t] for t in (2, 0, 3, 1)]))[1]) + x
    ),
    "unbound without gradients": lambda x, s, m: torch.stack(run(without(lambda: x.unbind(0)))[1]) + x,
    "a step read without gradients": lambda x, s, m: (without(lambda: m[1] * 2) * m[1], m[1], m[2].detach()),
    "views of membranes without gradients": lambda x, s, m: (without(lambda: [mem.flatten() for mem in m]), m[-1]),
    "stacks of expanded steps": lambda x, s, m: (
        (lambda h: (torch.stack(h), torch.stack(h, 1)))([x[t].unbind(0)[0].expand_as(x[t]) for t in range(T)]),
        torch.stack(m),
    ),
    "sum of a stack in both modes": lambda x, s, m: (lambda r: without(lambda: r.sum(0)) * r.sum(0))(torch.stack(s)),
    # arguments by name
    "along an axis": lambda x, s, m: (torch.stack(m, axis=1).softmax(1), torch.cat(m, axis=1)),
    # transforms, and equal elements
    "transforms": lambda x, s, m: torch.stack([torch.vmap(torch.sin)(mem) for mem in m]),
    "medians of spikes": lambda x, s, m: torch.stack([spk.nanmedian() for spk in s]),
    "larger of two": lambda x, s, m: [torch.max(m[t], x[t]) for t in range(T)],
    "medians": lambda x, s, m: torch.stack([mem.median() for mem in m]),
    # memory of the results
    "a stack and the input": lambda x, s, m: (torch.stack(m), torch.stack([x[t] for t in range(T)])),
    "two stacks": lambda x, s, m: (torch.stack(s), torch.stack(s)),
    "stack and cat": lambda x, s, m: (torch.stack(s), torch.cat(s)),
    "stacks along two dimensions": lambda x, s, m: (torch.stack(s), torch.stack(s, 1)),
    "stack and its start": lambda x, s, m: (torch.stack(m), torch.stack(m[:2]), torch.stack(m)[:2]),
    "stacks of copies": lambda x, s, m: [torch.stack(q) for q in (m, [q.clone() for q in m], [q.detach() for q in m])],
    "stack and the last": lambda x, s, m: (torch.stack(s), s[-1], torch.stack(m), m[-1]),
    "a stack and its views": lambda x, s, m: (lambda r: (r, r[0], r.flatten(1)))(torch.stack(m)),
    "a loss at each step": lambda x, s, m: [
        F.mse_loss(m[t], x[t]) + F.l1_loss(x[t], m[t], reduction="sum") for t in range(T)
    ],
    "two sums": lambda x, s, m: (torch.stack(s).sum(0), torch.stack(s).sum(0), sum(s)),
    "a list and its stack": lambda x, s, m: (s, torch.stack(s), m),
    "equal calls": lambda x, s, m: ((m[-1] * 2).view(-1), (m[-1] * 2).view(-1)),
    "views of the last membrane": lambda x, s, m: ([mem.flatten() for mem in m], m[-1]),
    # operators that torch.vmap or a larger batch would get wrong
    "frequencies": lambda x, s, m: [
        F.embedding((q * 2).long().clamp(0, 3), x[0, :, :2] * 1, scale_grad_by_freq=True) for q in s
    ],
    "embeddings": lambda x, s, m: [
        F.embedding((m[t] * 2).long().clamp(0, 3), x[t] * 1, padding_idx=1) for t in range(T)
    ],
    "scattered": lambda x, s, m: torch.stack([m[t].select_scatter(x[t, 0], 0, 1) for t in range(T)]),
    "strides": lambda x, s, m: torch.stack([(m[t] * 2)[1].as_strided((N,), (1,), 0) for t in range(T)]),
    "numbers of another dtype": lambda x, s, m: torch.stack([(q.float() >= q.max()).double() for q in m]),
    "memory format": lambda x, s, m: [q.to(torch.float32, memory_format=torch.contiguous_format) for q in m],
}
PROGRAMS |= {name: lambda x, of=of: of(x, *run(x)) for name, of in EXPRESSIONS.items()}

# ---- grad modes


@after
def steps_of_a_record_without_gradients(x: Tensor, s: list[Tensor], m: list[Tensor]) -> Any:
    record = torch.stack(m)
    return torch.stack(run(without(lambda: [record[t] for t in range(T)]))[1]) + record


@program
def given_back_without_gradients(x: Tensor) -> Any:
    mem, m = zeros(B, N), []
    for t in range(T):
        spk, mem = LIF(x[t], mem)
        with torch.set_grad_enabled(t == 0):
            back = F.dropout(spk, 0.5, training=False).flatten(0, 0).contiguous().to(spk.dtype)
        m.append(back * mem)
    return torch.stack(m)


@program
def one_of_several_given_back_without_gradients(x: Tensor) -> Any:
    mem, m = zeros(B, N), []
    for t in range(T):
        xt = x.narrow(0, t, 1)[0]
        with torch.no_grad():
            torch.broadcast_tensors(x, x[t])
            kept = torch.atleast_2d(x[t], x)[1]
        _, mem = LIF(xt, mem)
        m.append(kept[t] * mem)
    return torch.stack(m)


@program
def parts_first_read_without_gradients(x: Tensor) -> Any:
    _, m = run(x)
    total = zeros(B, N)
    for mem in m:
        total = total * 0.9 + mem * without(lambda mem=mem: mem * 0.5)
    return total


# ---- arguments in other orders, and writes


@after
def written_into_a_list_and_a_tuple(x: Tensor, s: list[Tensor], m: list[Tensor]) -> Any:
    total, v, i, r = zeros(B, N), zeros(B), torch.zeros(B, dtype=torch.int64), []
    for t in range(T):
        torch._foreach_add_([total], [m[t].detach()])
        torch.max(m[t].detach(), 1, out=(v, i))
        r.append(total * (v * i).unsqueeze(1))
    return torch.stack(r)


@program
def written_behind_a_copy(x: Tensor) -> Any:
    mem, rec, total = zeros(B, N), torch.zeros_like(x), zeros(B, N)
    for t in range(T):
        spk, mem = LIF(x[t], mem)
        rec[t] = spk
        spk.mul_(0.5)
        total = total + spk
    return rec, total


@program
def filled_into_what_needs_a_gradient(x: Tensor) -> Any:
    s, _ = run(x.detach())
    record = x * 0.0
    for t in range(T):
        record[t] = s[t]
    return record


@program
def written_through_data_after_it_was_saved(x: Tensor) -> Any:
    mem, m, read = zeros(B, N), [], []
    for t in range(T):
        h = x[t] * 2
        read.append(h.data)  # backward of h * h finds h as it is then, and no error: nothing counts this write
        _, mem = LIF(h * h, mem)
        m.append(mem)
    read[1].mul_(3.0)
    return torch.stack(m)


@program
def changed_in_the_same_way_at_every_step(x: Tensor) -> Any:
    """Most of these change nothing, but not those behind a change of another kind, or of what is copied."""
    ones = [torch.full((N,), -1.0, dtype=torch.float64) for _ in range(5)]
    clamped, halved, copied, given, tracked = ones
    mem, m, read = zeros(B, N), [], []
    for t in range(T):
        clamped.data.clamp_(min=0.25)
        halved.clamp_(min=0.5).mul_(0.5 + t % 2)
        if t == 2:
            given.add_(0.75)
        copied.copy_(given)
        tracked = (tracked * x[0, 0]).clamp_(-0.5, 0.5).clamp_(-0.5, 0.5).abs_().abs_()
        _, mem = LIF(x[t] * clamped + halved - copied, mem)
        m.append(mem)
        read.append((halved.clone() * tracked).sum())
        if t == 1:
            clamped.data.neg_()
    return torch.stack(m), torch.stack(read), *ones


# ---- memory of the results


@after
def filled_and_stacked(x: Tensor, s: list[Tensor], m: list[Tensor]) -> Any:
    record = torch.zeros_like(x)
    for t in range(T):
        record[t] = s[t]
    return record, torch.stack(s)


@after
def computed_from_a_stack_along_the_second_dimension(x: Tensor, s: list[Tensor], m: list[Tensor]) -> Any:
    """Contiguous, as in the loop: the caller may take a view."""
    return torch.stack(s, 1) * 2, F.pad(torch.stack(m, 1).relu(), (1, 1))


@program
def an_image_repeated(x: Tensor) -> Any:
    """As ``spikegen.rate`` does it: how often, it takes from a tensor. What is changed in place is no image."""
    counts = torch.ones(x[0].dim(), dtype=torch.int64).tolist()
    rates, changed = (x[0].repeat([T, *counts]).mul(0.5).sub(0.1).clamp(0, 1) for _ in range(2))
    changed[0] = 0
    return torch.stack(run(rates + changed)[1]), rates, changed


@program
def normalised_at_each_step_with_running_averages(x: Tensor) -> Any:
    mem, mean, variance, m = zeros(B, N), zeros(N), zeros(N), []
    for t in range(T):
        _, mem = LIF(2 * F.batch_norm(x[t], mean, variance, training=True), mem)
        m.append(mem)
    return torch.stack(m), mean, variance


CELLS = [kind(N, N, dtype=torch.float64) for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell, nn.GRUCell)]


@program
def cells_of_which_one_goes_on_from_the_step_before(x: Tensor) -> Any:
    (lstm, gru, rnn, last), mem, hidden = CELLS, zeros(B, N), zeros(B, N)
    for step in x:
        h, c = lstm(step)
        hidden = last(rnn(h, gru(c, x[0])), hidden)
        _, mem = LIF(5 * hidden, mem)
    return mem, c


@program
def a_step_of_a_stack_and_a_cat(x: Tensor) -> Any:
    stacked, steps = torch.stack([x[:, t] for t in range(T)]), []
    mem = zeros(B, N)
    for xt in stacked.unbind():
        _, mem = LIF(xt, mem)
        steps.append(xt)
    return steps[-1], mem, torch.cat([q.unsqueeze(0) for q in steps])


# ---- functions with bodies of their own


def function(forward: Any, backward: Any) -> Any:
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type("Function", (torch.autograd.Function,), methods).apply


changing = function(lambda ctx, x: (x * 2).add_(1), lambda ctx, grad: (grad * 2).mul_(3))
counting = function(lambda ctx, x, count: (count.add_(1), x * 1)[1], lambda ctx, grad: (grad * 2, None))
same = function(lambda ctx, x: x.view_as(x), lambda ctx, grad: grad * 2)


@program
def functions_that_change_their_own_or_return_a_view(x: Tensor) -> Any:
    s, m = run([same(x[t] * 1) for t in range(T)])
    return torch.stack(s), [changing(q) for q in m]


@after
def functions_that_change_an_argument(x: Tensor, s: list[Tensor], m: list[Tensor]) -> Any:
    count, r = torch.ones(N, dtype=torch.float64), []
    for t in range(T):
        r.append(m[t].detach() * count)
        r.append(counting(m[t], count))
    return r


@program
def checkpoints_that_change_their_own(x: Tensor) -> Any:
    def body(a: Tensor) -> Tensor:
        y = a * 2
        y.add_(1)
        return y

    return torch.stack(run([checkpoint(body, x[t], use_reentrant=False) for t in range(T)])[1])


class Of(nn.Module):
    """A program as a network, which ``loop_fuzz`` takes."""

    def __init__(self, function: Callable[[Tensor], Any], library: Any) -> None:
        super().__init__()
        self.forward = function


@pytest.mark.parametrize(
    "needs_grad", [True, pytest.param(False, marks=pytest.mark.thorough)], ids=["training", "inference"]
)
@pytest.mark.parametrize("function", PROGRAMS.values(), ids=PROGRAMS)
def test_a_compiled_function_does_what_it_says(function: Any, needs_grad: bool) -> None:
    call = {"resets": False, "inputs": {"x": ("input", (T, B, N))}}
    settings = SETTINGS | {"grad": needs_grad, "x_grad": needs_grad, "calls": [call]}
    statistics = Counter[str]()
    with surroundings("float64"):
        found = check(lambda: Run(partial(Of, function), settings), Watched(), statistics)
    if statistics[LEFT_OUT[1]]:
        pytest.skip("this PyTorch compiles it wrongly without snnfast")
    assert found is None
    assert not statistics[LEFT_OUT[0]]


# ---- random numbers: those of each step and call are its own

DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "binomial": lambda x: torch.binomial(x * 20, x),
    "gamma": lambda x: torch._standard_gamma(x + 1),
    "dirichlet": lambda x: torch._sample_dirichlet(x + 1),
    "poisson": lambda x: torch.poisson(x * 9),
    "bernoulli": torch.bernoulli,
    "normal": lambda x: torch.normal(x, 1.0),
    "multinomial": lambda x: torch.multinomial(x, 2).double().sum(1, keepdim=True).expand_as(x) * torch.rand(()),
    "rrelu": lambda x: F.rrelu(-x, training=True),
    "dropout": lambda x: F.dropout(x, 0.5),
    "module": nn.Dropout(0.5),
    "alpha dropout": nn.AlphaDropout(0.5),
    "exponential_": lambda x: torch.empty_like(x).exponential_(),
    "rand": lambda x: x * torch.rand(x.shape),
    "rand_like": torch.rand_like,
    "randn_like": lambda x: x + torch.randn_like(x),
}


@pytest.mark.parametrize("varies", [False, True], ids=["constant", "varying"])
def test_every_step_and_call_draws_its_own_numbers(varies: bool) -> None:
    def f(x: Tensor, given: Tensor) -> Any:
        mem, drawn = zeros(8 * B, N), []
        for t in range(T):
            spk, mem = LIF(x[t], mem)
            of = given + 0 * spk if varies else given
            drawn.append([draw(of) for draw in DRAWS.values()])
        return drawn, mem

    compiled = torch.compile(f, backend="snnfast")
    with torch.no_grad():
        x, given = torch.rand(T, 8 * B, N).double(), torch.full((8 * B, N), 0.5).double()
        calls = [compiled(x, given)[0] for _ in range(2)]
    for i, name in enumerate(DRAWS):
        drawn = [step[i] for call in calls for step in call]
        assert len({tuple(t.flatten().tolist()) for t in drawn}) == len(drawn), name


RATES = {
    "rows": torch.rand(7, 33), "columns": torch.rand(9, 7).t(), "repeated": torch.rand(9, 1).expand(9, 5),
    "strided": torch.rand(4, 6)[:, ::2], "float64": torch.rand(3, 4).double(), "float16": torch.rand(3, 4).half(),
    "none": torch.rand(0, 3), "certain": torch.tensor([0.0, 1.0]), "differentiated": torch.rand(3, requires_grad=True),
}  # fmt: skip


@pytest.mark.parametrize("rates", RATES.values(), ids=RATES)
def test_spikes_are_drawn_as_pytorch_draws_them(rates: Tensor) -> None:
    seeded = [(torch.manual_seed(0), draw(rates), torch.rand(3))[1:] for draw in (torch.bernoulli, bernoulli)]
    for wanted, found in zip(*seeded, strict=True):
        assert_bits_equal(found, wanted)
        assert (found.stride(), found.requires_grad) == (wanted.stride(), wanted.requires_grad)


def test_spikes_are_drawn_under_vmap() -> None:
    drawn = [torch.vmap(draw, randomness="different")(torch.full((9, 4), 0.5)) for draw in (torch.bernoulli, bernoulli)]
    assert {t.shape for t in drawn} == {torch.Size([9, 4])}


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_what_is_no_rate_is_pytorchs_error(rate: float) -> None:
    with pytest.raises(RuntimeError, match="Expected p_in >= 0 && p_in <= 1 to be true"):
        bernoulli(torch.tensor([0.5, rate]))
