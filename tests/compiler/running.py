"""A program with a loop over time, run as it is and compiled, for the random programs and for those of the registry."""

import gc
import linecache
import logging
import re
import signal
import sys
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # as pytest has it
sys.path.insert(0, str(Path(__file__).parents[1]))
import snntorch
import torch
from internals import AnySteps, ByRecording, Reading, Replays, stages
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

import snnfast.snntorch
from benchmarks.collection.comparison import TOLERANCES, Seen, difference, gradients, leaves, seen
from snnfast._core.backend import current_backend
from snnfast.spikingjelly.neuron import BaseNode

STATES = ("syn_exc", "syn_inh", "syn", "mem", "v", "v_seq")  # the last two of a node of SpikingJelly
LEFT_OUT = ("raises without a compiler", "wrong without snnfast")
REPLAYED = 7  # so many calls alike, and the last ones are replayed
SLOWEST = "slowest first call, ms of CPU time"
FIRST_CALL = 10.0  # seconds of CPU time, in which the first call that is recorded should have returned
CAUGHT = (RuntimeError, IndexError)
# A write that autograd is not told of: which gradient is right depends on what a layer keeps for its backward pass.
UNSEEN = re.compile(r"\.data(\.\w+_\(|\[[^]]*\] .?= | .= )")
# As the random programs have them, for one that is written by hand.
SETTINGS = {
    "number": 0, "dtype": "float64", "train": True, "grad": True, "x_grad": True, "leaf": True, "held_in_loss": False,
    "carries": False, "same_input": False, "strided_input": False,
}  # fmt: skip
# What may be around the forward pass, the backward pass or both.
AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "": nullcontext,
    "checkpoint": nullcontext,
    "anomaly": partial(torch.autograd.detect_anomaly, check_nan=False),
    # A copy: PyTorch does not notice that what a hook returned was changed in place.
    "hooks": partial(torch.autograd.graph.saved_tensors_hooks, lambda t: t.detach().clone(), lambda t: t),
}

# It flushes the caches of the processor to measure the guards, which takes a sixth of the time of a program.
torch._dynamo.guards.profile_guard_manager = lambda *args: 0.0


class OutOfTimeError(BaseException):
    """No program catches it."""


@contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Raise an error after so many seconds. The clock is on the wall: a program that hangs uses no processor."""

    def stop(*args: Any) -> None:
        raise OutOfTimeError

    usual = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)  # again, where what is left has to be run in vain
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)


@contextmanager
def counted(owner: Any, name: str) -> Iterator[list[int]]:
    """Count the calls of a method that return something."""
    usual, count = getattr(owner, name), [0]

    def method(*args: Any) -> Any:
        found = usual(*args)
        count[0] += found is not None
        return found

    setattr(owner, name, method)
    try:
        yield count
    finally:
        setattr(owner, name, usual)


def told(value: Any) -> Any:
    """Something that a program returns, by its value: which references are alive, and what was raised."""
    if isinstance(value, weakref.ref):
        return "alive" if value() is not None else "dead"
    if isinstance(value, BaseException):
        # The last words may name a line of PyTorch.
        return f"{type(value).__name__}: {str(value)[:20]}"
    return value


def detached(value: Any) -> Any:
    """A state, which may be a number yet, or ``None``."""
    return value.detach() if isinstance(value, Tensor) else value


class Run:
    """A network of a program, and its calls.

    ``made``: the network, of the module that its layers come from. ``drawn``: with weights that let most layers spike,
    and in float32 of numbers whose sums are exact.
    """

    def __init__(
        self, made: Callable[[Any], nn.Module], settings: dict[str, Any], unseen: bool = False, drawn: bool = True,
        device: torch.device | str = "cpu", beside: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """``beside``: what else the program has: functions ``between`` and ``around``."""
        self.settings, self.unseen, self.drawn, self.device = settings, unseen, drawn, device
        self.between, self.around = ((beside or {}).get(name) for name in ("between", "around"))
        self.dtype = getattr(torch, settings["dtype"])
        self.random = torch.Generator().manual_seed(settings["number"])
        torch.manual_seed(settings["number"])
        self.net = made(snnfast.snntorch).to(device, self.dtype).train(settings["train"])
        neurons = (snntorch.SpikingNeuron, BaseNode)
        self.layers = {n: m for n, m in self.net.named_modules() if isinstance(m, neurons)}
        self.carried: Any = None
        self.calls = 0
        if drawn:
            self._draw_weights()

    @classmethod
    def of(cls, source: str) -> "Run":
        name = f"<program {abs(hash(source))}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # for tracebacks and dynamo
        names: dict[str, Any] = {"__name__": name}
        exec(compile(source, name, "exec"), names)
        return cls(names["Net"], names["SETTINGS"], UNSEEN.search(source) is not None, beside=names)

    def _uniform(self, shape: Sequence[int], low: float, high: float, eighths: bool = True) -> Tensor:
        t = torch.rand(tuple(shape), generator=self.random, dtype=torch.float64) * (high - low) + low
        eighths &= self.drawn and self.dtype == torch.float32
        return ((t * 8).round() / 8 if eighths else t).to(self.device, self.dtype)

    def _seed(self, n: int) -> None:
        self.random.manual_seed((self.settings["number"] + 1) * 100 + n)

    @torch.no_grad()
    def _draw_weights(self) -> None:
        for name, module in self.net.named_modules():
            if name in self.layers:
                continue
            for parameter_name, p in module.named_parameters(recurse=False):
                if p.dim() < 2:
                    low, high = (-0.1, 0.5) if parameter_name.startswith("bias") else (0.5, 1.5)
                else:
                    low, high = (x / p[0].numel() ** 0.5 for x in (-1.2, 2.4))
                p.copy_(self._uniform(p.shape, low, high))

    def inputs(self, call: dict[str, Any]) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for name, (kind, shape) in call["inputs"].items():
            if kind in ("classes", "lengths"):
                made[name] = torch.randint(call["steps"] + 1 if kind == "lengths" else 2, shape, generator=self.random)
                continue
            made[name] = self._uniform(shape, -0.5, 1.5)
            if self.settings["strided_input"] and len(shape) > 1:
                made[name] = made[name].transpose(0, 1).contiguous().transpose(0, 1)
            made[name].requires_grad_(kind == "input" and self.settings["x_grad"])
        return made

    def call(self, call: dict[str, Any], function: Callable[..., Any]) -> Seen:
        """What a call leaves, and the gradients."""
        net, settings = self.net, self.settings
        for layer in self.layers.values():
            for state in self._states(layer):
                setattr(layer, state, detached(getattr(layer, state)))
            if call["resets"]:  # not by snntorch.utils.reset, which resets the layers of all networks
                layer.reset_mem()
        self.calls += 1
        torch.set_default_dtype(self.dtype)  # a program that raises leaves its own
        if self.between is not None:
            self.between(net, self.calls)
        self._seed(-self.calls)
        inputs = self.inputs(call)
        # A leaf may not be changed in place.
        given = {n: t if settings["leaf"] or not t.is_floating_point() else t * 1 for n, t in inputs.items()}
        if settings["same_input"]:
            given.update((n, given["x"]) for n, t in given.items() if t.shape == given["x"].shape)
        torch.manual_seed(settings["number"])
        carried = [self.carried] if settings["carries"] else []
        context, places = settings.get("around") or ("", ())
        forward, backward = (AROUND[context if place in places else ""] for place in ("forward", "backward"))
        raised, outputs = None, None
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(settings["grad"]))
            stack.enter_context(forward())
            for around in [] if self.around is None else self.around(self.calls):
                stack.enter_context(around)
            if context == "checkpoint":
                function = partial(checkpoint, function, use_reentrant=False, early_stop=False)
            try:
                outputs = function(*carried, *given.values())
            except CAUGHT as error:
                if not settings.get("catches"):
                    raise
                raised = outputs = told(error)
        if any(isinstance(out, weakref.ref) for out in pytree.tree_leaves(outputs)):
            gc.collect()
        outputs = pytree.tree_map(told, outputs)
        # The generator is as the loop leaves it where that draws nothing, or only behind seeds of its own.
        drawn = [] if settings.get("draws", True) else [("the next random number", str(torch.rand(())))]
        if settings["carries"] and raised is None:
            self.carried = pytree.tree_map(detached, outputs[1]) if settings["carries"] == "detached" else outputs[1]
        held = [(f"{n}.{state}", getattr(m, state)) for n, m in self.layers.items() for state in self._states(m)]
        buffers = [(n, b) for n, b in net.named_buffers() if n.rpartition(".")[2] not in STATES]
        others = [*((f"input {n}", t) for n, t in given.items()), *buffers, *drawn]
        found = seen(outputs, held, others, net.named_parameters())
        asking = {n: t for n, t in [*inputs.items(), *net.named_parameters()] if t.requires_grad and not self.unseen}
        losses = []
        of_loss = [] if raised else [*leaves("output", outputs), *(held if settings["held_in_loss"] else [])]
        for i, (n, t) in enumerate(of_loss):
            if isinstance(t, Tensor) and "draws" not in n:
                t = torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
                self._seed(i)  # a state may be empty in a compiled network alone
                weights = self._uniform(t.shape, -1, 1, eighths=False)
                if t.requires_grad:
                    losses.append((t * weights).sum())
        grads: Sequence[Tensor | None] = [None] * len(asking)
        if losses and asking:
            # The gradients may be differentiated. The kernels alone, which a test may ask for, can't.
            again = self.settings["number"] % 3 == 0 and current_backend() != "fused"
            wanted = list(asking.values())
            with backward():
                loss = sum(losses)
                grads = torch.autograd.grad(loss, wanted, allow_unused=True, retain_graph=True, create_graph=again)
        return [*found, *gradients(zip(asking, zip(asking.values(), grads, strict=True), strict=True))]

    def _states(self, layer: Any) -> tuple[str, ...]:
        return tuple(state for state in STATES if hasattr(layer, state))


def check(
    make: Callable[[], Run], backend: Any, statistics: Counter[str], tolerances: tuple[float, float] | None = None
) -> str | None:
    """What differs; ``None``: nothing. ``tolerances``: not those of the dtype of the program."""
    spikes: dict[str, set[bool]] = {}

    def look(name: str, layer: nn.Module, args: Any, out: Any) -> None:
        spk = out[0] if isinstance(out, tuple) else out
        spikes.setdefault(name, set()).update((spk > 0).unique().tolist())

    try:
        plain, ours = make(), make()
        for name, layer in plain.layers.items():
            layer.register_forward_hook(partial(look, name))
        if backend == "default":
            for run in (plain, ours):
                run.settings["calls"] = run.settings["calls"] * REPLAYED
        expected = [plain.call(call, plain.net) for call in plain.settings["calls"]]
        if all(isinstance(call[0][1], str) for call in expected):
            raise RuntimeError(expected[0][0][1])  # what a call has raised, at each call
    except Exception:
        statistics[LEFT_OUT[0]] += 1
        return None
    tolerances = tolerances or TOLERANCES[ours.settings["dtype"]]
    if backend == "recording":
        recorded = ByRecording(ours.net)
        found = _compare(ours, recorded, expected, tolerances, statistics)
        plans = recorded.plans
        statistics["planned"] += any(not isinstance(plan, str) for plan in plans)
        statistics["for any steps"] += any(not isinstance(plan, str) and plan.is_general for plan in plans)
        statistics.update(f"no plan: {plan.strip().splitlines()[-1][:70]}" for plan in plans if isinstance(plan, str))
        statistics["no loop"] += not plans
        statistics["compared"] += 1
        statistics["with gradients"] += has_gradients(expected)
        return found or next((p for p in plans if isinstance(p, str) and p.startswith("a fault of snnfast")), None)
    if backend == "default":
        statistics["compared"] += 1
        with counted(Replays, "replay") as replayed, counted(Reading, "end") as ahead:
            found = _compare(ours, snnfast.compile(ours.net), expected, tolerances, statistics)
        statistics["replayed"] += replayed[0] > 0
        statistics["ran ahead"] += ahead[0] > 0
        return found
    with counted(AnySteps, "__call__") as again:
        found = _compare(ours, torch.compile(ours.net, backend=backend), expected, tolerances)
    if found and backend == "snnfast":
        alone = make()
        if _compare(alone, torch.compile(alone.net, backend="eager"), expected, tolerances):
            statistics[LEFT_OUT[1]] += 1
            return None
    statistics.update(ran=1, planned=again[0] > 0)
    if of_each := list(spikes.values()):
        statistics.update(compared=1, last=True in of_each[-1], spiking=all(len(seen) == 2 for seen in of_each))
    statistics["with gradients"] += has_gradients(expected)
    return found


def has_gradients(calls: list[Seen]) -> bool:
    return any(name.startswith("grad") and bool(t.any()) for call in calls for name, t in call)


def _compare(
    run: Run, function: Any, expected: list[Seen], tolerances: tuple[float, float],
    statistics: Counter[str] | None = None,
) -> str | None:  # fmt: skip
    """What differs; ``statistics``: are told the time of the first call, which should not be longer than it should."""
    for number, call in enumerate(run.settings["calls"]):
        start = time.process_time()
        try:
            if found := difference(run.call(call, function), expected[number], tolerances):
                return f"call {number}: {found}"
        except Exception as error:
            return f"call {number}: {type(error).__name__}: {error}"
        taken = time.process_time() - start
        if statistics is not None and not number:
            statistics[SLOWEST] = max(statistics[SLOWEST], round(1000 * taken))
            if taken > FIRST_CALL:
                return f"the first call took {taken:.1f} s of CPU time"
    return None


def outcome(source: str, backend: Any, statistics: Counter[str], seconds: float = 300) -> str | None:
    """What differs or fails, also to come to an end in so many seconds; ``None``: nothing."""
    half = "bfloat16" in source and ("'float64'" not in source or ".float()" in source)
    dtype = "bfloat16" if half else "float32" if ".float()" in source else None
    with surroundings("float64" if "'float64'" in source else "float32"):
        try:
            with in_time(seconds):
                found = check(partial(Run.of, source), backend, statistics, TOLERANCES[dtype] if dtype else None)
        except OutOfTimeError:
            found = f"no end in {seconds:.0f} s"
    linecache.cache.pop(f"<program {abs(hash(source))}>", None)
    return found


def assert_alike(
    ours: Callable[[Tensor], Any], plain: Callable[[Tensor], Any], x: Tensor, tolerances: tuple[float, float],
    forward: Callable[[], Any] = nullcontext, backward: Callable[[], Any] = nullcontext,
) -> None:  # fmt: skip
    """What networks leave, and their gradients, are equal; ``forward``, ``backward``: what is around the passes."""
    found = []
    for net in (ours, plain):
        module = getattr(net, "__self__", net)
        asking = {n.removeprefix("_orig_mod."): p for n, p in module.named_parameters()}  # type: ignore[attr-defined]
        asking |= {"x": x} if x.requires_grad else {}
        with forward():
            outputs = net(x)
        weights = torch.Generator().manual_seed(1)
        results = [t for _, t in leaves("output", outputs) if isinstance(t, Tensor) and t.requires_grad]
        with backward():
            for t in asking.values():
                t.grad = None
            sum((t * torch.randn(t.shape, generator=weights)).sum() for t in results).backward()  # type: ignore[union-attr]
        found.append([*seen(outputs), *gradients((n, (t, t.grad)) for n, t in asking.items())])
    differs = difference(found[0], found[1], tolerances)
    assert differs is None, differs


@contextmanager
def surroundings(dtype: str) -> Iterator[None]:
    """What a program finds, and what is left as it was."""
    neurons, grad = list(snntorch.SpikingNeuron.instances), torch.is_grad_enabled()
    logging.disable(logging.CRITICAL)  # dynamo tells much of a program that fails
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(torch.float32)
        logging.disable(logging.NOTSET)
        snntorch.SpikingNeuron.instances[:] = neurons  # it keeps every layer for good


def with_settings(function: Callable[[], Any]) -> Any:
    torch.set_num_threads(1)
    stages.CHECKS = True  # a form that is wrong lets the pass fail
    warnings.simplefilter("ignore")  # a layer that runs step by step says so
    with snnfast.use_backend("auto"):
        return function()
