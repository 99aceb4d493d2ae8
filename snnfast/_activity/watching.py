"""Watch a network: hooks see the spikes that its neurons return, and a mode of PyTorch's dispatcher the products.

The mode sees all products below autograd, however they are spelled, and those of our kernels. While it is active, no
call is compiled. Hooks see the steps of neurons. :mod:`snnfast._core.watch` tells what no hook sees.
"""

import sys
import threading
from collections.abc import Callable, Container, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from snnfast._activity.counts import Counts, count_bits, count_steps, exact, has_only_spikes
from snnfast._activity.layers import neurons_of, runs_all_steps, spikes_surely, unrolls_inside
from snnfast._activity.membranes import Membranes, states_of
from snnfast._activity.products import PRODUCTS, Operand, Work
from snnfast._activity.tally import Neurons, Product, Record
from snnfast._core import watch
from snnfast._core.pytorch import current_graph_task_id, transforms_are_active
from snnfast._unroll.call import Request

__all__ = ["Watch"]

_MODES = torch._C.DispatchKeySet(torch._C.DispatchKey.Python) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.PythonTLSSnapshot
)


_UNKNOWN = None, None


class Seen:
    """The sums of one module.

    Attributes:
        module: The module.
        neurons: The sums of its spikes, if it is a layer of neurons.
        products: Those of its products, by their weights, or by their places in the code where these are not known.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.neurons: Neurons | None = None
        self.membranes: Membranes | None = None
        self.products: dict[Any, Product] = {}
        self.record: Record | None = None
        self.is_called = self.is_told = False  # its call runs; and has told of an unroll in it
        self.holds = False  # it holds the membrane of its last step
        self.has_ended = False  # what it recorded is of a call that is over
        self.is_doubted = False  # it is taken for a neuron by what it returns
        self.returns_others = False  # it returned other numbers than spikes, or spikes where it was given spikes

    def end_call(self) -> None:
        """Enter a call of the network, or all calls of one step each."""
        if self.neurons is None:
            return
        self.neurons.end_call()
        if self.membranes is not None:
            if self.holds:
                self.membranes.add_held(self.module)
            self.membranes.end_call()
        self.holds, self.has_ended = False, True

    def to_record(self) -> Record | None:
        """The record of this call, if the layer is recorded."""
        if self.record is not None and self.has_ended:
            self.record = Record()
        self.has_ended = False
        return self.record


class _Hook:
    """A hook on a module of a watched network.

    Who copies or saves the network meanwhile gets one that does nothing, and goes when it is called: a copy of the
    watch would count on, and its weak references can't be copied.
    """

    def __init__(self, call: Callable[..., None] | None = None) -> None:
        self._call = call

    def __call__(self, module: nn.Module, *args: Any) -> None:
        if self._call is not None:
            return self._call(module, *args)
        for m in module.modules():
            for hooks in (m._forward_pre_hooks, m._forward_hooks):
                for key in [key for key, hook in hooks.items() if isinstance(hook, _Hook) and hook._call is None]:
                    del hooks[key]
                    m._forward_hooks_with_kwargs.pop(key, None)
                    m._forward_hooks_always_called.pop(key, None)
        return None

    def __reduce__(self) -> Any:
        return _Hook, ()


class _Process:
    """The state of the process: who watches, in all threads, and that PyTorch compiles nothing while anybody does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._eager: Any = None

    def add(self, watcher: "Watch") -> None:
        with self._lock:
            if self._eager is None and "torch._dynamo" in sys.modules:
                self._eager = torch.compiler.set_stance("force_eager")
            watch.watchers = (*watch.watchers, watcher)

    def remove(self, watcher: "Watch") -> None:
        with self._lock:
            watch.watchers = tuple(w for w in watch.watchers if w is not watcher)
            if self._eager is not None and not watch.watchers:  # blocks of threads may end in any order
                eager, self._eager = self._eager, None
                eager.__exit__(None, None, None)


_process = _Process()


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """PyTorch's ops, told to a watch."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch asks whether to wrap the method below, which imports its compiler. Nothing is compiled here."""
        return False

    def __init__(self, count: Callable[[Work], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._count = count
        self._products: dict[int, tuple[Any, Callable[..., Sequence[Work]] | None]] = {}  # by the ids of the ops

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = self._products.get(id(func))  # an op computes its hash in Python
        if known is None:
            known = self._products[id(func)] = func, PRODUCTS.get(getattr(func, "_overloadpacket", None))
        works = known[1]
        if works is None:
            if torch.is_inference_mode_enabled() and isinstance(func, torch._ops.OpOverload):
                with self:  # where autograd does not, it shows the products in ops that have no kernel of their own
                    found = func.decompose(*args, **kwargs)
                if found is not NotImplemented:
                    return found
            return func(*args, **kwargs)
        if args[0].is_nested:
            raise RuntimeError(f"activity: {func}: a product of nested tensors can't be counted")
        out = func(*args, **kwargs)
        if current_graph_task_id() == -1:  # not in a backward pass
            for work in works(*args, out):
                self._count(work)
        return out


class Watch:
    """A context in which the calls of a network are counted. It can be entered again.

    Args:
        net: The network.
        record: Names of layers whose spikes are kept as bits.
    """

    def __init__(self, net: nn.Module, record: Sequence[str]) -> None:
        self.net = net
        self.seen: dict[str, Seen] = {}  # by the names of the modules, in the order of their definition
        self._names: dict[nn.Module, str] = {}
        modules, kind = dict(net.named_modules()), type(net).__name__
        for name, module in modules.items():
            self._names[module] = name or ("" if kind in modules else kind)
            self.seen[self._names[module]] = Seen(module)
        self._neurons = neurons_of(net)
        for module in self._neurons:
            self._of(module).is_doubted = not self._neurons[module]
        names = [self._names[module] for module in self._neurons]
        for name in record:
            if name not in names:
                raise ValueError(
                    f"record: expected names of layers of neurons, {', '.join(names) or 'none'}; got {name!r}"
                )
            self.seen[name].record = Record()
        # By their memory, which is held, so that no other tensor gets its place. None where modules share it.
        self._weights: dict[int, tuple[torch.UntypedStorage, str | None]] = {}
        self._sure: set[nn.Module] = set()
        self._of_all_steps: set[nn.Module] = set()
        self._handed_on: tuple[Counts, Tensor | None, int | None] | None = None
        self._taker: nn.Module | None = None  # the linear layer that takes what is handed on, if it is known
        self._records = bool(record)
        self._stack: ExitStack | None = None
        self._thread = 0
        self.calls = 0

    def _of(self, module: nn.Module) -> Seen:
        return self.seen[self._names[module]]

    # ---- entering

    def __enter__(self) -> "Watch":
        if self._stack is not None:
            raise RuntimeError("activity: it counts already; leave its block first")
        self._thread = threading.get_ident()
        with ExitStack() as undo:  # what was entered is left where entering fails
            for module in self._names:
                if getattr(module, "_compiled_call_impl", None) is not None:
                    undo.callback(setattr, module, "_compiled_call_impl", module._compiled_call_impl)
                    module._compiled_call_impl = None
            _process.add(self)
            undo.callback(_process.remove, self)
            undo.callback(self.net.register_forward_pre_hook(_Hook(self._begin), prepend=True).remove)
            for module in self._neurons:
                undo.callback(module.register_forward_hook(_Hook(self._returned), with_kwargs=True).remove)
                if unrolls_inside(module):
                    undo.callback(module.register_forward_pre_hook(_Hook(self._is_called)).remove)
            undo.callback(self.net.register_forward_hook(_Hook(self._end), always_call=True).remove)
            self._look_up_weights()
            self._look_up_layers()
            undo.enter_context(_Mode(self._count))
            self._stack = undo.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        assert self._stack is not None
        stack, self._stack = self._stack, None
        stack.close()
        with torch.no_grad():
            for seen in self.seen.values():
                seen.end_call()

    def _look_up_weights(self) -> None:
        """Whose weights are where. One that moves later is found by the code that runs."""
        self._weights.clear()
        for module, name in self._names.items():
            for t in (*module._parameters.values(), *module._buffers.values()):
                if t is None or is_lazy(t) or t.dim() < 2 or t.layout is not torch.strided:
                    continue
                memory = t.untyped_storage()
                _, known = self._weights.get(memory._cdata, (memory, name))
                self._weights[memory._cdata] = memory, name if known == name else None

    def _look_up_layers(self) -> None:
        """Which layers return nothing but 0 and 1 for sure, and which take all steps. A user may change both."""
        self._sure = {module for module in self._neurons if spikes_surely(module)}
        self._of_all_steps = {module for module in self._neurons if runs_all_steps(module)}

    # ---- the network and its neurons

    def _begin(self, net: nn.Module, args: Any) -> None:
        if not self._is_here():
            return
        with torch._C._ExcludeDispatchKeyGuard(_MODES), torch.no_grad():
            self._look_up_layers()
        self.calls += 1

    def _end(self, net: nn.Module, args: Any, output: Any) -> None:
        """The network has returned. Where that was one step, the next call goes on behind it."""
        if not self._is_here():
            return
        self._handed_on = self._taker = None
        with torch._C._ExcludeDispatchKeyGuard(_MODES), torch.no_grad():
            for seen in self.seen.values():
                if seen.neurons is not None and seen.neurons.steps_of_call > 1:
                    seen.end_call()
                elif seen.neurons is not None:
                    seen.neurons.steps_of_call = 0

    def _returned(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """A layer of neurons has returned."""
        if not self._is_here():  # such as a copy in a thread of nn.DataParallel
            return
        seen = self._of(module)
        is_told, seen.is_called, seen.is_told = seen.is_told, False, False
        spk = output[0] if isinstance(output, tuple | list) and output else output
        if is_told or not isinstance(spk, Tensor) or spk.dim() == 0 or not self._sees(spk):
            return
        seen.holds = True
        with torch._C._ExcludeDispatchKeyGuard(_MODES):
            x = spk.detach()
            if seen.is_doubted and not self._may_be_spikes(seen, x, (*args, *kwargs.values()), output is not spk):
                return
            self._add(seen, x if module in self._of_all_steps else _one_step(x))

    def _is_called(self, module: nn.Module, args: Any) -> None:
        if not self._is_here():
            return
        seen = self._of(module)
        seen.is_called, seen.is_told = True, False

    def _may_be_spikes(self, seen: Seen, spk: Tensor, given: Sequence[Any], has_states: bool) -> bool:
        """Whether a module that was written by hand makes spikes. One without states makes them of other numbers."""
        if seen.returns_others:
            return False
        others = vars(seen.module)
        has_states |= any(isinstance(a, Tensor) for a in (*others.values(), *others["_buffers"].values()))
        x = next((a.detach() for a in given if isinstance(a, Tensor)), None)
        passes_on = seen.neurons is None and x is not None and _has_values(x) and bool(x.any()) and has_only_spikes(x)
        if not spk.is_floating_point() or not has_only_spikes(spk) or (passes_on and not has_states):
            seen.returns_others, seen.neurons = True, None
            return False
        return True

    def _add(self, seen: Seen, x: Tensor, lengths: Tensor | None = None) -> None:
        """Add the spikes ``[T, B, *]`` of all steps."""
        only_spikes = seen.module in self._sure or seen.is_doubted or has_only_spikes(x)
        self._enter(seen, count_steps(x, only_spikes), x.shape[1], x.shape[0], lengths)
        if (record := seen.to_record()) is not None:
            record.add(x)

    def _enter(self, seen: Seen, counts: Counts, samples: int, steps: int, lengths: Tensor | None = None) -> None:
        having: int | Tensor = samples
        if lengths is not None:
            having = (lengths.cpu() > torch.arange(steps, device="cpu").unsqueeze(1)).sum(1)
        self._sums_of(seen).add(counts, having, steps, samples * steps if lengths is None else int(lengths.sum()))

    def _sums_of(self, seen: Seen) -> Neurons:
        if seen.neurons is None:
            seen.neurons, seen.membranes = Neurons(), Membranes()
        return seen.neurons

    # ---- calls of all steps

    def taken_by(self, layer: nn.Module) -> None:
        if self._is_here():
            self._taker = layer

    def handed_on(self, spk: Tensor, steps: int | None) -> None:
        if not self._sees(spk):
            return
        with torch._C._ExcludeDispatchKeyGuard(_MODES), torch.no_grad():
            x = spk.detach()
            kept = x if self._records else None  # else nobody holds them longer for it
            if steps is not None:
                self._handed_on = count_bits(x, steps), kept, steps
            elif x.dim() > 1:
                layer, _ = self._running(self._neurons)
                self._handed_on = count_steps(x, layer in self._sure or has_only_spikes(x)), kept, None

    def unrolled(
        self, layer: Any, found: tuple[Tensor, ...], request: Request, lengths: Tensor | None, on: bool
    ) -> None:
        if not self._sees(found[0]):
            return
        handed_on, self._handed_on, self._taker = self._handed_on, None, None
        if layer not in self._neurons:
            return
        seen, spk, steps = self._of(layer), found[0], request.steps
        seen.is_told = seen.is_called
        with torch._C._ExcludeDispatchKeyGuard(_MODES), torch.no_grad():
            if on:
                if handed_on is not None:
                    counts, kept, in_bits = handed_on
                    samples = found[-1].shape[found[-1].dim() - counts.neurons.dim() - 1]
                    self._enter(seen, counts, samples, steps, lengths)
                    if kept is not None and (record := seen.to_record()) is not None:
                        if in_bits is None:
                            record.add(kept)
                        else:
                            record.add_bits(kept, in_bits)
            elif request.reduce:
                graded = getattr(layer, "graded_spikes_factor", 1)
                each = (spk.detach() / graded).round().nan_to_num().to(exact(spk))
                each = each if each.dim() > 1 else each.unsqueeze(0)
                self._enter(seen, Counts(each.new_empty(0), each.sum(0)), len(each), steps, lengths)
            elif spk.numel():
                x = spk if spk.dim() > 2 else spk.unsqueeze(1)
                self._add(seen, x.detach(), lengths)
            self._add_membranes(seen, layer, found, request)

    def _add_membranes(self, seen: Seen, layer: Any, found: tuple[Tensor, ...], request: Request) -> None:
        name, threshold = states_of(layer)
        if not name or seen.membranes is None:
            return
        states = layer.neuron.states
        mem = found[states.index(name) - len(states)]
        seen.membranes.add(mem[-1] if request.record and not request.last else mem, threshold)

    # ---- products

    def _count(self, work: Work) -> None:
        place = self._place_of(work)
        if place is None:
            return
        name, key, operand = place
        products = self.seen[name].products
        if (product := products.get(key)) is None:
            product = products[key] = Product()
        product.dense += work.dense
        if product.is_analog:
            return
        if operand is None:
            product.is_analog = True
        elif operand.steps is not None:
            told = self._handed_on  # these very bits
            counts = count_bits(operand.given, operand.steps) if told is None or told[2] is None else told[0]
            product.add(counts.neurons, operand.fan_out)
        elif has_only_spikes(operand.given):
            product.add(count_steps(_one_step(operand.given)).neurons, operand.fan_out)
        else:
            product.is_analog = True

    def _place_of(self, work: Work) -> tuple[str, Any, Operand | None] | None:
        """The name of the module that a product is of, what tells it from others of it, and the operand to count.

        ``None`` for a product of another module than those of the network, or that holds no numbers.
        """
        if any(not _has_values(o.given) for o in work.operands):
            return None
        operands: Sequence[Operand | None] = work.operands or (None,)
        for operand in operands:
            weight = work.weight if operand is None else operand.weight
            key = None if weight is None else weight.untyped_storage()._cdata
            _, name = self._weights.get(key, _UNKNOWN) if key is not None else _UNKNOWN
            if name is not None:
                return name, key, operand
        module, place = self._running(self._names)
        if module in self._neurons and self._handed_on is not None and self._taker in self._names:
            module = self._taker
        return None if module is None else (self._names[module], place, operands[0])

    def _running(self, modules: Container[nn.Module]) -> tuple[nn.Module | None, Any]:
        """The innermost of some modules whose method runs, and the place in its code."""
        frame: Any = sys._getframe(2)
        while frame is not None:
            code = frame.f_code
            first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
            if isinstance(first, nn.Module) and first in modules:
                return first, (code, frame.f_lasti)
            frame = frame.f_back
        return None, None

    def _is_here(self) -> bool:
        """Whether a call is a part of what is counted: not another thread's, nor one of a backward pass."""
        return threading.get_ident() == self._thread and current_graph_task_id() == -1

    def _sees(self, spk: Tensor) -> bool:
        """Whether a call of a layer that returned these spikes is a part of what is counted."""
        if not self._is_here() or not _has_values(spk):
            return False
        if transforms_are_active():
            raise RuntimeError("activity: a call under a torch.func transform can't be counted")
        return True


def _has_values(x: Tensor) -> bool:
    return not x.is_meta and not isinstance(x, FakeTensor) and x.layout is torch.strided


def _one_step(x: Tensor) -> Tensor:
    """``[B, *]`` as ``[1, B, *]``; a vector, which has no batch dimension, is that of one sample."""
    return (x if x.dim() > 1 else x.unsqueeze(0)).unsqueeze(0)
