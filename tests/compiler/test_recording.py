"""Loops that are recorded as they run: one graph for any number of steps, and whatever a loop does still works."""

import copy
import operator
from collections.abc import Callable
from typing import Any

import callables
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from compiler.internals import OPERATORS, ByRecording, Form, Kinds, Recorded, Recorder, hook
from helpers import pairs
from loop_nets import QUICK_WAYS, Net
from loop_ops import Saved
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

import snnfast
from benchmarks import collection
from snnfast.surrogate.examine import recognise

pytestmark = [pytest.mark.needs_extension]
programs = collection.programs()

QUICK = ("recurrent-student", "static-image", "lif-with-soft-reset", "all-of-snntorch", "prints", "population")

OUTSIDE = "its loop is outside of the call"
NO_PLAN = {
    "records-in-numpy": "NumPy may write to what it is given",
    **dict.fromkeys(["episodes", "loop-outside", "stream"], OUTSIDE),
    "clamped-threshold": "it writes through .data at each step",
    "custom-surrogate": "a surrogate that is a Python function must be called",
    **dict.fromkeys(
        ["all-steps-on-images", "fashion", "spike-element-wise", "spiking-transformer"],
        "its nodes make all steps in one call",
    ),
}
"""Programs that run call by call, and why."""

ALONE = {
    **dict.fromkeys(
        ["asserts", "early-exit", "prints-sometimes", "rates", "spike-counts"], "it returns what was read of each step"
    ),
    **dict.fromkeys(["autoencoder", "thinking-policy", "truncated"], "its calls depend on it"),
    **dict.fromkeys(["own-function-on-images", "static-convolution"], "it has ten steps and ten classes"),
}
"""Programs whose graph is for one number of steps, and why."""


STEPS = {"sequential-function": (14, 8, 20, 14)}
"""Other numbers of steps: a loss that is summed in float32 rounds."""


def currents(T: int = 9, B: int = 3, N: int = 12) -> Tensor:
    return torch.rand(T, B, N, generator=torch.Generator().manual_seed(T)) * 2


def by_hand(x: Tensor) -> Tensor:
    """A neuron written by hand."""
    mem = torch.zeros_like(x[0])
    out = torch.zeros_like(x)
    for t, x_t in enumerate(x):
        mem = 0.8 * mem + x_t
        spk = Saved.apply(mem - 1.0, torch.zeros_like(mem))
        mem = mem - spk
        out[t] = spk
    return out


def same(function: Callable[..., Any], recorded: Callable[..., Any], *inputs: Any) -> None:
    """Check that a recorded function returns what the function returns."""
    for a, b in zip(*(torch.utils._pytree.tree_leaves(f(*inputs)) for f in (recorded, function)), strict=True):
        assert type(a) is type(b)
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b)
            assert a.requires_grad == b.requires_grad


# ---- one graph


def mse_loss_takes_two_dtypes() -> bool:
    x = torch.ones(2, requires_grad=True)
    try:
        torch.nn.functional.mse_loss(x, x.detach().double()).backward()
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.thorough) for name in programs]
)
def test_programs_do_what_their_loops_do_for_any_number_of_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in ("population", "event-camera") and not mse_loss_takes_two_dtypes():
        pytest.skip("this PyTorch has no gradient of the mse_loss of a float32 and a float64 tensor")
    made: list[Recorded] = []

    def init(self: Recorded, *args: Any) -> None:
        original(self, *args)
        made.append(self)

    original = Recorded.__init__
    monkeypatch.setattr(Recorded, "__init__", init)
    assert not list(collection.differences(programs[name], STEPS.get(name, (13, 9, 37, 13, 13, 13, 13)), 3))
    plans = [plan for recorded in made for plan in recorded.plans if not isinstance(plan, str)]
    assert bool(plans) == (name not in NO_PLAN)
    assert any(plan.is_general for plan in plans) == (name not in NO_PLAN and name not in ALONE)


def test_a_number_that_is_equal_to_that_of_the_steps_is_not_one_of_steps() -> None:
    """Nine steps, beside nine neurons."""
    net = Net()
    recorded = ByRecording(net)
    for T in (9, 10, 6, 4):
        same(net, recorded, currents(T))


def test_a_graph_for_these_steps_alone_is_explained_in_words() -> None:
    fc = nn.Linear(9, 9)

    def loop(x: Tensor) -> Tensor:
        mem = torch.zeros_like(x[0])
        for x_t in x:
            mem = torch.tanh(0.9 * mem + fc(x_t))
        return mem

    reason = "for these steps alone: with another number of steps it would fail: a and b must have same reduction dim"
    assert reason in str(snnfast.explain(loop, currents(9, 3, 9)))


def test_a_step_is_recorded_with_the_settings_of_its_call() -> None:
    net, kinds = Net(), Kinds()
    for choice in (False, True, False):
        recorder = Recorder(kinds, lambda recorder, alive: False)
        with snnfast.use_state_gradients(choice), hook, recorder:
            net(currents())
        assert {k.kwargs["state_gradients"] for k in recorder.kinds if "state_gradients" in k.kwargs} == {choice}


def test_a_function_has_sixteen_plans_at_most() -> None:
    def loop(x: Tensor, factor: float) -> Tensor:
        mem = x[0] * 0
        for x_t in x:
            mem = 0.5 * mem + (x_t * factor).tanh()
        return mem.clamp(max=factor)

    recorded = ByRecording(loop)
    for number in range(20):
        for _ in range(4):
            same(loop, recorded, currents(), 1.0 + number)
    assert len(recorded.plans) == 16


# ---- numbers of steps that are compared: the masks of a padded batch


def _step(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    v = v * 0.9 + x
    spk = Saved.apply(v - 0.5, torch.zeros_like(v))
    return spk, v - spk


def _where(x: Tensor, lengths: Tensor) -> Any:
    v, spk_rec = torch.zeros(x.shape[1:]), []
    for t in range(len(x)):
        spk, now = _step(v, x[t])
        v = torch.where((t < lengths)[:, None], now, v)
        spk_rec.append(spk)
    return torch.stack(spk_rec), v


def _times(x: Tensor, lengths: Tensor) -> Any:
    v, counts = torch.zeros(x.shape[1:]), 0
    for t in range(len(x)):
        valid = (lengths > t).float().unsqueeze(1)
        spk, v = _step(v, x[t] * valid)
        counts = counts + spk * valid
    return counts, v


def _window(x: Tensor, lengths: Tensor) -> Any:
    v, rec, start = torch.zeros(x.shape[1:]), [], lengths.double()
    for t in range(x.size(0)):
        inside = start.le(t) & torch.gt(start + 3, t)
        _, v = _step(v, x[t] * inside[:, None])
        rec.append(v)
    return torch.stack(rec)


def _last(x: Tensor, lengths: Tensor) -> Any:
    v, last = torch.zeros(x.shape[1:]), torch.zeros(x.shape[1:])
    for t in range(len(x)):
        _, v = _step(v, x[t])
        last = last + torch.where((lengths == t + 1)[:, None], v, torch.zeros_like(v))
    return last


@pytest.mark.parametrize("by", QUICK_WAYS)
@pytest.mark.parametrize("loop", [_where, _times, _window, _last])
def test_a_number_of_a_step_may_be_compared(loop: Callable[..., Any], by: Any) -> None:
    compiled = by(loop)
    for T in (9, 9, 12, 6, 30, 9):
        x, lengths = currents(T).requires_grad_(), torch.randint(1, T, (3,))
        same(loop, compiled, x, lengths)
        of_both = (
            torch.autograd.grad([r.square().sum() for r in pytree.tree_leaves(f(x, lengths))], x)
            for f in (compiled, loop)
        )
        torch.testing.assert_close(*of_both)
    explained = snnfast.explain(loop, x, lengths)
    (graph,) = explained.graphs
    assert not graph.repeated
    assert any("one recurrence" in str(line) for line in graph.merged)
    if by is snnfast.compile:
        assert "its graph is for any number of steps" in str(explained)


def _fills(x: Tensor, mask: Tensor) -> Any:
    v, rec = torch.zeros(x.shape[1:]), []
    for t in range(len(x)):
        spk, v = _step(v, x[t].masked_fill(mask, 0.25 * t))
        rec.append(torch.masked_fill(spk, mask, -t))
    return torch.stack(rec), v


def _chooses(x: Tensor, mask: Tensor) -> Any:
    v, rec = torch.zeros(x.shape[1:]), []
    for t in range(len(x)):
        spk, v = _step(v, torch.where(mask, t * 0.1, x[t]))
        rec.append(torch.where(mask, torch.where(x[t] > 1, spk, t), spk.where(~mask, t * 0.5)))
    return torch.stack(rec), v


def _of_integers(x: Tensor, mask: Tensor) -> Any:
    whole, v, rec = (x.detach() * 4).long(), torch.zeros(x.shape[1:]), []
    for t in range(len(x)):
        spk, v = _step(v, x[t])
        rec.append(torch.where(mask, whole[t], t).float() + whole[t].masked_fill(mask, t) + spk)
        rec.append(torch.where(mask, whole[t], t * 0.5))
    return torch.stack(rec), v


@pytest.mark.parametrize("by", QUICK_WAYS)
@pytest.mark.parametrize("loop", [_fills, _chooses, _of_integers])
def test_a_number_of_a_step_may_be_chosen_by_a_mask(loop: Callable[..., Any], by: Any) -> None:
    compiled, mask = by(loop), torch.rand(3, 12) > 0.5
    for T in (9, 9, 12, 9):
        x = currents(T).requires_grad_()
        found, expected = compiled(x, mask), loop(x, mask)
        assert all(map(torch.equal, found, expected))
        torch.testing.assert_close(*(torch.autograd.grad(f[0].square().sum(), x) for f in (found, expected)))
    (graph,) = snnfast.explain(loop, x, mask).graphs
    assert any("one recurrence" in str(line) for line in graph.merged)
    assert loop is _of_integers or not graph.repeated


def test_a_state_that_is_compared_with_the_number_of_its_step_is_not_merged() -> None:
    def loop(x: Tensor) -> Any:
        v, rec = torch.zeros(x.shape[1:]), []
        for t in range(len(x)):
            v = v * 0.9 + x[t]
            rec.append((v * 5 > t).float())
            v = v - rec[-1] * 0.3
        return torch.stack(rec)

    recorded = snnfast.compile(loop)
    for T in (9, 12):
        same(loop, recorded, currents(T))
    assert "a number differs from step to step" in str(snnfast.explain(loop, currents()))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float16, torch.float64])
@pytest.mark.parametrize("factor", [1, 0.5, 100])
def test_numbers_are_compared_in_the_dtype_of_the_loop(dtype: torch.dtype, factor: float) -> None:
    def loop(x: Tensor, given: Tensor) -> Any:
        rec = []
        for t in range(len(x)):
            rec.append(torch.where((given > t * factor)[:, None], x[t], x[t] * 2))
        return torch.stack(rec)

    recorded = snnfast.compile(loop)
    for T in (9, 9, 12):
        same(loop, recorded, currents(T), torch.tensor([3, 4, 200]).to(dtype))


# ---- nothing that works as a loop may fail


def _prints(x: Tensor) -> Tensor:
    mem = x[0] * 0
    for x_t in x:
        mem = 0.5 * mem + x_t
        if mem.max() > 1.5:
            mem = mem.clamp(max=float(mem.mean()))
    return mem


def _numpy(x: Tensor) -> Any:
    return torch.as_tensor(x.cumsum(0)[-1].numpy() * 2)


def _hook(x: Tensor) -> Tensor:
    mem = x[0] * 0
    for x_t in x:
        mem = 0.5 * mem + x_t
        if mem.requires_grad:
            mem.register_hook(lambda g: g * 0.5)
    return mem


def _trains(x: Tensor) -> Any:
    w = torch.ones(12, requires_grad=True)
    loss = by_hand(x * w).square().sum() + (w * 2).sum()
    loss.backward()
    return w.grad, loss.item()


def _random(x: Tensor) -> Any:
    draws = []
    for x_t in x:
        torch.manual_seed(3)
        draws.append(torch.rand_like(x_t))
        draws.append(nn.functional.dropout(x_t, 0.5))
    state = torch.get_rng_state()
    draws.append(torch.rand(3))
    torch.set_rng_state(state)
    return [*draws, torch.rand(3)]


def _vmap(x: Tensor) -> Tensor:
    rows = [x_t * 2 for x_t in x]
    return (
        torch.vmap(lambda row: row.sum() + 1)(torch.stack(rows))
        + torch.func.grad(lambda a: (a * a).sum())(rows[0]).sum()
    )


def _checkpointed(x: Tensor) -> Any:
    return checkpoint(by_hand, x, use_reentrant=False)


def _inference(x: Tensor) -> Any:
    mem = x[0] * 0
    for x_t in x:
        mem = 0.5 * mem + x_t
        with torch.inference_mode():
            shown = mem * 2
    return mem, shown


def _views_of_inference(x: Tensor) -> Any:
    rows = [x_t * 2 for x_t in x]
    with torch.inference_mode():
        shown = [row.view_as(row) for row in rows]
    after = [row * 2 for row in shown]
    return after, torch.tensor([(row.requires_grad, row.is_leaf) for row in (*shown, *after)])


def _autocast(x: Tensor) -> Any:
    rows = []
    for x_t in x:
        with torch.autocast("cpu", torch.bfloat16):
            rows.append(x_t @ x_t.T)
    return torch.stack(rows)


def _in_place(x: Tensor) -> Any:
    rows = [x_t * 1 for x_t in x]
    rows[1] += rows[0]
    rows[2][0] = 5.0
    mem = rows[0].detach_()
    mem.unsqueeze_(0).squeeze_(0)
    return rows, mem


def _structures(x: Tensor) -> Any:
    values, places = x.max(0)
    parts = x.split(2)
    return {"values": values, "places": places, "parts": parts, "sorted": torch.sort(x, 0), "shape": x.shape}


def _pickled(x: Tensor) -> Any:
    row = x[0] * 2
    return copy.deepcopy(row), repr(row), f"{row.sum():.3f}", row.tolist()


WORKS = (
    _prints, _numpy, _hook, _trains, _random, _vmap, _checkpointed, _inference, _views_of_inference, _autocast,
    _in_place, _structures, _pickled,
)  # fmt: skip


@pytest.mark.parametrize("function", WORKS, ids=lambda f: f.__name__.strip("_"))
@pytest.mark.parametrize("needs", [False, True], ids=["", "with gradients"])
def test_what_a_loop_may_do(function: Callable[..., Any], needs: bool) -> None:
    if needs and function in (_numpy, _pickled):
        pytest.skip("PyTorch allows it of no tensor with a gradient")
    recorded = ByRecording(function)
    for call in range(2):
        torch.manual_seed(call)
        plain = function(currents(8).requires_grad_(needs) * 1)
        torch.manual_seed(call)
        ours = recorded(currents(8).requires_grad_(needs) * 1)
        same(lambda plain=plain: plain, lambda ours=ours: ours)


def test_a_row_that_is_held_has_the_gradient_of_a_loss_that_was_recorded() -> None:
    def loop(x: Tensor) -> Any:
        mem, rec = x.new_zeros(12), []
        for x_t in x:
            mem = 0.5 * mem + x_t
            over = mem - 0.5
            mem = mem * (1 - (over > 0).to(x.dtype))
            rec.append(mem * 2)
        return rec, torch.autograd.grad(over.square().sum(), over)

    recorded, x = ByRecording(loop), currents(8).requires_grad_()
    for steps in (8, 6):
        same(loop, recorded, x[:steps])
    assert not any(isinstance(plan, str) for plan in recorded.plans[:1])


@pytest.mark.parametrize("by", QUICK_WAYS)
def test_a_leaf_that_is_a_view_may_be_changed(by: Any, recwarn: pytest.WarningsRecorder) -> None:
    def loop(x: Tensor) -> Tensor:
        turned = x.transpose(0, 1)
        with torch.no_grad():
            turned.mul_(2)
        return by_hand(x) + turned.transpose(0, 1)

    compiled = by(loop)
    for _ in range(2):
        found, expected = (f(currents(8).transpose(0, 1).requires_grad_()) for f in (compiled, loop))
        torch.testing.assert_close(found, expected)
    assert not any("fault" in str(w.message) for w in recwarn)


def test_an_error_leaves_what_the_loop_leaves() -> None:
    def fails(record: list[Tensor], buffer: Tensor, x: Tensor) -> None:
        for t, x_t in enumerate(x):
            record.append(x_t * 2 + torch.rand(12))
            buffer.add_(x_t)
            if t == 3:
                raise KeyError("stop")

    left = []
    for function in (ByRecording(fails), fails):
        record, buffer = list[Tensor](), torch.zeros(3, 12)
        torch.manual_seed(0)
        with pytest.raises(KeyError, match="stop"):
            function(record, buffer, currents())
        left.append([*record, buffer, torch.rand(2)])
    assert len(left[0]) == 6
    same(lambda: left[1], lambda: left[0])


@pytest.mark.parametrize("wrong", [lambda x: x @ x, lambda x: x[99], lambda x: torch.cat([x, x[0]])])
def test_an_error_of_pytorch_is_that_of_the_loop(wrong: Callable[[Tensor], Tensor]) -> None:
    def call(x: Tensor) -> Tensor:
        return wrong(torch.stack([x_t * 2 for x_t in x]))

    with pytest.raises((RuntimeError, IndexError)) as expected:
        call(currents(8))
    with pytest.raises(expected.type) as found:
        ByRecording(call)(currents(8))
    assert str(found.value) == str(expected.value)


def test_what_outlives_the_call_is_real() -> None:
    class Keeps(nn.Module):
        def forward(self, x: Tensor) -> Callable[[], Tensor]:
            self.rows = [x_t * 2 for x_t in x]
            self.last = {"mem": self.rows[-1] + 1}
            return lambda: self.rows[0] + x[0]

    net = Keeps()
    later = ByRecording(net)(currents(8))
    held = [*net.rows, *net.last.values(), later()]
    assert all(type(t) is Tensor for t in held)
    torch.testing.assert_close(torch.stack(net.rows), currents(8) * 2)


def test_a_slice_of_one_row_has_one_at_any_number_of_steps() -> None:
    """Also where the loop is too short for it to be known as one, and another loop tells the number of steps."""

    def loop(x: Tensor) -> tuple[Tensor, Tensor]:
        lif, rec = snnfast.Leaky(0.5), []
        mem = lif.init_leaky()
        for t in range(len(x)):
            spk, mem = lif(x[t : t + 1].squeeze(0), mem)
            rec.append(mem)
        _ = [row.squeeze(0) for row in x.split(1)]
        return spk, torch.stack(rec)

    recorded = snnfast.compile(loop)
    for T, B in ((8, 5), (9, 2), (8, 5), (15, 2), (7, 5)):
        same(loop, recorded, torch.rand(T, B, 3))


FACTORIES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "new_zeros": lambda x, mem, T: x.new_zeros(x.shape) + mem,
    "new_ones": lambda x, mem, T: mem.new_ones(len(x), 1) * mem,
    "new_full": lambda x, mem, T: x.new_full((T,), 2.0).sum() + mem,
    "new_empty": lambda x, mem, T: x.new_empty(x.size()).fill_(0.5) * mem,
    "zeros": lambda x, mem, T: torch.zeros(x.shape) + mem,
    "rand": lambda x, mem, T: torch.rand(x.shape) * 0 + mem,
    "randint": lambda x, mem, T: torch.randint(1, 2, (T, len(x), 1)).sum(0) * mem,
    "reshape": lambda x, mem, T: mem.flatten().reshape(x.shape) * 2,
    "expand": lambda x, mem, T: torch.ones(1, 1).expand(len(x), 1) * mem,
}


@pytest.mark.parametrize("name", FACTORIES)
def test_tensors_that_a_step_makes_have_the_sizes_of_each_call(name: str) -> None:
    """Those of other batches, and of other numbers of steps."""
    make = FACTORIES[name]

    def loop(x: Tensor) -> tuple[Tensor, Tensor]:
        lif, rec, out = snnfast.Leaky(0.5), [], []
        mem = lif.init_leaky()
        for x_t in x:
            _, mem = lif(x_t, mem)
            rec.append(mem)
            out.append(make(x_t, mem, len(x)))
        return torch.stack(rec), torch.stack(out)

    recorded = snnfast.compile(loop)
    for T, B in ((8, 4), (8, 5), (9, 2), (8, 2), (11, 7), (12, 7), (8, 4)):
        same(loop, recorded, torch.rand(T, B, 3))


def test_a_profiler_that_holds_tensors_changes_nothing() -> None:
    """It remembers what each call of PyTorch was given, such as a result of the graph that the graph reads."""
    net, x = Net(), currents()
    plain, compiled = copy.deepcopy(net), snnfast.compile(net)
    compiled(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True):
        found = compiled(x)
    expected = plain(x)
    for a, b in zip(*map(torch.utils._pytree.tree_leaves, (found, expected)), strict=True):
        torch.testing.assert_close(a, b)
        a.sum().backward(retain_graph=True)


def test_a_hook_that_keeps_a_few_membranes_keeps_no_record() -> None:
    trace: list[Tensor] = []

    def look(layer: nn.Module, inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
        trace.append(outputs[1][0, :2].detach().clone())

    net, x, found = Net(), currents(18), []
    for looked_at in (copy.deepcopy(net), snnfast.compile(net)):
        looked_at.lif1.register_forward_hook(look)
        for _ in range(3):
            trace.clear()
            looked_at(x)
        found.append(torch.stack(trace))
    assert torch.equal(*found)
    assert found[0].shape == (18, 2)
    assert found[0].any()
    assert trace[0].untyped_storage().nbytes() <= 18 * 2 * 4
    assert any(line.startswith("18 steps of leaky: one unroll") for line in snnfast.explain(net, x).graphs[0].merged)


def test_a_loop_with_names_for_the_profiler_is_one_graph() -> None:
    def loop(x: Tensor) -> Tensor:
        with torch.profiler.record_function("loop"):
            mem = x[0] * 0
            for x_t in x:
                with torch.profiler.record_function("step"):
                    mem = 0.5 * mem + x_t
        return mem

    recorded = ByRecording(loop)
    for T in (9, 9, 12):
        same(loop, recorded, currents(T))
    assert len(recorded.plans) == 1
    assert not isinstance(recorded.plans[0], str)


def test_a_version_that_is_set_back_is_that_after_the_calls_before() -> None:
    """FSDP writes parameters so, which autograd must not see."""

    def loop(x: Tensor) -> Tensor:
        held = (x[0] * 2).detach()
        with torch.autograd._unsafe_preserve_version_counter(held):
            for x_t in x:
                held.add_(x_t.detach())
        assert held._version == 0
        return (x * held).sum()

    same(loop, ByRecording(loop), currents().requires_grad_())


@pytest.mark.parametrize("through", ["a view", "the tensor"])
def test_memory_that_is_written_to_requires_a_gradient_however_it_is_seen(through: str) -> None:
    def loop(x: Tensor) -> Any:
        mem, rec, asked = torch.zeros_like(x[0]), torch.zeros_like(x), []
        row = rec[1]
        for t, x_t in enumerate(x):
            mem = 0.8 * mem + x_t
            spk = Saved.apply(mem - 1.0, mem * 0)
            if through == "a view":
                rec[t][:] = spk
            else:
                rec[t] = spk
        asked += [a.requires_grad for a in (rec, row, rec[0], rec * 2)] + [row.is_leaf]
        return rec * 2, asked

    recorded = ByRecording(loop)
    for x in (currents().requires_grad_(), currents(), currents(12).requires_grad_()):
        same(loop, recorded, x)
        assert recorded(x)[1] == loop(x)[1]


class Sees(TorchFunctionMode):
    """Lists the functions that PyTorch tells it of."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OPERATORS)
def test_a_mode_is_told_the_function_that_an_operator_is_recorded_as(name: str) -> None:
    t = torch.ones(2)
    with Sees() as sees:
        getattr(t, name)(*[t] * (name not in ("__neg__", "detach")))
    assert sees.seen[0] is OPERATORS[name]


class Twice:
    """An operand that PyTorch knows nothing of."""

    def __radd__(self, other: Tensor) -> Tensor:
        return other * 2


OPERANDS = {
    "a number": 0.5,
    "an integer": 2,
    "zero": 0.0,
    "a tensor": torch.full((3, 12), 1.5),
    "a tensor of one number": torch.tensor(3, dtype=torch.float64),
    "a parameter": nn.Parameter(torch.full((12,), 0.25)),
    "a number of numpy": np.float64(0.75),
}


@pytest.mark.parametrize(("symbol", "operand"), pairs(["+", "-", "*", "/"], OPERANDS))
def test_operators_of_results(symbol: str, operand: str) -> None:
    compute = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}[symbol]
    other = OPERANDS[operand]

    def loop(x: Tensor) -> Any:
        mem, rec = torch.zeros_like(x[0]), []
        for x_t in x:
            mem = 0.8 * mem + x_t
            v = -(mem + Saved.apply(mem - 1.0, mem * 0) + 1.0)
            rec.append((compute(v, other), compute(other, v), compute(v, v).detach()))
        return rec

    recorded = ByRecording(loop)
    for T in (5, 5, 7):
        x = currents(T).requires_grad_()
        same(loop, recorded, x)
        found, expected = (torch.autograd.grad(sum(a.sum() + b.sum() for a, b, _ in f(x)), x) for f in (recorded, loop))
        torch.testing.assert_close(found, expected, equal_nan=True)


def test_operators_with_what_is_no_tensor() -> None:
    def loop(x: Tensor) -> Any:
        rec = []
        for x_t in x:
            rec.append((x_t * 0.5) + Twice())
        with pytest.raises(TypeError, match="unsupported operand"):
            rec[-1] - object()
        return rec

    same(loop, ByRecording(loop), currents())


@pytest.mark.parametrize("inside", ["autocast", "inference", "no_grad", "a mode"])
def test_operators_in_a_block_of_the_loop(inside: str) -> None:
    sees = Sees()
    block: Any = {
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "inference": torch.inference_mode,
        "no_grad": torch.no_grad,
        "a mode": lambda: sees,
    }[inside]
    weight = torch.rand(12, 12)

    def loop(x: Tensor) -> Any:
        mem, rec = torch.zeros_like(x[0]), []
        for x_t in x:
            mem = 0.8 * mem + x_t
            v = Saved.apply(mem - 1.0, mem * 0) * 0.5 + 1
            with block():
                w = 1 - v * 2
                u = F.linear(w, weight)
            rec.append((v - 1, w, u))
        return rec

    recorded = ByRecording(loop)
    x = currents()
    for _ in range(3):
        sees.seen.clear()
        found = recorded(x)
        by_recording = list(sees.seen)
        sees.seen.clear()
        for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(loop(x)), strict=True):
            assert (a.dtype, a.is_inference()) == (b.dtype, b.is_inference())
            torch.testing.assert_close(a, b)
        assert by_recording == sees.seen


def test_operators_of_results_ask_pytorch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """By way of PyTorch's C++ to a mode, each would take a microsecond more."""
    asked = []
    usual = Recorder.__torch_function__

    def asks(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked.append(func)
        return usual(self, func, types, args, kwargs)

    recorded = ByRecording(by_hand)
    for _ in range(3):
        recorded(currents())
    monkeypatch.setattr(Recorder, "__torch_function__", asks)
    recorded(currents())
    assert not set(asked) & (set(OPERATORS.values()) | {Tensor.shape.__get__, Tensor.dtype.__get__})  # type: ignore[attr-defined]
    assert Tensor.__setitem__ in asked


class Late(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, scale: float = 2.0) -> Tensor:
        return x * scale

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.scale = inputs[1] if len(inputs) > 1 else 2.0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * ctx.scale, None


class Own(Saved):
    calls = 0

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        cls.calls += 1
        return super().apply(*args, **kwargs)


looked_up_before = Late.apply


def test_apply_of_a_function_however_it_is_found() -> None:
    def loop(x: Tensor) -> Any:
        mem, rec = torch.zeros_like(x[0]), []
        for x_t in x:
            mem = v = 0.8 * mem + x_t
            rec.append((looked_up_before(v), Late.apply(v, 3.0), Own.apply(v, torch.zeros_like(v))))
        return rec

    recorded = ByRecording(loop)
    for T in (5, 5, 6):
        x = currents(T).requires_grad_()
        before = Own.calls
        same(loop, recorded, x)
        assert Own.calls - before >= 2 * T
        found, expected = (torch.autograd.grad(sum(a.sum() + b.sum() for a, b, _ in f(x)), x) for f in (recorded, loop))
        torch.testing.assert_close(found, expected)

    def wrong(x: Tensor) -> Any:
        return [Late.apply() for _ in x]

    with pytest.raises(TypeError, match="x"):
        ByRecording(wrong)(currents())


def with_its_gradient(loop: Callable[[Tensor], Any], recorded: Any, x: Tensor) -> None:
    same(loop, recorded, x)
    losses = (sum(t.sum() for t in pytree.tree_leaves(f(x)) if isinstance(t, Tensor)) for f in (recorded, loop))
    torch.testing.assert_close(*(torch.autograd.grad(loss, x) for loss in losses))


def test_apply_that_is_kept_is_recorded_by_each_call_and_runs_outside() -> None:
    kept: list[Any] = []

    def loop(x: Tensor) -> Any:
        if not kept:
            kept.append(Late.apply)
        mem, rec = torch.zeros_like(x[0]), []
        for x_t in x:
            mem = 0.8 * mem + kept[0](x_t, 0.5)
            rec.append(mem)
        return rec

    recorded = ByRecording(loop)
    for T in (5, 5, 6, 6):
        with_its_gradient(loop, recorded, currents(T).requires_grad_())
    assert type(kept[0](torch.ones(2))) is Tensor


def test_apply_that_is_looked_up_before_a_transform() -> None:
    def loop(x: Tensor) -> Any:
        apply = Late.apply
        return [torch.func.grad(lambda v: apply(v, 3.0).square().sum())(x_t * 2.0) for x_t in x]

    recorded = ByRecording(loop)
    for T in (5, 5, 6):
        with_its_gradient(loop, recorded, currents(T).requires_grad_())


class Early(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float = 2.0) -> Tensor:
        ctx.scale = scale
        return x * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * ctx.scale, None


class Halved(Early):
    calls = 0

    @classmethod
    def apply(cls, x: Tensor) -> Any:  # type: ignore[override]
        cls.calls += 1
        return super().apply(x * 3.0, 0.5)


class Doubled(Early):
    @staticmethod
    def apply(x: Tensor) -> Any:  # type: ignore[override]
        return Early.apply(x, 2.0)


early_before = Early.apply


@pytest.mark.parametrize("function", [Halved, Doubled])
def test_a_function_with_an_apply_of_its_own(function: Any) -> None:
    def loop(x: Tensor) -> Any:
        before = Halved.calls
        rec = [function.apply(x_t * 0.5) for x_t in x]
        return rec, Halved.calls - before

    recorded = ByRecording(loop)
    for T in (5, 5, 6):
        with_its_gradient(loop, recorded, currents(T).requires_grad_())


@pytest.mark.parametrize("named", [lambda: Early.apply, lambda: Late.apply, lambda: early_before], ids=range(3))
def test_apply_with_a_named_argument(named: Callable[[], Any]) -> None:
    def loop(x: Tensor) -> Any:
        return [named()(x_t * 0.5, scale=3.0) for x_t in x]

    recorded = ByRecording(loop)
    for T in (5, 5, 6):
        with_its_gradient(loop, recorded, currents(T).requires_grad_())


def test_apply_answers_as_it_does_outside() -> None:
    def loop(x: Tensor) -> Any:
        apply = Early.apply
        about = apply.__name__, apply.__self__ is Early, apply == Early.apply, hash(apply) == hash(early_before)
        surrogate = recognise(apply) is recognised  # a layer may be made in the call
        return [apply(x_t) for x_t in x], about, apply == Late.apply, apply == early_before, surrogate

    recognised = recognise(Early.apply)
    same(loop, ByRecording(loop), currents())


def test_a_function_under_a_mode_of_the_program() -> None:
    sees = Sees()

    def loop(x: Tensor) -> Any:
        rec = []
        for x_t in x:
            v = x_t * 2.0
            with sees:
                rec.append((Early.apply(v * 3.0, 0.5), early_before(v), Late.apply(v)))
            rec.append(Early.apply(v))
        return rec

    recorded = ByRecording(loop)
    for T in (5, 5, 6):
        x = currents(T).requires_grad_()
        sees.seen.clear()
        loop(x)
        expected = list(sees.seen)
        sees.seen.clear()
        recorded(x)
        assert sees.seen == expected
        with_its_gradient(loop, recorded, x)


def test_methods_of_results_that_are_kept() -> None:
    def loop(x: Tensor) -> Any:
        rec = []
        for x_t in x:
            v = x_t * 2.0
            rec.append((v, v.detach, v.__add__, v.__rsub__, v.__add__(v.sum().item())))
        return rec

    recorded = ByRecording(loop)
    for T in (5, 5, 6):
        for v, detach, add, rsub, _ in recorded(currents(T)):
            for found, expected in ((detach(), v), (add(v), v + v), (rsub(1), 1 - v)):
                torch.testing.assert_close(found, expected)

    def inside(x: Tensor) -> Any:
        return [v.__add__(v.sum().item()) for v in (x_t * 2.0 for x_t in x)]

    recorded = ByRecording(inside)
    for T in (5, 5, 6):
        same(inside, recorded, currents(T))


def test_attributes_that_a_program_sets_are_those_of_one_tensor() -> None:
    def loop(x: Tensor) -> Any:
        rec, kept = [], []
        for t, x_t in enumerate(x):
            v = x_t * 2.0
            rec.append((hasattr(v, "step"), v - 1.0))
            v.step = t  # type: ignore[attr-defined]
            if t % 2:
                kept.append(v)
        return rec, kept, [v.step for v in kept]  # type: ignore[attr-defined]

    recorded = ByRecording(loop)
    for T in (5, 5, 6, 6):
        same(loop, recorded, currents(T))
        _, kept, steps = recorded(currents(T))
        assert [v.step for v in kept] == steps


def test_numbers_of_a_function_are_read_at_each_call() -> None:
    class Scaled(torch.autograd.Function):
        scale = 2.0

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * Scaled.scale

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * Scaled.scale

    def loop(x: Tensor) -> Tensor:
        mem = x[0] * 0
        for x_t in x:
            mem = 0.5 * mem + Scaled.apply(x_t)
        return mem

    recorded = ByRecording(loop)
    for scale in (2.0, 3.0, 2.0):
        Scaled.scale = scale
        same(loop, recorded, currents())


@pytest.mark.parametrize(
    "spike",
    [
        lambda z: snnfast.spike(z, snnfast.surrogate.atan()),
        lambda z: snnfast.surrogate.fast_sigmoid(slope=4)(z),
        snnfast.surrogate.triangular(),
    ],
)
def test_neurons_by_hand_with_our_surrogates_are_one_recurrence(spike: Callable[[Tensor], Tensor]) -> None:
    def loop(x: Tensor) -> Tensor:
        mem, spk = torch.zeros_like(x[0]), torch.zeros_like(x[0])
        for x_t in x:
            mem = 0.9 * mem * (1 - spk) + x_t
            spk = spike(mem - 1)
        return mem

    (graph,) = snnfast.explain(loop, currents().requires_grad_()).graphs
    assert len(graph.merged) == 1
    assert "one recurrence" in graph.merged[0]
    assert not graph.repeated
    recorded = ByRecording(loop)
    for T in (9, 12):
        x = currents(T).requires_grad_()
        found, expected = (torch.autograd.grad(f(x).square().sum(), x) for f in (recorded, loop))
        torch.testing.assert_close(found, expected)


class Annealed(snnfast.surrogate.Surrogate):
    slope = 1.0

    def derivative(self, z: Tensor) -> Tensor:
        return self.slope * (1 - z.abs()).relu()


class OfItsBase(Annealed):
    pass


class OfADict(Annealed):
    def __init__(self) -> None:
        self.numbers = {"slope": 1.0}

    def derivative(self, z: Tensor) -> Tensor:
        return self.numbers["slope"] * (1 - z.abs()).relu()


of_a_dict = OfADict()


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("surrogate", [Annealed(), OfADict()], ids=["a number", "a dictionary"])
def test_a_loop_with_a_surrogate_of_ones_own_is_merged(surrogate: Any) -> None:

    def loop(x: Tensor) -> Tensor:
        mem = x[0] * 0
        for x_t in x:
            mem = 0.5 * mem + x_t
            mem = mem - surrogate(mem - 1)
        return mem

    compiled = snnfast.compile(loop)
    for slope in (1.0, 3.0, 1.0, 1.0, 3.0):
        surrogate.slope = surrogate.__dict__.setdefault("numbers", {})["slope"] = slope
        x = currents().requires_grad_()
        found, expected = (torch.autograd.grad(f(x).square().sum(), x) for f in (compiled, loop))
        torch.testing.assert_close(found, expected)
    assert "one recurrence" in str(snnfast.explain(compiled, currents().requires_grad_()))


def test_a_function_in_snntorchs_custom_surrogate_is_read_at_each_call() -> None:
    slopes = [1.0]
    spike_grad = snnfast.surrogate.custom_surrogate(lambda z, grad, spk: grad * slopes[0] * (1 - z.abs()).relu())
    layer = snnfast.Leaky(0.9, spike_grad=spike_grad)

    def loop(x: Tensor) -> Tensor:
        mem = layer.reset_mem()
        for x_t in x:
            _, mem = layer(x_t, mem)
        return mem

    compiled = snnfast.compile(loop)
    for slopes[0] in (1.0, 1.0, 3.0, 1.0, 3.0):
        x = currents().requires_grad_()
        found, expected = (torch.autograd.grad(f(x).square().sum(), x) for f in (compiled, loop))
        torch.testing.assert_close(found, expected)
    assert "9 steps of leaky: one unroll" in str(snnfast.explain(loop, currents().requires_grad_()))


@pytest.mark.parametrize(
    ("surrogate", "change"),
    [
        (of_itself := Annealed(), lambda slope, t: setattr(of_itself, "slope", slope)),
        (OfItsBase(), lambda slope, t: setattr(Annealed, "slope", slope)),
        (of_a_dict, lambda slope, t: of_a_dict.numbers.update(slope=slope)),
        (by_step := Annealed(), lambda slope, t: setattr(by_step, "slope", slope * t)),
    ],
    ids=["itself", "base", "dict", "step"],
)
def test_a_surrogate_that_changes_is_read_at_each_call(surrogate: Any, change: Callable[[float, int], None]) -> None:
    def loop(x: Tensor, slope: float) -> Tensor:
        mem = x[0] * 0
        for t, x_t in enumerate(x):
            change(slope, t)
            mem = 0.5 * mem + x_t
            mem = mem - surrogate(mem - 1)
        return mem

    recorded = ByRecording(loop)
    for slope in (1.0, 3.0, 1.0):
        x = currents().requires_grad_()
        found, expected = (torch.autograd.grad(f(x, slope).square().sum(), x) for f in (recorded, loop))
        torch.testing.assert_close(found, expected)


def test_a_function_that_needs_values_is_no_fault(recwarn: pytest.WarningsRecorder) -> None:
    scaled = callables.function(lambda x: x * float(x.max()), lambda grad, x: grad)

    def loop(x: Tensor) -> Tensor:
        mem = x[0] * 0
        for x_t in x:
            mem = 0.5 * mem + x_t
        return scaled.apply(mem)

    recorded = ByRecording(loop)
    for _ in range(3):
        same(loop, recorded, currents())
    assert not any("fault" in str(w.message) for w in recwarn)


def test_a_tensor_that_is_given_other_memory_is_read_before() -> None:
    def loop(x: Tensor, other: Tensor) -> Any:
        rows = []
        for x_t in x:
            cur = x_t * 2
            float(cur.sum())  # it is no recorded result from here on
            rows.append(cur * 3)
            cur.set_(other)
        return rows

    same(loop, ByRecording(loop), currents(), torch.rand(5))


def test_a_surrogate_is_tried_out_beside_what_is_recorded() -> None:
    net = Net()
    net.lif1.spike_grad = lambda z: Saved.apply(z, torch.zeros_like(z))
    _, recorder = Recorded(net, "a network")(currents())
    assert not recorder.reasons


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many calls each form has that is made."""
    made: list[int] = []
    init = Form.__init__
    monkeypatch.setattr(
        Form, "__init__", lambda self, *given: (made.append(len(given[0].kinds)), init(self, *given))[1]
    )
    return made


def test_a_record_that_came_before_has_its_form(forms: list[int]) -> None:
    recorded = ByRecording(by_hand)
    for T in (9, 9, 11, 9, 11, 9):
        same(by_hand, recorded, currents(T))
    assert sorted(forms) == [min(forms)] * 2 + [max(forms)] * 2  # a record that came once is not kept


def test_training_and_evaluation_in_turn_have_their_forms_and_plans(forms: list[int]) -> None:
    recorded = ByRecording(by_hand)
    for batch in (3, 1, 3, 1, 3, 1, 3, 1):
        with torch.set_grad_enabled(batch > 1):
            same(by_hand, recorded, currents(B=batch).requires_grad_())
    assert len(forms) == 4
    assert len(set(forms)) == 1
    assert len(recorded.plans) == 2


@pytest.mark.parametrize("zeros", [(0.0, -0.0), (-0.0, 0.0)])
def test_zeros_of_both_signs_differ(zeros: tuple[float, float]) -> None:
    def loop(x: Tensor, zero: float) -> Tensor:
        mem = x[0] * 0
        for x_t in x:
            mem = (mem + x_t) * zero
        return 1 / mem

    recorded = ByRecording(loop)
    for zero in zeros:
        same(loop, recorded, currents(), zero)


def test_a_function_that_draws_random_numbers_does_so_at_each_step() -> None:
    net, noisy = Net(), callables.function(lambda x: x + torch.rand_like(x), lambda grad, x: grad)

    def loop(x: Tensor) -> Any:
        return torch.stack([noisy.apply(x[0]) for _ in range(6)]), net(x)

    recorded = ByRecording(loop)
    for _ in range(2):
        assert len(recorded(currents())[0].sum((1, 2)).unique()) == 6


def test_tensors_of_the_caller_that_change_at_each_step() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.BatchNorm1d(12) for _ in range(6)])
            self.lif = snnfast.Leaky(beta=0.9)

        def forward(self, x: Tensor) -> Tensor:
            mem, rec = self.lif.reset_mem(), []
            for norm, x_t in zip(self.norms, x, strict=True):
                spk, mem = self.lif(norm(x_t), mem)
                rec.append(spk)
            return torch.stack(rec)

    net = Normed()
    other = copy.deepcopy(net)
    recorded = ByRecording(net)
    for _ in range(2):
        same(lambda: other(currents(6)), lambda: recorded(currents(6)))
        same(lambda: list(other.buffers()), lambda: list(net.buffers()))


@pytest.mark.parametrize("needs", [False, True], ids=["", "with gradients"])
def test_a_list_of_rows_of_one_tensor_is_merged(needs: bool) -> None:
    def loop(rows: list[Tensor]) -> Tensor:
        mem, out = torch.zeros_like(rows[0]), []
        for x_t in rows:
            mem = 0.8 * mem + x_t * rows[2]
            out.append(mem)
        return torch.stack(out)

    recorded = ByRecording(loop)
    for T in (9, 13):
        given = currents(T).requires_grad_(needs)
        rows = list(given.unbind(0))
        same(loop, recorded, rows)
        if needs:
            found, expected = (torch.autograd.grad(f(rows).square().sum(), given) for f in (recorded, loop))
            torch.testing.assert_close(found, expected)
    (plan,) = recorded.plans
    assert plan.is_general


def test_views_of_rows_of_the_caller_are_views_of_them() -> None:
    def loop(rows: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        mem, views = torch.zeros_like(rows[0]).view(-1), []
        for x_t in rows:
            views.append(x_t.view(-1))
            mem = 0.8 * mem + views[-1].view(-1, 3).view(-1)
        return mem, views

    rows = [row.clone() for row in currents(9)]
    recorded = ByRecording(loop)
    same(loop, recorded, rows)
    assert all(view.data_ptr() == row.data_ptr() for view, row in zip(recorded(rows)[1], rows, strict=True))


class Checkpointed(nn.Module):
    """A loop with a block at each step that is not to keep what its backward pass needs."""

    def __init__(self, around: Callable[..., Any]) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(12))
        self.lif = snnfast.Leaky(beta=0.9)
        self.around = around

    def forward(self, x: Tensor) -> Tensor:
        mem, rec = self.lif.reset_mem(), []
        for x_t in x * 2:
            spk, mem = self.lif(self.around(self.block, x_t + 1), mem)
            rec.append(spk)
        return torch.stack(rec)


@pytest.mark.parametrize("preserve", [True, False], ids=["with random numbers", ""])
def test_a_checkpoint_in_a_loop_computes_again(preserve: bool, recwarn: pytest.WarningsRecorder) -> None:
    net = Checkpointed(lambda block, x: checkpoint(block, x, use_reentrant=False, preserve_rng_state=preserve))
    other = copy.deepcopy(net)
    compiled = snnfast.compile(net)
    for T in (6, 6, 6, 6, 8):
        found, expected = ([t.requires_grad_() for t in currents(T).split(1, 1)][1] for _ in range(2))
        same(other, compiled, torch.cat([found, expected], 1))
        for network, x in ((compiled, found), (other, expected)):
            network(torch.cat([x, x + 1], 1)).sum().backward()
        assert torch.equal(found.grad, expected.grad)
        same(lambda: list(other.buffers()), lambda: list(net.buffers()))
    told = [str(w.message) for w in recwarn if "runs as it is" in str(w.message)]
    assert len(told) == 1
    assert "hooks of saved tensors, such as those of a checkpoint" in told[0]


@pytest.mark.parametrize("layer", [nn.Identity(), snnfast.Leaky(beta=0.8)], ids=["calls", "a neuron"])
def test_hooks_of_saved_tensors_in_a_loop_get_what_its_calls_save(layer: nn.Module) -> None:
    packed: list[torch.Size] = []

    def pack(t: Tensor) -> Tensor:
        packed.append(t.shape)
        return t

    def hooked(block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            found = layer(block(x))
        return found[0] if isinstance(found, tuple) else found

    net = Checkpointed(hooked).eval()
    net.layer = layer
    seen: list[Any] = []
    found: list[Tensor] = []
    compiled = snnfast.compile(net)
    for function in (net, compiled, compiled, compiled, compiled):
        snnfast.reset(net)
        packed.clear()
        found.append(function(currents(7)))
        torch.testing.assert_close(found[-1], found[0])
        seen.append(list(packed))
    assert seen[0]
    assert all(shapes == seen[0] for shapes in seen)


def test_a_function_without_a_loop_is_recorded_three_times_at_most() -> None:
    def plain(x: Tensor) -> Tensor:
        return x.relu() + 1

    recorded = ByRecording(plain)
    for _ in range(2):
        same(plain, recorded, currents())
    with pytest.warns(
        UserWarning, match="a function runs as it is, without a recorder: there is no step of a neuron in it"
    ):
        recorded(currents())
    same(plain, recorded, currents())


def test_nested_and_beside_torch_compile() -> None:
    inner, outer = Net(), Net()
    expected = outer(currents())[0]
    snnfast.compile(inner)

    def both(x: Tensor) -> Tensor:
        return inner(x)[0] + outer(x)[0]

    torch.testing.assert_close(ByRecording(both)(currents()), inner(currents())[0] + expected)
    torch.testing.assert_close(torch.compile(both, backend="eager")(currents()), inner(currents())[0] + expected)


@pytest.mark.parametrize("fullgraph", [False, True], ids=["parts", "fullgraph"])
@pytest.mark.parametrize("of", ["function", "module", "method"])
def test_a_part_that_is_given_to_torch_compile_is_recorded(
    of: str, fullgraph: bool, recwarn: pytest.WarningsRecorder
) -> None:
    class Part(nn.Module):  # older PyTorch compiles no container by its method
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).tanh()

    seen, fc = [], Part()

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.append(graph)
        return graph.forward

    part: Any = (lambda x: fc(x)) if of == "function" else fc
    if of == "method":
        part.compile(backend=backend, fullgraph=fullgraph)
    else:
        part = torch.compile(part, backend=backend, fullgraph=fullgraph)

    def loop(x: Tensor) -> tuple[Tensor, Tensor]:
        mem, rec = x.new_zeros(x.shape[1], 4), []
        for x_t in x:
            mem = 0.9 * mem + part(x_t)
            spk = torch.sigmoid(4 * (mem - 0.5))
            mem = mem - spk
            rec.append(spk)
        return torch.stack(rec), mem

    recorded = ByRecording(loop)
    expected = recorded(currents())
    assert not seen
    assert not isinstance(recorded.plans[0], str)  # which would say why there is none
    torch.testing.assert_close(expected, loop(currents()))
    assert len(seen) == 1  # in the loop it is compiled as before
    assert not recwarn.list


def charged(mem: Tensor, x: Tensor) -> Tensor:
    return mem + (x - mem) / 2.0


class Charge(nn.Module):
    def forward(self, mem: Tensor, x: Tensor) -> Tensor:
        return mem + (x - mem) / 2.0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "made", [lambda: torch.jit.script(charged), lambda: torch.jit.script(Charge())], ids=["function", "module"]
)
def test_what_torchscript_runs_gets_values(made: Callable[[], Any]) -> None:
    """Its interpreter reads an argument several times."""
    charge = made()

    def loop(x: Tensor) -> tuple[Tensor, Tensor]:
        mem, rec = torch.zeros_like(x[0]), []
        for x_t in x:
            mem = charge(mem * 1.0, x_t * 2.0)
            spk = torch.sigmoid(4 * (mem - 0.5))
            mem = mem - spk
            rec.append(spk)
        return torch.stack(rec), mem

    compiled = snnfast.compile(loop)
    x = currents().requires_grad_()
    for _ in range(4):
        same(loop, compiled, x)
        torch.testing.assert_close(*(torch.autograd.grad(f(x)[0].sum(), x) for f in (compiled, loop)))


@pytest.mark.parametrize("states", [3, 9])
def test_states_that_a_first_step_apart_takes_from_one_tensor_are_its_own(states: int) -> None:
    """A loop of three calls within a step is no step of the loop around it, and nine states are no nine steps."""

    def loop(x: Tensor, state: Tensor) -> list[Tensor]:
        mem, record = torch.zeros_like(state[0]), []
        for t in range(x.shape[0]):
            u, v, w = [state[i] for i in range(states)][-3:]
            if t > 0:
                w = torch.sigmoid(w) * x[t]
            u = torch.sigmoid(u) + v * 3
            mem = mem * 0.5 + torch.tanh(u - 1.0) * w
            record.append(mem)
        return record

    recorded = ByRecording(loop)
    for T in (9, 12):
        x, state = currents(T), currents(states)
        assert [torch.equal(a, b) for a, b in zip(recorded(x, state), loop(x, state), strict=True)] == [True] * T
    assert not [plan for plan in recorded.plans if isinstance(plan, str)]
