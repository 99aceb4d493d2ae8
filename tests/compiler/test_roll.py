"""A graph is rolled up: each call of the body of a loop once, with where each step finds its arguments."""

from typing import Any

import pytest
import torch
from compiler.forms import after_merging, leaky, rolled, tensor
from loop_nets import Net
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import snnfast
from snnfast.compiler.loop.loop import Count, Each, Of, Same

pytestmark = pytest.mark.usefixtures("nothing_compiled")


def test_states_that_the_loop_passes_on() -> None:
    after_merging("roll", Net(), tensor(5, 2, 12)).expect("""\
loop of 5 steps
  a = x_1[t]
  b = linear(a, W_1, b_1)
  c, d = step[leaky](b, d[-1])  first d[-1]: zeros
  e = linear(c, W_2, b_2)
  f, g = step[leaky](e, g[-1])  first g[-1]: zeros""")


def test_a_first_step_without_a_state_lacks_calls() -> None:
    def loop(x: Tensor) -> list[Tensor]:
        mem: Any = 0
        out = []
        for t in range(5):
            mem = mem * 0.9 + x[t]
            spk = (mem > 1).float()
            mem = mem - spk
            out.append(spk)
        return out

    after_merging("roll", loop, tensor(5, 2)).expect("""\
loop of 5 steps
  a = mul(f[-1], 0.9)  from step 1
  b = x_1[t]
  c = add(a, b)  from step 1
  d = gt(c, 1)  first c: add_1
  e = to(d, torch.float32)
  f = sub(c, e)  first c: add_1""")


def test_loops_of_different_lengths() -> None:
    first, second = leaky(), leaky(T=3)

    def loops(x: Tensor, y: Tensor) -> Any:
        return first(x), second(y)

    after_merging("roll", loops, tensor(5, 2), tensor(3, 2)).expect("""\
loop of 5 steps
  a = x_1[t]
  b, c = step[leaky](a, c[-1])  first c[-1]: zeros
loop of 3 steps
  a = x_1[t]
  b, c = step[leaky](a, c[-1])  first c[-1]: zeros""")


def test_a_first_step_in_front_of_the_loop() -> None:
    fc, lif, norm = nn.Linear(2, 2), snnfast.Leaky(beta=0.9, init_hidden=True), nn.BatchNorm1d(2)

    def step(x: Tensor) -> Any:
        return lif(norm(fc(2 * x)))

    def loop(x: Tensor) -> Any:
        lif.reset_mem()
        total = step(x[0])
        for t in range(1, 5):
            total = total + step(x[t])
        return total

    after_merging("roll", loop, tensor(5, 3, 2)).expect("""\
loop of 5 steps
  a = x_1[t]
  b = mul(a, 2)
  c = linear(b, W_1, b_1)
  d = batch_norm(c, b_2, b_3, x_2, x_3, True, 0.1, 1e-05, True)
  e, f = step[leaky](d, f[-1])  first f[-1]: expand_1
  g = add(g[-1], e)  from step 1; first g[-1]: e of step 0""")


def test_calls_on_two_lines_of_a_step_stay_apart_where_a_layer_reads_itself() -> None:
    fc, lif = nn.Linear(2, 2), snnfast.Leaky(beta=0.9, init_hidden=True)

    def loop(x: Tensor) -> Any:
        lif.reset_mem()
        out = []
        for t in range(5):
            spk = lif(fc(x[t]))
            out.append(lif(fc(spk)))
        return out

    after_merging("roll", loop, tensor(5, 3, 2)).expect("""\
loop of 5 steps
  a = x_1[t]
  b = linear(a, W_1, b_1)
  c, d = step[leaky](b, g[-1])  first g[-1]: expand_1
  e = linear(c, W_1, b_1)
  f, g = step[leaky](e, d)""")


def test_layers_of_the_same_lines_stay_apart() -> None:
    layers = [(nn.Linear(2, 2), snnfast.Leaky(beta=0.9)) for _ in range(2)]

    def loop(x: Tensor) -> list[Tensor]:
        mems, out = [neuron.reset_mem() for _, neuron in layers], []
        for t in range(5):
            spk = x[t]
            for i, (fc, neuron) in enumerate(layers):
                spk, mems[i] = neuron(fc(spk), mems[i])
            out.append(spk)
        return out

    after_merging("roll", loop, tensor(5, 2)).expect("""\
loop of 5 steps
  a = x_1[t]
  b = linear(a, W_1, b_1)
  c, d = step[leaky](b, d[-1])  first d[-1]: zeros
  e = linear(c, W_2, b_2)
  f, g = step[leaky](e, g[-1])  first g[-1]: zeros""")


def test_rows_in_reverse() -> None:
    after_merging("roll", leaky(lambda x, t: x[4 - t]), tensor(5, 2)).expect("""\
loop of 5 steps
  a = x_1[4 - t]
  b, c = step[leaky](a, c[-1])  first c[-1]: zeros""")


def test_the_row_of_the_step_before() -> None:
    after_merging("roll", leaky(lambda x, t: x[t - 1] * x[t] if t else x[0]), tensor(5, 2)).expect("""\
loop of 5 steps
  a = x_1[t]
  b, c = step[leaky](d[-1], c[-1])  first d[-1]: a of step 0; first c[-1]: zeros
  d = mul(a, {a of step 1, a of step 2, ...})  until step 3""")


def test_numbers_that_grow_with_the_step_and_others() -> None:
    loop = leaky(lambda x, t: x[t] * (0.5 * t + 1.0) + 0.7**t)
    after_merging("roll", loop, tensor(5, 2)).expect("""\
loop of 5 steps
  a = x_1[t]
  b = mul(a, 0.5 * t + 1.0)
  c = add(b, {1.0, 0.7, ...})
  d, e = step[leaky](c, e[-1])  first e[-1]: zeros""")


def test_a_record_that_is_read_step_by_step() -> None:
    loop = leaky(lambda x, t: x.unbind(0)[t], lambda out: [spk.exp() for spk in torch.stack(out).unbind(0)])
    after_merging("roll", loop, tensor(5, 2)).expect("""\
loop of 5 steps
  a = x_1[t]
  b, c = step[leaky](a, c[-1])  first c[-1]: zeros
loop of 5 steps
  a = stack_1[t]
  b = exp(a)""")


def test_the_calls_of_the_graph_are_given_back() -> None:
    found = rolled(Net(), tensor(5, 2, 12))
    (loop,) = found.loops
    given = {node: (target, args) for node, target, args in loop.unrolled()}
    assert given.keys() == found.at.keys()
    whole = {n: given[n] for s in loop.statements if not s.is_index for n in s.calls}
    assert whole == {n: (n.target, pytree.tree_leaves((n.args, n.kwargs))) for n in whole}


@pytest.mark.parametrize("kind", [Of, Each, Same, Count])
def test_a_check_finds_a_wrong_argument(kind: type) -> None:
    found = rolled(lambda x: [(x[t] * 0.7**t).exp() for t in range(5)], tensor(5, 2))
    found.check()
    other = found.facts.nodes[-1]
    for statement in found.statements:
        right = statement.args
        for i, a in enumerate(right):
            if isinstance(a, kind):
                wrong: Any = {
                    Of: lambda a: a._replace(back=a.back + 1),
                    Each: lambda a: Each(a.rows[::-1]),
                    Same: lambda a: Same(other),
                    Count: lambda a: a._replace(start=a.start + 1),
                }[kind](a)
                statement.args = [*right[:i], wrong, *right[i + 1 :]]
                with pytest.raises(AssertionError, match="is not"):
                    found.check()
        statement.args = right
