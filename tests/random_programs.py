"""Random networks with a random loop over time, drawn from a number and written as Python (see ``loop_fuzz.py``)."""

import random

from random_layers import Layers, feedback, memory
from random_pieces import add_piece, conv, flatten, linear
from random_records import LISTS, afterwards, keep, results
from random_source import Source, Value
from random_statements import OF_STEPS, in_block, statements

HEADER = """import functools
import operator

import torch
import torch.nn.functional as F
from callables import steep
from loop_ops import Named, Results, doubled, noise, scaled_
from torch import nn
from torch.utils.checkpoint import checkpoint

from {surrogates} import surrogate
"""
# For who has the program alone.
FOOTER = """

if __name__ == "__main__":  # in the folder of loop_fuzz.py
    import loop_fuzz

    loop_fuzz.run(__file__)
"""
LAYOUTS = ("time first",) * 7 + ("batch first",) * 3 + ("constant",) * 2 + ("time last", "strided", "late", "backwards")
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


class Program:
    """One program, drawn from its number.

    Attributes:
        source: Python text: a class ``Net``, whose constructor takes the library of the spiking layers, and
            ``SETTINGS``, how it is called.
    """

    def __init__(self, number: int, attempt: int = 0) -> None:
        self.draw = random.Random(1000 * number + attempt)
        # Float64: how a product over all steps is rounded does not decide on a spike. Float32 where nothing is rounded.
        self.dtype = "float32" if self.some(0.1) else "float64"
        self.train, self.grad, x_grad = self.some(0.7), self.some(0.75), self.some(0.7)
        self.steps = self.draw.choice((2, 2, 2, 3, 3, 4)) if self.some(0.95) else self.draw.choice((0, 1))
        self.s = Source(self.draw, self.dtype == "float32", self.steps, self.train)
        self.carries = self.some(0.06)
        self.layers = Layers(self.s, self.carries)
        self._write()
        batches = (2, 3, 4) if self.train else (1, 2, 3, 4)  # of one sample, batch norm has no statistics
        batch, calls = self.draw.choice(batches), 2 if self.carries or self.some(0.12) else 1
        self.settings = {
            "number": number, "attempt": attempt, "dtype": self.dtype, "train": self.train,
            "grad": self.grad, "x_grad": x_grad, "leaf": self.some(0.4), "held_in_loss": self.some(0.3),
            "carries": self.carries and self.draw.choice(("held", "detached")),
            "same_input": self.some(0.05), "strided_input": self.some(0.08), "calls": [],
        }  # fmt: skip
        for i in range(calls):
            again = i and not self.carries
            batch = self.draw.choice(batches) if again and self.some(0.2) else batch
            steps = self.draw.randint(1, 4) if again and self.flexible and self.some(0.5) else self.steps
            shapes = {
                n: (self.s.inputs.get(n, ("input",))[0].split()[0], self.shape_of(n, batch, steps))
                for n in ("x", *self.s.inputs)
            }
            self.settings["calls"].append({"resets": self.some(0.5), "inputs": shapes})
        settings = "".join(f'    "{k}": {v!r},\n' for k, v in self.settings.items())
        self.source += f"\n\nSETTINGS = {{\n{settings}}}\n"

    def some(self, probability: float) -> bool:
        return self.draw.random() < probability

    def _step(self, v: Value, count: int) -> list[Value]:
        """The lines of a step from its input to its last layer; what may be kept."""
        s = self.s
        s.place = "step"
        s.values.append(v)
        seen: list[Value] = []
        for _ in range(count):
            mark, begin = len(s.values), len(s.body)
            for _ in range(self.draw.choice((0, 1))):
                v = add_piece(s, v)
            statements(s, self.draw.choice((0, 0, 1, 2)))
            if len(s.values) > mark and self.some(0.5):
                v = self.draw.choice(s.values[mark:])
            if len(v.shape) > 1 and (v.size > 12 or self.some(0.2)):
                v = flatten(s, v)
            if self.some(0.5) or v.size > 12:
                v = (conv(s, v) if len(v.shape) == 3 else None) or linear(s, v)
            fed = None
            if self.some(0.06):
                v, fed = feedback(s, v)
            layer = self.layers.add(v)
            if fed:
                s.body.append(f"{fed} = {layer.spk}")
            seen += [layer.spk, *[layer.mem] * (layer.mem is not None)]
            s.values += [layer.spk, *(Value(n, layer.shape) for n in layer.states)]
            v = layer.spk
            if self.some(0.06):
                s.uses_t = True
                s.body[begin:] = [self.draw.choice(OF_STEPS[:3]), *(f"    {line}" for line in s.body[begin:])]
            statements(s, self.draw.choice((0, 0, 1, 2)))
            if self.some(0.06):
                v = memory(s, v)
        text = "\n".join(s.body)
        return [
            *seen,
            *[u for u in s.values[-6:] if u not in seen and self.some(0.6 if text.count(u.name) == 1 else 0.2)],
        ]

    # ---- the loop

    def _loop_over(self, x: str, layout: str, body: list[str], first: bool, last: bool) -> list[str]:
        """A loop whose step has its input in ``xt``."""
        s, T, draw = self.s, self.steps, self.draw
        indented = [f"    {line}" for line in body]
        flexible = first and not s.needs_steps and layout in LENGTH and T > 0 and self.some(0.4)
        self.flexible &= flexible
        if layout in STEPS and T and self.some(0.45):
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
        dims = draw.choice((1, 1, 1, 1, 1, 2, 2, 3))
        shape = (draw.randint(1, 3) if dims > 1 else draw.randint(1, 4), *(draw.randint(2, 4) for _ in range(dims - 1)))
        layout = draw.choice(LAYOUTS)
        s.batch = "x.shape[0]" if layout in ("batch first", "time last", "constant") else "x.shape[1]"
        if dims == 1 and layout != "batch first" and self.some(0.03):
            s.batch = ""
        s.permuted = layout == "time last"
        self.layout, self.shape, self.flexible = layout, shape, True
        if layout == "time first":
            s.records.append(Value("x", shape))
        elif layout == "batch first" and self.some(0.5):
            s.before.append("X = x.transpose(0, 1)")
            s.records.append(Value("X", shape))
        elif layout == "constant":
            s.values.append(Value("x", shape))
        with s.written_to(s.before):
            statements(s, draw.choice((0, 0, 0, 1, 2)))
        count, loops = draw.choice((1, 1, 1, 1, 1, 1, 2, 2, 3)), 2 if self.some(0.1) and self.steps else 1
        v, x, code = Value("xt", shape), "x", []
        for loop in range(loops):
            if layout == "time first" and self.some(0.2) and self.steps:
                x, layout, form = s.name("xs"), "list", draw.choice(LISTS).format(R=x)
                code += in_block(s, [f"{x} = {form}"]) if self.some(0.4) else [f"{x} = {form}"]
            seen = self._step(v, max(1, count // loops))
            last, hand_on = loop == loops - 1, s.name("rec")
            if not last:
                s.before.append(f"{hand_on} = []")
                s.body.append(f"{hand_on}.append({seen[-1]})")
            for w in draw.sample(seen, min(len(seen), draw.choice((1, 2, 2, 3, 3)) if last else draw.choice((0, 1)))):
                keep(s, w)
            code += self._loop_over(x, layout, s.body, loop == 0, last)
            s.body, s.uses_t, s.place = [], False, "after"
            s.lists += s.kept
            s.kept = []
            s.records += [u for u in s.later if u.name.startswith("filled")]
            s.values += [u for u in s.later if u.name.startswith("acc")]
            s.later = []
            if not last:
                v, x, layout = Value("xt", seen[-1].shape), hand_on, "time first"
                s.literal_steps()
                self.flexible = False
                if self.some(0.6):
                    x = s.name("series")
                    code.append(f"{x} = torch.stack({hand_on})")
                    s.records.append(Value(x, v.shape))
                else:
                    layout = "list"
        with s.written_to(s.after):
            if not self.steps:  # the variables of a step are not there
                s.values, s.lists = [v for v in s.values if v.name.startswith("acc")], []
            afterwards(s)
        if not (s.lists or s.values or s.others or len(s.records) > 1):
            s.others.append("x.sum()")
        returned = results(s, "\n".join([*s.before, *code, *s.after]))
        if s.draws:
            returned = f"{{'draws': [{', '.join(s.draws)}], 'rest': {returned}}}"
        if self.carries:
            returned = f"{returned}, ({''.join(f'{state}, ' for state in self.layers.carried)})"
        text = "\n".join([*s.before, *code, *s.after])
        for name in ("fixed", "square"):
            if f"self.{name}" in text:
                s.init.insert(0, f"self.{name} = nn.Linear({shape[-1]}, {shape[-1]})")
        lines = [
            "class Net(nn.Module):",
            "    def __init__(self, snn):",
            "        super().__init__()",
            *(f"        {line}" for line in s.init),
            "",
            f"    def forward({', '.join(['self', *['carried'] * self.carries, 'x', *s.inputs])}):",
            *(f"        {line}" for line in (*text.splitlines(), f"return {returned}")),
        ]
        surrogates = "snnfast" if self.dtype == "float64" else "snntorch"
        self.source = "\n".join([HEADER.format(surrogates=surrogates), "", *lines, ""])

    def shape_of(self, name: str, batch: int, steps: int) -> tuple[int, ...]:
        """The shape of an input."""
        T, B = steps, (batch,) if self.s.batch else ()
        if name == "x":
            length = {"strided": 2 * T + 1, "late": T + 1}.get(self.layout, T)
            return {"batch first": (*B, T, *self.shape), "constant": (*B, *self.shape),
                    "time last": (*B, *self.shape, T)}.get(self.layout, (length, *B, *self.shape))  # fmt: skip
        kind, shape = self.s.inputs[name]
        return (*((T,) if "per step" in kind else ()), *B, *(() if kind.startswith("classes") else shape))

    def __str__(self) -> str:
        return f"{self.source}{FOOTER}"
