"""Random networks of neurons that a user wrote by hand, drawn from a number and written as Python (see loop_fuzz.py).

What the calls of a step compute is elementwise, for the most part; whether a compiler makes a recurrence of them, or
leaves the loop as it is, the numbers must be those of the loop.
"""

import random
import textwrap

HEAD = """
import torch
import torch.nn.functional as F
from loop_ops import Masked, Plain, Saved, Summed, through
from torch import nn


"""
SPIKES = (
    "Masked.apply({0})", "Masked.apply({0}, 0.5)", "Plain.apply({0})", "Saved.apply({0}, torch.zeros_like({0}))",
    "through({0})", "({0} > 0).to({0}.dtype)", "Saved.apply({0} + {1}, {1})",
)  # fmt: skip
ODD_SPIKES = ("Summed.apply({0})", "Masked.apply({0}, 0.5 + 0.25 * t)")
TERMS = (
    "{0} * {k}", "{0} + {1}", "{0} - {1}", "{k} * {0} + {1}", "{0} + ({1} - {0}) / 2.0", "{0} * {1}", "{1} - {k} * {0}",
    "torch.clamp({0}, -1.0, 1.5)", "torch.where({0} > {1}, {0}, {1} * {k})", "{0}.abs()", "{0} * self.w",
    "self.w * {0}", "{0} + self.b", "{0} * torch.relu({1})", "torch.maximum({0}, {1})", "{0} ** 2 * 0.25",
    "{0}.detach() * {k} + {1}",
    "{0}.masked_fill({1} > {k}, 0.25)", "{0}.clone()", "({0} > {k}).to({0}.dtype) * {1}", "F.hardtanh({0})",
    "{0} / (1 + {1}.abs())", "-{0}", "torch.floor({0} * 4) / 4",
)  # fmt: skip
SMOOTH = ("torch.sigmoid({0})", "torch.exp(-{0}.abs()) * {1}", "torch.tanh({0})")
RESETS = (
    "{v} = {v} - {s}", "{v} = {v} - {s}.detach() * {k}", "{v} = {v} * (1 - {s})", "{v} = {v} * (1.0 - {s}.detach())",
    "{v} = torch.where({s} > 0, torch.zeros_like({v}), {v})", "{v} = {v}.masked_fill({s} > 0, {k})",
    "{v} = (1 - {s}) * {v} + {s} * {k}", "{v} = {v}.clone()\n{v}[{s}.detach() > 0.5] = {k}",
    "{v} = {v}.clone()\n{v}.mul_(1 - {s}.detach())", "{v} = {v}.clone()\n{v} -= {s} * {k}",
)  # fmt: skip
STARTS = (
    "0", "0.0", "0", "1.0", "torch.zeros_like(x[0])", "torch.zeros(x.shape[1:], dtype=x.dtype)",
    "torch.full_like(x[0], 0.25)", "x[0] * 0.5", "self.b * torch.ones_like(x[0])",
    "torch.zeros(x.shape[-1], dtype=x.dtype)",
)  # fmt: skip
CURRENTS = ("x[t]", "x[t]", "x[t] * 0.5", "self.fc(x[t])", "h[t]", "x[0]", "x[t] * (0.5 + 0.25 * t)", "x[-1 - t]")
NORMALISED = ("self.bn(x[t])", "self.bn(self.fc(x[t]))", "self.bn(x[t] + 4096)")  # in float64: no number is exact
PRODUCTS = (
    "self.fc({0})", "self.fc({0})", "{0} @ self.m", "torch.mm({0}, self.m)", "self.fc({0} * 0.5)",
    "torch.einsum('bi, ij -> bj', {0}, self.m)", "F.linear({0}, self.m)", "torch.matmul({0}.detach(), self.m.t())",
    "0.5 * self.fc({0}).detach()",
    "self.fc({0}) * {0}", "self.fc({0}) + {0} @ self.m", "torch.einsum('bi,ji->bj', ({0}, self.m))",
    "torch.einsum('bb,bj->bj', ({0}, self.m))", "self.both(torch.cat((x[t], {0}), 1))",
    "self.both(torch.cat(({0}, {0} * 0.5), dim=-1))", "self.both(torch.cat([{0}, x[0] + self.fc({0})], 1))",
    "self.fc(self.fc({0}))", "self.fc({0}.t().contiguous().t())", "self.fc({0}).sum(-1, keepdim=True)",
)  # fmt: skip
READ_BACK = ("max(t - 1, 0)", "t - 1", "t - 1", "t", "0", "t - 2")
CONDITIONS = ("if t == 0:", "if t > 0:", "if t % 2:", "if t == {last}:", "with torch.no_grad():")


class Neurons:
    """One program, drawn from its number; as ``random_programs.Program``."""

    def __init__(self, number: int, attempt: int = 0) -> None:
        self.draw = random.Random(1000 * number + attempt)
        self.dtype = "float32" if self.some(0.3) else "float64"
        self.steps = self.draw.choice((3, 3, 4, 5, 6)) if self.some(0.95) else self.draw.choice((0, 1, 2))
        self.smooth = self.dtype == "float64" and self.some(0.3)
        self.count = 0
        settings = {
            "number": number, "attempt": attempt, "dtype": self.dtype, "train": True, "grad": self.some(0.85),
            "x_grad": self.some(0.7), "leaf": self.some(0.5), "held_in_loss": False, "carries": False,
            "same_input": False, "strided_input": self.some(0.1), "calls": [],
        }  # fmt: skip
        width, batches = self.draw.randint(1, 4), (1, 2, 3)
        for _ in range(2 if self.some(0.1) else 1):
            shape = (self.steps, self.draw.choice(batches), width)
            settings["calls"].append({"resets": False, "inputs": {"x": ("input", shape)}})  # type: ignore[attr-defined]
        self.before: list[str] = []
        self.body: list[str] = []
        self.after: list[str] = []
        self.results: list[str] = []
        self._write()
        init = [
            f"self.w = nn.Parameter(torch.rand({width}))" if self.some(0.6) else "self.w = 0.75",
            "self.b = nn.Parameter(torch.rand(()))" if self.some(0.4) else "self.b = -0.25",
            f"self.fc = nn.Linear({width}, {width})",
            f"self.both = nn.Linear({2 * width}, {width})",
            f"self.m = nn.Parameter(torch.rand({width}, {width}))",
            f"self.bn = nn.BatchNorm1d({width})",
        ]
        loop = [f"for t in range({self.steps}):", *self._indented(self.body)]
        if self.steps > 1 and self.some(0.15):  # the first step stands outside
            loop = ["t = 0", *"\n".join(self.body).split("\n"), f"for t in range(1, {self.steps}):", *loop[1:]]
        forward = [*self.before, *loop, *self.after]
        if self.some(0.15):  # layers of the same lines, each over all time steps
            forward = ["for layer in range(2):", *self._indented([*forward, "x = torch.stack(xs) + self.fc(x) * 0.5"])]
        forward.append(f"return {', '.join(self.results)},")
        self.source = HEAD.lstrip("\n") + "\n".join([
            "class Net(nn.Module):", "    def __init__(self, snn):", "        super().__init__()",
            *(f"        {line}" for line in init), "", "    def forward(self, x):",
            *(f"        {line}" for line in forward),
        ])  # fmt: skip
        self.source += "\n\n\nSETTINGS = {\n" + "".join(f'    "{k}": {v!r},\n' for k, v in settings.items()) + "}\n"

    def __str__(self) -> str:
        return self.source

    def some(self, probability: float) -> bool:
        return self.draw.random() < probability

    def _indented(self, lines: list[str]) -> list[str]:
        return textwrap.indent("\n".join(lines), "    ").split("\n")

    def _name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def _term(self, values: list[str], first: str | None = None) -> str:
        terms = SMOOTH if self.smooth and self.some(0.15) else TERMS
        a, b = first or self.draw.choice(values), self.draw.choice(values)
        return self.draw.choice(terms).format(a, b, k=self.draw.choice((0.25, 0.5, 0.75, 1.5, -0.5)))

    def _write(self) -> None:
        self.before.append("h = self.fc(x)")
        values: list[str] = []
        current = self.draw.choice((*CURRENTS, *NORMALISED * (self.dtype == "float64")))
        for _ in range(self.draw.choice((1, 1, 1, 2))):
            if values and self.some(0.6):
                current = self.draw.choice(("self.fc({0})", "{0}", "{0} * 0.5 + x[t]")).format(values[-1])
            values = self._neuron(current)
        self.before.append("xs = []")
        self.body.append(f"xs.append({self.draw.choice(values)})")
        if self.some(0.2):
            self.after.append("x = x * 2")

    def _neuron(self, current: str) -> list[str]:
        """The lines of a neuron; what the next one may read."""
        cur, s = self._name("cur"), self._name("s")
        states = [self._name("v") for _ in range(self.draw.choice((1, 1, 2, 2, 3)))]
        self.before += [f"{name} = {self.draw.choice(STARTS)}" for name in states]
        v = states[0]
        if self.some(0.3):
            self.before.append(f"{s} = torch.zeros_like(x[0])")
            current += f" + {self.draw.choice(PRODUCTS).format(self.draw.choice((s, s, v)))}"
        record = self._record() if self.some(0.15) else None
        if record is not None:
            current += f" + {record.format(self.draw.choice(READ_BACK))} * 0.5"
        self.body.append(f"{cur} = {current}")
        values = [*states, cur]
        if self.some(0.1):
            self.body.append(f"{v} = {v} + self.fc({cur}) * 0.25")
        leak = self.draw.choice(
            ("{0} * 0.75 + {1}", "{0} + ({1} - {0}) / 2.0", "0.5 * {0} + {1}", "self.w * {0} + {1}")
        )
        self.body.append(f"{v} = {leak.format(v, cur)}")
        temporaries = []
        for _ in range(self.draw.randint(0, 4)):
            name = self._name("a") if self.some(0.6) else self.draw.choice(states)
            line = f"{name} = {self._term(values)}"
            if name in states and self.some(0.15):
                condition = self.draw.choice(CONDITIONS).format(last=self.steps - 1)
                line = f"{condition}\n    {line}"
            elif name not in states:
                temporaries.append(name)
            self.body.append(line)
            values = [*states, cur, *temporaries]
        spike = self.draw.choice(ODD_SPIKES) if self.some(0.08) else self.draw.choice(SPIKES)
        distance = self._name("d")
        self.body.append(f"{distance} = {v} - {self.draw.choice(('0.5', '1.0', '0.25', self.draw.choice(values)))}")
        self.body.append(f"{s} = {spike.format(distance, v)}")
        if record is not None:
            self.body.append(f"{record.format('t')} = {s}")
            s = record.format(self.draw.choice(READ_BACK)) if self.some(0.4) else s
        reset = self.draw.choice(RESETS).format(v=v, s=s, k=self.draw.choice((0.0, 0.5, 1.0)))
        self.body += reset.split("\n") if self.some(0.85) else []
        for other in states[1:]:
            self.body.append(f"{other} = {self._term([*values, s], other)}")
            self.body.append(f"{other} = {other} * 0.5")
        if self.some(0.05):
            self.body.append(f"{v} = {v}.detach()")
        if self.some(0.03):
            self.body.append(f"if torch.is_tensor({v}) and {v}.requires_grad:")
            self.body.append(f"    {v}.register_hook(lambda grad: grad * 0.5)")
        self._keep([s, v, *states[1:], distance, *temporaries], [v, *states])
        return [s, v]

    def _record(self) -> str:
        """A record that is filled step by step, and read meanwhile: the spelling of a place in it."""
        name = self._name("record")
        self.results.append(name)
        sizes = f"{self.steps}, *x.shape[1:]", f"*x.shape[1:], {self.steps}"
        last = self.some(0.4)
        self.before.append(f"{name} = torch.zeros({sizes[last]}, dtype=x.dtype)")
        return f"{name}[..., {{0}}]" if last else f"{name}[{{0}}]"

    def _keep(self, values: list[str], states: list[str]) -> None:
        for name in values:
            if not self.some(0.4 if name != values[0] else 0.8):
                continue
            kind = self.draw.choice(("stack", "stack", "filled", "sum", "list"))
            kept = self._name("kept")
            if kind == "filled":
                self.before.append(f"{kept} = torch.zeros({self.steps}, *x.shape[1:], dtype=x.dtype)")
                self.body.append(f"{kept}[t] = {name}")
            elif kind == "sum":
                self.before.append(f"{kept} = 0")
                self.body.append(self.draw.choice((f"{kept} = {kept} + {name}", f"{kept} = {kept} * 0.5 + {name}")))
            else:
                self.before.append(f"{kept} = []")
                self.body.append(f"{kept}.append({name})")
                if kind == "stack":
                    self.after.append(f"{kept} = torch.stack({kept}, {self.draw.choice((0, 0, 1))})")
            self.results.append(kept)
        self.results += [s for s in dict.fromkeys(states) if self.some(0.3)] or [states[0]]
