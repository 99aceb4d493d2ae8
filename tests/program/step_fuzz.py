"""Random step functions of ``@snnfast.neuron``: ``unroll`` does what the function does in a plain loop.

``python tests/program/step_fuzz.py --cases 20000`` draws that many programs (random_steps.py) and runs each twice: its
original function in a loop over time, and the layer that is made of it. A program is called several times, and what its
function reads changes between the calls. Compared are outputs, states, gradients, errors, parameters that were written
to, and what the function itself changes, such as a counter.

Each program that differs is printed as Python, which ``python tests/program/step_fuzz.py --file FILE`` runs. ``--first
N --cases 1`` repeats number N.
"""

import contextlib
import functools
import linecache
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest has it
import fuzzing
from fuzzing import Found
from random_steps import StepProgram
from torch import Tensor, nn

import snnfast
from snnfast._core import backend
from snnfast._core.ops import opmath_dtype
from snnfast._program.trace import NotElementwiseError

TOLERANCES = {"float64": 1e-9, "float32": 2e-4, "float16": 2e-2, "bfloat16": 1e-1}
MESSAGES = {
    "modified in place": "modified by an inplace operation", "an option without a hash": "unhashable",
    "a register is used twice": "a register is used twice",
}  # fmt: skip
# The outcomes that are as they should be.
GOOD = (
    "equal", "equal, of the forward's moment", "step by step", "step by step, traced before",
    "step by step, sees padding", "edge: sign of zero", "edge: special values", "raises another error",
    "raises the same", "refused", "refused, a second derivative after a change",
)  # fmt: skip


class Seen(NamedTuple):
    """What one call did."""

    error: tuple[str, str, str] | None  # where, type, message
    outputs: list[Tensor]
    gradients: list[Tensor | None]
    needing: list[bool]  # which outputs need a gradient
    given: list[Tensor]  # the arguments after the call
    parameters: list[Tensor]
    effects: str
    said: tuple[str, ...]  # warnings of a step by step


class Plain:
    """A layer as the user would write it: the original function in a Python loop."""

    def __init__(self) -> None:
        self.held: list[Tensor] | None = None

    def __call__(self, layer: Any, x: Tensor, states: Sequence[Tensor | None], call: dict[str, Any]) -> list[Tensor]:
        step, constant, hidden = type(layer).step, call.get("constant", False), layer.init_hidden
        steps, shape, wide = call["steps"], x.shape if constant else x.shape[1:], opmath_dtype(x.dtype)
        now: list[Tensor] = []
        held = self.held if hidden and self.held is not None else [None] * len(states)
        for begin, given, kept in zip(layer.initial.values(), states, held, strict=True):
            state = kept if kept is not None and kept.shape == shape else given
            now.append(torch.full(shape, begin, dtype=wide) if state is None else state.to(wide))
        options = {name: getattr(layer, name) for name in layer.options}
        rows: list[list[Tensor]] = []
        total = torch.zeros(shape, dtype=wide)
        lengths = call.get("lengths")
        valid = None
        for t in range(steps):
            row = (x if constant else x[t]).to(wide)
            given_states = now
            if lengths is not None and any(n < steps for n in lengths):
                valid = t < torch.tensor(lengths).view(-1, *[1] * (len(shape) - 1))
                # What the function is given after the end of a sample has no effect, and no gradient.
                row = torch.where(valid, row, row.new_tensor(0.3125))
                given_states = [torch.where(valid, s, s.new_tensor(0.3125)) for s in now]
            # The function may write to its arguments; a record must not change with them.
            arguments = [row.clone(), *(s.clone() for s in given_states)]
            parameters = {name: getattr(layer, name).to(wide).clone() for name in layer.neuron.parameters}
            spk, *after = step(*arguments, **parameters, **options)
            results = [r if r.shape == shape else r.expand(shape) for r in (spk, *after)]
            if valid is not None:
                before = [torch.zeros((), dtype=spk.dtype), *now]
                results = [torch.where(valid, r, b) for r, b in zip(results, before, strict=True)]
            spk, *now = results
            total = total + spk
            rows.append([spk, *now])
        if hidden:
            self.held = [s.detach() for s in now]
        records = []
        for i in range(1 + len(now)):
            column = [row[i] for row in rows]
            with torch.autocast("cpu", enabled=False):
                records.append(torch.stack(column).to(x.dtype) if column else x.new_empty(0, *shape))
        first = total.to(x.dtype) if call.get("reduce") else records[0]
        shown = records[1:] if call.get("record", True) else list(now)
        return [first, *shown]


class Session:
    """The calls of a program, in a namespace of its own."""

    def __init__(self, source: str, plain: bool, late: bool = False) -> None:
        name = name_of(source)
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        self.names: dict[str, Any] = {"__name__": name}
        # Two sessions at once have one environment.
        exec(compile(source.replace("STEP_FUZZ_", f"STEP_FUZZ_{id(self)}_"), name, "exec"), self.names)
        self.plain, self.late = plain, late
        kind = snnfast.neuron(self.names["step"])
        self.layers = [make(kind) for make in self.names["MADE"]]
        self.names["LAYERS"] = self.layers
        self.plains = [Plain() for _ in self.layers]

    def run(self) -> Iterator[Seen]:
        for number, call in enumerate(self.names["CALLS"]):
            yield self._call(number, call)

    def _change(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.names[f"change_{number}"]()

    def _tensors(self, number: int, call: dict[str, Any], layer: Any) -> tuple[Tensor, list[Tensor | None]]:
        g = torch.Generator().manual_seed(1000 * self.names["NUMBER"] + number)
        dtype, shape = getattr(torch, call["dtype"]), call["shape"]

        def drawn(*size: int) -> Tensor:
            t = torch.rand(size, generator=g, dtype=torch.float64) * 3 - 1
            if dtype != torch.float64:
                t = (t * 16).round() / 16
            if call.get("special") and t.numel():
                values = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-40, 1e30], dtype=torch.float64)
                chosen = values[torch.randint(len(values), t.shape, generator=g)]
                t = torch.where(torch.rand(t.shape, generator=g) < 0.3, chosen, t)
            return t.to(dtype)

        x = drawn(*shape) if call.get("constant") else drawn(call["steps"], *shape)
        if call.get("strided") and x.dim() > 1:
            x = x.transpose(-1, -2).contiguous().transpose(-1, -2)
        x.requires_grad_(call.get("x_grad", True))
        states: list[Tensor | None] = [None] * len(layer.initial)
        if call.get("states") and not layer.init_hidden:
            states = [drawn(*shape).requires_grad_(call.get("x_grad", True)) for _ in states]
        return x, states

    def _with_linear(self, x: Tensor, states: Sequence[Tensor | None], call: dict[str, Any], at: int) -> bool:
        """Whether a linear layer reads the spikes of a call."""
        dims = x.dim() - (not call.get("constant"))
        others = {"lengths", "reduce", "forward"} & call.keys() or self.layers[at].init_hidden or x.dtype.itemsize < 4
        return call.get("via") == "linear" and dims > 1 and all(s is None for s in states) and not others

    def _linear(self, x: Tensor) -> nn.Linear:
        layer = nn.Linear(x.shape[-1], 2, dtype=x.dtype).requires_grad_(False)
        values = torch.linspace(-1, 1, layer.weight.numel()).to(x.dtype)
        layer.weight.copy_(values.view_as(layer.weight))
        layer.bias.fill_(0.25)
        return layer

    def _forward(self, x: Tensor, states: list[Tensor | None], call: dict[str, Any], at: int) -> list[Tensor]:
        if self.plain:
            outputs = self.plains[at](self.layers[at], x, states, call)
            return [self._linear(x)(outputs[0])] if self._with_linear(x, states, call, at) else outputs
        layer, via = self.layers[at], call.get("via")
        options: dict[str, Any] = {"record_mem": call.get("record", True), "reduce": call.get("reduce")}
        if call.get("constant"):
            options["num_steps"] = call["steps"]
        if "lengths" in call:
            options["lengths"] = torch.tensor(call["lengths"], dtype=torch.int64)
        plain = not (layer.init_hidden or call["steps"] == 0 or "lengths" in call or options["reduce"])
        if via in ("step", "compile") and plain:

            def loop(x: Tensor, states: Sequence[Tensor | None]) -> list[Tensor]:
                rows = []
                shape = x.shape if call.get("constant") else x.shape[1:]
                wide = opmath_dtype(x.dtype)
                begins = [torch.full(shape, b, dtype=wide) for b in layer.initial.values()]
                now: Any = [b if s is None else s for s, b in zip(states, begins, strict=True)]
                for t in range(call["steps"]):
                    spk, *now = layer(x if call.get("constant") else x[t], *now)
                    rows.append([spk, *now])
                with torch.autocast("cpu", enabled=False):  # which has no stack of half precision
                    records = [torch.stack(r).to(x.dtype) for r in zip(*rows, strict=True)]
                return records if call.get("record", True) else [records[0], *now]

            return (snnfast.compile(loop) if via == "compile" else loop)(x, states)
        if self._with_linear(x, states, call, at):
            return [snnfast.MultiStep(layer, self._linear(x))(x, **options)]
        if via == "multistep" and all(s is None for s in states) and not layer.init_hidden:
            return list(snnfast.MultiStep(layer)(x, **options))
        with snnfast.use_backend("reference") if via == "reference" else contextlib.nullcontext():
            return list(layer.unroll(x, *states, **options))

    def _call(self, number: int, call: dict[str, Any]) -> Seen:
        at = call.get("layer", 0)
        self._change(call.get("before", ()))
        layer = self.layers[at]
        x, states = self._tensors(number, call, layer)
        leaves = [t for t in (x, *states, *layer.parameters()) if t is not None and t.requires_grad]
        error: tuple[str, str, str] | None = None
        outputs: list[Tensor] = []
        gradients: list[Tensor | None] = []
        said: list[warnings.WarningMessage] = []
        phase = "forward"
        backend._warned.clear()
        torch.manual_seed(number)
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                with context(call.get("forward")):
                    outputs = self._forward(x, states, call, at)
                phase = "between"
                if not self.late:
                    self._change(call.get("between", ()))
                phase = "backward"
                gradients = self._backward(number, outputs, leaves, call.get("backward"))
        except Exception as problem:
            error = phase, type(problem).__name__, str(problem)
        if self.late or phase == "forward":
            self._change(call.get("between", ()))
        if layer.init_hidden and not self.plain:
            for name in layer.neuron.states:
                setattr(layer, name, getattr(layer, name).detach())
        parameters = [getattr(layer, n).detach().clone() for n in layer.neuron.parameters]
        return Seen(
            error,
            [o.detach().clone() for o in outputs],
            gradients,
            [o.requires_grad for o in outputs],
            [t.detach().clone() for t in (x, *states) if t is not None],
            parameters,
            repr(self.names["effects"]()),
            tuple(str(w.message) for w in said if str(w.message).startswith("snnfast:")),
        )

    def _backward(
        self, number: int, outputs: list[Tensor], leaves: list[Tensor], how: str | None
    ) -> list[Tensor | None]:
        g = torch.Generator().manual_seed(number)
        chosen = [o.requires_grad for o in outputs]
        if how == "some":
            drawn = [bool(torch.rand((), generator=g) < 0.5) for _ in chosen]
            chosen = [c and d for c, d in zip(chosen, drawn, strict=True)]
        weights = [torch.randn(o.shape, generator=g, dtype=torch.float64).to(o.dtype) for o in outputs]
        used = [(o, w) for o, w, c in zip(outputs, weights, chosen, strict=True) if c]
        if not used or not leaves:
            return []

        def grad(**options: Any) -> list[Tensor | None]:
            found = torch.autograd.grad(
                [o for o, _ in used], leaves, [w for _, w in used], allow_unused=True, **options
            )
            return list(found)

        with context(how if how in ("anomaly", "hooks", "default64", "no_grad") else None):
            if how == "twice":
                first = grad(retain_graph=True)
                return [*first, *grad()]
            if how == "create":
                return [None if t is None else t.detach() for t in grad(create_graph=True)]
            if how == "second":
                first = grad(create_graph=True)
                total = [t.square().sum() for t in first if t is not None and t.requires_grad]
                if not total:
                    return first
                second = torch.autograd.grad(sum(total), leaves, allow_unused=True)
                return [None if t is None else t.detach() for t in (*first, *second)]
            return grad()


@contextlib.contextmanager
def context(name: str | None) -> Iterator[None]:
    """What a user may have around a call."""
    with contextlib.ExitStack() as stack:
        if name == "no_grad":
            stack.enter_context(torch.no_grad())
        elif name == "inference":
            stack.enter_context(torch.inference_mode())
        elif name == "enable_in_no_grad":
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.enable_grad())
        elif name == "anomaly":
            stack.enter_context(torch.autograd.detect_anomaly(check_nan=False))
        elif name == "hooks":

            def unpack(packed: Any) -> Tensor:
                return packed[1].to(packed[0])

            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(lambda t: (t.dtype, t.double()), unpack))
        elif name == "copies":
            stack.enter_context(torch.autograd.graph.save_on_cpu())
        elif name == "default64":
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float64)
        elif name == "autocast":
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        yield


def name_of(source: str) -> str:
    return f"<step {abs(hash(source))}>"


# ---- comparison


def bits(t: Tensor) -> Tensor:
    """A tensor of which NaN equals NaN, and 0 is another number than -0."""
    t = t if t.is_floating_point() else t.double()
    t = torch.where(t.isnan(), torch.full_like(t, torch.nan), t)
    return t.contiguous().view({8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[t.element_size()])


def difference(ours: Seen, theirs: Seen, call: dict[str, Any], smooth: bool) -> str | None:
    """What differs in two calls, as the name of a kind; ``None``: nothing."""
    if len(ours.outputs) != len(theirs.outputs):
        return "outputs: another number"
    for a, b in zip(ours.outputs, theirs.outputs, strict=True):
        if a.shape != b.shape:
            return "outputs: shape"
        if a.dtype != b.dtype:
            return f"outputs: dtype {a.dtype} for {b.dtype}"
        rounds = smooth or call.get("via") == "linear"
        found = differs(a, b, TOLERANCES[call["dtype"]] if rounds else None)
        if found:
            return f"outputs: {found}"
    for a, b in zip(ours.parameters, theirs.parameters, strict=True):
        if a.shape != b.shape or differs(a, b, None):
            return "a parameter that the step writes to"
    if any(b and not a for a, b in zip(ours.needing, theirs.needing, strict=True)):
        return "gradients: none"
    if any(differs(a, b, None) for a, b in zip(ours.given, theirs.given, strict=True)):
        return "arguments that the step writes to"
    mine = ours.gradients or [None] * len(theirs.gradients)
    its = theirs.gradients or [None] * len(ours.gradients)
    scale = max((float(g.abs().nan_to_num(0, 0, 0).max()) for g in its if g is not None and g.numel()), default=0.0)
    for x, y in zip(mine, its, strict=True):
        if x is None and y is None:
            continue
        a = torch.zeros_like(y) if x is None else x
        b = torch.zeros_like(x) if y is None else y
        if a.shape != b.shape or a.dtype != b.dtype:
            return "gradients: shape or dtype"
        tolerance = max(TOLERANCES[call["dtype"]], TOLERANCES[str(a.dtype).removeprefix("torch.")])
        if call.get("backward") == "second":  # through the first one of a parameter, which is rounded to float32
            tolerance = max(tolerance, TOLERANCES["float32"])
        found = differs(a, b, tolerance, scale)
        if found:
            return f"gradients: {found}"
    if ours.effects != theirs.effects:
        return "effects of the step"
    return None


def differs(a: Tensor, b: Tensor, tolerance: float | None, scale: float | None = None) -> str | None:
    if tolerance is None:
        if torch.equal(bits(a), bits(b)):
            return None
        if torch.equal(a.nan_to_num(7, 8, 9), b.nan_to_num(7, 8, 9)):
            return "sign of zero" if torch.equal(a.isnan(), b.isnan()) else "NaN"
        return "NaN or infinite" if not (a.isfinite().all() and b.isfinite().all()) else "value"
    if not torch.equal(a.isfinite(), b.isfinite()):
        return "NaN or infinite"
    finite = a.isfinite()
    a, b = a[finite].double(), b[finite].double()
    if not a.numel():
        return None
    largest = max(scale or 0.0, float(b.abs().max()), 1e-3)
    return "value" if float((a - b).abs().max()) > tolerance * largest else None


def outcome(source: str) -> tuple[str, str]:
    """The kind of a program's outcome, and what the call says that decides it."""
    try:
        return _outcome(source)
    finally:
        linecache.cache.pop(name_of(source), None)
        for name in [name for name in os.environ if name.startswith("STEP_FUZZ_")]:
            del os.environ[name]


def _outcome(source: str) -> tuple[str, str]:
    ours, theirs = Session(source, plain=False), Session(source, plain=True)
    calls, smooth, changes_itself = (ours.names[name] for name in ("CALLS", "SMOOTH", "CHANGES_ITSELF"))
    kinds: list[tuple[str, str]] = []
    for number, (a, b) in enumerate(zip(ours.run(), theirs.run(), strict=True)):
        kind, text = judged(a, b, calls[number], smooth, changes_itself)
        if kind.startswith("differs: gradients") and "between" in calls[number]:
            late = list(Session(source, plain=True, late=True).run())[number]
            if judged(a, late, calls[number], smooth, changes_itself)[0] == "equal":
                kind = "equal, of the forward's moment"
        kinds.append((kind, f"call {number}: {text}"))
        if kind.startswith(("differs", "raises", "runs")):
            break
        if kind != "equal" and changes_itself:
            break  # the layer has run its step another number of times than the loop
    for bad in kinds:
        if bad[0] not in GOOD:
            return bad
    return max(kinds, key=lambda kind: GOOD.index(kind[0]))


def judged(ours: Seen, theirs: Seen, call: dict[str, Any], smooth: bool, changes_itself: bool) -> tuple[str, str]:
    mine, its = ours.error, theirs.error
    if mine is not None:
        text = f"{mine[1]} in {mine[0]}: {mine[2]}"
        if mine[1] == NotElementwiseError.__name__ and mine[0] == "forward" and call.get("via") != "reference":
            return "refused", text
        # The second derivative needs what the step reads as it was: a limit that docs/your-own-neuron.md tells.
        if "its second derivative needs it as it was" in mine[2] and "between" in call:
            return "refused, a second derivative after a change", text
        if its is None:
            name = next((short for short, said in MESSAGES.items() if said in mine[2]), mine[1])
            return f"raises in {mine[0]}: {name}{' (of no steps)' if call['steps'] == 0 else ''}", text
        if mine[:2] == its[:2]:
            return "raises the same", text
        if mine[0] != its[0]:
            return f"raises in {mine[0]}, the loop in {its[0]}", f"{text}; the loop: {its[1]}: {its[2]}"
        return "raises another error", f"{text}; the loop: {its[1]}: {its[2]}"
    if its is not None:
        return f"runs, where the loop raises in {its[0]}", f"{its[1]}: {its[2]}"
    found = difference(ours, theirs, call, smooth)
    if found is not None and ours.said and changes_itself:
        return "step by step, traced before", found
    if found is not None and (ours.said or call.get("via") == "reference") and "lengths" in call:
        return "step by step, sees padding", found
    if found is not None and found.endswith("sign of zero"):
        return "edge: sign of zero", found
    if found is not None and call.get("special"):
        return "edge: special values", found
    if found is not None:
        return f"differs: {found}", found
    return ("step by step" if ours.said and not call.get("lengths") else "equal"), "; ".join(ours.said)


def found(number: int, compiled: bool = False) -> Found:
    """How the program of a number came out."""
    source = StepProgram(number, compiled).source
    kind, text = outcome(source)
    return Found(kind) if kind in GOOD else Found(kind, f"{text}\n{source}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = fuzzing.parser(__doc__, 1000)
    parser.add_argument("--file", type=Path, help="run the program in a file")
    parser.add_argument("--compiled", action="store_true", help="also compile loops of the layers")
    args = parser.parse_args(argv)
    if args.file:
        print(*outcome(args.file.read_text()), sep="\n")
        return 0
    return fuzzing.run(
        functools.partial(found, compiled=args.compiled), args, functools.partial(torch.set_num_threads, 1)
    )


if __name__ == "__main__":
    sys.exit(main())
