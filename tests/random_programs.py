"""Random networks with a random loop over time, drawn from a number and written as Python (see ``loop_fuzz.py``)."""

import random
from dataclasses import dataclass

from random_layers import Layers, feedback, memory
from random_pieces import add_piece, conv, flatten, linear
from random_records import record
from random_source import Source, Value

HEADER = """import torch
import torch.nn.functional as F
from callables import steep
from torch import nn

from {surrogates} import surrogate
"""
LAYOUTS = ("time first",) * 5 + ("batch first",) * 3 + ("constant",) * 3 + ("time last", "strided", "late", "backwards")
STEP = {"time first": "{x}[t]", "list": "{x}[t]", "batch first": "{x}[:, t]", "time last": "{x}[..., t]",
        "constant": "{x}", "strided": "{x}[2 * t]", "late": "{x}[t + 1]", "backwards": "{x}[{last} - t]"}  # fmt: skip
OTHER_STEP = {
    "time first": ("{x}.select(0, t)", "{x}[t : t + 1].squeeze(0)", "{x}[t, :]", "{x}.narrow(0, t, 1)[0]"),
    "batch first": ("{x}.transpose(0, 1)[t]", "{x}.select(1, t)", "{x}[:, t, ...]", "{x}[:, t : t + 1].squeeze(1)"),
}
LENGTH = {"time first": "{x}.shape[0]", "list": "len({x})", "batch first": "{x}.size(1)", "time last": "{x}.shape[-1]"}
STEPS = {
    "time first": ("{x}", "{x}.unbind(0)", "torch.unbind({x})", "{x}.unbind()"),
    "batch first": ("{x}.unbind(1)", "{x}.transpose(0, 1)", "torch.unbind({x}, dim=1)",
                    "{x}.permute(1, 0, *range(2, {x}.dim()))"),
    "time last": ("{x}.unbind(-1)", "{x}.movedim(-1, 0)"),
    "list": ("{x}", "{x}[:]"),
}  # fmt: skip


@dataclass
class Call:
    """What the program is called with, and whether the layers forget their states before."""

    batch: int
    steps: int
    resets: bool


class Program:
    """One program, drawn from its number.

    Attributes:
        source: Python text of a class ``Net``, whose constructor takes the library of the spiking layers.
        calls: How it is called, in a row; the states that the layers hold go on.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.draw = random.Random(number)
        # Float64: how a product over all steps is rounded does not decide on a spike. Float32 where nothing is rounded.
        self.dtype = "float32" if self.some(0.15) else "float64"
        self.train = self.some(0.7)
        self.grad = self.some(0.9)
        self.x_grad = self.some(0.6)
        self.held_in_loss = self.some(0.3)
        self.plain = self.some(0.8)  # compared with snnTorch; else with our layers, which have a few options more
        self.steps = self.draw.choice((0, 1, 2, 2, 3, 3, 4, 4, 5, 6))
        self.s = Source(self.draw, self.dtype == "float32", self.steps, self.train)
        self.layers = Layers(self.s, self.plain)
        self._write()
        batches = (2, 3, 4) if self.train else (1, 2, 3, 4)  # of one sample, batch norm has no statistics
        batch, calls = self.draw.choice(batches), self.draw.choice((1, 1, 1, 2, 3))
        self.calls = [Call(batch, self.steps, self.some(0.5)) for _ in range(calls)]
        for call in self.calls[1:]:
            if self.some(0.2):
                call.batch = self.draw.choice(batches)
            if self.flexible and self.some(0.5):
                call.steps = self.draw.randint(1, 6)
        self.x_grad &= not self.s.changes_x

    def some(self, probability: float) -> bool:
        return self.draw.random() < probability

    def _step(self, v: Value, count: int) -> list[Value]:
        """The lines of a step from its input to its last layer; what may be recorded."""
        s = self.s
        seen: list[Value] = []
        for _ in range(count):
            for _ in range(self.draw.choice((0, 1, 1, 1, 2, 3))):
                v = add_piece(s, v)
            if len(v.shape) > 1 and (v.size > 24 or self.some(0.2)):
                v = flatten(s, v)
            if self.some(0.6) or v.size > 24:
                v = (conv(s, v) if len(v.shape) == 3 else None) or linear(s, v)
            fed = None
            if self.some(0.1):
                v, fed = feedback(s, v)
            layer = self.layers.add(v)
            if fed:
                s.body.append(f"{fed} = {layer.spk}")
            seen += [layer.spk, *[layer.mem] * (layer.mem is not None)]
            v = layer.spk
            # Of membranes, sums need so many bits that they are rounded.
            if layer.mem is not None and self.some(0.1) and not s.exact:
                forms = (f"{layer.spk} + {layer.mem}", f"torch.tanh({layer.mem})", f"{layer.mem} * {layer.name}.beta")
                v = s.let(self.draw.choice(forms), v.shape)
            if self.some(0.12):
                v = memory(s, v)
        if self.some(0.4):
            v = add_piece(s, v)
            seen.append(v)
        return seen

    # ---- the loop

    def _loop_over(self, x: str, layout: str, body: list[str], first: bool, last: bool) -> list[str]:
        """A loop whose step has its input in ``xt``."""
        s, T, draw = self.s, self.steps, self.draw
        indented = [f"    {line}" for line in body]
        flexible = first and not s.needs_steps and layout in LENGTH and T > 0 and self.some(0.4)
        self.flexible &= flexible
        # What unbind returns may not be changed in place.
        if layout in STEPS and T and not s.changes_x and self.some(0.45):
            over = draw.choice(STEPS[layout]).format(x=x)
            return [f"for t, xt in enumerate({over}):" if s.uses_t else f"for xt in {over}:", *indented]
        step = STEP[layout].format(x=x, last=T - 1)
        if layout in OTHER_STEP and self.some(0.2):
            step = draw.choice(OTHER_STEP[layout]).format(x=x)
        inner = [f"    xt = {step}", *indented]
        if flexible or (layout in LENGTH and self.some(0.2)):
            return [f"for t in range({LENGTH[layout].format(x=x)}):", *inner]
        if layout == "backwards" and self.some(0.5):
            return [f"for t in reversed(range({T})):", f"    xt = {x}[t]", *indented]
        if T and self.some(0.05):
            return ["t = 0", f"while t < {T}:", *inner, "    t += 1"]
        if T > 1 and self.some(0.06):  # in two loops, the first of them perhaps without gradients
            begin = [f"for t in range({T // 2}):", *inner]
            if self.some(0.5):
                begin = ["with torch.no_grad():", *(f"    {line}" for line in begin)]
            return [*begin, f"for t in range({T // 2}, {T}):", *inner]
        if T and T < 4 and last and self.some(0.05):
            return ["for again in range(2):", f"    for t in range({T}):", *(f"    {line}" for line in inner)]
        return [f"for t in range({T}):", *inner]

    def _write(self) -> None:
        s, draw = self.s, self.draw
        dims = draw.choice((1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 3))
        shape = (draw.randint(1, 3) if dims > 1 else draw.randint(2, 9), *(draw.randint(2, 6) for _ in range(dims - 1)))
        layout = draw.choice(LAYOUTS)
        s.batch = "x.shape[0]" if layout in ("batch first", "time last", "constant") else "x.shape[1]"
        if dims == 1 and layout != "batch first" and self.some(0.06):
            s.batch = ""
        s.permuted = layout == "time last"
        self.layout, self.shape, self.flexible = layout, shape, True
        count, loops = draw.choice((1, 1, 2, 2, 2, 3, 4)), 2 if self.some(0.12) and self.steps else 1
        v, x, code = Value("xt", shape), "x", []
        for loop in range(loops):
            seen = self._step(v, max(1, count // loops))
            last, hand_on = loop == loops - 1, s.name("rec")
            if not last:
                s.before.append(f"{hand_on} = []")
                s.body.append(f"{hand_on}.append({seen[-1]})")
            for w in draw.sample(seen, min(len(seen), draw.choice((1, 1, 2, 3)) if last else draw.choice((0, 1)))):
                record(s, w, losses=self.some(0.25))
            code += self._loop_over(x, layout, s.body, loop == 0, last)
            s.body, s.uses_t = [], False
            if not last:
                v, x, layout = Value("xt", seen[-1].shape), hand_on, "time first"
                s.literal_steps()
                self.flexible = False
                if self.some(0.6):
                    layout = draw.choice(("time first", "batch first")) if s.batch else layout
                    x = s.name("series")
                    code.append(f"{x} = torch.stack({hand_on}{', 1' if layout == 'batch first' else ''})")
                else:
                    layout = "list"
        states = [state for layer in self.layers.all for state in layer.states]
        if self.steps and self.some(0.3):
            s.results += states[:2]
        if self.some(0.1):
            s.results.append(self.layers.all[-1].name + ".mem")
        results = s.results[0] if len(s.results) == 1 else f"({', '.join(s.results)})"
        lines = [
            "class Net(nn.Module):",
            "    def __init__(self, snn):",
            "        super().__init__()",
            *(f"        {line}" for line in s.init),
            "",
            f"    def forward({', '.join(['self', 'x', *s.inputs])}):",
            *(f"        {line}" for line in (*s.before, *code, *s.after, f"return {results}")),
        ]
        surrogates = "snnfast" if self.dtype == "float64" else "snntorch"
        self.source = "\n".join([HEADER.format(surrogates=surrogates), "", *lines, ""])

    def shape_of(self, name: str, call: Call) -> tuple[int, ...]:
        """The shape of an input."""
        T, batch = call.steps, (call.batch,) if self.s.batch else ()
        if name == "x":
            length = {"strided": 2 * T + 1, "late": T + 1}.get(self.layout, T)
            return {"batch first": (*batch, T, *self.shape), "constant": (*batch, *self.shape),
                    "time last": (*batch, *self.shape, T)}.get(self.layout, (length, *batch, *self.shape))  # fmt: skip
        kind, shape = self.s.inputs[name]
        return (*((T,) if "per step" in kind else ()), *batch, *(() if kind.startswith("classes") else shape))

    def __str__(self) -> str:
        inputs = ("x", *self.s.inputs)
        calls = [
            ", ".join(f"{name} {list(self.shape_of(name, c))}" for name in inputs) + " after a reset" * c.resets
            for c in self.calls
        ]
        mode = ("train" if self.train else "eval") + ("" if self.grad else ", no_grad")
        compared = "" if self.plain else ", with our layers"
        return f"# {self.number}: {mode}, {self.dtype}{compared}; {'; '.join(calls)}\n{self.source}"
