"""A call like an earlier one runs without its code, and does all that the code would do."""

import contextlib
import gc
import io
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import pairs
from internals import Replays
from torch import Tensor, nn
from ways_to_read import REFUSED, SEEN, undone

import snnfast
from benchmarks import collection

pytestmark = pytest.mark.filterwarnings("ignore:snnfast")

CALLS = 9


class Counter:
    """How many calls were replayed, and why no more were."""

    def __init__(self) -> None:
        self.replayed, self.reasons = 0, set[str]()
        self.last: Any = None  # those of the function that was called last


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter, usual = Counter(), Replays.replay

    def replay(self: Replays, attempt: Any) -> Any:
        found = usual(self, attempt)
        counter.replayed += found is not None
        counter.reasons.add(self.reason)
        counter.last = weakref.ref(self)
        return found

    monkeypatch.setattr(Replays, "replay", replay)
    return counter


HEAD = """
import sys, warnings, random, math, time, logging, io, collections
import torch
from torch import nn
import snnfast
State = collections.namedtuple("State", "mem calls")
"""


def opened(source: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "replayed_program"}
    exec(compile(HEAD + source, "<replayed program>", "exec"), names)
    return names


NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lif, self.calls, self.log, self.kept = nn.Linear(5, 4), snnfast.Leaky(beta=0.9), 0, [], {}
        self.mem, self.mems, self.states = None, [None], dict(mem=None)
    def forward(self, x):
        mem, out = self.lif.reset_mem(), []
        BEGIN
        for t in range(x.size(0)):
            spk, mem = self.lif(self.fc(x[t]), mem)
            out.append(spk)
        END
        return torch.stack(out)
"""


def networks(begin: str = "pass", end: str = "pass", before: str = "") -> tuple[Any, Any, dict[str, Any], Any]:
    """A network, the same one compiled, and what they were made of."""
    found = []
    for _ in range(2):
        names = opened(before + NET.replace("BEGIN", begin).replace("END", end))
        torch.manual_seed(0)
        found += [names["Net"]().double(), names]
    return found[0], snnfast.compile(found[2]), found[1], found[3]


def batch(number: int, T: int = 6, B: int = 3) -> Tensor:
    """Sums over steps may round otherwise than step by step, which float64 hides."""
    return torch.rand(T, B, 5, generator=torch.Generator().manual_seed(number), dtype=torch.float64) * 2


def numbers_of(t: Tensor) -> Any:
    return tuple(t.shape), [round(number, 9) for number in t.flatten().tolist()]


def told(value: Any) -> Any:
    """A result without the objects of which it consists."""
    if isinstance(value, Tensor):
        return "tensor", numbers_of(value), value.requires_grad, value.dtype
    if isinstance(value, float):
        return round(value, 9)
    if isinstance(value, dict):
        return {key: told(a) for key, a in value.items()}
    if isinstance(value, list | tuple):
        return type(value).__name__, [told(a) for a in value]
    return value


def called(net: Any, *args: Any) -> Any:
    """A call, with what it leaves."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        out = net(*args)
    net.zero_grad()
    first = out[0] if isinstance(out, tuple) else out
    if first.requires_grad:
        first.sum().backward()
    grads = [None if p.grad is None else numbers_of(p.grad) for p in net.parameters()]
    held = [told(getattr(net, name)) for name in ("calls", "log", "kept", "mem", "mems", "states")]
    others = printed.getvalue(), [str(w.message) for w in warned if "snnfast" not in str(w.message)]
    return told(out), grads, held, told(net.lif.mem), others


def alike(plain: Any, compiled: Any, *args: Any) -> None:
    assert called(compiled, *args) == called(plain, *args)


# ---- what is replayed

STATES = {
    "nothing": ("pass", "pass"),
    "an attribute": ("mem = self.mem if self.mem is not None and self.mem.shape[0] == x.shape[1] else mem",
                     "self.mem = mem.detach()"),
    "a list": ("", "self.mems[0] = mem.detach()"),
    "a dictionary": ("", "self.states['mem'] = mem.detach()"),
    "a new list": ("self.log = []", "self.log.append(mem.detach())"),
    "a new dictionary": ("", "self.kept = dict(mem=mem.detach(), steps=x.size(0))"),
    "a flag": ("self.calls = 3", "self.calls = 3"),
    "a number": ("", "self.mem = float(x.size(0))"),
    "an argument": ("", "self.mem = x"),
    "a number as a tensor": ("x = x * torch.tensor([0.5, 2.0, 1.0, 1.0, 1.0], dtype=x.dtype)", ""),
    "a comparison with None": ("x = x if mem == None else x * 2", ""),
    "a named tuple": ("", "self.mem = State(mem.detach(), 3)"),
    "types of tensors": ("x = x.to(torch.promote_types(x.dtype, torch.result_type(x, mem)))", ""),
    "a branch that prints": ("if x.size(0) > 1000: print('long')", ""),
    "a branch that warns": ("if x.size(0) > 1000: warnings.warn('long')", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_a_call_that_is_known_is_replayed(name: str, counted: Counter) -> None:
    plain, compiled, _, _ = networks(*(code or "pass" for code in STATES[name]))
    for number in range(CALLS):
        alike(plain, compiled, batch(number))
    assert counted.replayed >= CALLS - 5, counted.reasons


def test_training_replays(counted: Counter) -> None:
    nets = networks()[:2]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in nets]
    for number in range(CALLS):
        alike(*nets, batch(number))
        for optimizer in optimizers:
            optimizer.step()
    assert counted.replayed == CALLS - 4, counted.reasons


def test_calls_of_several_shapes_and_modes(counted: Counter) -> None:
    plain, compiled, _, _ = networks()
    for number in range(6):
        for T, B in (6, 3), (9, 3), (6, 2):
            alike(plain, compiled, batch(number, T, B))
            with torch.no_grad():
                alike(plain, compiled, batch(number, T, B))
    assert counted.replayed >= 3 * 3  # those without gradients may be faster as they are


def test_results_are_new_each_time() -> None:
    plain, compiled, _, _ = networks("pass", "self.mem = mem")
    kept = []
    for number in range(CALLS):
        out = compiled(batch(number))
        kept.append((out, compiled.mem, told(plain(batch(number))), told(plain.mem)))
    assert len({id(t) for out, mem, _, _ in kept for t in (out, mem)}) == 2 * CALLS
    assert all(told(out) == wanted and told(mem) == wanted_mem for out, mem, wanted, wanted_mem in kept)


def test_a_result_that_is_an_argument_is_that_argument() -> None:
    def function(x: Tensor, mem: Tensor) -> Any:
        for t in range(x.size(0)):
            _, mem = lif(x[t], mem)
        return mem, x, [x, mem]

    lif = snnfast.Leaky(beta=0.9)
    compiled = snnfast.compile(function)
    for number in range(CALLS):
        x = batch(number)
        mem, same, (also, again) = compiled(x, torch.zeros(3, 5, dtype=torch.float64))
        assert same is x
        assert also is x
        assert again is mem
        assert mem.tolist() == function(x, torch.zeros(3, 5, dtype=torch.float64))[0].tolist()


HANDED = {
    "a list of the network": ("pass", "return out[-1], self.log"),
    "a dictionary of the network": ("pass", "return out[-1], self.states"),
    "a list that was replaced": ("old, self.log = self.log, []", "self.log.append(mem.detach()); return out[-1], old"),
    "a weight": ("pass", "return out[-1], [self.fc.weight]"),
    "a layer": ("pass", "self.kept = dict(layer=self.fc); return out[-1], self.kept"),
    "a tuple of results": ("pass", "return out[-1], (out[0], mem), dict(out=out)"),
    "one list twice": ("self.log = []", "self.log.append(mem); return out[-1], self.log, [self.log]"),
}


@pytest.mark.parametrize("name", HANDED)
def test_what_is_handed_on_is_the_same_object(name: str) -> None:
    """Also of the call before: where the code hands on what was there, a replay does, too, or the code runs."""

    def patterns(net: Any) -> list[Any]:
        found: list[Any] = []
        before: list[Any] = []
        for number in range(CALLS):
            result = net(batch(number))
            inside = [a for r in result if isinstance(r, list | tuple) for a in r]
            objects = [*result, *inside, net.log, net.states, net.kept, net.fc, net.fc.weight]
            met = [*objects, *before]
            found.append([next(i for i, b in enumerate(met) if b is a) for a in met])
            found.append(told([r for r in result if r is not net.kept]))
            before = objects
        return found

    plain, compiled = networks(*HANDED[name])[:2]
    assert patterns(compiled) == patterns(plain)


def test_a_network_that_was_replayed_is_freed(counted: Counter) -> None:
    net = networks()[1]
    for number in range(CALLS):
        net(batch(number))
    assert counted.replayed
    held = weakref.ref(net)
    gc.disable()
    try:
        del net
        assert held() is None
    finally:
        gc.enable()


def test_networks_of_a_function_are_freed(counted: Counter) -> None:
    def forward_pass(net: Any, x: Tensor) -> Any:
        return net(x)

    compiled, refs = snnfast.compile(forward_pass), []
    for _ in range(3):
        net = networks()[0]
        for number in range(CALLS):
            compiled(net, batch(number))
        refs += [weakref.ref(net), weakref.ref(net.fc)]
    del net
    gc.collect()
    assert counted.replayed == 3 * (CALLS - 3) - 1, counted.reasons  # the first network shows which code runs
    assert all(ref() is None for ref in refs)


class Garbage:
    """Garbage whose end runs code of the program, another one each time."""

    def __init__(self, number: int) -> None:
        self.itself = self
        self.ends = eval(f"lambda: print('number {number}')", {"print": ENDED.append})

    def __del__(self) -> None:
        self.ends()


ENDED: list[str] = []


def test_code_that_a_garbage_collection_runs_is_no_part_of_a_call(counted: Counter) -> None:
    def layer(x: Tensor) -> Any:
        mem, many = None, [[x_t] for x_t in x for _ in range(2000)]
        for (x_t,) in many[::2000]:
            mem = torch.tanh(x_t) if mem is None else torch.tanh(0.9 * mem + x_t)
        return mem

    def watches(phase: str, _: object) -> None:
        ENDED.append(phase)

    compiled = snnfast.compile(layer)
    gc.callbacks.append(watches)
    try:
        for number in range(CALLS):
            Garbage(number)
            ENDED.clear()
            compiled(batch(number))
            assert f"number {number}" in ENDED or counted.replayed
    finally:
        gc.callbacks.remove(watches)
    assert counted.replayed == CALLS - 4, counted.reasons


# ---- what changes between calls


def _freeze(net: Any, _: Any) -> None:
    net.fc.weight.requires_grad_(not net.fc.weight.requires_grad)


def _new_weight(net: Any, _: Any) -> None:
    net.fc.weight = nn.Parameter(net.fc.weight.detach() * 2)


def _other_data(net: Any, _: Any) -> None:
    net.fc.weight.data = net.fc.weight.data.t().contiguous().t()


def _written_weight(net: Any, _: Any) -> None:
    with torch.no_grad():
        net.fc.weight.mul_(1.5)


def _another_layer(net: Any, _: Any) -> None:
    net.lif = snnfast.Leaky(beta=0.5).double()


def _another_beta(net: Any, _: Any) -> None:
    net.lif.beta = torch.tensor(0.4, dtype=torch.float64)


def _another_surrogate(net: Any, _: Any) -> None:
    net.lif.spike_grad = snnfast.surrogate.sigmoid(slope=3)


def _another_reset(net: Any, _: Any) -> None:
    net.lif.reset_mechanism = "zero"


def _pre_hook(net: Any, _: Any) -> None:
    net.fc.register_forward_hook(lambda module, args, out: out * 2)


def _backward_hook(net: Any, _: Any) -> None:
    net.register_full_backward_hook(lambda module, grads, grad_of_outputs: net.log.append("backward"))


def _patched_forward(net: Any, _: Any) -> None:
    usual = net.fc.forward
    net.fc.forward = lambda x: usual(x) + 1


def _patched_class(net: Any, names: Any) -> None:
    usual = names["Net"].forward
    names["Net"].forward = lambda self, x: usual(self, x) * 2


def _a_state(net: Any, _: Any) -> None:
    net.lif.mem = torch.ones(3, 4, dtype=torch.float64)


def _evaluation(net: Any, _: Any) -> None:
    net.train(not net.training)


def _a_buffer(net: Any, _: Any) -> None:
    net.lif.threshold.fill_(0.5)


BETWEEN = [
    _freeze, _new_weight, _other_data, _written_weight, _another_layer, _another_beta, _another_surrogate,
    _another_reset, _pre_hook, _backward_hook, _patched_forward, _patched_class, _a_state, _evaluation, _a_buffer,
]  # fmt: skip


@pytest.mark.parametrize("change", BETWEEN, ids=lambda f: f.__name__)
def test_what_changes_between_calls_is_seen(change: Callable[..., None], counted: Counter) -> None:
    plain, compiled, *names = networks()
    for number in range(5):
        alike(plain, compiled, batch(number))
    before = counted.replayed
    assert before, counted.reasons
    for net, of_net in zip((plain, compiled), names, strict=True):
        change(net, of_net)
    for number in range(5, 10):
        alike(plain, compiled, batch(number))


def test_a_hook_of_all_modules_is_called(counted: Counter) -> None:
    nets, called_by = networks()[:2], []
    for number in range(5):
        alike(*nets, batch(number))
    assert counted.replayed
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: called_by.append(type(module)))
    try:
        alike(*nets, batch(5))
    finally:
        handle.remove()
    assert [called_by.count(kind) for kind in (nn.Linear, *map(type, nets))] == [12, 1, 1]


def test_lengths_that_come_again_are_replayed(counted: Counter) -> None:
    plain, compiled = networks()[:2]
    for _ in range(4):
        for T in range(5, 25):
            alike(plain, compiled, batch(T, T))
    assert counted.replayed >= 16  # of the fourth time; some calls more are made before there is a graph


@pytest.fixture
def settings() -> Iterator[None]:
    with undone():
        yield


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("name", [*SEEN, *REFUSED])
def test_a_number_that_changes_is_seen(name: str) -> None:
    way = {**SEEN, **REFUSED}[name]
    module = way.open()
    read, lif = module["read"], snnfast.Leaky(beta=0.9)

    def loop(x: Tensor) -> Tensor:
        mem, out = torch.zeros(3, 5, dtype=torch.float64), []
        for t in range(x.size(0)):
            spk, mem = lif(x[t] * read(), mem)
            out.append(spk)
        return torch.stack(out)

    compiled = snnfast.compile(loop)
    for change in (lambda: None, module["change"]):
        change()
        for number in range(5):
            x = batch(number, 4).requires_grad_()
            found, wanted = compiled(x), loop(x)
            assert torch.equal(found, wanted)
            assert torch.equal(*(torch.autograd.grad(out.sum(), x)[0] for out in (found, wanted)))


SURROGATES = {
    "a function of autograd": "Spike.apply(mem - 1)",
    "a layer of snnfast": "self.lif(mem, torch.zeros_like(mem))[0]",
    "a neuron of one's own": "self.own(mem, torch.zeros_like(mem))[0]",
}


@pytest.mark.parametrize("name", SURROGATES)
def test_a_number_of_code_in_the_graph_is_seen(name: str, counted: Counter) -> None:
    """Its code runs in the graph, not in a call that is watched."""
    source = """
class Options: slope = 1.0
class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype)
    @staticmethod
    def backward(ctx, g):
        return g * slope_of() / (1 + ctx.saved_tensors[0].abs()) ** 2
def slope_of():
    return Options.slope
@snnfast.neuron
def Own(x, mem, *, beta=0.5):
    return snnfast.spike(slope_of() * x - 1, snnfast.surrogate.atan()), beta * mem
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(5, 4), snnfast.Leaky(beta=0.9, spike_grad=lambda x: Spike.apply(x))
        self.own = Own()
    def forward(self, x):
        mem, out = torch.zeros(x.shape[1], 4, dtype=x.dtype), []
        for t in range(x.size(0)):
            mem = 0.9 * mem + self.fc(x[t])
            out.append(SPIKE)
        return torch.stack(out)
""".replace("SPIKE", SURROGATES[name])
    nets, names = [], []
    for _ in range(2):
        names.append(opened(source))
        torch.manual_seed(0)
        nets.append(names[-1]["Net"]().double())
    snnfast.compile(nets[1])
    for number in range(CALLS):
        for each in names:
            each["Options"].slope = 1.0 if number < 7 else 3.0
        for net in nets:
            net.zero_grad()
            net(batch(number)).sum().backward()
        torch.testing.assert_close(nets[1].fc.weight.grad, nets[0].fc.weight.grad)
    assert counted.replayed


# Each has a number that read(x) returns and change() changes.
LATE = {
    "the address of a tensor": """
first = []
def read(x):
    if not first:
        first.append(id(x))
    return 1.0 if id(x) == first[0] else 2.0
def change(): pass
""",
    "the anomaly mode": """
def read(x): return 2.0 if torch.is_anomaly_enabled() else 1.0
def change(): torch.autograd.set_detect_anomaly(True)
""",
    "the dictionary of a module": """
import types
module = types.ModuleType("module")
module.k = 1.0
def read(x): return module.__dict__["k"]
def change(): module.k = 2.0
""",
    "a class that is a module's": """
import types
module = types.ModuleType("module")
class Other(types.ModuleType):
    k = property(lambda self: 2.0)
def read(x): return getattr(module, "k", 1.0)
def change(): module.__class__ = Other
""",
    "a function with many names": "class Names: pass\nnames = Names()\n"
    + "".join(f"names.a{i} = 0.0\n" for i in range(300))
    + "k = 1.0\ndef read(x):\n"
    + "".join(f"    names.a{i}\n" for i in range(300))
    + """
    from math import prod
    import math
    return k * prod([math.floor(1.5)])
def change():
    global k
    k = 2.0
""",
    "an object without attributes": """
class Config(dict):
    __slots__ = ()
    def __getattr__(self, name): return self[name]
config = Config(k=1.0)
def read(x): return config.k
def change(): config["k"] = 2.0
""",
    "a long chain of objects": """
class Link: pass
first = last = Link()
for _ in range(400):
    last.next = Link()
    last = last.next
last.k = 1.0
def read(x):
    link = first
    while hasattr(link, "next"):
        link = link.next
    return link.k
def change(): last.k = 2.0
""",
    "a name with braces": """
class Holder: pass
holder = Holder()
setattr(holder, "k{x}", 1.0)
def read(x): return getattr(holder, "k{x}")
def change(): setattr(holder, "k{x}", 2.0)
""",
    "an object that is written past its own method": """
class Frozen:
    __slots__ = ("k", "last")
    def __setattr__(self, name, value): raise TypeError(name)
frozen = Frozen()
object.__setattr__(frozen, "k", 1.0)
def read(x):
    object.__setattr__(frozen, "last", x.sum())
    return frozen.k
def change(): object.__setattr__(frozen, "k", 2.0)
""",
    "the class of a named tuple": """
State.k = 1.0
kept = State(torch.ones(2), 1)
def read(x): return kept.k
def change(): State.k = 2.0
""",
}


@pytest.mark.parametrize("name", LATE)
def test_what_changes_late_is_seen(name: str) -> None:
    names = opened(LATE[name])
    lif, read = snnfast.Leaky(beta=0.9), names["read"]

    def loop(x: Tensor) -> Tensor:
        mem, out = torch.zeros(3, 5, dtype=torch.float64), []
        for t in range(x.size(0)):
            spk, mem = lif(x[t] * read(x), mem)
            out.append(spk)
        return torch.stack(out)

    compiled, same = snnfast.compile(loop), batch(0, 4)
    try:
        for number in range(CALLS):
            if number == 6:
                names["change"]()
            x = same if number < 6 else batch(number, 4)
            assert torch.equal(compiled(x), loop(x))
    finally:
        torch.autograd.set_detect_anomaly(False)


def test_a_named_tuple_that_is_given_has_a_class_that_may_change(counted: Counter) -> None:
    names, lif = opened("State.k = 1.0"), snnfast.Leaky(beta=0.9)

    def loop(x: Tensor, state: Any) -> Tensor:
        mem = state.mem
        for t in range(x.size(0)):
            _, mem = lif(x[t] * state.k, mem)
        return mem

    compiled = snnfast.compile(loop)
    for number in range(CALLS):
        names["State"].k = 1.0 if number < 7 else 2.0
        given = batch(number), names["State"](torch.zeros(3, 5, dtype=torch.float64), 1)
        assert torch.equal(compiled(*given), loop(*given))
    assert counted.replayed


@pytest.mark.parametrize("name", ["norse-cells", "step-by-step", "tabular", "muscles", "subclass"])
def test_programs_of_libraries_are_replayed(name: str, counted: Counter) -> None:
    """Norse's cells, SpikingJelly's and snnTorch's resets, snnTorch's own layers, and classes derived from them."""
    if name not in collection.programs():
        pytest.skip("its library is not installed")
    assert not list(collection.differences(collection.programs()[name], 4, 3, calls=9))
    assert counted.replayed


def test_layers_that_are_replaced_are_freed(monkeypatch: pytest.MonkeyPatch, counted: Counter) -> None:
    monkeypatch.setattr("snnfast.compiler.record.replay._MOST_MISSES", 2)
    net, refs = networks()[1], []
    for _ in range(3):
        net.fc = nn.Linear(5, 4).double()
        refs.append(weakref.ref(net.fc))
        for number in range(CALLS):
            net(batch(number))
    gc.collect()
    assert counted.replayed
    assert [ref() is None for ref in refs] == [True, True, False]


VALUES = {"training": (False, True), "steps": (6, 7, 8, 9, 10), "share": tuple(0.3 + i for i in range(9))}


@pytest.mark.parametrize("name", VALUES)
def test_an_attribute_of_a_few_values_in_turn_has_a_replay_of_each(name: str, counted: Counter) -> None:
    share = "(self.share if self.training else 0.7)"
    plain, compiled, *_ = networks(end=f"out = [o * {share} for o in out[: self.steps]]")
    for net in (plain, compiled):
        net.steps, net.share = 11, 0.3
    values = VALUES[name]
    calls = CALLS + 3 * len(values)  # from a multiple on, all are known
    calls += -calls % len(values)
    for number in range(calls + len(values)):
        if number == calls:
            counted.replayed = 0
        for net in (plain, compiled):
            setattr(net, name, values[number % len(values)])
        alike(plain, compiled, batch(number, T=11, B=13))
    assert counted.replayed == len(values)


def test_the_value_that_was_used_least_recently_is_forgotten(counted: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snnfast.compiler.record.replay._MOST_OF_A_SHAPE", 2)
    plain, compiled, *_ = networks(end="out = [o * self.share for o in out]")
    shares = VALUES["share"]

    def calls(number: int, count: int) -> int:
        before, plain.share, compiled.share = counted.replayed, shares[number], shares[number]
        for number in range(count):
            alike(plain, compiled, batch(number))
        return counted.replayed - before

    assert calls(1, CALLS)
    assert calls(2, CALLS)
    assert calls(1, 1) == 1
    assert calls(3, CALLS)  # in place of 2
    assert calls(1, 1) == 1
    assert calls(2, 1) == 0


# ---- what code does beside computing

EFFECTS = {
    "a counter": "self.calls += 1",
    "a counter of a class": "Net.count = getattr(Net, 'count', 0) + 1; self.calls = Net.count",
    "a counter in a cell": "bump(); self.calls = cell()",
    "a global counter": "global count; count += 1; self.calls = count",
    "a counter on a module": "math.count = getattr(math, 'count', 0) + 1; self.calls = math.count",
    "a list that grows": "self.log.append(len(self.log))",
    "a list that grows, of a class": "Net.all.append(1); self.calls = len(Net.all)",
    "a list of results that grows": "self.log.append(x.detach().mean())",
    "a dictionary that grows": "self.kept[len(self.kept)] = 1",
    "a deque": "recent.append(len(recent)); self.calls = list(recent)",
    "a set": "met.add(len(met)); self.calls = len(met)",
    "an iterator": "self.calls = next(numbers)",
    "a generator": "self.calls = next(stream)",
    "a print": "print('call')",
    "a print by another name": "say('call')",
    "a print of sys": "sys.stdout.write('call')",
    "a print by C code": "list(map(print, ['call']))",
    "a log": "logging.getLogger('of a test').debug('call')",
    "a dictionary of its own kind": "own['n'] = 1; self.calls = own['n']",
    "an object of the same kind": "self.calls = type(option)().n; total[0] += 1",
    "a text of an object": "self.calls = '%s' % option; total[0] += 1",
    "a warning": "warnings.warn('call')",
    "a hook with a counter": "self.fc._forward_hooks or self.fc.register_forward_hook(counting); self.calls = seen[0]",
    "Python's random numbers": "random.seed(len(self.log)); self.log = [random.random()]; self.calls = random.random()",
    "PyTorch's random numbers": "self.mem = torch.rand(3)",
    "a seed": "torch.manual_seed(3); x = x + torch.rand(x.shape, dtype=x.dtype)",
    "a number of a tensor": "self.calls = x.sum().item()",
    "a branch by a tensor": "x = x * 2 if x[0].sum() > 0 else x",
    "a shape of a tensor that is kept": "self.kept['last'] = x; self.calls = self.kept['last'].shape",
    "an attribute of a tensor": "self.fc.weight.count = getattr(self.fc.weight, 'count', 0) + 1; "
                                "self.calls = self.fc.weight.count",
    "an attribute of a weight": "x = x * getattr(self.fc.weight, 'factor', 1.0); self.fc.weight.factor = 2.0",
    "a setting": "torch.set_num_threads(1 + self.calls % 2); self.calls += 1",
    "a weak reference": "self.calls = alive(x)",
    "a tensor kept by another module": "snnfast.kept_here = mem",
    "a function that is made": "self.kept['f'] = lambda: 1; self.calls = self.kept.pop('f')()",
    "a parameter in place": "self.lif.threshold.mul_(1.01)",
}  # fmt: skip
BEFORE = """
count, recent, met, numbers, stream, say = 0, collections.deque(maxlen=3), set(), iter(range(99)), None, print
stream = (i for i in range(99))
seen = [0]
def counting(module, args, out): seen[0] += 1
def made():
    n = 0
    def bump():
        nonlocal n
        n += 1
    return bump, lambda: n
bump, cell = made()
class Own(dict):
    def __setitem__(self, key, value):
        super().__setitem__(key, value + self.get(key, 0))
own, total = Own(), [0]
class Option:
    def __init__(self):
        self.n = total[0]
    def __str__(self):
        return str(total[0])
option = Option()
import weakref
last = None
def alive(x):
    global last
    found = last is not None and last() is not None
    last = weakref.ref(x)
    return found
"""


@pytest.mark.parametrize("code", ["x.tag = 2", "x = x * getattr(x, 'tag', 1)", "mem.tag = 3; self.mem = mem"])
def test_attributes_of_tensors_are_read_and_set(code: str) -> None:
    plain, compiled = networks("pass" if "mem" in code else code, code if "mem" in code else "pass")[:2]
    for number in range(CALLS):
        found = []
        for net in (plain, compiled):
            x = batch(number)
            if "getattr" in code and number > 5:
                x.tag = 3  # type: ignore[attr-defined]
            found.append((called(net, x), vars(x), {} if net.mem is None else vars(net.mem)))
        assert found[0] == found[1]


@pytest.mark.parametrize(("name", "place"), pairs(EFFECTS, ["begin", "end"]))
def test_what_code_does_beside_computing_is_done(name: str, place: str) -> None:
    threads = torch.get_num_threads()
    try:
        wanted = _numbers(EFFECTS[name], place, False)
        torch.set_num_threads(threads)
        assert _numbers(EFFECTS[name], place, True) == wanted
    finally:
        torch.set_num_threads(threads)
        vars(snnfast).pop("kept_here", None)
        vars(__import__("math")).pop("count", None)


def _numbers(effect: str, place: str, compiled: bool) -> list[Any]:
    vars(__import__("math")).pop("count", None)
    names = opened(BEFORE + NET.replace(place.upper(), effect).replace("BEGIN", "pass").replace("END", "pass"))
    names["Net"].all = []
    torch.manual_seed(0)
    net = names["Net"]().double()
    if compiled:
        snnfast.compile(net)
    found = []
    for number in range(CALLS):
        torch.manual_seed(number)
        found += [called(net, batch(number)), torch.get_num_threads(), torch.rand(()).item()]
    return found


def test_labels_out_of_range_raise_the_loops_error(counted: Counter) -> None:
    lif = snnfast.Leaky(beta=0.9)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        mem = torch.zeros(3, 5, dtype=torch.float64)
        for t in range(x.size(0)):
            _, mem = lif(x[t], mem)
        return nn.functional.cross_entropy(mem, y)

    compiled = snnfast.compile(loss)
    for number in range(CALLS):
        assert compiled(batch(number), torch.tensor([0, 1, 4])).item() == pytest.approx(
            loss(batch(number), torch.tensor([0, 1, 4])).item()
        )
    assert counted.replayed
    with pytest.raises(IndexError, match="Target 5 is out of bounds"):
        compiled(batch(0), torch.tensor([0, 1, 5]))


@pytest.mark.parametrize(
    ("begin", "told"),
    [
        ("pass", "a call like it runs without your code"),
        (
            "self.calls = x.sum().item()",
            "your code runs at each call: it reads values, or calls what is not recorded",
        ),
        (
            "self.calls = time.time()",
            "your code runs at each call: it calls time.time, which may return something",
        ),
    ],
)
def test_explain_tells_whether_a_call_is_replayed(begin: str, told: str) -> None:
    notes = snnfast.explain(networks(begin)[0], batch(0)).notes
    assert any(note.startswith(told) for note in notes), notes


def test_a_reset_of_all_networks_is_replayed(counted: Counter) -> None:
    snn, utils = pytest.importorskip("snntorch"), pytest.importorskip("snntorch.utils")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif1, self.fc = snn.Leaky(beta=0.8, init_hidden=True), nn.Linear(5, 4)
            self.lif2 = snn.Leaky(beta=0.9, init_hidden=True, output=True)

        def forward(self, x: Tensor) -> Any:
            return self.lif2(self.fc(self.lif1(x)))

    def forward_pass(net: Any, x: Tensor) -> Tensor:
        utils.reset(net)
        return torch.stack([net(x[t])[1] for t in range(x.size(0))])

    torch.manual_seed(0)
    net, other, baseline = (Net() for _ in range(3))
    for each in (net, other):
        snnfast.snntorch.convert(each)
    compiled = snnfast.compile(forward_pass)
    for number in range(CALLS):
        found = []
        for function in (forward_pass, compiled):
            others = [each(batch(number)[0].float())[1].detach() for each in (other, baseline)]
            result = function(net, batch(number).float())
            states = [layer.mem for each in (net, other, baseline) for layer in (each.lif1, each.lif2)]
            found.append((*others, result, *states))
        torch.testing.assert_close(*found)
        assert not any(state.any() for state in found[1][-4:])
    assert counted.replayed == CALLS - 4, counted.reasons


def test_the_code_runs_at_each_call_on_request(counted: Counter) -> None:
    runs = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = snnfast.Leaky(beta=0.9)

        def forward(self, x: Tensor) -> Tensor:
            mem = self.lif.reset_mem()
            for t in range(x.size(0)):
                _, mem = self.lif(x[t], mem)
            runs.append(1)
            return mem

    net = snnfast.compile(Net(), replay=False)
    for number in range(CALLS):
        net(batch(number))
    assert (len(runs), counted.replayed) == (CALLS, 0)


def test_a_graph_that_fails_leaves_the_call_to_the_code(counted: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, compiled, _, _ = networks()
    for number in range(5):
        alike(plain, compiled, batch(number))
    assert counted.replayed
    fails = [True]
    for shape in counted.last()._shapes.values():
        for call in shape.known:
            usual = call._again._ran.graph

            def graph(*inputs: Any, usual: Any = usual) -> Any:
                if fails and fails.pop():
                    raise RuntimeError("planted")
                return usual(*inputs)

            call._again._ran = call._again._ran._replace(graph=graph)
    before = counted.replayed
    alike(plain, compiled, batch(5))
    assert not fails
    assert counted.replayed == before
