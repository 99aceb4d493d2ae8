"""What runs late sees what the loop saw: a call waits only if all that it reads and writes is seen until then."""

import contextlib
import gc
import multiprocessing
import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, get_rng_state, manual_seed, nn, set_rng_state
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, Dataset
from torch.utils.weak import WeakTensorKeyDictionary

import snnfast
from snnfast import surrogate

pytestmark = [pytest.mark.needs_extension, pytest.mark.filterwarnings("ignore:.*runs as it is")]


def assert_same(loop: Callable[..., Any], *args: Any, calls: int = 3) -> None:
    """A recorded function returns what the loop does, at each call."""
    compiled = snnfast.compile(loop)
    for _ in range(calls):
        found, wanted = compiled(*args), loop(*args)
        torch.testing.assert_close(found, wanted)


def lif(x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
    mem = 0.9 * mem + x
    spk = snnfast.spike(mem - 1, surrogate.atan())
    return spk, mem - spk


# ---- memory that others see


class Environment:
    """It gives out one array, which it fills again at each step."""

    def __init__(self, make: Callable[[np.ndarray], Tensor]) -> None:
        self.seen, self.make = np.zeros((1, 4), np.float32), make

    def step(self, t: int) -> Tensor:
        self.seen[:] = 0
        self.seen[0, t % 4] = 1.0 + t
        return self.make(self.seen)


SHARING = {
    "from_numpy": torch.from_numpy,
    "as_tensor": torch.as_tensor,
    "frombuffer": lambda a: torch.frombuffer(a.data, dtype=torch.float32).view(1, 4),
    "a view": lambda a: torch.from_numpy(a)[0][None],
    "dlpack": torch.from_dlpack,
}


@pytest.mark.parametrize("make", SHARING.values(), ids=SHARING)
def test_an_array_that_is_filled_again_is_read_as_it_was(make: Any) -> None:
    def loop() -> Tensor:
        env, mem, rec = Environment(make), torch.zeros(1, 4), []
        for t in range(8):
            spk, mem = lif(env.step(t) * 1.2, mem)
            rec.append(spk)
        return torch.stack(rec)

    assert_same(loop)


def test_a_tensor_that_an_array_fills_is_read_as_it_was() -> None:
    x = torch.zeros(2, 3)
    array = x.numpy()

    def loop() -> Tensor:
        mem = torch.zeros(2, 3)
        for t in range(6):
            array[:] = t
            _, mem = lif(x, mem)
        return mem

    assert_same(loop)


def test_parameters_that_numpy_changes_are_read_as_they_were_and_get_gradients() -> None:
    def run(compiled: bool) -> list[Tensor]:
        torch.manual_seed(0)
        fc = nn.Linear(3, 3)
        weight = fc.weight.detach().numpy()

        def loop(x: Tensor) -> Tensor:
            mem = torch.zeros(2, 3)
            for t in range(6):
                _, mem = lif(fc(x[t]), mem)
                weight[0] += 0.5
            return mem

        f = snnfast.compile(loop) if compiled else loop
        found = []
        for _ in range(3):
            mem = f(torch.ones(6, 2, 3))
            found += [mem.detach().clone(), *torch.autograd.grad(mem.sum(), list(fc.parameters()))]
        return found

    torch.testing.assert_close(run(True), run(False))


@pytest.mark.parametrize("show", [Tensor.numpy, np.from_dlpack, np.asarray])
def test_an_array_sees_what_a_loop_writes_to_its_tensor(show: Callable[[Tensor], Any]) -> None:
    def loop(x: Tensor) -> list[Any]:
        action = torch.zeros(4)
        shown, mem, seen = show(action), torch.zeros(1, 4), []
        for t in range(len(x)):
            spk, mem = lif(x[t], mem)
            action.copy_(spk[0])
            seen.append(shown.copy().tolist())
        return seen

    assert_same(loop, torch.full((6, 1, 4), 0.7))


def _writes_a_row(w: Tensor, x: Tensor) -> Tensor:
    w[0] = x.sum(0)
    return x


# The version of a tensor tells of none of them, and they return another one.
UNCOUNTED = {
    "a row in inference mode": (torch.inference_mode, _writes_a_row),
    "batch norm": (torch.enable_grad, lambda w, x: F.batch_norm(x, w[0], w[1], training=True)),
    "batch norm in inference mode": (torch.inference_mode, lambda w, x: F.batch_norm(x, w[0], w[1], training=True)),
    "instance norm": (torch.inference_mode, lambda w, x: F.instance_norm(x.T[None], w[0], w[1])[0].T),
}


@pytest.mark.parametrize(("mode", "write"), UNCOUNTED.values(), ids=UNCOUNTED)
def test_an_array_sees_what_no_version_tells(mode: Any, write: Callable[[Tensor, Tensor], Tensor]) -> None:
    def loop(x: Tensor) -> Any:
        w, mem, told = torch.ones(2, 3), torch.zeros(2, 3), []
        array = w.numpy()
        for t in range(len(x)):
            mem = 0.9 * mem + write(w, x[t])
            told.append(array.tolist())
        return mem, told

    with mode():
        assert_same(loop, torch.rand(6, 2, 3))


def test_large_outputs_of_our_kernels_are_our_own() -> None:
    from snnfast.compiler.record.waiting import is_shared

    mem = snnfast.Leaky(beta=0.9).unroll(torch.ones(25, 128, 100))[1]
    assert not mem.untyped_storage().resizable()
    assert not is_shared(mem)
    assert is_shared(torch.from_numpy(np.zeros(3)))


# ---- other threads and processes


def _look(by: Any) -> Callable[[Tensor], float]:
    """A function that lets another thread read a tensor."""
    if by == "executor":
        pool = ThreadPoolExecutor(1)
        return lambda t: pool.submit(lambda: t.sum().item()).result()
    todo: queue.Queue[Any] = queue.Queue()

    def reader() -> None:
        while True:
            t, seen, done = todo.get()
            seen.append(t.sum().item())
            done.set()

    threading.Thread(target=reader, daemon=True).start()

    def look(t: Tensor) -> float:
        seen: list[float] = []
        done = threading.Event()
        todo.put((t, seen, done))
        assert done.wait(20)
        return seen[0]

    return look


@pytest.mark.parametrize("by", ["queue", "executor"])
def test_another_thread_sees_what_a_loop_has_written(by: Any) -> None:
    look = _look(by)

    def loop(x: Tensor) -> list[float]:
        count, mem, seen = torch.zeros(1), torch.zeros(2, 3), []
        for t in range(len(x)):
            spk, mem = lif(x[t], mem)
            count.add_(spk.sum())
            seen.append(look(count))
        return seen

    with torch.no_grad():
        assert_same(loop, torch.ones(5, 2, 3) * 0.6)


def test_results_may_be_given_to_a_compiled_network_in_another_thread() -> None:
    inner = snnfast.compile(lambda h: torch.stack([torch.full((2, 3), float(t)) * 1 + a for t, a in enumerate(h)]))

    def loop(x: Tensor) -> Tensor:
        h = [x[t] * 0.5 for t in range(len(x))]
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(inner, h).result()

    assert_same(loop, torch.ones(6, 2, 3))


def test_a_compiled_function_may_wait_for_threads_that_call_it() -> None:
    layer = snnfast.Leaky(beta=0.9)

    def run(x: Tensor) -> Tensor:
        if x.shape[1] > 4:
            with ThreadPoolExecutor(2) as pool:
                return torch.cat(list(pool.map(compiled, x.split(4, 1))), 1)
        mem, rec = layer.reset_mem(), []
        for t in range(len(x)):
            spk, mem = layer(x[t], mem)
            rec.append(spk)
        return torch.stack(rec)

    compiled, found = snnfast.compile(run), []
    worker = threading.Thread(target=lambda: found.append(compiled(torch.ones(6, 8, 3))), daemon=True)
    worker.start()
    worker.join(60)
    assert found, "it hangs"
    torch.testing.assert_close(found[0][:, :4], run(torch.ones(6, 4, 3)))


class Numbers(Dataset[Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Tensor:
        return torch.full((6, 3), float(i + 1)) * 0.1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_loader_may_fork_its_workers_inside() -> None:
    def epoch() -> list[float]:
        found = []
        for x in DataLoader(Numbers(), batch_size=2, num_workers=1):
            mem = torch.zeros(2, 3)
            for t in range(6):
                _, mem = lif(x[:, t], mem)
            found.append(mem.sum().item())
        return found

    assert_same(epoch)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_process_that_is_forked_in_the_middle_computes_at_once() -> None:
    context = multiprocessing.get_context("fork")

    def child(mem: Tensor, answers: Any) -> None:
        answers.put((mem * 2).sum().item())

    def loop() -> float:
        mem = torch.zeros(3)
        for t in range(4):
            mem = mem + t
        answers = context.Queue()
        process = context.Process(target=child, args=(mem, answers))
        process.start()
        found = answers.get(timeout=30)
        process.join()
        return found

    assert_same(loop)


# ---- random numbers


def _by_name(t: int) -> None:
    manual_seed(t)


def _by_generator(t: int) -> None:
    torch.default_generator.manual_seed(t)


def _by_the_same_seed(t: int) -> None:
    manual_seed(0)


def _by_state(t: int) -> None:
    set_rng_state(STATE)


def _in_a_fork(t: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(t)


STATE = torch.random.get_rng_state()
SEEDS = {f.__name__: f for f in (_by_name, _by_generator, _by_the_same_seed, _by_state)}


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_random_numbers_are_drawn_before_another_seed_is_set(seed: Callable[[int], None]) -> None:
    def loop(x: Tensor) -> Tensor:
        mem = torch.zeros(5)
        for t in range(6):
            seed(t)
            mem = 0.9 * mem + x[t] * torch.rand(5)
        return mem

    assert_same(loop, torch.ones(6, 5))


def test_a_state_that_was_read_by_name_gives_the_same_numbers_again() -> None:
    def loop(x: Tensor) -> Tensor:
        mem = torch.zeros(5)
        for t in range(6):
            torch.rand(3)
            state = get_rng_state()
            a = torch.rand(5)
            set_rng_state(state)
            mem = mem + (torch.rand(5) - a) * x[t]
        return mem

    assert snnfast.compile(loop)(torch.ones(6, 5)).abs().max() == 0


def test_draws_leave_the_generator_as_after_draws_from_the_programs_seed() -> None:
    def loop(x: Tensor) -> Tensor:
        mem = torch.zeros(4)
        for t in range(6):
            _, mem = lif(x[t] * torch.rand(4), mem)
        return mem

    compiled, states = snnfast.compile(loop), []
    compiled(torch.ones(6, 4))
    for _ in range(3):
        torch.manual_seed(3)
        compiled(torch.ones(6, 4))
        assert torch.initial_seed() == 3
        states.append(torch.get_rng_state())
    assert torch.equal(states[-1], states[-2])
    assert not torch.equal(states[-1], torch.Generator().manual_seed(3).get_state())


# ---- modes


class Doubled(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        return found * 2 if func is F.linear else found


def test_a_mode_of_the_caller_sees_each_call_once() -> None:
    fc = nn.Linear(3, 3)

    def loop(x: Tensor) -> Tensor:
        mem = torch.zeros(2, 3)
        for t in range(len(x)):
            _, mem = lif(fc(x[t]), mem)
        return mem

    with Doubled(), torch.no_grad():
        assert_same(loop, torch.ones(6, 2, 3) * 0.1)


def test_a_default_dtype_that_changes_inside_is_that_of_each_call() -> None:
    def loop(x: Tensor) -> Tensor:
        mem, rec = torch.zeros(3), []
        for t in range(len(x)):
            mem = 0.9 * mem + x[t]
            torch.set_default_dtype(torch.float64)
            try:
                w = torch.full((3,), 0.1)
            finally:
                torch.set_default_dtype(torch.float32)
            rec.append(mem.double() * w + torch.ones(3) * 0.1)
        return torch.stack(rec)

    assert_same(loop, torch.ones(6, 3))


def test_forward_mode_may_be_used_inside() -> None:
    def loop(x: Tensor) -> Tensor:
        with forward_ad.dual_level():
            d, mem = forward_ad.make_dual(x, torch.ones_like(x)), torch.zeros(3)
            for t in range(len(x)):
                mem = torch.tanh(0.9 * mem + d[t])
            tangent = tuple(forward_ad.unpack_dual(mem))[1]
        rest = torch.zeros(3)
        for t in range(len(x)):
            rest = 0.5 * rest + x[t]
        return tangent + rest

    assert_same(loop, torch.ones(6, 3))


def test_a_state_of_inference_mode_may_begin_a_call_that_trains() -> None:
    def loop(x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        rec = []
        for t in range(len(x)):
            spk, mem = lif(x[t], mem)
            rec.append(spk)
        return torch.stack(rec), mem

    compiled, grads = snnfast.compile(loop), []
    for f in (loop, compiled):
        with torch.inference_mode():
            _, mem = f(torch.ones(6, 2, 3), torch.zeros(2, 3))
        x = torch.ones(6, 2, 3, requires_grad=True)
        f(x, mem)[0].sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[0], grads[1])


# ---- weak references, attributes, types


def test_weak_references_die_with_their_tensors() -> None:
    def loop(x: Tensor, memo: Any) -> tuple[Tensor, list[Any]]:
        mem, rec, refs = torch.zeros_like(x[0]), [], []
        for t in range(len(x)):
            mem = 0.9 * mem + x[t]
            refs.append(weakref.ref(mem))
            if mem not in memo:
                memo[mem] = float(t)
            rec.append(mem * memo[mem])
        return torch.stack(rec), refs

    compiled, memo, ours = snnfast.compile(loop), WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
    for call in range(4):
        x = torch.ones(4 + call, 2)
        (wanted, _), (found, refs) = loop(x, memo), compiled(x, ours)
        torch.testing.assert_close(found, wanted)
        gc.collect()
        assert all(ref() is None for ref in refs)


@pytest.mark.parametrize("name", ["address", "like", "recorder", "tag"])
def test_a_program_may_set_any_attribute_of_a_result(name: str) -> None:
    def loop(x: Tensor) -> tuple[Tensor, str]:
        mem = torch.zeros_like(x[0])
        for t in range(len(x)):
            mem = 0.9 * mem + x[t]
            setattr(mem, name, f"layer/{t}")
        return mem * 2, getattr(mem, name)

    assert snnfast.compile(loop)(torch.ones(6, 2))[1] == "layer/5"


@pytest.mark.parametrize("kind", [nn.Parameter, nn.Buffer])
def test_a_parameter_that_is_made_inside_has_its_type(kind: Any) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not hasattr(self, "w"):
                self.w = kind(torch.ones(x.shape[-1]))
            mem = torch.zeros(2, 3)
            for x_t in x:
                _, mem = lif(x_t * self.w, mem)
            return mem

    net = snnfast.compile(Net())
    net(torch.ones(5, 2, 3))
    assert isinstance(net.w, kind)
    assert type(net.w) is (nn.Parameter if kind is nn.Parameter else type(nn.Buffer(torch.ones(1))))


def test_errors_of_python_name_a_result_a_tensor() -> None:
    def loop(x: Tensor) -> Any:
        return divmod(x[0] * 1, "1")

    with pytest.raises(TypeError, match="'Tensor' and 'str'"):
        snnfast.compile(loop)(torch.ones(3))


# ---- errors that depend on values


class Sums(nn.Module):
    """It holds a state, and takes labels."""

    def __init__(self) -> None:
        super().__init__()
        self.mem = torch.zeros(2, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss, mem = torch.zeros(()), self.mem.detach()
        for t in range(len(x)):
            _, mem = lif(x[t], mem)
            loss = loss + F.cross_entropy(mem, y[t], ignore_index=-1)
            self.mem = mem
        return loss


def outcome(f: Callable[..., Any], *args: Any) -> Any:
    try:
        return float(f(*args))
    except Exception as error:
        return type(error), str(error)


def test_after_an_error_that_the_caller_catches_a_network_goes_on_as_its_loop() -> None:
    loop, net = Sums(), snnfast.compile(Sums())
    x, good = torch.ones(6, 2, 5), torch.zeros(6, 2, dtype=torch.long)
    corrupt, padded = good.clone(), good.clone()
    corrupt[3, 1], padded[4, 0] = 7, -1
    for y in (good, corrupt, good, padded, good):
        found, wanted = outcome(net, x, y), outcome(loop, x, y)
        assert found == (pytest.approx(wanted, rel=1e-5) if isinstance(wanted, float) else wanted)
    assert any(not isinstance(plan, str) for plan in _plans(net))


def _plans(net: nn.Module) -> list[Any]:
    call: Any = net._compiled_call_impl
    cells = {name: cell.cell_contents for name, cell in zip(call.__code__.co_freevars, call.__closure__, strict=True)}
    return cells["call"]._recorded.plans  # type: ignore[no-any-return]


TABLE, LABELS = torch.ones(3, 2), torch.tensor([0, 1, 2, 3, 1])
RAISES = {
    "embedding": lambda x, i: F.embedding(i, TABLE).sum(),
    "index": lambda x, i: TABLE[i].sum(),
    "gather": lambda x, i: TABLE.gather(0, i[None, None].expand(1, 2)).sum(),
    "index_select": lambda x, i: TABLE.index_select(0, i[None]).sum(),
    "cross_entropy": lambda x, i: F.cross_entropy(TABLE[:1].repeat(1, 1), i[None]),
    "scatter": lambda x, i: torch.zeros(3).scatter(0, i[None], 1.0).sum(),
    "cholesky": lambda x, i: torch.linalg.cholesky((2 - i.float()) * torch.eye(2)).sum(),
    "inv": lambda x, i: torch.linalg.inv((1 - i.float()) * torch.eye(2)).sum(),
    "division": lambda x, i: (torch.tensor(7) // i).float(),
    "bernoulli": lambda x, i: torch.bernoulli(i.float()[None]).sum() * 0,
    "a computed index": lambda x, i: TABLE[(i + (x[0] * 0).long())].sum(),
    "multinomial": lambda x, i: torch.multinomial((2 - i.float())[None].expand(2), 1).sum() * 0,
}


@pytest.mark.parametrize("call", RAISES.values(), ids=RAISES)
@pytest.mark.parametrize("how", ["try", "finally", "suppress"])
def test_an_error_comes_in_its_try(call: Any, how: str) -> None:
    def guarded(x: Tensor) -> tuple[Tensor, list[int]]:
        mem, bad = torch.zeros(3), []
        for t in range(len(x)):
            mem = 0.9 * mem + x[t]
            if how == "suppress":
                with contextlib.suppress(Exception):
                    bad.append(t)
                    mem = mem + call(mem, LABELS[t])
                    bad.pop()
                continue
            try:
                mem = mem + call(mem, LABELS[t])
            except (RuntimeError, IndexError):
                bad.append(t)
            finally:
                mem = mem * 1.0
        return mem, bad

    if how == "finally":

        def loop(x: Tensor) -> Any:
            seen = []
            try:
                for t in range(len(x)):
                    seen.append(float(call(x[t], LABELS[t])) * 0)
            finally:
                assert len(seen) <= len(x)
            return guarded(x)

        found, wanted = (outcome(lambda f=f: f(torch.ones(5, 3))[0].sum()) for f in (snnfast.compile(loop), loop))
        assert found == wanted
    assert_same(guarded, torch.ones(5, 3))


def test_an_error_that_no_try_catches_is_the_loops() -> None:
    def loop(x: Tensor, i: Tensor) -> Tensor:
        mem = torch.zeros(3)
        for t in range(len(x)):
            mem = 0.9 * mem + x[t] + F.one_hot((mem.sum() * 0).long() + i[t], 3)
        return mem

    x, good = torch.ones(6, 3), torch.zeros(6, dtype=torch.long)
    compiled = snnfast.compile(loop)
    for i in (good, good, good + 5, good):
        assert outcome(lambda i=i: compiled(x, i).sum()) == outcome(lambda i=i: loop(x, i).sum())


@torch.library.custom_op("snnfast_waiting::checked", mutates_args=())
def checked(x: Tensor) -> Tensor:
    """An operator of somebody else, of which nobody knows when it raises."""
    if x.max() > 5:
        raise IndexError("a number is out of range")
    return x.clone()


@checked.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_a_state_that_was_not_computed_says_so() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mem = torch.zeros(3)

        def forward(self, x: Tensor, scale: float) -> Tensor:
            for t in range(len(x)):
                self.mem = 0.9 * self.mem + checked(x[t] * scale)
            return self.mem * 1

    net = snnfast.compile(Net())
    net(torch.ones(6, 3), 1.0)
    with pytest.raises(IndexError, match="a number is out of range"):
        net(torch.ones(6, 3), 9.0)
    with pytest.raises(RuntimeError, match=r"was not computed, because a call before it .* failed \(IndexError.*anew"):
        net(torch.ones(6, 3), 1.0)
    net.mem = torch.zeros(3)
    net(torch.ones(6, 3), 1.0)


def test_buffers_and_random_numbers_are_the_loops_after_a_graph_that_fails() -> None:
    def run(compiled: bool) -> list[Any]:
        torch.manual_seed(0)
        norm = nn.BatchNorm1d(3)

        def loop(x: Tensor, scale: float) -> Tensor:
            mem = torch.zeros(2, 3)
            for t in range(len(x)):
                _, mem = lif(norm(x[t]) + F.dropout(x[t], 0.5) * 0, mem)
            return mem + checked(x[0] * scale)

        f = snnfast.compile(loop) if compiled else loop
        found: list[Any] = []
        x = torch.arange(36.0).view(6, 2, 3) / 36
        for scale in (1.0, 1.0, 200.0, 1.0):
            torch.manual_seed(1)
            found.append(outcome(lambda scale=scale: f(x, scale).sum()) if scale > 1 else f(x, scale).detach())
            found += [norm.running_mean.clone(), int(norm.num_batches_tracked)]
        return found

    for a, b in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(a, b) if isinstance(a, Tensor) else None
        assert isinstance(a, Tensor) or a == b


WRITES = {
    "a view": lambda w, x: w[0].add_(x.sum(0)),
    "a view of a view": lambda w, x: w.view(6)[:3].add_(x.sum(0)),
    "a row": _writes_a_row,
    "statistics": lambda w, x: F.batch_norm(x, *w.unbind(), training=True),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_was_written_to_is_the_loops_after_a_graph_that_fails(write: Callable[[Tensor, Tensor], Any]) -> None:
    def run(compiled: bool) -> list[Any]:
        w, x, found = torch.ones(2, 3), torch.arange(36.0).view(6, 2, 3) / 36, list[Any]()

        def loop(scale: Tensor) -> Tensor:
            mem = torch.zeros(2, 3)
            for t in range(len(x)):
                write(w, x[t])
                _, mem = lif(F.dropout(x[t], 0.5) * 0 + w[0], mem)
            return checked(mem * 0 + scale)

        f = snnfast.compile(loop) if compiled else loop
        for scale in (1.0, 1.0, 200.0, 1.0):
            found += [outcome(lambda scale=scale: f(torch.tensor(scale)).sum()), w.clone()]
        return found

    for a, b in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(a, b) if isinstance(a, Tensor) else None
        assert isinstance(a, Tensor) or a == b


def test_whole_numbers_that_a_call_is_known_to_give_need_no_check() -> None:
    def loop(x: Tensor) -> Tensor:
        mem, rec = torch.zeros(2, 5), []
        for t in range(len(x)):
            spk, mem = lif(x[t], mem)
            rec.append(torch.zeros(2, 5).scatter(1, mem.argmax(1, keepdim=True), 1.0) + spk)
        return torch.stack(rec)

    compiled = snnfast.compile(loop)
    x = torch.rand(6, 2, 5)
    torch.testing.assert_close(compiled(x), loop(x))
    assert "scatter" in str(snnfast.explain(loop, x))


def test_an_error_of_values_comes_in_its_try_in_inference_mode() -> None:
    def guarded(x: Tensor) -> tuple[Tensor, list[int]]:
        mem, bad = torch.zeros(3), []
        for t in range(len(x)):
            mem = 0.9 * mem + x[t]
            try:
                mem = mem + F.cross_entropy(mem[None], LABELS[t][None])
            except IndexError:
                bad.append(t)
        return mem, bad

    with torch.inference_mode():
        assert_same(guarded, torch.ones(5, 3))


def test_an_index_that_the_loop_changes_is_checked_where_it_is_read() -> None:
    def loop(x: Tensor, i: Tensor) -> tuple[Tensor, list[int]]:
        mem, bad = torch.zeros(3), []
        for t in range(len(x)):
            i[t % 2 :].add_(1)
            try:
                mem = 0.9 * mem + x[t] + TABLE[i[t]].sum()
            except IndexError:
                bad.append(t)
        return mem, bad

    compiled = snnfast.compile(loop)
    for _ in range(3):
        found, wanted = (f(torch.ones(6, 3), torch.zeros(6, dtype=torch.long)) for f in (compiled, loop))
        torch.testing.assert_close(found, wanted)


# ---- time and memory


def _frames(count: int) -> Iterator[Tensor]:
    return (torch.ones(1 << 18) for _ in range(count))  # 1 MiB each


def test_a_stream_without_gradients_is_not_kept() -> None:
    held: list[Any] = []

    def loop(stream: Iterator[Tensor]) -> Tensor:
        mem, total, most = torch.zeros(4), torch.zeros(4), 0
        for x in stream:
            held.append(weakref.ref(x))
            mem = 0.9 * mem + x[:4]
            total = total + torch.tanh(mem)
            most = max(most, sum(ref() is not None for ref in held))
        return total * most / most, most  # type: ignore[return-value]

    class Stream:
        def __iter__(self) -> Iterator[Tensor]:
            for _ in range(60):
                with snnfast._core.pytorch.unrecorded():  # as frames of another library are
                    frame = torch.ones(1 << 18)
                yield frame

    compiled = snnfast.compile(loop)
    with torch.no_grad():
        found, most = compiled(Stream())
        held.clear()
        torch.testing.assert_close(found, loop(Stream())[0])
    assert most <= 20


def test_results_that_nobody_holds_are_used_again_in_a_long_loop() -> None:
    made: list[int] = []

    def loop(x: Tensor) -> Tensor:
        mem = torch.zeros(3)
        for t in range(len(x)):
            mem = torch.tanh(0.9 * mem + x[t])
            if t % 500 == 0:
                made.append(sum(type(o).__name__ == "Tensor" and "later_like" in o.__dict__ for o in _later()))
        return mem

    def _later() -> list[Any]:
        from snnfast.compiler.record.later import Later

        return [o for o in gc.get_objects() if type(o) is Later]

    before = len(_later())
    with torch.no_grad():
        assert_same(loop, torch.ones(3000, 3), calls=1)
    assert max(made) < before + 4000


def test_numbers_and_shapes_that_change_leave_no_more_memory() -> None:
    layer = snnfast.Leaky(beta=0.9)

    def loop(x: Tensor, scale: float) -> Tensor:
        mem = layer.reset_mem()
        for t in range(len(x)):
            _, mem = layer(torch.clamp(torch.tanh(x[t] * scale), -scale, scale), mem)
        return mem

    compiled, marks = snnfast.compile(loop), []
    for i in range(1200):
        compiled(torch.ones(4 + i % 3, 2, 3 + i % 40), 1.0 + i * 1e-4)
        if i % 300 == 299:
            gc.collect()
            marks.append(len(gc.get_objects()))
    assert marks[-1] - marks[0] < 0.1 * marks[0]


# ---- what is known of tensors


@pytest.mark.parametrize("write", ["add_", "setitem", "narrow"])
def test_a_change_of_a_view_lets_all_of_its_base_require_a_gradient(write: str) -> None:
    layer = snnfast.Leaky(beta=0.9)

    def loop(x: Tensor) -> tuple[Tensor, bool]:
        filled, mem, rec, held = (
            torch.full((3, 2), 0.5, dtype=x.dtype),
            torch.zeros(2, dtype=x.dtype),
            [],
            layer.reset_mem(),
        )
        for t in range(3):
            mem = 0.9 * mem + x[t]
            if write == "add_":
                filled[t].add_(mem)
            elif write == "setitem":
                filled[t, :] = 0.5 + mem
            else:
                filled.narrow(0, t, 1).view(2).add_(mem)
        for row in filled:
            spk, held = layer(row, held)
            rec.append(spk)
        return torch.stack(rec), filled.requires_grad

    compiled, x, found = snnfast.compile(loop), torch.rand(3, 2, dtype=torch.float64) + 0.3, []
    for f in (loop, compiled, compiled):
        x.requires_grad_()
        spk, requires = f(x)
        assert requires
        found.append(torch.autograd.grad(spk.sum(), x)[0])
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])
