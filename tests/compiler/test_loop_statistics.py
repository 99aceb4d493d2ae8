"""Numbers, prints and asserts in a compiled loop: the program's own, in its order, and the loop stays whole."""

import re
from collections.abc import Callable
from typing import Any

import loop_nets
import pytest
import torch
from loop_nets import QUICK_WAYS
from torch import Tensor, nn

import snnfast

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("nothing_compiled")]


class Net(nn.Module):
    def __init__(self, look: Callable[..., Any]) -> None:
        super().__init__()
        self.fc1, self.lif, self.fc2 = nn.Linear(12, 16), snnfast.Leaky(beta=0.9, threshold=0.3), nn.Linear(16, 5)
        self.look = look

    def forward(self, x: Tensor) -> Any:
        mem, count, seen, out = self.lif.reset_mem(), x.sum() * 0, [], []
        for t in range(x.size(0)):
            spk, mem = self.lif(self.fc1(x[t]), mem)
            count += spk.sum()  # in place: what was printed must not show it
            out.append(self.fc2(spk))
            seen.append(self.look(t, spk, mem, count))
        return torch.stack(out), seen


def compiled(look: Callable[..., Any], by: Any = snnfast.compile) -> tuple[nn.Module, nn.Module]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = Net(look)
    net.load_state_dict(state := {k: v.clone() for k, v in net.state_dict().items()})
    same = Net(look)
    same.load_state_dict(state)
    return by(same), net


def one_unroll(reports: list[Any]) -> bool:
    return any("steps of leaky: one unroll" in line for report in reports for line in report.merged)


PRINTS = {
    "several": lambda t, spk, mem, count: print("step", t, spk.shape, count, mem.dtype, spk.mean().item()),
    "formatted": lambda t, spk, mem, count: print(f"{t:03d} {count} {count.item():.1f} {mem.max().item():+.3f}"),
    "sometimes": lambda t, spk, mem, count: print(spk.sum()) if t % 2 else None,
    "ended": lambda t, spk, mem, count: print(count.item(), end=" "),
    "listed": lambda t, spk, mem, count: print(spk[0].tolist()),
}


@pytest.mark.parametrize("name", PRINTS)
def test_what_a_loop_prints_is_printed_in_order_with_the_values_that_it_had(
    name: str, capsys: Any, reports: list[Any]
) -> None:
    net, same = compiled(PRINTS[name])
    x = torch.rand(12, 4, 12)
    printed = []
    for each in (same, net, net, net):
        each(x)
        printed.append(re.sub(r", grad_fn=<\w+>", "", capsys.readouterr().out))
    assert printed[0]
    assert printed[1:] == [printed[0]] * 3
    assert one_unroll(reports)


@pytest.mark.parametrize("by", QUICK_WAYS)
@pytest.mark.parametrize("look", [loop_nets.check, loop_nets.check_numbers], ids=["tensors", "numbers"])
@pytest.mark.parametrize(("value", "message"), [(torch.nan, "the membrane diverged"), (1e6, "")])
def test_asserts_raise_what_the_loop_raises(
    value: float, message: str, look: Callable[..., Any], by: Any, reports: list[Any]
) -> None:
    net, same = compiled(look, by)
    x = torch.rand(12, 4, 12)
    for _ in range(3):
        torch.testing.assert_close(net(x)[0], same(x)[0])
    x[3, 1] = value
    for each in (net, same):
        with pytest.raises(AssertionError) as raised:
            each(x)
        assert str(raised.value) == message
    assert one_unroll(reports) or by is not snnfast.compile  # dynamo ends a graph at ``try``


@pytest.mark.parametrize("look", [loop_nets.mended, loop_nets.mended_by_numbers, loop_nets.unmended])
def test_an_assert_inside_of_try_is_obeyed_where_it_stands(look: Callable[..., Any]) -> None:
    net, same = compiled(look)
    for x in (torch.rand(12, 4, 12), torch.rand(5, 4, 12) * 3):
        for found, wanted in zip(same(x)[1], net(x)[1], strict=True):
            torch.testing.assert_close(found, wanted)


def test_a_progress_bar_over_the_steps_splits_no_loop(capsys: Any) -> None:
    tqdm, lif = pytest.importorskip("tqdm").tqdm, snnfast.Leaky(beta=0.9)

    def loop(x: Tensor) -> Tensor:
        bar = tqdm(range(x.size(0)), desc="time")
        mem = x[0]
        for t in bar:
            _, mem = lif(x[t], mem)
        bar.set_description("done")
        return mem

    x = torch.rand(12, 4, 12)
    torch.testing.assert_close(snnfast.compile(loop)(x), loop(x))
    assert capsys.readouterr().err.count("| 12/12") == 2
    assert one_unroll(snnfast.explain(loop, x).graphs)


NUMBERS = {
    "item": lambda t, spk, mem, count: spk.sum().item() / spk.numel(),
    "float": lambda t, spk, mem, count: float(mem.abs().max()) + t,
    "int": lambda t, spk, mem, count: int((spk > 0).sum()),
    "bool": lambda t, spk, mem, count: {"any": (spk > 0).any().item()},
    "in place": lambda t, spk, mem, count: count.item(),
    "decides": lambda t, spk, mem, count: "many" if spk.sum().item() > 20 else "few",
    "index": lambda t, spk, mem, count: mem[int(spk.sum()) % 4].detach(),
}


def _assert_equal(seen: list[Any], expected: list[Any]) -> None:
    if isinstance(expected[0], float):
        expected = pytest.approx(expected)
    assert seen == expected


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_a_loop_are_those_of_the_loop(name: str, reports: list[Any]) -> None:
    net, same = compiled(NUMBERS[name])
    for seed in range(4):
        torch.manual_seed(seed)
        x = torch.rand(12, 4, 12)
        (out, seen), (wanted, expected) = net(x), same(x)
        torch.testing.assert_close(out, wanted)
        assert [type(a) for a in seen] == [type(a) for a in expected]
        torch.testing.assert_close(seen, expected) if name == "index" else _assert_equal(seen, expected)
    assert one_unroll(reports)
