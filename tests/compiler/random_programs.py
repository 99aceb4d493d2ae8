"""Random networks with a random loop over time, drawn from a number and written as Python (see ``loop_fuzz.py``).

Whether PyTorch allows a statement where it stands is not asked: a program that raises without a compiler is left out.
Beside ``Net`` and ``SETTINGS``, a program may have ``between(net, number)``, which is called before each call of the
network, and ``around(number)``, contexts of a call. What it returns under the name ``told`` is compared by value.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

# ---- the text of a program, while it is written


@dataclass(frozen=True)
class Value:
    """A variable of the program: ``[B, *shape]``, or ``shape`` in a program without a batch."""

    name: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return self.name

    @property
    def size(self) -> int:
        return math.prod(self.shape)


CUTS = (*("{0} = {0}.detach()",) * 6, "{0}.detach_()", "{0} = {0}.data")
ALIVE = ("(t < {0})", "({0} > t)", "(t <= {0} - 1)", "(t < {0}.to(x.dtype))", "torch.gt({0}, t)")


@dataclass
class Source:
    """The lines of a program while it is written, and what its parts agree on."""

    draw: random.Random
    exact: bool  # float32, of numbers whose sums are exact
    steps: int
    train: bool
    init: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    inputs: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)  # name: kind, shape behind the batch
    counts: Counter[str] = field(default_factory=Counter)
    drawn: Counter[Any] = field(default_factory=Counter)  # kinds of statements, and pieces
    uses_t: bool = False
    permuted: bool = False  # no ``view`` from here on
    batch: str = "x.shape[1]"  # empty: a program without a batch
    needs_steps: bool = False  # the number of steps stands in the program
    results: list[str] = field(default_factory=list)
    # What a statement may read and write: tensors of one step; [T, B, *] and lists of a tensor for each step, both with
    # the shape of one of them; any others.
    values: list[Value] = field(default_factory=list)
    records: list[Value] = field(default_factory=list)
    lists: list[Value] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    draws: list[str] = field(default_factory=list)  # lists of random numbers
    kept: list[Value] = field(default_factory=list)  # lists, whole behind the loop
    later: list[Value] = field(default_factory=list)  # sums and filled tensors, likewise
    modules: list[str] = field(default_factory=list)
    place: str = "before"  # where statements are written: "before" the loop, in a "step", "after" the loop
    carries: bool = False
    carried: list[str] = field(default_factory=list)  # states that the network returns and is given
    cuts: list[str] = field(default_factory=list)  # what cuts the states of the loop from their graph
    lengths: str = ""  # of the samples of a padded batch
    top: list[str] = field(default_factory=list)  # lines in front of the class
    told: list[str] = field(default_factory=list)  # lists of what must be as in the loop, which are always returned
    between: list[str] = field(default_factory=list)  # lines that run before each call, of ``net`` and its ``number``
    around: list[str] = field(default_factory=list)  # contexts of a call with that ``number``
    calls: int = 1  # at least so many
    catches: bool = False  # what a call raises is caught, and the network is called again

    def some(self, probability: float) -> bool:
        return self.draw.random() < probability

    def name(self, stem: str) -> str:
        self.counts[stem] += 1
        return f"{stem}{self.counts[stem]}"

    def module(self, stem: str, code: str) -> str:
        name = f"self.{self.name(stem)}"
        self.init.append(f"{name} = {code}")
        if not code.startswith(("nn.Parameter", "nn.ModuleList")):
            self.modules.append(name)
        return name

    def parameter(self, stem: str, *shape: int) -> str:
        return self.module(stem, f"nn.Parameter(torch.rand({', '.join(map(str, shape))}))")

    def named(self, stem: str, code: str) -> str:
        self.body.append(f"{(name := self.name(stem))} = {code}")
        return name

    def let(self, code: str, shape: tuple[int, ...], stem: str = "h") -> Value:
        self.values.append(Value(self.named(stem, code), shape))
        return self.values[-1]

    @contextmanager
    def written_to(self, lines: list[str]) -> Iterator[None]:
        """Write statements there instead of in the body of the loop."""
        body, self.body = self.body, lines
        yield
        self.body = body

    def beside(self, *texts: str) -> None:
        """Texts in front of the class, each once."""
        self.top += [text for text in texts if text not in self.top]

    def tell(self) -> str:
        """A list that is returned."""
        self.told.append(self.name("told"))
        self.before.insert(0, f"{self.told[-1]} = []")
        return self.told[-1]

    def show(self, code: str) -> str:
        """Return the tensor of each time step; the list of them."""
        name = self.tell()
        self.body.append(f"{name}.append({code})")
        return name

    def number_of_calls(self) -> str:
        """The number of the call, from one on."""
        if "self.call = 0" not in self.init:
            self.init.append("self.call = 0")
            self.before.insert(0, "self.call += 1")
        return "self.call"

    def literal_steps(self) -> int:
        self.needs_steps = True
        return self.steps

    def dims(self, *shape: int) -> str:
        return ", ".join([*[self.batch] * bool(self.batch), *map(str, shape)])

    def zeros(self, shape: tuple[int, ...], stem: str) -> str:
        """A variable of zeros ``[B, *shape]`` from before the loop."""
        name = self.name(stem)
        dims = self.dims(*shape)
        made = self.draw.choice((f"x.new_zeros({dims})", f"torch.zeros({dims}, dtype=x.dtype, device=x.device)"))
        self.before.append(f"{name} = {made}")
        return name

    def begin(self, name: str, start: str) -> None:
        """A variable that goes on from step to step, and perhaps from call to call."""
        if self.carries:
            start = f"carried[{len(self.carried)}] if carried else {start}"
            self.carried.append(name)
        self.before.append(f"{name} = {start}")
        self.cuts.append(self.draw.choice(CUTS).format(name))

    def alive(self, rank: int) -> str:
        """Which samples of a padded batch have the step ``t``, ``[B, 1, ...]`` with so many dimensions of 1."""
        if not self.lengths:
            self.lengths = self.add_input("lengths", (), per_step=False)
        self.uses_t = True
        nones, ones = ", ".join(["None"] * rank), ", ".join(["1"] * rank)
        shaped = (f"[:, {nones}]", f".view(-1, {ones})", ".unsqueeze(-1)" * rank)
        return self.draw.choice(ALIVE).format(self.lengths) + self.draw.choice(shaped)

    def add_input(self, kind: str, shape: tuple[int, ...], per_step: bool) -> str:
        """An argument of ``forward``; the expression of it at one step."""
        name = self.name({"classes": "y", "target": "target", "input": "z", "lengths": "lengths"}[kind])
        self.inputs[name] = (kind + (" per step" if per_step else ""), shape)
        if per_step:
            self.uses_t = True
        return f"{name}[t]" if per_step else name


# ---- what may stand between two spiking layers; calls that keep the shape, and need no weights, are statements

Write = Callable[[Source, Value], Value | None]  # ``None``: not for this shape


@dataclass(frozen=True)
class Piece:
    write: Write
    weight: float
    exact: bool  # sums of a few bits stay sums of a few bits
    unbatched: bool  # has no need of a batch


PIECES: list[Piece] = []


def piece(weight: float = 1.0, exact: bool = False, unbatched: bool = False) -> Callable[[Write], Write]:
    def add(write: Write) -> Write:
        PIECES.append(Piece(write, weight, exact, unbatched))
        return write

    return add


def add_piece(s: Source, v: Value) -> Value:
    """One piece that is drawn, behind ``v``."""
    candidates = [p for p in PIECES if (p.exact or not s.exact) and (p.unbatched or s.batch)]
    while True:
        drawn = s.draw.choices(candidates, [p.weight for p in candidates])[0]
        if (found := drawn.write(s, v)) is not None:
            s.drawn[drawn.write] += 1
            return found


@piece(5, exact=True, unbatched=True)
def linear(s: Source, v: Value) -> Value:
    n, out = v.shape[-1], s.draw.randint(1, 9)
    shape = (*v.shape[:-1], out)
    kinds = ("module", "module", "module", "no bias", "functional", "matmul", "masked", "einsum", "addmm")
    kind = s.draw.choice(kinds[: None if s.batch else -2])
    if kind in ("module", "no bias"):
        layer = s.module("fc", f"nn.Linear({n}, {out}{', bias=False' if kind == 'no bias' else ''})")
        return s.let(f"{layer}({v})", shape)
    w = s.parameter("weight", out, n)
    if kind == "functional":
        return s.let(f"F.linear({v}, {w}, {s.parameter('bias', out)})", shape)
    if kind == "masked":
        return s.let(f"F.linear({v}, {w} * ({w} > 0))", shape)
    if kind == "einsum" or (kind == "addmm" and len(shape) > 1):
        return s.let(f"torch.einsum('b...i,oi->b...o', {v}, {w})", shape)
    if kind == "addmm":
        return s.let(f"torch.addmm({s.parameter('bias', out)}, {v}, {w}.t())", shape)
    return s.let(s.draw.choice((f"{v} @ {w}.t()", f"torch.matmul({v}, {w}.T)")), shape)


@piece(4, exact=True)
def conv(s: Source, v: Value) -> Value | None:
    if len(v.shape) < 2:
        return None
    channels, *spatial = v.shape
    out, d = s.draw.randint(1, 4), len(spatial)
    kernel = s.draw.choice([k for k in (1, 2, 3) if k <= min(spatial) + 2])
    padding, stride = s.draw.choice((0, 1)) if kernel <= min(spatial) else 1, s.draw.choice((1, 1, 2))
    groups = channels if s.some(0.1) else 1
    out = out * groups
    sizes = [(n + 2 * padding - kernel) // stride + 1 for n in spatial]
    options = f"stride={stride}, padding={padding}, groups={groups}"
    if s.some(0.15):
        w = s.parameter("weight", out, channels // groups, *[kernel] * d)
        return s.let(f"F.conv{d}d({v}, {w}, {options})", (out, *sizes))
    options += ", bias=False" if s.some(0.2) else ""
    return s.let(f"{s.module('conv', f'nn.Conv{d}d({channels}, {out}, {kernel}, {options})')}({v})", (out, *sizes))


@piece(3)
def pool(s: Source, v: Value) -> Value | None:
    if len(v.shape) < 2 or min(v.shape[1:]) < 2:
        return None
    channels, *spatial = v.shape
    d, half = len(spatial), [n // 2 for n in spatial]
    forms = [(f"F.{kind}_pool{d}d({{v}}, 2)", half) for kind in ("max", "avg")]
    forms += [(f"nn.{kind}Pool{d}d(2)({{v}})", half) for kind in ("Max", "Avg")]
    forms += [(f"F.adaptive_avg_pool{d}d({{v}}, 1)", [1] * d)]
    if max(spatial) <= 4:
        forms += [("F.interpolate({v}, scale_factor=2)", [2 * n for n in spatial])]
    form, sizes = s.draw.choice(forms)
    return s.let(form.format(v=v), (channels, *sizes))


def flatten(s: Source, v: Value) -> Value:
    forms = [f"{v}.flatten(1)", f"{v}.reshape({v}.size(0), -1)", f"{v}.reshape(-1, {v.size})", f"nn.Flatten()({v})"]
    if not s.permuted:
        forms += [f"{v}.view({v}.shape[0], -1)", f"{v}.view(-1, {v.size})"]
    return s.let(s.draw.choice(forms), (v.size,))


@piece(5, exact=True)
def reshape(s: Source, v: Value) -> Value | None:
    if len(v.shape) > 1:
        return flatten(s, v)
    n = v.shape[0]
    factor = s.draw.choice([k for k in range(1, n + 1) if n % k == 0])
    shape = (factor, n // factor)
    if s.some(0.3) and n >= 2:
        shape = (1, *shape)
    dims = ", ".join(map(str, shape))
    forms = [f"{v}.unflatten(1, ({dims}))", f"{v}.reshape(-1, {dims})", f"{v}.reshape({v}.shape[0], {dims})"]
    return s.let(s.draw.choice(forms), shape)


@piece(3, exact=True)
def transpose(s: Source, v: Value) -> Value | None:
    if len(v.shape) < 2:
        return None
    s.permuted = True
    if len(v.shape) == 2:
        forms = [f"{v}.transpose(1, 2)", f"{v}.mT", f"{v}.permute(0, 2, 1)", f"torch.transpose({v}, -1, -2)"]
        return s.let(s.draw.choice(forms), v.shape[::-1])
    return s.let(f"{v}.permute(0, 2, 3, 1)", (*v.shape[1:], v.shape[0]))


@piece(4)
def reduce(s: Source, v: Value) -> Value | None:
    if len(v.shape) < 2:
        return None
    forms = ("{v}.sum(1)", "{v}.amax(1)", "{v}.max(1)[0]", "{v}[:, 0]", "{v}.select(1, -1)", "{v}.mean(1)",
             "{v}.var(1, correction=0)", "torch.logsumexp({v}, dim=1)")  # fmt: skip
    return s.let(s.draw.choice(forms).format(v=v), v.shape[1:])


@piece(1, exact=True)
def slice_or_pad(s: Source, v: Value) -> Value:
    n = v.shape[-1]
    if n > 1 and s.some(0.5):
        s.permuted = True
        forms = [(f"{v}[..., ::2]", (n + 1) // 2), (f"{v}[..., 1:]", n - 1), (f"{v}.narrow(-1, 0, {n - 1})", n - 1)]
        forms += [(f"torch.stack({v}.chunk(2, -1)).sum(0)", n // 2)] * (n % 2 == 0)
        code, m = s.draw.choice(forms)
        return s.let(code, (*v.shape[:-1], m))
    return s.let(f"F.pad({v}, (0, 1), value=0.5)", (*v.shape[:-1], n + 1))


@piece(3)
def module(s: Source, v: Value) -> Value:
    """A module that keeps the shape."""
    n = v.shape[-1]
    forms = [f"nn.LayerNorm({n})", f"nn.LayerNorm({list(v.shape)})", f"nn.RMSNorm({n}, eps=1e-3)", "nn.PReLU()",
             "nn.ReLU(inplace=True)", "nn.Dropout(p=0.0)", "nn.Softmax(dim=-1)"]  # fmt: skip
    forms += [f"nn.GroupNorm(1, {v.shape[0]})"] * (len(v.shape) > 1)
    forms += ["nn.Dropout(0.5)", *["nn.Dropout1d(0.2)"] * (len(v.shape) < 3)] * (not s.train)
    return s.let(f"{s.module('module', s.draw.choice(forms))}({v} * 1)", v.shape)


@piece(2)
def batch_norm(s: Source, v: Value) -> Value:
    # With momentum=None a number is read from a tensor at every step, where dynamo ends its graph.
    kinds = ["", "", "", ", momentum=0.3", ", affine=False", *[", track_running_stats=False"] * s.train]
    name = f"nn.BatchNorm{max(len(v.shape) - 1, 1)}d({v.shape[0]}{s.draw.choice(kinds)})"
    if s.some(0.3):  # a mean that is large beside the deviations
        v = s.let(f"{v} + 4096", v.shape)
    if s.some(0.15):  # at the first step, or at all others
        s.uses_t = True
        condition = s.draw.choice(("t == 0", "t > 0", "t != 1"))
        return s.let(f"{s.module('bn', name)}({v}) if {condition} else {v} * 0.5", v.shape)
    if s.some(0.2):  # one for each step, as in "BatchNorm through time"
        s.uses_t = True
        norms = s.module("bntt", f"nn.ModuleList([{name} for _ in range({s.literal_steps()})])")
        return s.let(f"{norms}[t]({v})", v.shape)
    return s.let(f"{s.module('bn', name)}({v})", v.shape)


@piece(2, exact=True)
def branches(s: Source, v: Value) -> Value:
    """Concatenated or added."""
    a = add_piece(s, v) if s.some(0.5) else v
    b = add_piece(s, v)
    if a.shape == b.shape and s.some(0.6):
        return s.let(s.draw.choice((f"{a} + {b}", f"{a} - {b}", f"torch.add({a}, {b})")), a.shape)
    a, b = (w if len(w.shape) == 1 else flatten(s, w) for w in (a, b))
    code = s.draw.choice((f"torch.cat([{a}, {b}], 1)", f"torch.cat(({a}, {b}), dim=-1)", f"torch.hstack([{a}, {b}])"))
    wide = s.let(code, (a.size + b.size,))
    return linear(s, wide) if wide.size > 9 else wide


@piece(3)
def attention(s: Source, v: Value) -> Value | None:
    if len(v.shape) != 2:
        return None
    module = s.module("attention", f"nn.MultiheadAttention({v.shape[-1]}, 1, batch_first=True)")
    forms = (f"torch.softmax({v} @ {v}.transpose(-2, -1), -1) @ {v}", f"F.scaled_dot_product_attention({v}, {v}, {v})",
             f"torch.bmm(torch.bmm({v}, {v}.transpose(1, 2)).softmax(2), {v})",
             f"{module}({v}, {v}, {v}, need_weights=False)[0]")  # fmt: skip
    return s.let(s.draw.choice(forms), v.shape)


@piece(1, exact=True, unbatched=True)
def by_step(s: Source, v: Value) -> Value:
    """What is another operation, or has another number, at each step."""
    s.uses_t = True
    n, steps = v.shape[-1], max(s.literal_steps(), 1)
    kind = s.draw.choice(("number", "layers", "input", "if", "growing"))
    if kind == "number":
        scale = s.parameter("scale", steps, n)
        forms = ("{v} * (t + 1)", "{v} * 0.5**t", "{v} + t", "{v} * (t % 2)", "{v} * {w}[t]", "{v} + {w}[t]")
        return s.let(s.draw.choice(forms).format(v=v, w=scale), v.shape)
    if kind == "layers":
        layers = s.module("layers", f"nn.ModuleList([nn.Linear({n}, {n}) for _ in range({steps})])")
        return s.let(f"{layers}[t]({v})", v.shape)
    if kind == "input" and len(v.shape) == 1:
        return s.let(f"{v} + {s.add_input('input', v.shape, per_step=True)}", v.shape)
    if kind == "growing":
        return s.let(f"{v} + {v}[..., : t + 1].sum(-1, keepdim=True)", v.shape)
    w = s.let(f"{v}", v.shape)
    s.body += [f"if {s.draw.choice(('t == 0', f't == {steps - 1}', 't % 2'))}:", f"    {w} = {v} * 2 + 0.5"]
    return w


@piece(0.7, exact=True, unbatched=True)
def constant(s: Source, v: Value) -> Value:
    """With something that is the same at every step, though it is computed in the loop."""
    if len(v.shape) == 1 and s.some(0.4):
        return s.let(f"{v} + {s.add_input('input', v.shape, per_step=False)}", v.shape)
    w = s.parameter("offset", v.shape[-1])
    return s.let(f"{v} * ({w} + {w}.abs().sum())", v.shape)


@piece(0.5, exact=True)
def buffer(s: Source, v: Value) -> Value:
    """A buffer that moves with the steps."""
    name = s.name("seen")
    s.init.append(f"self.register_buffer('{name}', torch.zeros({v.shape[-1]}))")
    rate = f"{v}.detach().reshape(-1, {v.shape[-1]}).sum(0)"
    lines = (f"self.{name} += {rate}", f"self.{name}.add_({rate})", f"self.{name} = 0.5 * self.{name} + {rate}")
    s.body.append(s.draw.choice(lines))
    return s.let(f"{v} - 0.25 * self.{name}", v.shape) if s.some(0.3) and not s.exact else v


@piece(1, exact=True)
def several_results(s: Source, v: Value) -> Value:
    """Of an operator that returns a tuple, the second one whole numbers."""
    values, indices = s.name("part"), s.name("part")
    form = s.draw.choice((f"{v}.max(-1, keepdim=True)", f"torch.sort({v}, dim=-1, stable=True)"))
    s.body.append(f"{values}, {indices} = {form}")
    return s.let(f"{v} + {values} + ({indices} * 0.25).to(x.dtype)", v.shape)


@piece(1, exact=True)
def whole_numbers(s: Source, v: Value) -> Value:
    embedding = s.module("embedding", f"nn.Embedding(2, {v.shape[-1]})")
    forms = (f"{embedding}(({v} > 0.4).long()).sum(-1)", f"{v} + ({v} > 0.4).sum(-1, keepdim=True)",
             f"{v} * ({v} > 0.2).any(-1, keepdim=True)", f"{v} + F.one_hot(({v} > 0.4).long(), 2)[..., 1]",
             f"{v} + ({v} > 0).long().cumsum(-1)", f"{v} * (({v} > 0.3) & ({v} < 2))")  # fmt: skip
    return s.let(s.draw.choice(forms), v.shape)


@piece(1)
def larger_module(s: Source, v: Value) -> Value:
    n, out = v.shape[-1], s.draw.randint(1, 5)
    s.permuted = True
    if len(v.shape) == 3:
        return s.let(f"{s.module('up', f'nn.ConvTranspose2d({v.shape[0]}, {out}, 1)')}({v})", (out, *v.shape[1:]))
    if s.some(0.5):
        return s.let(f"{s.module('bilinear', f'nn.Bilinear({n}, {n}, {out})')}({v}, {v})", (*v.shape[:-1], out))
    gru = s.module("gru", f"nn.GRU({n}, {out}, batch_first=True)")
    code = f"{gru}({v})[0]" if len(v.shape) == 2 else f"{gru}({v}.unsqueeze(1))[0].squeeze(1)"
    return s.let(code, (*v.shape[:-1], out))


@piece(1, exact=True)
def sparse(s: Source, v: Value) -> Value | None:
    """A product of a sparse matrix, which is the same at every step."""
    if len(v.shape) > 1:
        return None
    n, out, w = v.shape[0], s.draw.randint(1, 5), s.name("sparse")
    if s.some(0.3):
        made = s.draw.choice(("nn.Parameter({0})", "nn.Parameter({0}, False)", "{0}")).format(
            f"torch.rand({out}, {n}).to_sparse()"
        )
        s.init.append(f"self.{w} = {made}")
        w = f"self.{w}"
    else:
        forms = ("({w} * ({w} > 0)).to_sparse()", "{w}.to_sparse()", "{w}.detach().to_sparse()", "{w}.to_sparse_csr()",
                 "{w}.detach().to_sparse_csr()",
                 f"torch.sparse_coo_tensor([[0, {out - 1}], [0, 0]], x.new_ones(2), ({out}, {n}))")  # fmt: skip
        made = s.draw.choice(forms)
        s.before.append(f"{w} = {made.format(w=s.parameter('weight', out, n))}")
    forms = ("torch.sparse.mm({0}, {v}.t()).t()", "torch.spmm({0}, {v}.T).T", "({0} @ {v}.t()).t()",
             "torch.sparse.mm({0}, {v}.t().contiguous()).t().contiguous()", "torch.mm({0}, {v}.mT).mT",
             "{0}.mm({v}.t()).mT", "torch.matmul({0}, {v}.t()).t()", "({v} @ {0}.t())",
             "({0} @ {v}.t() * torch.sparse.sum({0})).t()")  # fmt: skip
    return s.let(s.draw.choice(forms).format(w, v=v), (out,))


MASKED = (
    "torch.where({m}, {v}, {w})", "{v} * {m}", "{v} * {m}.to({v}.dtype)", "{v}.masked_fill(~{m}, 0)",
    "{v}.masked_fill({m}.logical_not(), 0.25 * t)", "torch.where({m}, {v}, t)", "torch.where({m}, 0.0, {v})",
    "{v}.masked_fill({w} > 0.5, t)", "{v}.masked_fill({w} > 0.5, 0.5 * t)", "torch.where({w} > 0.5, float(t), {v})",
    "torch.where({v} > 0.25 * t, {v}, {w})", "torch.where({m}, {v}, torch.zeros_like({v}))",
    "{v} * (t < {w})", "torch.where({w} > 0.5, {v}, {v}.new_tensor(t))", "{v}.masked_fill({m} & ({w} > 0.5), -t)",
)  # fmt: skip


@piece(1, exact=True)
def masked(s: Source, v: Value) -> Value | None:
    """By the lengths of a padded batch, or with a number that differs by step."""
    if s.place == "before":
        return None
    w = s.draw.choice([u for u in s.values if u.shape == v.shape] or [v])
    s.uses_t = True
    return s.let(s.draw.choice(MASKED).format(v=v, w=w, m=s.alive(len(v.shape))), v.shape)


# ---- statements that may stand anywhere. In the forms, ``v`` is a tensor that is read, ``w`` another one of its
# shape, ``o`` one that is written

WRITES = (
    "{o}.mul_(0.5)", "{o} += {w}", "{o} *= 0.5", "{o}.add_(other={w}, alpha=0.5)", "{o}.copy_({w})", "{o}.zero_()",
    "{o}.fill_(0.5)", "{o}.clamp_(min=0.25)", "{o}.relu_()", "{o}.lerp_({w}, 0.5)", "{o}.detach_()",
    "{o}.masked_fill_({w} > 0.5, 0.25)", "{o}.addcmul_({w}, {w}, value=0.5)", "{o}[{o} > 0.5] = 0.25",
    "{o}[:, 0] = 0.5", "{o}[..., 0] = {w}[..., 0]", "{o}[0] = 0.25", "{o}[:] = {w}", "{o}[[0]] = 0.5",
    "{o}[..., 1:] *= 2", "{o}[-1] += 1", "{o}[0, 0] = {w}[0, 0]", "{o}[:, [0]] = {w}[:, [0]]",
    "{o}[:1], {o}[..., :1] = 0.25, 0.5", "{o}.data.mul_(0.5)", "{o}.data[0] = 1", "{o}.detach().add_(0.5)",
    "torch.add({o}, {w}, out={o})", "torch.mul({w}, 0.5, out={o})", "torch.add({w}, {w}, out={o}[:])",
    "torch.sub(other={w}, input={o}, out={o})", "torch.ops.aten.add_({o}, {w})", "torch.cat([{w}], out={o})",
    "torch.ops.aten.clamp.out({w}, 0.25, out={o})", "torch.stack(list({w}), out={o})",
    "torch._foreach_add_([{o}], [{w}])", "torch._foreach_mul_([{o}], 0.5)", "torch._foreach_copy_([{o}], [{w}])",
    "torch._foreach_lerp_(({o},), ({w},), 0.5)", "torch._foreach_add_(list({o}), 1)",
    "{o}.index_copy_(-1, torch.tensor([0]), {w}[..., :1])", "{o}.index_add_(0, torch.tensor([0]), {w}[:1])",
    "{o}.index_fill_(1, torch.tensor([0]), 0.5)", "{o}.index_put_((torch.tensor([0]),), {w}[0])",
    "{o}.scatter_add_(-1, torch.zeros({w}.shape, dtype=torch.long), {w})", "{o}.masked_scatter_({w} > 0.5, {w})",
    "{o}.put_(torch.tensor([0]), torch.ones(1, dtype={o}.dtype))", "{o}.fill_diagonal_(0.5)", "{o}.cumsum_(-1)",
    "F.relu(input={o}, inplace=True)", "F.leaky_relu({o}, 0.1, True)", "F.elu(inplace=True, input={o})",
    "F.dropout({o}, 0.5, training=False, inplace=True)", "torch.nn.init.constant_({o}, 0.5)",
    "operator.iadd({o}, {w})", "operator.setitem({o}, 0, 0.5)", "operator.imul({o}[0], 0.5)", "{o}.view(-1)[0] = 1",
    "{o}.flatten()[0] = 1", "{o}.unbind(0)[0].mul_(2)", "{o}.split(1, 1)[0].add_(1)", "{o}.chunk(2, -1)[0].zero_()",
    "{o}.T.mul_(2)", "{o}.transpose(0, 1)[0] = 0.5", "{o}.select(0, 0).copy_({w}[0])", "{o}.narrow(0, 0, 1).add_(1)",
    "{o}.diagonal().zero_()", "{o}.as_strided((1,), (1,)).fill_(0.5)", "{o}.expand_as({o}).mul_(0.5)",
    "{o}.t_()\n{o}.t_()", "{o}.unsqueeze_(0)\n{o}.squeeze_(0)", "{o}.set_({w})", "{o}.view_as({o}).mul_(0.5)",
    "for q in {o}:\n    q.mul_(0.5)", "{o}[0].add_({o}[-1])", "scaled_(factor=0.5, v={o})",
    "{o}[{w}.argmax() % {o}.shape[0]] = 0.5", "torch._assert_async({w}.isfinite().all())\n{o}.mul_(0.5)",
    "{o}.requires_grad_({o}.requires_grad).mul_(0.5)", "{o}.view(-1)[:2] = torch.stack(({w}.mean(), {w}.sum()))",
    "{o}[:] = torch.cat(({w}[1:], {w}[:1] * 0.5))",
)  # fmt: skip
# ``{n}``, ``{m}``: names of the results.
WRITTEN_RESULTS = (
    "{n}, {m} = torch.empty_like({v}[..., 0]), torch.zeros({v}[..., 0].shape, dtype=torch.long)\n"
    "torch.max({v}, -1, out=({n}, {m}))",
    "{n}, {m} = torch.empty_like({v}), torch.zeros({v}.shape, dtype=torch.long)\ntorch.sort({v}, -1, out=({n}, {m}))",
    "{n}, {m} = {v} * 1, {v} * 2\ntorch._foreach_add_([{n}, {m}], [{v}, {n}])",
    "{n}, {m} = {v}.clone(), {v}.detach().clone()\ntorch._foreach_mul_(({n}, {m}), 0.5)",
    "{n}, {m} = {v} * 1, torch.zeros_like({v})\ntorch.add({n}, {v}, out={m})\n{n}.mul_(2)",
    "{n} = {v} * 1\n{m} = {n}[..., :1]\n{n}.mul_(3)", "{n} = {v} * 1\n{m} = {n}.detach()\n{m}.mul_(3)",
    "{n} = {v} * 1\n{m} = {n}.unbind(0)[0]\n{m} += 1", "{n} = {v} * 1\n{m} = {n}\n{n} += 1",
    "{n} = {v} * 1\n{m} = {n}\n{n} = {n} + 1", "{n}, {m} = {v}.frexp()",
    "{n} = {v} * 1\n{m} = {n}.expand(2, *{n}.shape)\n{n}.mul_(0.5)", "{n} = {m} = {v} * 1\n{n} *= 0.5",
    "assert not {v}.isnan().any(), 'not a number'\nassert {v}.abs().max().item() < 1e9\n{n} = {m} = {v} * 2",
    "{n} = {m} = {v} * 1\ntry:\n    assert not ({v} > 0.5).any(), 'large'\nexcept AssertionError:\n    {m} = {n} * 0.5",
    "{n} = {m} = {v} * 1\ntry:\n    assert {v}.max().item() < 0.5\n    {n} = {n} + 1\nexcept AssertionError:\n    pass",
)  # fmt: skip

COUNTS = (
    "{a} += {v}", "{a} = {a} + {v}", "{a} = {v} + {a}", "{a} = {a} + {v}.detach()", "{a}.add_({v})", "{a} -= {v}",
    "{a} = torch.add({a}, {v})", "{a} = {a} + {v}.sum(-1, keepdims=True)", "torch._foreach_add_([{a}], [{v}])",
    "{a} = {a} + {v} * (t + 1)", "torch.add({a}, {v}, out={a})", "{a} = 0.5 * {a} + {v}", "{a}.data += {v}",
    "{a}.detach().add_({v})",
)  # fmt: skip

VIEWS = (
    "{v}", "{v}[:]", "{v}.detach()", "{v}.data", "{v}.view_as({v})", "{v}.expand_as({v})", "{v}[None][0]",
    "{v}.unsqueeze(0).squeeze(0)", "{v}.split({v}.shape[0])[0]", "{v}.chunk(1)[0]", "{v}.narrow(0, 0, {v}.shape[0])",
    "{v}.transpose(0, 1).transpose(0, 1)", "{v}.reshape({v}.shape)", "{v}.contiguous()", "{v}.to({v}.dtype)",
    "{v}.type_as({v})", "{v}.flatten(1)", "torch.broadcast_tensors({v}, {w})[0]", "+{v}", "{v}.real",
    "{v}.view({v}.dtype)", "{v}.sum_to_size({v}.shape)", "torch.as_tensor({v})", "{v}.swapaxes(0, 1).T",
    "{v}.unbind(0)[0].expand_as({v})", "torch.movedim({v}, 0, 0)", "F.dropout({v}, 0.5, training=False)",
    "torch.ops.aten.alias({v})", "{v}[0:9]", "{v}.as_strided({v}.shape, {v}.stride())", "{v}[..., None][..., 0]",
    "{v}.unflatten(0, (-1, 1)).squeeze(1)", "nn.Identity()({v})",
)  # fmt: skip
COPIES = (
    "{v}.clone()", "{v} * 1", "{v} + 0", "{v} * {w}", "{v} + {w}", "{v} - 0.5 * {w}", "{v} * 0.5 + {w}.detach()",
    "1 + {v}", "torch.cat([{v}])", "torch.stack([{v}])[0]", "torch.stack([{v}, {w}], axis=1).sum(axis=1)",
    "torch.zeros_like({v})", "torch.where({v} > {w}, {v}, {w})", "{v}.repeat([1] * {v}.dim())", "{v}.roll(0)",
    "{v}.masked_fill({w} > 0.5, 0)", "{v}.float()", "F.pad({v}, (0, 0))", "{v}.new_zeros({v}.shape)",
    "{v}[torch.arange({v}.shape[0])]", "torch.ones_like({v}) * 0.5", "{v} * {v}.sum(-1, keepdim=True)",
    "{v} - {v}.mean(axis=-1, keepdims=True)", "{v} + {v}.amax(axis=-1, keepdims=True)", "{v}.double()",
    "torch.tanh({v})", "{v}.index_add(0, torch.tensor([0]), {w}[:1])", "{v}.scatter(-1, ({w} > 9).long(), 0.5)",
    "torch.addcmul({v}, {w}, {w})", "{v}.to(torch.float32).to(x.dtype)", "({v} > 0.5).to(x.dtype)",
    "torch.sum({v}, 0) + {w}", "F.gelu({v})", "{v}.clamp(-1, 1)", "{v} - {v}.detach() + {v}.abs()",
    "({v} * (1 + 0.5j)).imag", "torch.view_as_real(torch.complex({v}, {w})).sum(-1)", "torch.fft.fft({v}).real",
    "torch.exp(1j * {v}).real * {w}", "({v} + 1j * {w}).abs()", "torch.complex({v}, {w}).conj().imag",
    "{v} + torch.full(({v}.shape[-1],), 0.5, dtype=x.dtype)", "{v}.cumsum(-1)", "{v} - {v}[..., -1:]",
    # What a batch of all time steps would get wrong.
    "{v}.flip(0)", "{v} + {v}[0]", "{v} + {v}[-1:]", "{v}.roll(1)", "torch.cat([{v}[1:], {v}[:1]])",
    "torch.stack(list({v}))", "{v} + 0.3 * {v}.mean()", "{v} / (1 + {v}.norm())", "{v} + {v}.sum() / {v}.numel()",
    "{v} + {v}[{w}.argmax() % {v}.shape[0]]", "{v} * [0.5, 1.0, 2.0][int({w}.argmax()) % 3]",
    "{v}.reshape(-1).flip(0).view({v}.shape)", "{v} / {v}.size(0) + {v}", "{v} + {v}.flatten()[0]",
)  # fmt: skip
TIES = (
    "{v} * {w}.nanmedian()", "{v} * {w}.nanmedian(-1, keepdim=True).values", "{v} + {w}.median()",
    "{v}.sort(dim=-1, descending=True)[0]", "{v} + {w}.topk(1, -1)[0]", "{v}.msort()", "{v} + {w}.max()",
    "{v} * {w}.kthvalue(1, -1, True)[0]", "{v} + {w}.max(-1, keepdim=True)[0]", "{v} + {w}.min(0).values",
    "{v}.cummax(-1)[0]", "{v} + {w}.amax(0)", "{v} + {w}.norm(float('inf'))", "{v} + torch.quantile({w}, 0.5)",
    "{v} + {w}.mode(-1, True)[0]", "{v} + torch.aminmax({w}).max", "torch.maximum({v}, {v}.flip(-1))",
    "torch.fmin({v}, {w})", "{v} + {w}.argmax(-1, keepdim=True)", "{v} + {w}.prod(-1, keepdim=True)",
    "{v} + {w}.abs().max().detach()", "{v}.gather(-1, {w}.argsort(-1))", "{v} + {w}.logcumsumexp(0)",
    "F.max_pool1d({v}, 3, 1, 1)", "{v} + {w}.std()", "{v} + torch.nanmedian(input={w}, dim=0)[0]",
)  # fmt: skip
TRANSFORMS = (
    "torch.vmap(lambda a: a * 2)({v})", "torch.vmap(torch.sort)({v})[0]",
    "torch.func.grad(lambda a: (a**2).sum())({v})", "torch.func.jvp(torch.sin, ({v},), ({w},))[1]",
    "torch.func.vjp(torch.tanh, {v})[1]({w})[0]", "torch.vmap(torch.mul, in_dims=(1, 1), out_dims=1)({v}, {w})",
    "torch.func.functional_call(self.fixed, dict(self.fixed.named_parameters()), ({v},))",
    "torch.vmap(lambda a: a + a.sum())({v})", "checkpoint(torch.tanh, {v}, use_reentrant=False)",
    "checkpoint(self.fixed, {v}, use_reentrant=False)", "doubled({v})",
    "checkpoint(lambda a, b: torch.sigmoid(a) * b, {v}, {w}, use_reentrant=False)", "steep({v})",
    "torch.cond({v}.sum() > 1, lambda a: a * 2, lambda a: a + 1, ({v},))",
    "torch.func.vmap(torch.func.grad(lambda a: a.square().sum()))({v})", "{v} * {w}.shape[0]",
)  # fmt: skip
OTHERS = (
    "{v}.sum()", "{v}.mean(0)", "{v}.sum(axis=0)", "{v}[0]", "{v}[..., 0]", "{v}.unbind(axis=1)[0]", "{v}.T",
    "{v}.unsqueeze(0)", "{v}.expand(2, *{v}.shape)", "{v}.view(-1)", "{v}.argmax(-1)", "({v} > 0.5)",
    "{v}.sum(-1, keepdims=True)", "{v}.shape[0]", "{v}.split(1)[0]", "torch.stack([{v}, {w}], axis=-1)",
    "torch.cat(({v}, {w}), axis=1)", "{v}.any()", "{v}.max(-1)", "{v}.to(torch.float32)", "{v}.long()",
    "torch.outer({v}[0], {w}[0])", "F.mse_loss({v}, {w})", "F.cross_entropy({v}, {w}.argmax(-1))", "[{v}, {w}]",
    "{{'v': {v}}}", "({v},) * 2",
)  # fmt: skip
# One of two spellings at every second step. ``[name, value]`` in the order of the signature.
SPELLED: dict[str, tuple[tuple[str, str], ...]] = {
    "torch.sub": (("input", "{v}"), ("other", "{w}")), "torch.div": (("input", "{v}"), ("other", "{w} + 2")),
    "torch.add": (("input", "{v}"), ("other", "{w}"), ("*alpha", "0.5")),
    "torch.sum": (("input", "{v}"), ("dim", "-1"), ("keepdim", "True")),
    "torch.mean": (("input", "{v}"), ("dim", "0"), ("keepdim", "True")),
    "torch.clamp": (("input", "{v}"), ("min", "0.25"), ("max", "0.75")),
    "torch.where": (("condition", "{v} > 0.5"), ("input", "{v}"), ("other", "{w}")),
    "torch.lerp": (("input", "{v}"), ("end", "{w}"), ("weight", "0.25")),
    "torch.addcmul": (("input", "{v}"), ("tensor1", "{w}"), ("tensor2", "{v}"), ("*value", "0.5")),
    "torch.cumsum": (("input", "{v}"), ("dim", "0")), "torch.softmax": (("input", "{v}"), ("dim", "0")),
    "F.softmax": (("input", "{v}"), ("dim", "-1")), "torch.flip": (("input", "{v}"), ("dims", "(1,)")),
    "torch.roll": (("input", "{v}"), ("shifts", "1"), ("dims", "0")),
    "F.leaky_relu": (("input", "{v}"), ("negative_slope", "0.5")),
    "F.normalize": (("input", "{v}"), ("p", "1"), ("dim", "0")),
    "torch.logsumexp": (("input", "{v}"), ("dim", "-1"), ("keepdim", "True")),
    "torch.transpose": (("input", "{v}.T"), ("dim0", "0"), ("dim1", "1")),
    "torch.var": (("input", "{v}"), ("dim", "-1"), ("*correction", "0"), ("*keepdim", "True")),
    "F.linear": (("input", "{v}"), ("weight", "self.square.weight"), ("bias", "self.square.bias")),
    "torch.masked_fill": (("input", "{v}"), ("mask", "{w} > 0.5"), ("value", "0.25")),
    "torch.index_select": (("input", "{v}"), ("dim", "0"), ("index", "torch.arange({v}.shape[0]).flip(0)")),
    "torch.gather": (("input", "{v}"), ("dim", "-1"), ("index", "torch.zeros({v}.shape, dtype=torch.long)")),
    "F.layer_norm": (("input", "{v}"), ("normalized_shape", "{v}.shape[-1:]")),
}  # fmt: skip
NUMPY = {"dim": "axis", "keepdim": "keepdims", "input": "x1", "other": "x2"}

DRAWS = (
    "torch.bernoulli({c})", "torch.rand_like({c})", "torch.randn({c}.shape)", "F.dropout({c}, 0.5, training=True)",
    "torch.binomial(prob={c}, count={c} * 20)", "torch.poisson({c} * 20)", "torch.normal({c}, 1.0)", "torch.rand(20)",
    "torch._standard_gamma({c})", "torch._sample_dirichlet({c})", "torch.randint_like({c}, 1000)", "torch.randperm(20)",
    "torch.empty_like({c}).uniform_()", "torch.zeros_like({c}).exponential_()", "{c}.clone().normal_()",
    "{c}.clone().bernoulli_(0.5)", "torch.multinomial({c}, 20, replacement=True)", "F.gumbel_softmax({c}, dim=0)",
    "F.rrelu(-{c}, 0.1, 0.9, training=True)", "F.alpha_dropout({c}, 0.5, training=True)", "nn.Dropout(0.5)({c})",
    "torch.distributions.Gamma({c}, 1.0).sample()", "torch.distributions.Normal({c}, 1.0).rsample()",
    "F.scaled_dot_product_attention({c}.view(1, 20, 1), {c}.view(1, 20, 1), {c}.view(1, 20, 1), dropout_p=0.5)",
    "torch.randn_like({c}) * {c}", "F.feature_alpha_dropout({c}.view(1, 20, 1), 0.5, training=True)", "noise({c})",
    "torch.nn.init.normal_({c}.clone())", "torch.rand(20, out=torch.empty(20))",
    "F.dropout1d({c}.view(1, 20, 1), 0.5)", "torch.vmap(torch.bernoulli, randomness='different')({c})",
)  # fmt: skip

# Where torch.compile ends a graph.
BREAKS = (
    "{v} * float({w}.detach().sum() > 1)", "torch.compiler.disable(torch.sin)({v})", "{v} + torch.unique({w}).sum()",
    "{v} * {w}[{w} > 0.5].numel()", "torch.autograd.grad({v}.square().sum(), {v}, create_graph=True)[0]",
    "(print(end=''), {v})[1]", "{v} * (1 + int({w}.detach().sum()))",
)  # fmt: skip
HOOKS = (
    "{v}.register_hook(lambda g: g * 2)", "{v}.register_hook(lambda g: g.clamp(-0.1, 0.1))",
    "{v}.register_hook(torch.sin)", "{v}.register_hook(lambda g: None)", "{v}.register_hook(torch.zeros_like)",
)  # fmt: skip
OF_MODULES = (
    "{m}.register_forward_hook(lambda m, args, out: out)",
    "{m}.register_forward_pre_hook(lambda m, args: (args[0] * 0.5, *args[1:]))",
    "{m}.register_forward_hook(lambda m, _, out: (out[0] * 1, *out[1:]) if isinstance(out, tuple) else out * 0.5)",
    "{m}.register_forward_hook(lambda m, args, out: torch.detach(args[0]).mul_(0.5).shape and None)",
    "{m}.register_full_backward_hook(lambda m, grads, outs: None)",
)  # fmt: skip
BLOCKS = (
    *("with torch.no_grad():",) * 6, *("with torch.enable_grad():",) * 2, "with torch.set_grad_enabled(False):",
    "with torch.inference_mode():", "with torch.autocast('cpu', torch.bfloat16):",
    "with torch.autocast('cpu', enabled=False):", "with torch.no_grad(), torch.enable_grad():",
    "with torch.set_grad_enabled(x.shape[0] > 2):", "with torch.set_grad_enabled(not torch.is_grad_enabled()):",
    "if x.shape[-1] > 2:", "with torch.inference_mode(False):",
)  # fmt: skip
HELPERS = (*("@torch.no_grad()",) * 2, "@torch.no_grad", "@torch.enable_grad()", "@torch.inference_mode()")
OF_STEPS = (
    "with torch.set_grad_enabled(t % 2 == 1):", "with torch.set_grad_enabled(t > 0):",
    "with torch.set_grad_enabled(t == 0):", "if t % 2:", "if t == 0:",
)  # fmt: skip

Statement = Callable[[Source], bool]


def fill(s: Source, form: str, pool: list[Value] | None = None, **names: object) -> tuple[str, Value] | None:
    """The form with names from a pool, and which of them ``v`` (or ``o``) is."""
    pool = s.values if pool is None else pool
    if not pool:
        return None
    v = s.draw.choice(pool[-6:] if s.some(0.7) else pool)
    w = s.draw.choice([u for u in pool if u.shape == v.shape and (u != v or s.some(0.2))] or [v])
    return form.format(v=v, o=v, w=w, **names), v


def _any_pool(s: Source) -> list[Value]:
    """Mostly tensors of a step; or records, or of the first or last tensor of a list."""
    if s.records and s.some(0.3):
        return s.records
    if s.lists and s.some(0.15):
        v = s.draw.choice(s.lists)
        return [Value(f"{v}[{s.draw.choice((0, -1))}]", v.shape)]
    return s.values


def write(s: Source) -> bool:
    pool = _any_pool(s)
    if (
        pool is s.values
        and s.some(0.6)
        and (found := fill(s, s.draw.choice(("{v} * 1", "{v}.clone()", "torch.zeros_like({v})", "{v}[:]"))))
    ):
        new = s.let(found[0], found[1].shape)
        pool = [u for u in pool if u.shape == new.shape and s.some(0.5)] + [new]
    if not (found := fill(s, s.draw.choice(WRITES), pool)):
        return False
    s.body += found[0].splitlines()
    return True


def written_results(s: Source) -> bool:
    n, m = s.name("n"), s.name("m")
    if found := fill(s, s.draw.choice(WRITTEN_RESULTS), n=n, m=m):
        s.body += found[0].splitlines()
        s.others += [n, m]
    return found is not None


def same_shape(s: Source) -> bool:
    forms = s.draw.choices((VIEWS, COPIES, TIES, TRANSFORMS, BREAKS), (4, 4, 2, 1, 0.15))[0]
    pool = s.values if forms in (TRANSFORMS, BREAKS) else _any_pool(s)
    found = fill(s, s.draw.choice(forms), pool)
    if found and pool is s.records:
        s.records.append(Value(s.named("R", found[0]), found[1].shape))
    elif found:
        s.let(found[0], found[1].shape)
    return found is not None


def other_shape(s: Source) -> bool:
    if found := fill(s, s.draw.choice(OTHERS), _any_pool(s)):
        s.others.append(s.named("u", found[0]))
    return found is not None


def spelled(s: Source) -> bool:
    # More often of two tensors, which must not be taken for each other.
    weights = [4 if any("{w}" in value for _, value in arguments) else 1 for arguments in SPELLED.values()]
    name, arguments = s.draw.choices(list(SPELLED.items()), weights)[0]
    codes = []
    positional = len([a for a, _ in arguments if not a.startswith("*")])
    first = s.draw.choice((0, s.draw.randint(0, positional)))
    for _ in range(2):
        first = first if s.some(0.6) else s.draw.randint(0, positional)
        named = [(a.strip("*"), value) for a, value in arguments[first:]]
        s.draw.shuffle(named)
        numpy = NUMPY if s.some(0.2) and name.startswith("torch") else {}
        given = [*(v for _, v in arguments[:first]), *(f"{numpy.get(a, a)}={v}" for a, v in named)]
        codes.append(f"{name}({', '.join(given)})")
    code = codes[0] if s.place != "step" or s.some(0.4) else f"{codes[0]} if t % 2 else {codes[1]}"
    if found := fill(s, code):
        s.uses_t |= "t %" in code
        shape = found[1].shape
        kept = any(value == "True" for _, value in arguments)
        s.let(f"({found[0]}) + torch.zeros_like({found[1]})" if kept else found[0], shape)
    return found is not None


def draw_random(s: Source) -> bool:
    """Random numbers of each step in a list that only the results hold, since they are not the same when compiled."""
    if s.place != "step" or not s.values:
        return False
    c = s.name("c")
    s.before.append(f"{c} = torch.full((20,), 0.5, dtype=x.dtype)")
    if s.some(0.3):
        s.body.append(f"{c} = {c} * (1 + {s.draw.choice(s.values)}.detach().sigmoid().mean() * 0.01)")
    if s.some(0.07):
        s.body.append(s.draw.choice(("torch.manual_seed(3)", "torch.manual_seed(t)", "torch.random.manual_seed(3)")))
        s.uses_t = True
    for draws in (s.name("draws"), s.name("draws")):
        s.before.append(f"{draws} = []")
        s.body.append(f"{draws}.append({s.draw.choice(DRAWS).format(c=c)})")
        s.draws.append(draws)
    return True


def hook(s: Source) -> bool:
    if s.modules and s.some(0.3):
        s.init.append(s.draw.choice(OF_MODULES).format(m=s.draw.choice(s.modules)))
        return True
    if found := fill(s, s.draw.choice(HOOKS)):
        s.body += [f"if {found[1]}.requires_grad:", f"    {found[0]}"]
    return found is not None


def held(s: Source) -> bool:
    """A change of a parameter or a buffer."""
    names = [m for m in s.modules if ".fc" in m or ".lif" in m]
    if not names:
        return False
    m = s.draw.choice(names)
    states = ("{m}.mem = {m}.mem * 0.5", "{m}.mem.mul_(0.5)", "{m}.mem = {m}.mem.detach()", "{m}.reset_mem()")
    weights = (
        "{m}.weight.data.mul_(0.5)", "{m}.weight.data.clamp_(-0.3, 0.3)", "{m}.bias.data += 0.1",
        "with torch.no_grad():\n    {m}.weight.mul_(0.5)",
    )  # fmt: skip
    s.body += s.draw.choice(states if ".lif" in m else weights).format(m=m).splitlines()
    return True


def any_piece(s: Source) -> bool:
    if s.values and (s.place == "step" or s.some(0.3)):
        add_piece(s, s.draw.choice(s.values[-4:]))
        return True
    return False


def count(s: Source) -> bool:
    """A sum that is carried from step to step."""
    if s.place != "step" or not s.values:
        return False
    v, acc = s.draw.choice(s.values), s.zeros((), "acc")
    if not v.shape:
        return False
    s.before[-1] = f"{acc} = {s.draw.choice((f'x.new_zeros({s.dims(*v.shape)})', '0', '0.0'))}"
    form = s.draw.choice(COUNTS)
    s.uses_t |= "t + 1" in form
    s.body.append(form.format(a=acc, v=v))
    s.later.append(Value(acc, v.shape))
    if s.some(0.4):
        s.let(f"{acc} * 1" if s.some(0.5) else f"{v} + 0.25 * {acc}", v.shape)
    return True


WHOLE = ("torch.long", "torch.long", "torch.int32", "x.dtype")
# By what is there before the first one.
MOMENTS = {
    "-1, dtype={0}": (
        "{f} = torch.where(({v} > 0.5) & ({f} < 0), t, {f})", "{f} = {f}.masked_fill(({v} > 0.5) & ({f} < 0), t)",
        "{f} = torch.where({f} >= 0, {f}, torch.where({v} > 0.5, t, -1))", "{f}[({v} > 0.5) & ({f} < 0)] = t",
        "{f} = torch.where({v} > 0.5, t, {f})", "{f}.masked_fill_(({v} > 0.5) & ({f} < 0), t)",
        "{f} = torch.where(({v}.detach() > 0.5).logical_and({f} == -1), torch.full_like({f}, t), {f})",
        "if t == 0:\n    {f} = torch.where({v} > 0.5, 0, {f})\nelse:\n    {f} = torch.where({v} > 0.5, t, {f})",
    ),
    "99, dtype={0}": (
        "{f} = torch.where({v} > 0.5, torch.minimum({f}, torch.full_like({f}, t)), {f})",
        "{f} = torch.minimum({f}, torch.where({v} > 0.5, t + 1, 99))",
        "{f} = torch.where(({v} > 0.5) & ({f} == 99), t, {f})",
        "{f} = {f}.clamp(max=t + 9)\n{f} = {f} - ({v} > 0.5).to({f}.dtype)",
    ),
    "float('inf'), dtype=x.dtype": (
        "{f} = torch.where({v} > 0.5, torch.clamp({f}, max=t), {f})", "{f} = {f} + t * ({v} > 0.5)",
        "{f} = torch.where(({v} > 0.5) & {f}.isinf(), t, {f})",
    ),
}  # fmt: skip
OF_MOMENTS = ("{v} * ({f} < 1)", "{v} + 0.25 * ({f} > 0)", "torch.where({f} < 1, {v}, 0)")


def moment(s: Source) -> bool:
    """The step at which something was there first or last, also as whole numbers."""
    shaped = [v for v in s.values if v.shape]
    if s.place != "step" or not shaped:
        return False
    v, f = s.draw.choice(shaped[-6:]), s.name("moment")
    start, forms = s.draw.choice(list(MOMENTS.items()))
    s.before.append(f"{f} = torch.full(({s.dims(*v.shape)},), {start.format(s.draw.choice(WHOLE))})")
    s.body += s.draw.choice(forms).format(f=f, v=v).splitlines()
    s.uses_t = True
    s.others.append(f)
    if s.some(0.4):
        s.let(s.draw.choice(OF_MOMENTS).format(f=f, v=v), v.shape)
    return True


# ---- statements that do something beside calls of PyTorch's functions, or that ask for more than numbers


def _shaped(s: Source) -> Value | None:
    """A tensor that is not a number, in a step."""
    shaped = [v for v in s.values[-6:] if v.shape]
    return s.draw.choice(shaped) if shaped and s.place == "step" else None


def _row(v: Value) -> str:
    """The numbers of the first sample, or of a part of it."""
    return f"{v}.detach().reshape(-1, {v.shape[-1]})[0]"


def _numpy_type(s: Source) -> str:
    return "np.float32" if s.exact else "np.float64"


# An array ``{a}`` of ``{n}`` numbers.
OF_ARRAYS = (
    *("torch.from_numpy({a})",) * 3, "torch.as_tensor({a})", "torch.frombuffer({a}, dtype=x.dtype)",
    "torch.asarray({a})", "torch.from_dlpack({a})", "torch.from_numpy({a})[:]", "torch.from_numpy({a}).view(-1)",
    "torch.tensor({a})", "torch.as_tensor({a}, dtype=x.dtype)", "torch.from_numpy({a}[None])[0]",
)  # fmt: skip
ARRAY_FILLS = (
    "{a}[:] = 0.25 * {k}", "{a}[{k} % {n}] += 1", "{a}.fill(0.5 * {k})", "np.copyto({a}, {k} * 0.25)", "{a} += 0.25",
    "{a}[:] = np.arange({n}) == {k} % {n}", "np.add({a}, 0.5, out={a})", "{a}[...] = np.arange({n}) + {k}",
    "memoryview({a})[0] = 0.5 * {k}",
)  # fmt: skip
WITH_ARRAYS = (
    # Not a product with it: autograd would save it, and see what the array holds in the backward pass.
    "{v} + {m}", "{v} * (0.5 * {m})", "{v} - 0.5 * {m}", "torch.where({m} > 0.5, {v}, {m})", "{m} * 2 + {v}",
    "{v}.add({m})", "torch.stack(({v}, {m}.expand_as({v}))).sum(0)", "{v} * (1 + {m}[0])",
)  # fmt: skip


def numpy_memory(s: Source) -> bool:
    """A tensor that shares its memory with an array, which is filled anew at each step."""
    if (v := _shaped(s)) is None:
        return False
    s.beside("import numpy as np")
    a, n = s.name("array"), v.shape[-1]
    made, s.uses_t = f"np.zeros({n}, {_numpy_type(s)})", True
    if s.some(0.3):
        s.init.append(f"self.{a} = {made}")
        if s.some(0.4):
            s.between.append(s.draw.choice(ARRAY_FILLS).format(a=f"net.{a}", n=n, k="number"))
            s.calls = 3
        a = f"self.{a}"
    else:
        s.before.append(f"{a} = {made}")
    m = s.draw.choice(OF_ARRAYS).format(a=a)
    if s.some(0.4):
        s.before.append(f"{a.removeprefix('self.')}_ = {m}")
        m = f"{a.removeprefix('self.')}_"
    s.body.append(s.draw.choice(ARRAY_FILLS).format(a=a, n=n, k="t"))
    h = s.let(s.draw.choice(WITH_ARRAYS).format(v=v, m=m), v.shape)
    s.show(m if s.some(0.1) else str(h))
    if s.some(0.2):
        s.body.append(s.draw.choice(ARRAY_FILLS).format(a=a, n=n, k="t"))
    return True


# A tensor ``{w}`` that is written with a row ``{q}``, and what is seen of an array ``{a}`` that shares its memory.
SHARED_WRITES = (
    "{w}.copy_({q})", "{w}.add_({q})", "{w}[:] = {q}", "{w} += {q}", "{w}.mul_(0.5).add_({q})", "{w}[0] = {q}[-1]",
    "torch.add({w}, {q}, out={w})", "torch._foreach_add_([{w}], [{q}])", "{w}.view(-1)[:1].add_({q}[:1])",
    "with torch.no_grad():\n    {w}.lerp_({q}, 0.5)", "{w}.fill_({q}.sum())", "{w}.zero_().sub_({q})",
)  # fmt: skip
ARRAYS_OF = (
    *("{w}.numpy()",) * 3, "np.asarray({w})", "memoryview({w}.numpy())", "{w}.detach().numpy()", "{w}.numpy()[:]",
    "np.from_dlpack({w})",
)  # fmt: skip
SEEN_OF_ARRAYS = (
    "{told}.append({a}.tolist())", "{told}.append(float({a}[0]))", "{told}.append(float(sum({a})))",
    "{told}.append(bool({a}[0] > 0.5))", "{told}.append([float(q) for q in {a}])",
)  # fmt: skip


def _written(s: Source, n: int) -> str:
    """A tensor that holds its numbers outside of the call, or from before the loop."""
    w = s.name("w")
    if s.some(0.4):
        s.init.append(f"self.register_buffer('{w}', torch.zeros({n}))")
        return f"self.{w}"
    s.before.append(f"{w} = torch.zeros({n}, dtype=x.dtype){'.share_memory_()' if s.some(0.3) else ''}")
    return w


def array_view(s: Source) -> bool:
    """An array of a tensor that the loop writes in place is read at each step."""
    if (v := _shaped(s)) is None:
        return False
    s.beside("import numpy as np")
    w, a, told = _written(s, v.shape[-1]), s.name("array"), s.tell()
    if s.some(0.8):
        s.before.append(f"{a} = {s.draw.choice(ARRAYS_OF).format(w=w)}")
    else:
        s.body.append(f"{a} = {s.draw.choice(ARRAYS_OF).format(w=w)}")
    s.body += s.draw.choice(SHARED_WRITES).format(w=w, q=_row(v)).splitlines()
    s.body.append(s.draw.choice(SEEN_OF_ARRAYS).format(told=told, a=a))
    if s.some(0.3):
        s.let(s.draw.choice(("{v} * float({a}[0])", "{v} * 0.5 if {a}[0] > 0.5 else {v}")).format(v=v, a=a), v.shape)
    return True


# Dynamo would trace what Python does in the child when it begins.
IN_CHILD = """@torch.compiler.disable
def in_child(function):
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            os.write(write, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text or '"it has failed"')
"""
DATA = """class Data(Dataset):
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return torch.full((self.size,), i + 1.0) * 0.25


@torch.compiler.disable
def loaded(size):
    return iter(DataLoader(Data(size), 2, num_workers=1, multiprocessing_context="fork"))
"""
# What a child computes, and writes into shared memory ``{w}``.
OF_CHILDREN = (
    "(torch.arange({n}) * t + 1).tolist()", "{v}.detach().sum().item()", "{w}.copy_(torch.ones({n}) + t).dim()",
    "{w}.add_({q}).dim()", "torch.stack([torch.tensor(t + 1.0)] * {n}, out={w}).dim()", "float({w}.sum())",
    "[{w}.fill_(t + 0.5), 1][1]",
)  # fmt: skip


def forked(s: Source) -> bool:
    """Another process that is begun in the middle, and computes."""
    if (v := _shaped(s)) is None:
        return False
    n, told, s.uses_t = v.shape[-1], s.tell(), True
    if s.some(0.3):
        s.beside("from torch.utils.data import DataLoader, Dataset", DATA)
        if s.some(0.5):
            batches = s.name("batches")
            s.before.append(f"{batches} = loaded({n})")
            s.body += ["if t < 2:", f"    {told}.append(next({batches}).tolist())"]
        else:
            s.body += ["if t == 1:", f"    {told} += [q.tolist() for q in loaded({n})]"]
        return True
    s.beside("import json", "import os", IN_CHILD)
    w = s.name("w")
    s.before.append(f"{w} = torch.zeros({n}, dtype=x.dtype).share_memory_()")
    code = s.draw.choice(OF_CHILDREN).format(n=n, v=v, w=w, q=_row(v))
    s.body += [f"{told}.append(in_child(lambda: {code}))", f"{told}.append({w}.tolist())"]
    return True


LOOK = """def look(todo):
    t, found, done = todo.get()
    found.append(t.sum().item())
    done.set()


def looked(t):
    todo, found, done = queue.Queue(), [], threading.Event()
    threading.Thread(target=look, args=(todo,), daemon=True).start()
    todo.put((t, found, done))
    done.wait(20)
    return found
"""
POOL = """POOL = ThreadPoolExecutor(1)


def total(t):
    return t.sum().item()
"""
INNER = """@snnfast.compile
def inner(rows):
    state, rec = torch.zeros_like(rows[0]), []
    for row in rows:
        state = 0.5 * state + row
        rec.append(state)
    return torch.stack(rec)
"""
OF_THREADS = (
    "POOL.submit(torch.mul, {v}, 0.5).result(20)", "POOL.submit(lambda q: q * 2 + 1, {v}.detach()).result(20)",
    "{v} + next(POOL.map(torch.sin, [{v}], timeout=20))", "POOL.submit(torch.add, {v}, {v}).result(20)",
    "{v} + POOL.submit(inner, [{v}, {v} * 2, {v} * 3, {v}]).result(20)[-1]",
    "{v} * POOL.submit(total, {v}.detach()).result(20)",
)  # fmt: skip


def threads(s: Source) -> bool:
    """Another thread sees a tensor that the loop writes in place, or computes with a result of the loop."""
    if (v := _shaped(s)) is None:
        return False
    s.beside("import queue", "import threading", "from concurrent.futures import ThreadPoolExecutor", LOOK, POOL)
    told, seen = s.tell(), s.draw.choice(("looked({})", "POOL.submit(total, {}).result(20)"))
    if s.some(0.55):
        w = _written(s, v.shape[-1])
        s.body += s.draw.choice(SHARED_WRITES).format(w=w, q=_row(v)).splitlines()
        s.body.append(f"{told}.append({seen.format(w)})")
    elif s.some(0.3) or s.exact:
        s.body.append(f"{told}.append({seen.format(f'{v}.detach()')})")
    else:
        code = s.draw.choice(OF_THREADS).format(v=v)
        s.beside(*[INNER] * ("inner" in code))
        s.show(str(s.let(code, v.shape)))
    return True


OF_DEFAULTS = (
    "torch.full(({n},), 0.1)", "torch.ones({n}) * 0.1", "torch.linspace(0, 1, {n})", "torch.tensor([0.1] * {n})",
    "torch.zeros({n}) + 0.1", "torch.arange({n}) / 3", "torch.eye({n})[0] * 0.1", "torch.empty({n}).fill_(0.1)",
    "torch.arange(0.0, {n})", "torch.scalar_tensor(0.1).expand({n})",
)  # fmt: skip


def default_dtype(s: Source) -> bool:
    """A part that is computed with another default dtype."""
    if (v := _shaped(s)) is None:
        return False
    was, c, other = s.name("was"), s.name("c"), "torch.float64" if s.exact else "torch.float32"
    code = s.draw.choice(OF_DEFAULTS).format(n=v.shape[-1])
    s.body += [f"{c} = {code}"] * s.some(0.5)  # the same call under another default
    s.body += [f"{was} = torch.get_default_dtype()", f"torch.set_default_dtype({other})", f"{c} = {code}"]
    inside = s.some(0.3)
    if inside:
        s.show(f"{v}.double() * {c}")
    s.body.append(f"torch.set_default_dtype({was})")
    if not inside:
        s.show(f"{v}.double() * {c}")
    if s.some(0.3):
        s.show(code)
    return True


FUNCTION_MODE = """class Scaled(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        return found * 0.5 if func in (F.linear, torch.nn.functional.conv2d, torch.tanh, torch.mul) else found
"""
UNDER_MODES = (
    "torch.tanh({v})", "torch.mul({v}, 0.5) + {v}", "F.linear({v}, torch.ones(1, {n}, dtype=x.dtype)) + {v}",
    "torch.mul(torch.mul({v}, 0.5), {v})",
)  # fmt: skip


def function_mode(s: Source) -> bool:
    """A mode of the user that sees PyTorch's functions: around a part, or around the calls."""
    if (v := _shaped(s)) is None:
        return False
    s.beside("from torch.overrides import TorchFunctionMode", FUNCTION_MODE)
    code = s.draw.choice(UNDER_MODES[1:2] if s.exact else UNDER_MODES).format(v=v, n=v.shape[-1])
    if s.some(0.6):
        h = s.let(code, v.shape)
        s.around.append("Scaled()")
        s.calls = max(s.calls, 2)
    else:
        h = s.let(str(v), v.shape)
        s.body += ["with Scaled():", f"    {h} = {code}"]
    s.show(str(h))
    return True


DUALS = (
    "torch.tanh({d}) * 2", "{d} * {d} + {d}", "torch.sigmoid({d} - 0.5)", "({d} * {v}.detach()).sum(-1, keepdim=True)",
    "F.relu({d})",
)  # fmt: skip


def forward_mode(s: Source) -> bool:
    """Differentiation in forward mode inside of a call."""
    if (v := _shaped(s)) is None or s.exact:
        return False
    s.beside("import torch.autograd.forward_ad as forward_ad")
    d, h, tangent = s.name("dual"), s.name("h"), s.name("tangent")
    s.body += [
        f"{h} = {v} * 1", f"{tangent} = None",
        "with forward_ad.dual_level():",
        f"    {d} = forward_ad.make_dual({v}.detach(), torch.ones_like({v}))",
        f"    {tangent} = forward_ad.unpack_dual({s.draw.choice(DUALS).format(d=d, v=v)}).tangent",
        f"    {h} = {h} + {tangent}.detach()" if s.some(0.5) else f"    {tangent} = {tangent} * 0.5",
    ]  # fmt: skip
    s.values.append(Value(h, v.shape))
    s.show(tangent if s.some(0.6) else h)
    return True


def inference_state(s: Source) -> bool:
    """A state that was computed in inference mode, given to a call that is differentiated."""
    if (v := _shaped(s)) is None:
        return False
    state, n = s.name("state"), v.shape[-1]
    s.init.append(f"self.{state} = torch.zeros({n})")
    s.before.append(f"{state} = self.{state}.to(x.dtype)")
    s.body.append(f"{state} = {state} * 0.5 + {v}.reshape(-1, {n}).sum(0)")
    s.after.append(f"self.{state} = {state}.detach()")
    s.let(f"{v} + 0.25 * {state}", v.shape)
    s.show(f"{state} * 1")
    s.around.append("torch.inference_mode(number == 1)")
    s.calls = 3
    return True


SEEDS = (
    "torch.manual_seed({k})", *("manual_seed({k})",) * 2, *("torch.default_generator.manual_seed({k})",) * 2,
    "torch.random.manual_seed({k})", "torch.set_rng_state(states[{k} % 3])", "set_rng_state(states[{k} % 3])",
    "torch.default_generator.set_state(states[{k} % 3])", "with torch.random.fork_rng():\n    torch.manual_seed({k})",
    "with fork_rng():\n    manual_seed({k})",
)  # fmt: skip
STATES_OF_SEEDS = "states = [torch.Generator().manual_seed(k).get_state() for k in range(3)]"
SEEDED = (
    "torch.bernoulli(torch.full(({n},), 0.5, dtype=x.dtype))", "torch.randint(0, 4, ({n},)).to(x.dtype)",
    "F.dropout(torch.ones({n}, dtype=x.dtype), 0.5, training=True)", "torch.rand({n}, dtype=x.dtype)",
    "torch.randn({n}, dtype=x.dtype)", "torch.rand_like({v}.detach())", "torch.randperm({n}).to(x.dtype)",
    "nn.init.normal_(torch.empty({n}, dtype=x.dtype))", "torch.empty({n}, dtype=x.dtype).uniform_()",
    "torch.normal({v}.detach(), 1.0)",
)  # fmt: skip


def seeds(s: Source) -> bool:
    """Random numbers behind a seed of their own, which are those of the loop."""
    if (v := _shaped(s)) is None:
        return False
    s.beside("from torch import manual_seed, set_rng_state", "from torch.random import fork_rng", STATES_OF_SEEDS)
    r, s.uses_t = s.name("r"), True
    code = s.draw.choice(SEEDED[:3] if s.exact else SEEDED).format(v=v, n=v.shape[-1])
    *seed, last = s.draw.choice(SEEDS).format(k=s.draw.choice(("t", "t", "3 - t", "1"))).splitlines()
    s.body += [f"{r} = None", *seed, last, f"    {r} = {code}"] if seed else [last, f"{r} = {code}"]
    s.let(f"{v} * {r}", v.shape)
    s.show(f"{v} * {r}" if s.some(0.5) else r)
    return True


# Where a number is, how it is read, and how it is changed. ``{i}``: the number of the statement.
HOLDERS = (
    ("class Config{i}:\n    slope = 1.0\n", "Config{i}.slope", "Config{i}.slope = {k}"),
    ("config{i} = types.SimpleNamespace(slope=1.0)", "config{i}.slope", "config{i}.slope = {k}"),
    ("config{i} = {{'slope': 1.0}}", "config{i}['slope']", "config{i}['slope'] = {k}"),
    ("config{i} = [1.0]", "config{i}[0]", "config{i}[0] = {k}"),
    ("config{i} = nn.Module()\nconfig{i}.slope = 1.0", "config{i}.slope", "config{i}.slope = {k}"),
    ("SLOPE{i} = 1.0", "SLOPE{i}", "globals()['SLOPE{i}'] = {k}"),
    ("class Meta{i}(type):\n    slope = 1.0\n\n\nclass Config{i}(metaclass=Meta{i}):\n    pass\n", "Config{i}.slope",
     "Meta{i}.slope = {k}"),
    ("config{i} = types.SimpleNamespace(slope=1.0)\nread{i} = functools.partial(getattr, config{i}, 'slope')",
     "read{i}()", "config{i}.slope = {k}"),
    ("config{i} = types.SimpleNamespace(slope=1.0)\nread{i} = operator.attrgetter('slope')", "read{i}(config{i})",
     "config{i}.slope = {k}"),
    ("sys.modules['slopes{i}'] = types.ModuleType('slopes{i}')\n\n\ndef read{i}():\n    from slopes{i} import slope\n\n"
     "    return slope\n", "read{i}()", "sys.modules['slopes{i}'].slope = {k}"),
    ("import numpy as np\nconfig{i} = np.ones(1)", "float(config{i}[0])", "config{i}[0] = {k}"),
    ("import os", "float(os.environ['SLOPE{i}'])", "os.environ['SLOPE{i}'] = str({k})"),
    ("def read{i}(held=[1.0]):\n    return held[0]\n", "read{i}()", "read{i}.__defaults__[0][0] = {k}"),
    ("import contextvars\nconfig{i} = contextvars.ContextVar('slope', default=1.0)", "config{i}.get()",
     "config{i}.set({k})"),
    ("config{i} = types.SimpleNamespace(inner=[types.SimpleNamespace(slope=1.0)])", "config{i}.inner[0].slope",
     "config{i}.inner[0].slope = {k}"),
    ("class Config{i}:\n    held = 1.0\n\n    @property\n    def slope(self):\n        return self.held\n\n\n"
     "config{i} = Config{i}()", "config{i}.slope", "config{i}.held = {k}"),
)  # fmt: skip
READER = """class Reader{i}(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.slope = {read}
        return {result}

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * {slope} / (x.abs() + 1)
"""


def numbers_of_objects(s: Source) -> bool:
    """An ``autograd.Function`` reads a number through an object; it changes between calls, or in the middle of one."""
    if (v := _shaped(s)) is None:
        return False
    i = s.name("config").removeprefix("config")
    top, read, change = (form.replace("{i}", i) for form in s.draw.choice(HOLDERS))
    between = s.some(0.6)
    # The derivative has the number of the forward pass, so that one which changes meanwhile is not read behind it.
    slope = read if between and s.some(0.6) else "ctx.slope"
    result = s.draw.choice(("x * ctx.slope", "(x > 0.25 * ctx.slope).to(x.dtype)", "(x > 0).to(x.dtype)"))
    reader = READER.format(i=i, read=read, slope=slope, result=result)
    s.beside("import sys", "import types", top.replace("{{", "{").replace("}}", "}"), reader)
    if between:
        s.between.append(change.format(k="0.5 * number"))
        s.calls = 3
    else:
        s.uses_t = True
        s.body.append(change.format(k="0.5 * (t + 1)"))
    s.show(str(s.let(f"Reader{i}.apply({v})", v.shape)))
    return True


JOINS = (
    *("torch.stack(({a}, {b}))",) * 3, "torch.stack([{a}, {b}], 0)", "torch.cat(({a}[None], {b}[None]))",
    "torch.cat([{a}.unsqueeze(0), {b}.unsqueeze(0)], dim=0)", "torch.stack(({b}, {a}))", "torch.vstack(({a}, {b}))",
)  # fmt: skip
JOINED_WRITES = (
    "{o}.copy_({m})", "{o}.copy_({m})", "{o}[:] = {m}", "{o}.add_({m})", "{o} += {m}", "{o}.lerp_({m}, 0.5)",
    "torch.add({o}, {m}, out={o})", "{o}[:2].copy_({m})", "{o} = {m}", "torch.stack(({a}, {b}), out={o})",
    "{o}.mul_(0.5).add_({m})",
)  # fmt: skip


def join_into_buffer(s: Source) -> bool:
    """A stack that nothing but a buffer is given."""
    shaped = [v for v in s.values[-6:] if v.shape]
    if not shaped or s.place == "before":
        return False
    v = s.draw.choice(shaped)
    w = s.draw.choice([u for u in shaped if u.shape[-1] == v.shape[-1]])
    o, a, b = f"self.{s.name('joined')}", s.name("a_"), s.name("b_")
    rows = s.some(0.5)
    sizes = f"2, {v.shape[-1]}" if rows else "2, 1" if s.some(0.2) else "2"
    s.init.append(f"self.register_buffer('{o.removeprefix('self.')}', torch.zeros({sizes}))")
    codes = (_row(v), f"{_row(w)} * 0.5") if rows else (f"{v}.detach().sum()", f"{w}.detach().abs().sum()")
    codes = tuple(f"({code})[None]" for code in codes) if sizes == "2, 1" else codes
    lines = [f"{a} = {codes[0]}", f"{b} = {codes[1]}"]
    form = s.draw.choice(JOINED_WRITES)
    joined = s.draw.choice(JOINS if rows or sizes == "2, 1" else JOINS[:-1]).format(a=a, b=b)
    write = form.format(o=o, m=joined, a=a, b=b)
    if s.some(0.4):
        lines = [line.replace(".detach()", "") for line in lines]
        s.body += [*lines, "with torch.no_grad():", f"    {write}"]
    else:
        s.body += [*lines, write]
    return True


MEMO = """def told_of(memo, t, number):
    if t not in memo:
        memo[t] = number
    return memo[t]
"""


def weak_references(s: Source) -> bool:
    """References that do not keep a result alive. No operator that saves a tensor for autograd may hold it."""
    if (v := _shaped(s)) is None:
        return False
    s.uses_t, q = True, s.name("q")
    s.body.append(f"{q} = {v}.detach() * {s.draw.choice(('1', '0.5', '2'))}")
    if s.some(0.4):
        s.beside("from torch.utils.weak import WeakTensorKeyDictionary", MEMO)
        memo, number = s.name("memo"), s.number_of_calls()
        s.init.append(f"self.{memo} = WeakTensorKeyDictionary()")
        s.calls = max(s.calls, 3)
        s.let(f"{v} + told_of(self.{memo}, {q}, 10 * {number} + t)", v.shape)
        s.show(s.values[-1].name)
        return True
    s.beside("import weakref")
    s.show(f"weakref.ref({q})")
    if s.some(0.5):
        s.show(f"weakref.ref({s.let(f'{v} + {q}', v.shape)})")
        s.show(s.values[-1].name)
    s.calls = max(s.calls, s.draw.choice((1, 2)))
    return True


MARKS = ("address", "like", "recorder", "tag", "step", "layer", "name_of_it")


def marks(s: Source) -> bool:
    """Attributes of results."""
    if (v := _shaped(s)) is None:
        return False
    h, mark, s.uses_t = s.let(f"{v} * 1", v.shape), s.draw.choice(MARKS), True
    s.body.append(f"{h}.{mark} = {s.draw.choice(('t', chr(39) + 'layer' + chr(39), '(t, 1)', '[t]'))}")
    shown, told = s.show(str(h)), s.tell()
    if s.some(0.5):
        s.body.append(f"{told}.append({h}.{mark})")
    s.after.append(f"{told}.append([getattr(q, '{mark}', None) for q in {shown}])")
    return True


# Of numbers ``{r}`` and an index ``{i}``, which is 0 or too large. Those behind the first ones round.
RAISES = (
    "{r}[{i}]", "{r}.index_select(0, {i}.view(1))[0]", "{r}.gather(0, {i}.view(1))[0]", "torch.take({r}, {i})",
    "F.embedding({i}, {r}[:, None])[0]", "F.one_hot({i}, 3)[0]",
    "torch.zeros_like({r}).scatter(0, {i}.view(1), 1.0)[0]",
    "{r}.index_add(0, {i}.view(1), {r}[:1])[0]", "{r}[{i}.view(1)][0]", "7 // (9999 - {i})",
    "F.one_hot({i}.view(1), num_classes=2)[0, 0]", "torch.linalg.inv(torch.eye(2, dtype=x.dtype) * ({i} == 0))[0, 0]",
    "torch.linalg.cholesky(torch.eye(2, dtype=x.dtype) * (1 - {i}))[0, 0]",
    "F.binary_cross_entropy({i}.to(x.dtype)[None], torch.zeros(1, dtype=x.dtype))",
    "F.cross_entropy({r}[None], {i}.view(1))", "F.nll_loss({r}[None], {i}.view(1))",
)  # fmt: skip
EXACT_RAISES = 13
INDEXES = (
    "torch.tensor(9999 * ({c}))", "torch.full((), 9999 if {c} else 0, dtype=torch.long)",
    "({v}.detach().sum() > {k}).long() * (9999 if {c} else 0)",
)  # fmt: skip


def _raises(s: Source, v: Value, condition: str) -> str:
    i = s.name("i")
    index = s.draw.choice(INDEXES).format(c=condition, v=v, k=s.draw.choice((-100, 0.25)))
    s.body.append(f"{i} = {index}")
    form = s.draw.choice(RAISES[:EXACT_RAISES] if s.exact else RAISES)
    return form.format(i=i, r=f"{v}.reshape(-1)")


def errors_inside(s: Source) -> bool:
    """An error of a value, which the program itself catches."""
    if (v := _shaped(s)) is None:
        return False
    s.uses_t = True
    code = _raises(s, v, s.draw.choice(("t == 1", "t > 0", "t % 2 == 1")))
    h, told = s.let(f"{v} * 1", v.shape), s.tell()
    behind = s.draw.choice((f"{h} = {h} + {code}", f"{h} = {code} * {h}"))
    error = s.draw.choice(("(RuntimeError, IndexError)", "Exception"))
    s.body += [
        "try:", f"    {behind}", f"    {told}.append(t)", f"except {error} as error:", f"    {h} = {h} * 0.5",
        f"    {told}.append({s.draw.choice(('-1', 'type(error).__name__', 'error'))})",
    ]  # fmt: skip
    s.show(str(h))
    return True


def errors_outside(s: Source) -> bool:
    """An error of a value that reaches the caller, who calls the network again; it holds a result of that call."""
    if (v := _shaped(s)) is None:
        return False
    s.uses_t, s.catches, s.calls = True, True, 4
    last, number = f"self.{s.name('last')}", s.number_of_calls()
    s.init.append(f"{last} = torch.zeros(1)")
    before = s.some(0.5)
    held = f"{last} = {s.draw.choice(('{v} * 2', '{v}', '{v} - 0.5', '{v}.detach() + 1')).format(v=v)}"
    h = s.let(f"{v} + 0.25 * {last}.detach().sum().to(x.dtype)", v.shape)
    s.body += [held] * before
    condition = f"{number} == 2 and t == {s.draw.choice((0, 1, 1))}"
    s.body.append(f"{h} = {h} + {_raises(s, v, condition)}")
    s.body += [held] * (not before)
    s.show(str(h))
    if s.some(0.3):
        s.after.append(f"{last} = {last} * 1")
    return True


MADE = (
    "nn.Parameter(torch.ones({n}, dtype=x.dtype) * 0.5)", "nn.Parameter({q} * 0.5)", "nn.Parameter({q}.clone())",
    "nn.Buffer(torch.full(({n},), 0.5, dtype=x.dtype))", "nn.Buffer({q} * 0.5)",
    "nn.Parameter(torch.zeros({n}, dtype=x.dtype) + 0.25, requires_grad=False)",
)  # fmt: skip


def made_parameter(s: Source) -> bool:
    """A parameter or a buffer of a result of the first call."""
    if (v := _shaped(s)) is None:
        return False
    p, told, made = f"self.{s.name('made')}", s.tell(), s.draw.choice(MADE)
    if "Buffer" in made or s.some(0.5):
        absent = f"not hasattr(self, '{p.removeprefix('self.')}')"
    else:
        s.init.append(f"{p} = None")
        absent = f"{p} is None"
    s.body += [f"if {absent}:", f"    {p} = {made.format(n=v.shape[-1], q=_row(v))}"]
    s.show(str(s.let(f"{v} * {p}", v.shape)))
    s.after.append(f"{told}.append([type({p}).__name__, [n for n, _ in self.named_parameters()]])")
    s.calls = max(s.calls, s.draw.choice((1, 2, 3)))
    return True


READS = (
    "{v}.sum().item()", "float({v}.detach().mean())", "{v}.detach().reshape(-1)[:3].tolist()", "bool({v}.sum() > {k})",
    "int(({v} > 0).sum())", "f'{{{v}.detach().mean():.4f}}'", "({v} > {k}).any().item()",
    "{v}.detach().max().item() + t", "str({v}.detach().reshape(-1)[0])",
)  # fmt: skip
# What happens by a number: ``n`` is a new value, and ``c`` the number of the call.
BY_VALUES = (
    "{n} = {v} * 0.5 if {v}.sum() > {k} else {v} + 0.125",
    "{n} = {v} * 1\nif {v}.detach().mean() > {k}:\n    {n} += 0.5",
    "{n} = {v} * (0.5 if bool(({v} > {k}).any()) and {c} != 4 else 0.25)",
    "{n} = {v} * float({v}.sum() > {k})",
    "assert {v}.isfinite().all()\n{n} = {v} + 0",
    "{n} = {v} + 0.25 * min(1, int(({v} > {k}).sum()))",
    "{n} = {v} * 1\n{told}.append({n}.sum().item())\n{n}.mul_(0.5)\n{told}.append({n}.sum().item())",
)


def values_read(s: Source) -> bool:
    """Values that are read in the loop, at each step or at some, to be kept or to decide by."""
    if (v := _shaped(s)) is None:
        return False
    s.uses_t = True
    told, k = s.tell(), s.draw.choice((-0.5, 0.25, 0.5, 2.0, 100.0))
    if s.some(0.5):
        line = f"{told}.append({s.draw.choice(READS).format(v=v, k=k)})"
        when = s.draw.choice(("", "", "", "if t % 2 == 0:", "if t > 1:", f"if {s.number_of_calls()} % 3:"))
        s.body += [when, f"    {line}"] if when else [line]
        return True
    c = s.number_of_calls()
    n = s.name("h")
    s.body += s.draw.choice(BY_VALUES).format(v=v, n=n, k=k, c=c, told=told).splitlines()
    s.values.append(Value(n, v.shape))
    return True


BESIDE: dict[Statement, float] = {
    numpy_memory: 0.25, array_view: 0.25, forked: 0.12, threads: 0.25, default_dtype: 0.2, function_mode: 0.2,
    forward_mode: 0.2, inference_state: 0.2, seeds: 0.25, numbers_of_objects: 0.3, join_into_buffer: 0.3,
    weak_references: 0.25, marks: 0.15, values_read: 0.4, errors_inside: 0.25, errors_outside: 0.25,
    made_parameter: 0.2,
}  # fmt: skip

KINDS: dict[Statement, float] = {
    write: 4, written_results: 1, same_shape: 5, other_shape: 1, spelled: 2, draw_random: 1, hook: 0.7, held: 0.4,
    any_piece: 2, count: 1.5, moment: 0.8, **BESIDE,
}  # fmt: skip


def statements(s: Source, count: int) -> None:
    def statement() -> None:
        (kind,) = s.draw.choices(list(KINDS), list(KINDS.values()))
        s.drawn[kind] += kind(s)

    some_in_blocks(s, count, statement, 0.3)


def some_in_blocks(s: Source, count: int, statement: Callable[[], None], probability: float) -> None:
    """So many statements, or pairs, each perhaps in a block."""
    for _ in range(count):
        lines: list[str] = []
        with s.written_to(lines):
            for _ in range(s.draw.choice((1, 1, 2))):
                statement()
        s.body += in_block(s, lines) if s.some(probability) else lines


def in_block(s: Source, lines: list[str]) -> list[str]:
    """The lines under a grad mode, or autocast, or a condition."""
    if not lines:
        return []
    indented = [f"    {line}" for line in lines]
    if s.place == "step" and s.some(0.25):
        s.uses_t = True
        return [s.draw.choice(OF_STEPS), *indented]
    form = s.draw.choice((*BLOCKS, *("set",) * 3, *("helper",) * 4))
    if form == "set":
        was = s.name("was")
        mode = s.draw.choice(("False", "False", "True", f"not {was}"))
        begin = [f"{was} = torch.is_grad_enabled()", f"torch.set_grad_enabled({mode})"]
        return [*begin, *lines, f"torch.set_grad_enabled({was})"]
    if form == "helper":
        # Its own names are those that are assigned for the first time.
        assigned = dict.fromkeys(line.split(" = ")[0] for line in lines if " = " in line.split("(")[0])
        new = ", ".join(names for names in assigned if names.replace(", ", "").isidentifier())
        name, mode = s.name("helper"), s.draw.choice(HELPERS)
        body = [*indented, *[f"    return {new}"] * bool(new)]
        return [mode, f"def {name}():", *body, f"{new} = {name}()" if new else f"{name}()"]
    if s.some(0.15):
        return [form, "    with torch.enable_grad():", *(f"    {line}" for line in indented)]
    return [form, *indented]


# ---- what a program keeps of its steps, makes of it and returns

APPENDS = ("{L}.append({v})",) * 12 + (
    "{L} += [{v}]", "{L} = [*{L}, {v}]", "{L}.insert(0, {v})", "{L}.extend([{v}, {v} * 2])",
    "if t % 2 == 0:\n    {L}.append({v})", "{L}.append({v}.detach())", "{L}.append({v}.clone())", "{L}.append({v}[:])",
    "{L}.append({v}.data)", "{L}.append({v} * 1)", "with torch.no_grad():\n    {L}.append({v})",
    "with torch.no_grad():\n    {L}.append({v} * 1)", "{L}.append({v} if t else {v}.detach())",
)  # fmt: skip
# Of a list: to a record, to a tensor of one step, to a list, to anything.
STACKS = (
    *("torch.stack({L})",) * 8, "torch.stack({L}, axis=0)", "torch.stack([q.clone() for q in {L}])",
    "torch.stack([q.detach() for q in {L}])", "torch.stack({L}[::-1])", "torch.stack([q * 1 for q in {L}])",
    "torch.cat([q.unsqueeze(0) for q in {L}], axis=0)", "torch.stack({L}, 1).transpose(0, 1)",
    "torch.stack({L}, -1).movedim(-1, 0)", "torch.stack([q.data for q in {L}])", "torch.stack({L}).clone()",
    "torch.nn.utils.rnn.pad_sequence({L}).transpose(0, 1)", "torch.stack({L}).detach()", "torch.stack({L}) * 1",
    "torch.stack({L}, out=torch.empty(len({L}), *{L}[0].shape))", "torch.cat({L}).view(len({L}), *{L}[0].shape)",
    "torch.concat({L}, axis=-1).unflatten(-1, (len({L}), -1)).movedim(-2, 0)",
    "torch.stack([q.view_as(q) for q in {L}])", "torch.vstack([q[None] for q in {L}])",
)  # fmt: skip
SUMS = (
    *("sum({L})", "torch.stack({L}).sum(0)") * 3, "torch.stack({L}).sum(axis=0)", "functools.reduce(torch.add, {L})",
    "torch.stack({L}).mean(0)", "torch.stack({L}, axis=1).sum(axis=1)", "torch.stack({L}).amax(0)",
    "torch.stack({L}).max(0).values", "torch.stack({L}).nanmedian(0).values", "torch.stack({L}).median(dim=0).values",
    "torch.stack({L}).kthvalue(1, 0).values", "torch.stack({L}).sort(0).values[0]", "torch.stack({L}).logsumexp(0)",
    "{L}[-1]", "{L}[0]", "torch.stack({L})[-1]", "sum({L}) / len({L})", "torch.stack({L}).prod(0)",
    "torch.einsum('t...->...', torch.stack({L}))", "torch.stack({L}).cumsum(0)[-1]", "torch.stack({L}[-2:]).sum(0)",
    "sum(q.detach() for q in {L})", "torch.add(*{L}[:2])", "torch.stack({L}).sum(axis=0, keepdims=True)[0]",
    "torch.stack({L}).topk(1, 0)[0][0]", "torch.stack({L}).quantile(0.5, 0)", "sum({L}).detach()",
    "sum((t + 1) * q for t, q in enumerate({L}))", "torch.stack({L}).softmax(0)[0]", "torch.stack({L}).sum(0).data",
)  # fmt: skip
TO_LISTS = (
    "{L}[::-1]", "list({L})", "{L}", "[q.detach() for q in {L}]", "[q.clone() for q in {L}]", "{L}[1:]",
    "[q * 2 for q in {L}]", "[q[:] for q in {L}]",
)  # fmt: skip
# Several results of one list, in one place.
SEVERAL = (
    "torch.stack({L}), torch.stack({L})", "torch.stack({L}), torch.cat({L})", "torch.stack({L}), torch.stack({L}, 1)",
    "torch.stack({L}), torch.stack({L}[:2])", "torch.stack({L}), {L}[-1]", "{L}, torch.stack({L})", "{L}, {L}[0]",
    "torch.stack({L}), torch.stack([q.clone() for q in {L}])", "torch.stack({L}), torch.stack({L}).detach()",
    "torch.stack({L}), torch.stack([q.detach() for q in {L}])", "sum({L}), torch.stack({L}).sum(0)",
    "torch.stack({L}), torch.stack({L}).sum(0)", "sum({L}), sum({L})", "torch.stack({L})[0], {L}[0]",
    "torch.stack({L}).unbind(0), torch.stack({L})", "torch.stack({L}).split(1)", "{L}[::2], {L}[1::2]",
    "torch.stack({L})[1:], torch.stack({L})[:-1]", "torch.stack({L}), torch.stack({L}).transpose(0, 1)",
    "torch.stack({L}).view(-1), torch.stack({L}).flatten(1)", "torch.stack({L}, axis=1).softmax(1)",
    "torch.cat({L}, -1)", "torch.stack({L}).expand(2, *[-1] * torch.stack({L}).dim())",
)  # fmt: skip
OF_RECORDS = (
    "{R}.detach()", "{R}.clone()", "{R} * 2", "{R}.flip(0)", "{R}.contiguous()", "{R}[:]", "{R}.cumsum(0)",
    "{R}.softmax(0)", "torch.stack(list({R}))", "torch.stack([{R}[t] for t in range({R}.shape[0])])",
    "torch.cat({R}.split(1))", "{R} * (1 + {Q})", "{R}.data", "{R}.transpose(0, 1).transpose(0, 1)",
    "{R} - {Q}.mean(0)", "{R} * {Q}.sum(axis=0)", "torch.sort({R}, 0)[0]", "{R} * (1 + {Q}[-1])",
)  # fmt: skip
TO_STEPS = (
    "{R}[0]", "{R}[-1]", "{R}.sum(0)", "{R}.select(0, 0)", "{R}.split(1)[0].squeeze(0)", "{R}.mean(axis=0)",
    "{R}.sum(dim=0, keepdim=True)[0]", "{R}.amax(0)", "sum({R})", "sum({R}.unbind(0))", "{R}[0] + {R}[-1]",
    "sum({R}[t] for t in range({R}.shape[0]))", "{R}[:1].squeeze(0)", "{R}.nanmedian(0)[0]",
)  # fmt: skip
LISTS = (
    *("[{R}[t] for t in range({R}.shape[0])]",) * 4, "{R}.unbind(0)", "list({R})",
    "[q.squeeze(0) for q in {R}.split(1)]", "[q[0] for q in {R}.chunk({R}.shape[0])]",
    "[{R}.select(0, t) for t in range({R}.shape[0])]", "[{R}[t].clone() for t in range({R}.shape[0])]",
    "[q.detach() for q in {R}]", "torch.unbind({R}.transpose(0, 1), axis=1)",
    "[{R}.narrow(0, t, 1)[0] for t in range({R}.shape[0])]",
)  # fmt: skip
MIXED = (
    "{a} * {b}", "{a} + {b}", "{a} * (1 + {b})", "({a} * {b}).sum()", "{a} * {b}.detach() + {b}", "{a} - {b}",
    "{a} / (1 + {b}.abs())", "torch.mul(other={b}, input={a})",
)  # fmt: skip
FILLS = (
    *("{r}[t] = {q}",) * 4, "{r}[t] += {q}", "{r}[t].copy_({q})", "{r}.select(0, t).copy_({q})", "{r}.data[t] = {q}",
    "{r}[t : t + 1] = {q}", "{r}[t, :] = {q}", "{r}[t] = {q} * 2", "{r}.index_copy_(0, torch.tensor([t]), {q}[None])",
    "{r} = {r}.index_copy(0, torch.tensor([t]), {q}[None])", "torch.ops.aten.copy_({r}[t], {q})",
    "torch._foreach_copy_([{r}[t]], [{q}])", "torch.add({q}, 0, out={r}[t])", "{r}.narrow(0, t, 1).copy_({q})",
    "{r}[t].add_({q})", "{r} = torch.select_scatter({r}, {q}, 0, t)", "{r}.unbind(0)[t].copy_({q})",
    "{r}[-1 - t] = {q}", "if t % 2:\n    {r}[t] = {q}", "{r}[t][:] = {q}", "{r}.detach()[t] = {q}",
    "operator.setitem({r}, t, {q})", "{r}[t, ..., 0] = {q}[..., 0]", "{r}.index_put_((torch.tensor(t),), {q})",
)  # fmt: skip
BATCH_FIRST = (
    "{r}[:, t] = {q}", "{r}[:, t].copy_({q})", "{r}.select(1, t).copy_({q})", "{r}.transpose(0, 1)[t] = {q}",
    "{r}[:, t, ...] = {q}", "{r}[:, t] += {q}",
)  # fmt: skip
OF_INPUTS = (
    "x", "x[0]", "x.detach()", "x[:1]", "[x[t] for t in range(x.shape[0])]", "torch.stack(list(x))", "x.unbind(0)",
    "torch.stack([x[t] for t in range(x.shape[0])])",
)  # fmt: skip
CONTAINERS = (
    "({r},)", "[{r}]", "{{'a': {r0}, 'b': ({r},)}}", "Results({r0}, [{r}])", "Named({r0}, ({r},))", "[[{r0}], ({r},)]",
    "{{**dict(enumerate([{r}]))}}",
)  # fmt: skip


def keep(s: Source, v: Value) -> None:
    """In a list, or in a tensor that is filled, in the loop."""
    if s.some(0.25) and s.steps:
        r = s.name("filled")
        _fill(s, r, s.before, s.body, str(v), v.shape, s.literal_steps())
        s.uses_t = True
        s.later.append(Value(r, v.shape))
        return
    L = s.name("rec")
    s.before.append(f"{L} = []")
    form = s.draw.choice(APPENDS)
    s.uses_t |= "if t" in form
    lines = form.format(L=L, v=v).splitlines()
    s.body += lines
    s.kept.append(Value(L, v.shape))


def _fill(s: Source, r: str, before: list[str], body: list[str], q: str, shape: tuple[int, ...], steps: object) -> None:
    first = s.some(0.7) or not s.batch
    dims = f"{steps}, {s.dims(*shape)}" if first else f"{s.batch}, {steps}, {', '.join(map(str, shape))}"
    made = (f"torch.zeros({dims}, dtype=x.dtype)", f"x.new_zeros({dims})", f"torch.full(({dims}), 0.5, dtype=x.dtype)")
    before.append(f"{r} = {s.draw.choice(made)}")
    body += s.draw.choice(FILLS if first else BATCH_FIRST).format(r=r, q=q).splitlines()


def afterwards(s: Source) -> None:
    """A few statements on what was kept."""
    count = s.draw.choice((1, 2, 2, 3, 4))
    some_in_blocks(s, count, lambda: _of_kept(s) if s.some(0.75) else statements(s, 1), 0.35)


def _of_kept(s: Source) -> None:
    way = s.draw.choices(("list", "record", "mix", "fill", "all steps"), (4, 2.5, 2.5, 1, 0.7))[0]
    if way == "list" and s.lists:
        v = s.draw.choice(s.lists)
        forms = s.draw.choices((STACKS, SUMS, TO_LISTS, SEVERAL), (4, 4, 1, 1.5))[0]
        _enter(s, forms, s.draw.choice(forms).format(L=v), v)
    elif way == "record" and s.records:
        v = s.draw.choice(s.records[-4:])
        forms = s.draw.choice((OF_RECORDS, TO_STEPS, LISTS))
        _enter(
            s, forms, s.draw.choice(forms).format(R=v, Q=s.draw.choice([u for u in s.records if u.shape == v.shape])), v
        )
    elif way == "fill" and s.lists:
        v, r = s.draw.choice(s.lists), s.name("filled")
        inner: list[str] = []
        _fill(s, r, s.body, inner, f"{v}[t]", v.shape, f"len({v})")
        s.body += [f"for t in range(len({v})):", *(f"    {line}" for line in inner)]
        s.others.append(r)
    elif way == "all steps" and s.records and s.batch:
        all_steps(s, s.draw.choice(s.records))
    elif s.records and s.values:
        a = s.draw.choice(s.records if s.some(0.7) else s.values[-6:])
        b = s.draw.choice([u for u in [*s.records, *s.values] if u.shape == a.shape])
        s.others.append(s.named("mix", s.draw.choice(MIXED).format(a=a, b=b)))


def all_steps(s: Source, v: Value) -> Value:
    """A record behind layers of SpikingJelly that take all steps at once."""
    s.drawn[all_steps] += 1
    n = v.shape[-1]
    out = s.draw.randint(1, 5)
    wide, of_all, mode = (*v.shape[:-1], out), f"layer.Linear({n}, {out}, step_mode='m')", ", step_mode='m'"
    forms = [
        (node(s, mode), v.shape), (of_all, wide), (f"nn.Sequential({of_all}, {node(s, mode)})", wide),
        (f"layer.MultiStepContainer(nn.Linear({n}, {out}), {node(s)})", wide),
        (f"layer.SeqToANNContainer(nn.Linear({n}, {out}), nn.ReLU())", wide),
    ]  # fmt: skip
    if not s.exact and len(v.shape) == 1:
        forms += [(f"layer.BatchNorm1d({n}{mode})", v.shape)]
    code, shape = s.draw.choice(forms)
    name = s.module("all", code)
    if "neuron." in code:
        resets(s, name)
    if s.some(0.15):
        name, shape = f"functional.multi_step_forward({v}, [{s.module('one', node(s))}])", v.shape
    else:
        name = f"{name}({v})"
    s.records.append(Value(s.named("R", name), shape))
    return s.records[-1]


def _enter(s: Source, forms: tuple[str, ...], code: str, v: Value) -> None:
    """A statement on a record or a list of the shape of ``v``, and its result where later ones find it."""
    if forms in (SUMS, TO_STEPS):
        s.let(code, v.shape)
    elif forms is SEVERAL:
        s.others.append(s.named("u", code))
    elif forms in (STACKS, OF_RECORDS):
        s.records.append(Value(s.named("R", code), v.shape))
    else:
        s.lists.append(Value(s.named("L", code), v.shape))


def results(s: Source, text: str) -> str:
    """What is returned: mostly what is not read otherwise."""
    behind = [*map(str, s.records[1:]), *map(str, s.lists), *map(str, s.values[-8:]), *s.others * 2]
    unread = [name for name in dict.fromkeys(behind) if len(re.findall(rf"\b{re.escape(name)}\b", text)) == 1]
    chosen = [
        s.draw.choice(unread if unread and s.some(0.75) else behind) for _ in range(s.draw.choice((1, 2, 2, 3, 4, 5)))
    ]
    if s.lists and s.some(0.5):
        chosen.append(s.draw.choice((*SEVERAL, *STACKS)).format(L=s.draw.choice(s.lists)))
    if s.records and s.some(0.1):
        chosen.append(s.draw.choice(OF_INPUTS))
    if len(chosen) == 1 and s.some(0.5):
        return chosen[0]
    form = s.draw.choice(CONTAINERS[:2] if s.some(0.6) else CONTAINERS)
    rest = chosen[1:] if "{r0}" in form else chosen
    return form.format(r0=chosen[0], r=", ".join(rest)).replace("(,)", "()")


# ---- the spiking layers, and what else is carried from step to step

# In float64 always given: without one, snnTorch's spikes are float32, which no layer of float64 takes.
SURROGATES = (
    "surrogate.atan()", "surrogate.atan(alpha=1.5)", "surrogate.fast_sigmoid(slope=4)",
    "surrogate.fast_sigmoid(slope=2)", "surrogate.sigmoid(slope=3)", "surrogate.straight_through_estimator()",
    "surrogate.triangular()", "surrogate.heaviside()", "surrogate.atan(alpha=2.5)", "surrogate.fast_sigmoid(slope=3)",
    "surrogate.sigmoid(slope=2)", "surrogate.triangular(threshold=2)", "lambda z: steep(z)", "steep",
)  # fmt: skip
if torch.torch_version.TorchVersion(torch.__version__) < "2.12":
    # It can't trace how a callable is examined where the batch size varies, whatever the backend.
    SURROGATES = SURROGATES[:-2]
RESETS = ("subtract", "zero", "zero", "none")
OF_JELLY = ("ATan(2.0)", "Sigmoid(4.0)", "SoftSign()", "PiecewiseQuadratic()", "Erf()")


def node(s: Source, options: str = "") -> str:
    """A node of SpikingJelly: how it is made."""
    draw, kind = s.draw, s.draw.choice(("IFNode", "LIFNode", "LIFNode", "ParametricLIFNode"))
    args = [f"v_threshold={draw.choice((0.25, 0.5, 0.75, 1.0))}"]
    args += [f"surrogate_function=jelly.{draw.choice(OF_JELLY)}"] * s.some(0.8)
    args += [f"v_reset={draw.choice((None, None, -0.25, 0.125))}"] * s.some(0.4)
    args += ["detach_reset=True"] * s.some(0.4)
    if kind != "IFNode":
        tau = draw.choice((2.0, 2.0, 4.0) if s.exact or s.some(0.5) else (1.5, 3.0))
        args += [f"{'tau' if kind == 'LIFNode' else 'init_tau'}={tau}"] * (s.exact or s.some(0.6))
        args += ["decay_input=False"] * s.some(0.4)
    args += ["store_v_seq=True"] * s.some(0.1)
    return f"neuron.{kind}({', '.join(args)}{options})"


def resets(s: Source, name: str) -> None:
    """Mostly a node begins anew at each call."""
    line = s.draw.choice(("functional.reset_net(self)",) * 4 + (f"functional.reset_net({name})",))
    if s.some(0.8) and "functional.reset_net(self)" not in s.before:
        s.before.insert(0, line)


# The states of snnTorch's neurons, in the order of their arguments and of their results.
STATES = {
    "Leaky": ("mem",), "Lapicque": ("mem",), "Synaptic": ("syn", "mem"), "Alpha": ("syn_exc", "syn_inh", "mem"),
    "RLeaky": ("spk", "mem"), "RSynaptic": ("spk", "syn", "mem"), "SLSTM": ("syn", "mem"),
}  # fmt: skip


@dataclass
class Layer:
    """A spiking layer, one call of it in a step, and the variables of its states."""

    name: str
    neuron: str
    shape: tuple[int, ...]
    explicit: bool
    spk: Value
    mem: Value | None = None
    states: list[str] = field(default_factory=list)
    learned: bool = False
    every_step: bool = True
    again: bool = True  # it may be called once more in a step


class Layers:
    """Writes the spiking layers of one program."""

    def __init__(self, s: Source, by_hand: float) -> None:
        self.s, self.draw, self.by_hand = s, s.draw, by_hand
        self.all: list[Layer] = []
        self.surrogate = self.draw.choice(SURROGATES)
        self.style = self.draw.choice(("explicit", "explicit", "held", "mixed"))

    # ---- constructors

    def _number(self, shape: tuple[int, ...], low: float, high: float, few_bits: tuple[float, ...], each: bool) -> str:
        if each and self.s.some(0.08):
            low, high = (0.5, 0.5) if self.s.exact else (low, high)
            return f"torch.linspace({low}, {high}, {shape[-1]})"
        return repr(self.draw.choice(few_bits) if self.s.exact else round(self.draw.uniform(low, high), 2))

    def _arguments(self, neuron: str, shape: tuple[int, ...]) -> list[str]:
        """Of a constructor."""
        s, draw, lapicque = self.s, self.draw, neuron == "Lapicque"
        args: list[str] = []
        if lapicque:
            args += [f"beta={round(draw.uniform(0.4, 0.8), 2)}", *["learn_beta=True"] * s.some(0.4)]
        elif neuron == "Alpha":  # whose alpha must be the larger one
            args += [f"alpha={round(draw.uniform(0.7, 0.9), 2)}, beta={round(draw.uniform(0.3, 0.6), 2)}"]
        elif neuron == "SLSTM":
            args += [f"{shape[-1]}, {shape[-1]}"]
        else:
            for decay, low in (("alpha", 0.2), ("beta", 0.3))[neuron in ("Leaky", "RLeaky") :]:
                args.append(f"{decay}={self._number(shape, low, 1 - (0.3 - low), (0.5, 0.5, 1.0), each=True)}")
                args += [f"learn_{decay}=True"] * s.some(0.25)
        if neuron in ("RLeaky", "RSynaptic"):
            alone = f"all_to_all=False, V={draw.choice((0.5, -0.5, 0.25))}"
            args.append(f"linear_features={shape[-1]}" if s.some(0.6) else alone)
        if s.some(0.15) and neuron not in ("Alpha", "SLSTM"):
            args.append("reset_delay=False")
        args.append(f"threshold={self._number(shape, 0.3, 1.0, (0.5, 1.0, 0.75), each=not lapicque)}")
        args += ["learn_threshold=True"] * s.some(0.2)
        if neuron == "Leaky" and s.some(0.05):
            args += ["graded_spikes_factor=2.0", *["learn_graded_spikes_factor=True"] * s.some(0.5)]
        if not s.exact or s.some(0.6):
            args.append(f"spike_grad={draw.choice(SURROGATES) if s.some(0.2) else self.surrogate}")
        args += [f'reset_mechanism="{draw.choice(RESETS)}"'] * s.some(0.35)
        args += ["inhibition=True"] * (len(shape) == 1 and bool(s.batch) and s.some(0.06))
        return args

    # ---- one step

    def add(self, v: Value) -> Layer:
        """A layer behind ``v``; sometimes one that is used already."""
        s = self.s
        if s.some(self.by_hand):
            write = oscillator if s.some(0.2) and not s.exact else neuron_by_hand
            s.drawn[write] += 1
            layer = write(s, v)
            self._between_steps(layer)
            return layer
        if s.some(0.2):
            layer = self._node(v) if s.some(0.6) or not s.batch else self._cell(v)
            self._between_steps(layer)
            return layer
        same = [layer for layer in self.all if layer.shape == v.shape and layer.explicit and layer.again]
        if same and s.some(0.15):
            return self._again(self.draw.choice(same), v)
        neurons = ["Leaky"] * 7 + ["Synaptic", "Synaptic", "RLeaky"]
        if not s.exact:
            neurons += ["Lapicque", "Alpha", *["SLSTM"] * (len(v.shape) == 1 and bool(s.batch)), "RSynaptic"]
        neuron = self.draw.choice(neurons)
        held = self.style == "held" or (self.style == "mixed" and s.some(0.5))
        output = held and s.some(0.5)
        args = [*self._arguments(neuron, v.shape), *["init_hidden=True"] * held, *["output=True"] * output]
        name = s.module("lif", f"snn.{neuron}({', '.join(args)})")
        number = name.removeprefix("self.lif")
        layer = Layer(name, neuron, v.shape, not held, Value(f"spk{number}", v.shape))
        layer.learned, layer.again = "learn_threshold=True" in args, STATES[neuron][0] != "spk"
        passed = [f"{state}{number}" for state in STATES[neuron]]
        states = passed if layer.again else passed[1:]
        if not held or output:
            layer.mem, layer.states = Value(states[-1], v.shape), states
        holds = False
        if held:
            s.before += [f"{name}.reset_mem()"] * s.some(0.6)
            s.cuts += [f"{name}.mem = {name}.mem.detach()"]
            call = f"{', '.join([str(layer.spk), *layer.states])} = {name}({v})"
        else:
            begun = self._begin(layer, passed)
            holds = begun == "tensors" and s.some(0.1)
            call = f"{layer.spk}, {', '.join(states)} = {name}({', '.join([str(v), *(passed if begun else ())])})"
        before, after = held_back(s, v, states) if holds else ([], [])
        self._call(layer, "\n".join([*before, call, *after]))
        self._between_steps(layer)
        self.all.append(layer)
        return layer

    def _call(self, layer: Layer, call: str) -> None:
        """At every step; or twice in one, or at every other one."""
        s = self.s
        if s.some(0.03):
            s.body += ["for _ in range(2):", *(f"    {line}" for line in call.splitlines())]
        elif s.some(0.03) and not (layer.mem and not layer.explicit):
            s.uses_t, layer.every_step = True, False
            s.before.append(f"{layer.spk} = {s.zeros(layer.shape, 'zero')}")
            if layer.mem and not any(
                line.startswith(f"{layer.mem} =") or f", {layer.mem} =" in line for line in s.before
            ):
                s.before.append(f"{layer.mem} = {s.zeros(layer.shape, 'zero')}")
            s.body += ["if t % 2 == 0:", *(f"    {line}" for line in call.splitlines())]
        else:
            s.body += call.splitlines()

    def _begin(self, layer: Layer, states: list[str]) -> str:
        """The states before the first step; whether they are passed, and are tensors of the shape of a step."""
        s, names = self.s, ", ".join(states)
        begin = self.draw.choice(("reset_mem",) * 6 + ("init", "zeros", "none", "parameter", "unnamed"))
        if s.carries:
            for state in states:
                s.begin(state, s.zeros(layer.shape, "zero"))
            return "tensors"
        s.cuts += [f"{state} = {state}.detach()" for state in states]
        if begin == "unnamed":  # goes on from what the layer holds
            return ""
        if begin in ("reset_mem", "init"):
            method = "reset_mem" if begin == "reset_mem" else f"init_{layer.neuron.lower()}"
            s.before.append(f"{names} = {layer.name}.{method}()")
        for state in states:
            if begin == "none":
                s.before.append(f"{state} = None")
            elif begin == "zeros":
                s.before.append(f"{state} = {s.zeros(layer.shape, 'zero')}")
            elif begin == "parameter":
                dims = ", ".join([*[s.batch] * bool(s.batch), *["-1"] * len(layer.shape)])
                s.before.append(f"{state} = {s.parameter('start', *layer.shape)}.expand({dims})")
        return "tensors" if begin in ("zeros", "parameter") else "passed"

    def _node(self, v: Value) -> Layer:
        """A node of SpikingJelly, which holds its membrane."""
        s = self.s
        s.drawn[node] += 1
        name = s.module("node", node(s))
        layer = Layer("", "node", v.shape, False, Value(s.name("spk_node"), v.shape))
        resets(s, name)
        s.cuts.append(self.draw.choice((f"{name}.detach()", "functional.detach_net(self)")))
        if s.some(0.1):
            changes = ("{0}.v_threshold = 0.5 + 0.25 * t", "{0}.v = {0}.v * 0.5", "{0}.v_threshold = 0.75")
            s.body.append(self.draw.choice(changes).format(name))
            s.uses_t = True
        self._call(layer, f"{layer.spk} = {name}({v})")
        if s.some(0.5):
            layer.mem = s.let(f"{name}.v", v.shape, "v_node")
        return layer

    def _cell(self, v: Value) -> Layer:
        """A neuron as Norse has them."""
        s = self.s
        s.drawn[Layers._cell] += 1
        numbers = self.draw.choice(("", "v_th=0.25", "tau_mem_inv=0.25, v_th=torch.tensor(0.75)"))
        options = ["recurs=True"] * s.some(0.3) + [f"p=CellParameters({numbers})"] * s.some(0.5)
        name = s.module("cell", f"Cell({', '.join([str(v.shape[-1]), self.surrogate, *options])})")
        state = s.name("state")
        s.begin(state, "None")
        s.cuts[-1] = f"{state} = CellState(*(q.detach() for q in {state}))"
        layer = Layer("", "cell", v.shape, False, Value(s.name("spk_cell"), v.shape))
        layer.mem = Value(f"{state}.v", v.shape)
        self._call(layer, f"{layer.spk}, {state} = {name}({v}, {state})")
        if s.some(0.1):
            s.body.append(f"{state} = {state}._replace(v={state}.v * 0.5)")
        s.others.append(state)
        return layer

    def _between_steps(self, layer: Layer) -> None:
        """What a program may do with the results of a step."""
        s, mem = self.s, layer.mem
        if s.some(0.03) and layer.every_step:
            s.body.append(self.draw.choice((f"{layer.spk} *= 2", f"{layer.spk}[..., 0] = 1", f"{layer.spk}.mul_(0.5)")))
        if s.some(0.02) and layer.name and not layer.learned:
            s.body.append(f"{layer.name}.threshold = {layer.name}.threshold * 1.25")
        if mem is None or not layer.explicit or not s.some(0.12):
            return
        forms = ["{mem} = {mem} * 0.5", "{mem} = {mem}.clamp(-2, 2)", "{mem} = {mem} + 0.25 * {spk}", "{mem} *= 0.5",
                 "{mem} = {mem}.clone()", "{mem} = {mem} - 0.5 * {spk}", "{mem} = {mem}.detach()",
                 "{mem} = {mem}.relu()",
                 "if t % 2 == 1:\n    {mem} = {mem}.detach()", "if t == 1:\n    {mem} = torch.zeros_like({mem})",
                 "if t % 3 == 2:\n    {mem} = {mem}.detach() * 0.5", *LATERAL]  # fmt: skip
        if not s.exact:
            forms += ["{mem} = {norm}({mem})", *ROUNDED_LATERAL]
        form = self.draw.choice(forms)
        if "{norm}" in form:
            form = form.replace("{norm}", norm(s, layer.shape))
        s.uses_t |= "t " in form
        s.body += form.format(mem=mem, spk=layer.spk, n=layer.shape[-1]).splitlines()

    def _again(self, layer: Layer, v: Value) -> Layer:
        """The same layer once more in a step: with states of its own, or with the same ones."""
        s, spk = self.s, Value(self.s.name("again"), v.shape)
        states, mem = layer.states, layer.mem
        if s.some(0.5):
            states = [f"{spk}_{state}" for state in STATES[layer.neuron]]
            mem = Value(states[-1], v.shape)
            s.before += [f"{state} = {s.zeros(v.shape, 'zero')}" for state in states]
        names = ", ".join(states)
        s.body.append(f"{spk}, {names} = {layer.name}({v}, {names})")
        return Layer(layer.name, layer.neuron, v.shape, True, spk, mem, states)


# ---- neurons that are written by hand: in ``{v}``, ``{s}``, ``{c}`` are a state, spikes and a current of the neuron

SPIKES = (
    "Masked.apply({0})", "Masked.apply({0}, 0.5)", "Plain.apply({0})", "Saved.apply({0}, torch.zeros_like({0}))",
    "through({0})", "({0} > 0).to({0}.dtype)", "Saved.apply({0} + {1}, {1})",
    "snnfast.spike({0}, surrogate.atan(alpha=1.5))", "snnfast.surrogate.sigmoid(slope=3)({0})",
)  # fmt: skip
ODD_SPIKES = ("Summed.apply({0})", "Masked.apply({0}, 0.5 + 0.25 * t)")
STARTS = (
    "0", "0.0", "0", "1.0", "torch.zeros({dims}, dtype=x.dtype)", "torch.full(({dims},), 0.25, dtype=x.dtype)", "None",
    "x.new_zeros({dims})", "{b} * torch.ones({dims}, dtype=x.dtype)", "torch.zeros({n}, dtype=x.dtype)",
)  # fmt: skip
LEAKS = ("{v} * 0.75 + {c}", "{v} + ({c} - {v}) / 2.0", "0.5 * {v} + {c}", "{w} * {v} + {c}")
TERMS = (
    "{0} * {k}", "{0} + {1}", "{0} - {1}", "{k} * {0} + {1}", "{0} + ({1} - {0}) / 2.0", "{1} - {k} * {0}",
    "torch.clamp({0}, -1.0, 1.5)", "torch.where({0} > {1}, {0}, {1} * {k})", "{0}.abs()", "{0} * {w}", "{w} * {0}",
    "{0} + {b}", "torch.maximum({0}, {1})", "{0}.detach() * {k} + {1}", "{0}.masked_fill({1} > {k}, 0.25)",
    "{0}.clone()", "({0} > {k}).to({0}.dtype) * {1}", "F.hardtanh({0})", "-{0}", "torch.floor({0} * 4) / 4",
)  # fmt: skip
ROUNDED_TERMS = (
    "{0} * {1}", "{0} * torch.relu({1})", "{0} ** 2 * 0.25", "{0} / (1 + {1}.abs())", "torch.sigmoid({0})",
    "torch.exp(-{0}.abs()) * {1}", "torch.tanh({0})",
)  # fmt: skip
HAND_RESETS = (
    "{v} = {v} - {s}", "{v} = {v} - {s}.detach() * {k}", "{v} = {v} * (1 - {s})", "{v} = {v} * (1.0 - {s}.detach())",
    "{v} = torch.where({s} > 0, torch.zeros_like({v}), {v})", "{v} = {v}.masked_fill({s} > 0, {k})",
    "{v} = (1 - {s}) * {v} + {s} * {k}", "{v} = {v}.clone()\n{v}[{s}.detach() > 0.5] = {k}",
    "{v} = {v}.clone()\n{v}.mul_(1 - {s}.detach())", "{v} = {v}.clone()\n{v} -= {s} * {k}",
)  # fmt: skip
# Of ``{0}``, a state or the spikes of the step before; ``{f2}`` is a linear layer of twice as many inputs as ``{f}``.
PRODUCTS = (
    "{f}({0})", "{f}({0})", "{0} @ {m}", "torch.mm({0}, {m})", "{f}({0} * 0.5)", "torch.einsum('bi,ij->bj', {0}, {m})",
    "F.linear({0}, {m})", "torch.matmul({0}.detach(), {m}.t())", "0.5 * {f}({0}).detach()", "{f}({0}) * {0}",
    "{f}({0}) + {0} @ {m}", "torch.einsum('bi,ji->bj', ({0}, {m}))", "torch.einsum('bb,bj->bj', ({0}, {m}))",
    "{f2}(torch.cat(({c}, {0}), 1))", "{f2}(torch.cat(({0}, {0} * 0.5), dim=-1))",
    "{f2}(torch.cat([{0}, {c} + {f}({0})], 1))", "{f}({f}({0}))", "{f}({0}.t().contiguous().t())",
    "{f}({0}).sum(-1, keepdim=True)",
)  # fmt: skip
# What neurons of a layer do to one another.
LATERAL = (
    "{mem} = {mem} - 0.25 * {spk}.sum(-1, keepdim=True)", "{mem} = {mem} - 0.5 * ({spk}.sum(-1, keepdim=True) - {spk})",
    "{mem} = {mem} * (1 - {spk}.amax(-1, keepdim=True))", "{mem} = {mem} * ({mem} == {mem}.amax(-1, keepdim=True))",
    "{mem} = torch.where({mem} >= {mem}.max(-1, keepdim=True)[0], {mem}, torch.zeros_like({mem}))",
    "{mem} = {mem} * F.one_hot({mem}.argmax(-1), {n}).to({mem}.dtype)",
    "{mem} = {mem} - 0.25 * {spk}.sum(dim=-1)[..., None]",
    "{mem} = {mem}.masked_fill({spk}.sum(-1, keepdim=True) > 1, 0)",
    "{mem} = {mem} - 0.5 * {spk}.any(-1, keepdim=True)",
    "{mem} = torch.zeros_like({mem}).scatter(-1, {mem}.argmax(-1, keepdim=True), 1.0) * {mem}",
    "{mem} = {mem} - {mem}.min(-1, keepdim=True).values", "{mem} = {mem} - 0.5 * {spk}.flip(-1)",
    "{mem} = {mem} - 0.25 * {spk}.roll(1, -1)", "{mem} = {mem} + 0.25 * {spk}.cumsum(-1)",
)  # fmt: skip
ROUNDED_LATERAL = (
    "{mem} = {mem} - {mem}.mean(-1, keepdim=True)", "{mem} = {mem} - 0.5 * {spk}.mean(-1, keepdim=True)",
    "{mem} = {mem} / (1 + {mem}.abs().sum(-1, keepdim=True))", "{mem} = {mem} * torch.softmax({mem}, -1)",
    "{mem} = {mem} - 0.1 * {mem}.logsumexp(-1, keepdim=True)", "{mem} = F.layer_norm({mem}, {mem}.shape[-1:])",
    "{mem} = {mem} / ({mem}.std(-1, keepdim=True, correction=0) + 1)", "{mem} = {mem} - {mem}.mean()",
)  # fmt: skip
# What of the branches ``d`` of a neuron, along a dimension, reaches it.
BRANCHES = (
    "{d}.sum({i})", "{d}.amax({i})", "{d}.max({i})[0]", "({d} * {w}).sum({i})", "({d} > 0.5).to(x.dtype).sum({i})",
    "torch.relu({d}).sum(dim={i})", "{d}.select({i}, 0) - {d}.select({i}, -1)", "{d}.unbind({i})[0]", "{d}.amin({i})",
)  # fmt: skip
ROUNDED_BRANCHES = (
    "{d}.mean({i})", "torch.tanh({d}).sum({i})", "{d}.logsumexp({i})", "(torch.softmax({d}, {i}) * {d}).sum({i})",
    "{d}.prod({i})", "torch.sigmoid({d} - 0.5).mean(dim={i})",
)  # fmt: skip
READ_BACK = ("max(t - 1, 0)", "t - 1", "t - 1", "t", "0", "t - 2")
CONDITIONS = ("if t == 0:", "if t > 0:", "if t % 2:", "if t == {last}:", "with torch.no_grad():")


def neuron_by_hand(s: Source, v: Value) -> "Layer":
    """States that leak, take in the current ``v`` and are reset, by elementwise lines for the most part."""
    draw, n, number = s.draw, v.shape[-1], s.name("hand").removeprefix("hand")
    states, spk, cur = [f"v{number}_{i}" for i in range(draw.choice((1, 1, 2, 2, 3)))], f"s{number}", f"cur{number}"
    mem, packs = states[0], s.some(0.25)
    names: dict[str, Any] = {
        "w": s.parameter("w", n) if s.some(0.6) else "0.75", "n": n, "dims": s.dims(*v.shape),
        "b": s.module("b", "nn.Parameter(torch.rand(()))") if s.some(0.4) else "-0.25",
    }  # fmt: skip
    starts = [draw.choice(STARTS).format(**names) for _ in states]
    # Most terms take no number.
    starts[1:] = [s.zeros(v.shape, "zero") if start == "None" or s.some(0.6) else start for start in starts[1:]]
    if packs:
        starts, packed = ["zeros"] * len(states), [*states, *[spk] * (len(states) == 1 or s.some(0.5))]
        pack = one_tensor(s, v.shape, packed)
    else:
        for name, start in zip(states, starts, strict=True):
            s.begin(name, start)
    held, goes_on = held_back(s, v, states) if starts[0] != "None" and s.batch and s.some(0.07) else ([], [])
    s.body += held
    current = str(v)
    if s.batch and len(v.shape) == 1 and s.some(0.3):
        if not packs:
            s.before.append(f"{spk} = {s.zeros(v.shape, 'zero')}")
        weights = {"f": s.module("fc", f"nn.Linear({n}, {n})"), "f2": s.module("fc", f"nn.Linear({2 * n}, {n})")}
        fed = packed[-1] if packs else spk
        fed = fed if starts[0] in ("None", "0", "0.0", "1.0") else draw.choice((fed, fed, mem))
        current += f" + {draw.choice(PRODUCTS).format(fed, c=v, m=s.parameter('weight', n, n), **weights)}"
    record = _record_of(s, v) if s.some(0.15) else ""
    if record:
        current += f" + {record.format(draw.choice(READ_BACK))} * 0.5"
    s.body.append(f"{cur} = {current}")
    branched = dendrites(s, cur, v) if s.some(0.15) else ""
    if s.some(0.1) and starts[0] != "None":
        s.body.append(f"{mem} = {mem} + {cur} * 0.25")
    leak = f"{mem} = {draw.choice(LEAKS).format(v=mem, c=cur, **names)}"
    s.body += [f"if {mem} is None:", f"    {mem} = {cur}", "else:", f"    {leak}"] if starts[0] == "None" else [leak]
    if not s.exact and s.some(0.1):
        s.body.append(f"{mem} = {norm(s, v.shape)}({mem})")
    known = [*states, cur]

    def term(first: str = "") -> str:
        forms = ROUNDED_TERMS if not s.exact and s.some(0.2) else TERMS
        k = draw.choice((0.25, 0.5, 0.75, 1.5, -0.5))
        return draw.choice(forms).format(first or draw.choice(known), draw.choice(known), k=k, **names)

    for i in range(draw.randint(0, 4)):
        name = f"a{number}_{i}" if s.some(0.6) else draw.choice(states)
        line = f"{name} = {term()}"
        if name in states and s.some(0.15):
            s.uses_t = True
            line = f"{draw.choice(CONDITIONS).format(last=s.steps - 1)}\n    {line}"
        s.body += line.splitlines()
        known += [name] * (name not in known)
    spike = draw.choice(ODD_SPIKES) if s.some(0.08) else draw.choice(SPIKES)
    s.uses_t |= "* t" in spike
    distance = s.let(f"{mem} - {draw.choice(('0.5', '1.0', '0.25', draw.choice(known)))}", v.shape, "d")
    s.body.append(f"{spk} = {spike.format(distance, mem)}")
    if branched and s.some(0.4):
        s.body.append(branched.format(s=spk))
    if s.some(0.15):
        among = LATERAL if s.exact or s.some(0.6) else ROUNDED_LATERAL
        first, other = (spk, mem) if s.some(0.3) else (mem, spk)  # the spikes, or the membrane
        s.body.append(draw.choice(among).format(mem=first, spk=other, n=n))
    heard = spk
    if record:
        s.body.append(f"{record.format('t')} = {spk}")
        heard = record.format(draw.choice(READ_BACK)) if s.some(0.4) else spk
    if s.some(0.85):
        s.body += draw.choice(HAND_RESETS).format(v=mem, s=heard, k=draw.choice((0.0, 0.5, 1.0))).splitlines()
    known.append(spk)
    for other in states[1:]:
        s.body += [f"{other} = {term(other)}", f"{other} = {other} * 0.5"]
    s.body += goes_on
    if packs:
        s.body += pack
    s.values += [Value(name, v.shape) for name in known if name.startswith("a") and s.some(0.5)]
    return Layer("", "by hand", v.shape, True, Value(spk, v.shape), Value(mem, v.shape), states)


# Of a complex state ``{z}``, a current ``{c}`` and spikes ``{s}``.
ROTATIONS = (
    "{z} * torch.exp(0.25 * ({b} + 1j * {w})) + {c}", "{z} * (0.5 + 0.75j) + {c}", "{z} * 0.9 + {c} * 1j",
    "{z} + 0.25 * ({b} + 1j * {w}) * {z} + {c}", "torch.complex({b} * {w}, {w}) * {z} + {c}",
    "{z} + 0.5 * torch.complex({c}, -{c}) - {z} / 3.0", "torch.polar({w}, {b} * {w}) * {z} + ({c} + 0j)",
    "{w} * {z} - 0.5j * {z} + {c}", "torch.view_as_complex(torch.view_as_real({z}) * 0.75) + {c} * (0.5 - 1j)",
    "torch.complex(0.5 * {z}.real - {w} * {z}.imag + {c}, 0.5 * {z}.imag + {w} * {z}.real)",
    "{z} + 0.25 * ((0.5 - {z}.real ** 2 - {z}.imag ** 2 + 1j * {w}) * {z} + {c})", "-{z} * {w} + {c} * {c}",
    "{z} * (0.5 + 0.25j) * {z} + {c}", "{z} + 0.25 * ((1 - {z}.abs()) * {z} + {c})", "1 - {z} * 0.5j + {c}",
)  # fmt: skip
PARTS_OF = (
    "{z}.imag", "{z}.real", "torch.imag({z})", "torch.view_as_real({z})[..., 1]", "{z}.real + {z}.imag", "{z}.abs()",
    "torch.view_as_real({z}).unbind(-1)[0]", "({z} * {z}.conj()).real", "({z} * {w}).imag", "{z}.detach().real",
)  # fmt: skip
ROTATED_RESETS = (
    "{z} = {z} * (1 - {s})", "{z} = {z} * (1.0 - {s}.detach())", "{z} = {z} - {s}", "{z} = {z} - 0.5j * {s}",
    "{z} = {z} - {s}.detach() * (0.5 + 0.25j)", "{z} = torch.where({s} > 0, torch.zeros_like({z}), {z})",
    "{z} = torch.where({s} > 0, 0.25, {z})", "{z} = {z}.masked_fill({s} > 0, 0.5j)", "{z} = {z}.conj() * (1 - {s})",
    "{z} = torch.complex({z}.real, {z}.imag * (1 - {s}.detach()))", "{z} = {z}.clone()\n{z}[{s}.detach() > 0.5] = 0",
    "{z} = torch.complex(torch.where({s} > 0, {w} * {s}, {z}.real), {z}.imag)", "{z} = {z} * (1 - {s}) + {s}",
    "{z} = {z}.clone()\n{z}.real[{s}.detach() > 0.5] = 0", "{z} = {z} * ({s} < 0.5)", "pass", "{z} *= 1 - {s}.detach()",
    "with torch.no_grad():\n    {z} = {z} * 0.5", "{z} = {z}.resolve_conj()",
)  # fmt: skip


def oscillator(s: Source, v: Value) -> "Layer":
    """A complex state, which turns and takes in the current ``v``."""
    draw, n, number = s.draw, v.shape[-1], s.name("osc").removeprefix("osc")
    z, spk, cur = f"z{number}", f"o{number}", f"cur_{number}"
    names = {
        "z": z, "c": cur, "s": spk, "w": s.parameter("w", n) if s.some(0.7) else f"x.new_full(({n},), 0.75)",
        "b": s.module("b", "nn.Parameter(torch.rand(()))") if s.some(0.4) else "-0.25",
    }  # fmt: skip
    dims = s.dims(*v.shape)
    s.begin(z, draw.choice((f"torch.zeros({dims}, dtype=x.dtype.to_complex())", f"torch.zeros({dims}) + 0j", "0")))
    s.body += [f"{cur} = {v}", f"{z} = {draw.choice(ROTATIONS).format(**names)}"]
    distance = s.let(
        f"{draw.choice(PARTS_OF).format(**names)} - {draw.choice(('0.5', '0.25', names['w']))}", v.shape, "d"
    )
    s.body.append(f"{spk} = {draw.choice(SPIKES).format(distance, distance)}")
    s.body += draw.choice(ROTATED_RESETS).format(**names).splitlines()
    if s.some(0.3):
        s.let(f"{z}.real * 0.5", v.shape)
    if s.some(0.3):
        s.let(f"({z} * ({names['w']} + 0.5j)).sum(-1, keepdim=True).real", (*v.shape[:-1], 1))
    if s.some(0.3):
        s.others.append(z)
    return Layer("", "oscillator", v.shape, True, Value(spk, v.shape), distance, [])


def one_tensor(s: Source, shape: tuple[int, ...], names: list[str]) -> list[str]:
    """States in one tensor, which a step takes apart: the lines that put them together again."""
    s.drawn[one_tensor] += 1
    draw, k, p = s.draw, len(names), s.name("state")
    d, dims = draw.choice((0, 0, -1, -1, 1)), [*[s.batch] * bool(s.batch), *map(str, shape)]
    joined, each, halves = ", ".join(names), range(k), s.some(0.15)
    if halves:  # one behind the other in the last dimension
        start = s.dims(*shape[:-1], k * shape[-1])
    else:
        where = d if d >= 0 else len(dims)
        start = ", ".join([*dims[:where], str(k), *dims[where:]])
    s.begin(p, draw.choice((f"x.new_zeros({start})", f"torch.full(({start}), 0.25, dtype=x.dtype)")))
    reads = [f"{joined} = {p}.unbind({d})", f"{joined} = torch.unbind({p}, dim={d})"]
    reads += [f"{joined} = {', '.join(f'{p}.select({d}, {i})' for i in each)}"]
    reads += [f"{joined} = (q.squeeze({d}) for q in {p}.split(1, {d}))"]
    if d <= 0:
        index = "{}" if d == 0 else "..., {}"
        reads += [f"{joined} = {', '.join(f'{p}[{index.format(i)}]' for i in each)}"] * 3
    reads += [f"{joined} = {p}"] * (3 if d == 0 else 0)
    writes = [f"{p} = torch.stack([{joined}], {d})", f"{p} = torch.stack(({joined}), dim={d})"] * 3
    writes += [f"{p} = torch.cat([q.unsqueeze({d}) for q in ({joined})], {d})"]
    writes += [
        f"{p} = {p}.clone()\n" + "\n".join(f"{p}.select({d}, {i}).copy_({name})" for i, name in enumerate(names))
    ]
    if halves:
        reads = [f"{joined} = {p}.chunk({k}, -1)", f"{joined} = torch.split({p}, {shape[-1]}, dim=-1)"]
        writes = [f"{p} = torch.cat([{joined}], -1)", f"{p} = torch.cat(({joined}), dim=-1)"]
    s.body.append(draw.choice(reads))
    s.others.append(p)
    lines = draw.choice(writes).splitlines()
    if s.some(0.3):
        L = s.name("rec")
        s.before.append(f"{L} = []")
        s.others.append(f"torch.stack({L})")
        lines.append(f"{L}.append({p})")
    return lines


def held_back(s: Source, v: Value, states: list[str]) -> tuple[list[str], list[str]]:
    """States stay as they are from the end of a sample on: lines in front of a step of them, and behind it."""
    s.drawn[held_back] += 1
    alive, was = s.alive(len(v.shape)), [s.name("was") for _ in states]
    forms = ("{0} = torch.where({m}, {0}, {1})", "{0} = torch.where({m}.logical_not(), {1}, {0})",
             "{0} = {m} * {0} + ~{m} * {1}", "{0} = {m}.to(x.dtype) * ({0} - {1}) + {1}")  # fmt: skip
    form = s.draw.choice(forms)
    behind = [form.format(state, w, m=alive) for state, w in zip(states, was, strict=True)]
    return [f"{w} = {state}" for state, w in zip(states, was, strict=True)], behind


def dendrites(s: Source, current: str, v: Value) -> str:
    """Branches that leak, and bring the current to a neuron; how spikes ``{s}`` reset them."""
    s.drawn[dendrites] += 1
    draw, k, n, name, behind = s.draw, s.draw.choice((2, 3)), v.shape[-1], s.name("dend"), s.some(0.7)
    i = -1 if behind else int(bool(s.batch))
    place = "[..., None]" if behind else f".unsqueeze({i})"
    shape = (*v.shape, k) if behind else (k, *v.shape)
    w = s.parameter("branch", *((n, k) if behind else (k, *v.shape[:-1], n)))
    s.begin(name, f"x.new_zeros({s.dims(*shape)})")
    if len(v.shape) == 1 and behind and s.batch and s.some(0.3):
        given = f"{s.module('fc', f'nn.Linear({n}, {n * k})')}({current}).unflatten(-1, ({n}, {k}))"
    else:
        given = f"{current}{place} * {w}"
    s.body.append(f"{name} = 0.5 * {name} + {given}")
    form = draw.choice(BRANCHES if s.exact or s.some(0.6) else ROUNDED_BRANCHES)
    s.body.append(f"{current} = {form.format(d=name, w=w, i=i)}")
    s.others.append(name)
    return f"{name} = {name} * (1 - {{s}}{place})"


def norm(s: Source, shape: tuple[int, ...]) -> str:
    """A module that normalises a membrane."""
    n = shape[-1]
    forms = [f"nn.LayerNorm({n})", f"nn.LayerNorm({list(shape)})", f"nn.RMSNorm({n}, eps=1e-3)"]
    if s.batch:
        forms += [f"nn.BatchNorm{max(len(shape) - 1, 1)}d({shape[0]})"] * 2
    return s.module("norm", s.draw.choice(forms))


def refractory(s: Source, v: Value) -> tuple[Value, list[str]]:
    """``v`` where a neuron may spike; the lines that count its steps from a spike ``{s}`` on."""
    s.drawn[refractory] += 1
    r = s.name("refractory")
    s.begin(r, f"torch.zeros({s.dims(*v.shape)}, dtype={s.draw.choice(WHOLE)})")
    gates = (
        "torch.where({r} > 0, 0.0, {v})", "{v} * ({r} == 0)", "{v} * ({r} <= 0).to(x.dtype)",
        "{v}.masked_fill({r} > 0, 0)", "torch.where({r} == 0, {v}, torch.zeros_like({v}))", "{v} - {r}",
        "{v} * (1 - ({r} > 0).long())",
    )  # fmt: skip
    counts = (
        "{r} = torch.where({s} > 0, 2, ({r} - 1).clamp(min=0))",
        "{r} = torch.clamp({r} - 1, min=0)\n{r} = {r}.masked_fill({s} > 0, 2)",
        "{r} = ({r} - 1).clamp(min=0) + 2 * ({s} > 0).long()", "{r} = torch.where({s}.bool(), 2, torch.relu({r} - 1))",
        "{r} = torch.where({s} > 0, torch.full_like({r}, 3), {r} - ({r} > 0).long())",
        "{r} = torch.maximum({r} - 1, 2 * ({s} > 0).long())",
        "{r} = {r}.clone()\n{r}[{r} > 0] -= 1\n{r}[{s} > 0] = 2",
        "{r} = ({r} - 1).clamp_min(0)\n{r}[{s}.detach() > 0] = 2",
        "{r} = {r} - 1\n{r}.clamp_(min=0).masked_fill_({s} > 0, 1)", "{r} = ({r} + {s}.to({r}.dtype)) * ({r} < 3)",
        "{r} = {r} // 2 + 3 * ({s} > 0).to({r}.dtype)", "{r} = torch.where({s} > 0, t + 2, {r})\n{r} = {r} * (t < {r})",
    )  # fmt: skip
    count = s.draw.choice(counts)
    s.uses_t |= "t + 2" in count
    s.others.append(r)
    return s.let(s.draw.choice(gates).format(r=r, v=v), v.shape), count.replace("{r}", r).splitlines()


def _record_of(s: Source, v: Value) -> str:
    """A record that is filled step by step, and read meanwhile: the spelling of a place in it."""
    name, last, steps = s.name("record"), s.some(0.4), s.literal_steps()
    s.uses_t = True
    s.before.append(
        f"{name} = torch.zeros({s.dims(*v.shape, steps) if last else f'{steps}, {s.dims(*v.shape)}'}, dtype=x.dtype)"
    )
    s.others.append(name)
    return f"{name}[..., {{0}}]" if last else f"{name}[{{0}}]"


def feedback(s: Source, v: Value) -> tuple[Value, str]:
    """``v`` with the spikes of the layer behind it, one step late; and the variable of them."""
    s.drawn[feedback] += 1
    fed, n = s.zeros(v.shape, "fed"), v.shape[-1]
    if s.some(0.4):
        return s.let(f"{v} + {s.module('rec', f'nn.Linear({n}, {n})')}({fed})", v.shape), fed
    if s.some(0.3):
        both = s.draw.choice((f"torch.cat([{v}, {fed}], -1)", f"torch.cat(({fed}, {v}), dim={len(v.shape)})"))
        return s.let(f"{s.module('rec', f'nn.Linear({2 * n}, {n})')}({both})", v.shape), fed
    if s.some(0.3):
        return s.let(f"{v} - 0.5 * {fed}", v.shape), fed
    taken = s.let(f"{v} * 1", v.shape)
    s.body.append(s.draw.choice(LATERAL if s.exact else (*LATERAL, *ROUNDED_LATERAL)).format(mem=taken, spk=fed, n=n))
    return taken, fed


class FromAbove:
    """Something that an early layer takes of the last one, one step late, whatever width that has."""

    def __init__(self, s: Source, v: Value) -> None:
        self.s, self.layer, self.fed, self.width = s, f"self.{s.name('back')}", s.name("fed"), v.shape[-1]
        self.form = s.draw.choice(("{v} + {f}({fed})", "{v} - {f}({fed})", "{v} - F.linear({fed}, {f}.weight.abs())",
                                   "{f}(torch.cat([{v}, {fed}], -1))", "{v} - {fed} @ {f}.weight.t()"))  # fmt: skip
        self.taken = s.let(self.form.format(v=v, f=self.layer, fed=self.fed), v.shape)

    def give(self, v: Value) -> None:
        n, bias = v.shape[-1] + self.width * ("cat" in self.form), self.s.draw.choice(("", ", bias=False"))
        self.s.init.append(f"{self.layer} = nn.Linear({n}, {self.width}{bias})")
        self.s.begin(self.fed, f"x.new_zeros({self.s.dims(*v.shape)})")
        self.s.body.append(f"{self.fed} = {v}")


def memory(s: Source, v: Value) -> Value:
    """``v`` with something of the steps before."""
    n = v.shape[-1]
    kinds = ["delay", "delay", "list", "window", "trace", "trace", "sum", "weights", "branches"]
    if not s.exact:
        kinds += ["recurrence", *["cell", "lstm", "gates"] * (len(v.shape) == 1)]
    kind = s.draw.choice(kinds)
    if kind in ("list", "window"):
        rec = s.name("late")
        s.before.append(f"{rec} = []")
        s.body.append(f"{rec}.append({v})")
        if kind == "window":
            return s.let(f"{v} + torch.stack({rec}[-2:]).sum(0)", v.shape)
        s.uses_t = True
        return s.let(f"{v} + {rec}[max(t - 2, 0)]", v.shape)
    if kind == "weights":
        fast = s.name("fast")
        s.before.append(f"{fast} = {s.parameter('weight', n)}")
        w = s.let(f"{v} * {fast}", v.shape)
        s.body.append(f"{fast} = 0.5 * {fast} + {v}.reshape(-1, {n})[0]")
        return w
    if kind == "branches":
        w = s.let(f"{v} * 1", v.shape)
        dendrites(s, str(w), v)
        return w
    was = s.zeros(v.shape, "was")
    if kind == "cell":
        cell = s.draw.choice(("RNN", "GRU"))
        s.body.append(f"{was} = {s.module('cell', f'nn.{cell}Cell({n}, {n})')}({v}, {was})")
        return Value(was, v.shape)
    if kind == "lstm":
        other = s.zeros(v.shape, "was")
        s.body.append(f"{was}, {other} = {s.module('cell', f'nn.LSTMCell({n}, {n})')}({v}, ({was}, {other}))")
        return Value(was, v.shape)
    if kind == "gates":
        other, m = s.zeros(v.shape, "was"), s.draw.choice((3, 4))
        sizes = f"nn.Linear({n}, {m * n})", f"nn.Linear({n}, {m * n}, bias=False)"
        of_input, of_state = (s.module("gates", sizes[s.some(0.5)]) for _ in range(2))
        cut = s.draw.choice((f".chunk({m}, -1)", f".split({n}, 1)", f".unflatten(1, ({m}, {n})).unbind(1)"))
        names = [s.name("gate") for _ in range(m)]
        total = s.draw.choice(("{0}({v}) + {1}({was})", "torch.sigmoid({1}({was}) - {0}({v}))", "{1}({was})"))
        s.body.append(f"{', '.join(names)} = ({total.format(of_input, of_state, v=v, was=was)}){cut}")
        i, f, *_, o = names
        s.body.append(f"{other} = torch.sigmoid({f}) * {other} + {i} * 0.5 + {v}")
        s.body.append(f"{was} = {o} * torch.tanh({other})")
        return Value(was, v.shape)
    if kind == "trace":
        s.body.append(f"{was} = {0.5 if s.exact else 0.8} * {was} + {v}")
        return s.let(f"{v} + 0.5 * {was}", v.shape) if s.some(0.5) else Value(was, v.shape)
    if kind == "sum":
        s.body.append(f"{was} += {v}")
        return s.let(f"{v} - 0.25 * {was}", v.shape)
    if kind == "recurrence":
        s.body.append(f"{was} = torch.tanh({s.module('rec', f'nn.Linear({n}, {n})')}({was}) + {v})")
        return Value(was, v.shape)
    tap = f"{s.module('tap', f'nn.Linear({n}, {n})')}({was})" if s.some(0.5) else f"0.5 * {was}"
    w = s.let(f"{v} + {tap}", v.shape)
    s.body.append(f"{was} = {v}")
    return w


PARTS = (
    neuron_by_hand,
    oscillator,
    one_tensor,
    dendrites,
    refractory,
    node,
    Layers._cell,
    all_steps,
    held_back,
    feedback,
)


def name_of(kind: Any) -> str:
    return str(kind.__name__).strip("_").replace("_", " ")


def names_of_kinds() -> list[str]:
    """Of the statements, the pieces and the parts of a program."""
    return sorted(name_of(kind) for kind in (*KINDS, *PARTS, *(p.write for p in PIECES)))


# ---- a program

HEADER = """import functools
import operator

import torch
import torch.nn.functional as F
from callables import steep
from loop_ops import (
    Cell, CellParameters, CellState, Masked, Named, Plain, Results, Saved, Summed, doubled, noise, scaled_, through
)
from torch import nn
from torch.utils.checkpoint import checkpoint

import snnfast
from snnfast.spikingjelly import functional, layer, neuron
from snnfast.spikingjelly import surrogate as jelly
from {surrogates} import surrogate
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


PLACES = (("forward",), ("backward",), ("forward", "backward"))
"""What a context is around."""


class Program:
    """One program, drawn from its number.

    Attributes:
        source: Python text: a class ``Net``, whose constructor takes the library of the spiking layers, and
            ``SETTINGS``, how it is called.
    """

    def __init__(self, number: int, attempt: int = 0, long: bool = False) -> None:
        """``long``: of many steps, mostly of another number of them at each call, and often of another batch."""
        self.draw, self.long = random.Random(1000 * number + attempt), long
        # Float64: how a product over all steps is rounded does not decide on a spike. Float32 where nothing is rounded.
        self.dtype = "float32" if self.some(0.1) else "float64"
        self.train, self.grad, x_grad = self.some(0.7), self.some(0.75), self.some(0.7)
        by_hand = self.draw.choice((0.0, 0.0, 0.3, 1.0, 1.0))  # how many of the layers
        steps = (3, 3, 4, 5) if by_hand == 1 else (2, 2, 2, 3, 3, 4)  # two are too few for a recurrence
        steps = (8, 9, 11, 14) if long else steps
        self.steps = self.draw.choice(steps) if self.some(0.95) else self.draw.choice((0, 1))
        self.s = Source(self.draw, self.dtype == "float32", self.steps, self.train)
        self.carries = self.s.carries = self.some(0.08)
        self.layers = Layers(self.s, by_hand)
        self._write()
        batches = (2, 3, 4) if self.train else (1, 2, 3, 4)  # of one sample, batch norm has no statistics
        batches += (5, 7) if long else ()
        batch, calls = self.draw.choice(batches), 2 if self.carries or self.some(0.12) else 1
        calls = max(6 if long else calls, self.s.calls)
        self.settings = {
            "number": number, "attempt": attempt, "dtype": self.dtype, "train": self.train,
            "grad": self.grad, "x_grad": x_grad, "leaf": self.some(0.4), "held_in_loss": self.some(0.3),
            "carries": self.carries and self.draw.choice(("held", "detached")),
            "same_input": self.some(0.05), "strided_input": self.some(0.08), "draws": bool(self.s.draws),
            "catches": self.s.catches, "calls": [],
        }  # fmt: skip
        for i in range(calls):
            again = i and not self.carries
            batch = self.draw.choice(batches) if again and self.some(0.5 if long else 0.2) else batch
            least, most = (6, 15) if long else (1, 4)
            steps = (
                self.draw.randint(least, most) if again and self.flexible and (long or self.some(0.5)) else self.steps
            )
            shapes = {
                n: (self.s.inputs.get(n, ("input",))[0].split()[0], self.shape_of(n, batch, steps))
                for n in ("x", *self.s.inputs)
            }
            self.settings["calls"].append({"resets": self.some(0.5), "steps": steps, "inputs": shapes})
        context = self.draw.choice(("anomaly", "hooks", "checkpoint")) if self.some(0.1) else ""
        self.settings["around"] = (context, self.draw.choice(PLACES))
        settings = "".join(f'    "{k}": {v!r},\n' for k, v in self.settings.items())
        self.source += f"\n\nSETTINGS = {{\n{settings}}}\n"

    @property
    def kinds(self) -> set[str]:
        """Names of the statements and pieces that it has."""
        return {name_of(kind) for kind, count in self.s.drawn.items() if count}

    def some(self, probability: float) -> bool:
        return self.draw.random() < probability

    def _step(self, v: Value, count: int) -> list[Value]:
        """The lines of a step from its input to its last layer; what may be kept."""
        s = self.s
        s.place = "step"
        s.values.append(v)
        seen: list[Value] = []
        alone = self.layers.by_hand == 1 and self.some(0.7)  # nothing else that might keep a step from being one
        counts = (0,) if alone else (0, 0, 1, 2)
        above = None
        for _ in range(count):
            mark, begin = len(s.values), len(s.body)
            for _ in range(self.draw.choice((0, 1))):
                v = add_piece(s, v)
            statements(s, self.draw.choice(counts))
            if len(s.values) > mark and self.some(0.5):
                v = self.draw.choice(s.values[mark:])
            if len(v.shape) > 1 and (v.size > 12 or self.some(0.2)):
                v = flatten(s, v)
            if self.some(0.5) or v.size > 12:
                v = (conv(s, v) if len(v.shape) == 3 else None) or linear(s, v)
            fed, counts_of_steps = None, []
            if self.some(0.08):
                v, fed = feedback(s, v)
            if self.some(0.08):
                v, counts_of_steps = refractory(s, v)
            if above is None and self.some(0.08):
                above = FromAbove(s, v)
                v = above.taken
            layer = self.layers.add(v)
            if fed:
                s.body.append(f"{fed} = {layer.spk}")
            s.body += [line.replace("{s}", str(layer.spk)) for line in counts_of_steps]
            seen += [layer.spk, *[layer.mem] * (layer.mem is not None)]
            s.values += [layer.spk, *(Value(n, layer.shape) for n in layer.states)]
            v = layer.spk
            if self.some(0.06):
                s.uses_t = True
                s.body[begin:] = [self.draw.choice(OF_STEPS[:3]), *(f"    {line}" for line in s.body[begin:])]
            statements(s, self.draw.choice(counts))
            if self.some(0.06):
                v = memory(s, v)
        if above is not None:
            above.give(v)
        if s.cuts and self.some(0.1):
            s.uses_t = True
            condition = self.draw.choice(("if t and t % 2 == 0:", "if t > 1:", "if t % 2 == 1:", "if t == 2:"))
            s.body[:0] = [condition, *(f"    {line}" for line in s.cuts)]
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
        flexible = first and not s.needs_steps and layout in LENGTH and T > 0 and self.some(0.9 if self.long else 0.4)
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
        if T > 2 and s.cuts and self.some(0.05):  # a few steps at a time
            cuts = ["    if k:", *(f"        {line}" for line in s.cuts)]
            return [f"for k in range(0, {T}, 2):", *cuts, f"    for t in range(k, min(k + 2, {T})):",
                    *(f"    {line}" for line in inner)]  # fmt: skip
        if T > 1 and self.some(0.06):  # the first step, or the last one, stands outside
            outer, steps = self.draw.choice(((0, f"range(1, {T})"), (T - 1, f"range({T - 1})")))
            alone, rest = [f"t = {outer}", f"xt = {step}", *body], [f"for t in {steps}:", *inner]
            return [*rest, *alone] if outer else [*alone, *rest]
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
        if layout == "time first" and s.batch and self.some(0.06):
            with s.written_to(s.before):
                first = all_steps(s, s.records[0])
            v, x = Value("xt", first.shape), first.name
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
            s.body, s.uses_t, s.place, s.cuts = [], False, "after", []
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
        beside = {"draws": s.draws, "told": s.told}
        if s.draws or s.told:
            lists = [f"'{name}': [{', '.join(found)}]" for name, found in beside.items() if found]
            returned = f"{{{', '.join(lists)}, 'rest': {returned}}}"
        if self.carries:
            returned = f"{returned}, ({''.join(f'{state}, ' for state in s.carried)})"
        lines = [*s.before, *code, *s.after]
        alike = [record for record in s.lists if record.shape == shape]
        if layout == "time first" and alike and self.some(0.3):  # layers of the same lines, each over all time steps
            lines.append(f"x = torch.stack({draw.choice(alike)}) + x * 0.5")
            lines = ["for layer in range(2):", *(f"    {line}" for line in "\n".join(lines).splitlines())]
        text = "\n".join(lines)
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
        if s.between:
            lines += ["", "", "def between(net, number):", *(f"    {line}" for line in s.between)]
        if s.around:
            lines += ["", "", "def around(number):", f"    return [{', '.join(s.around)}]"]
        surrogates = "snnfast" if self.dtype == "float64" else "snntorch"
        header = HEADER.format(surrogates=surrogates)
        imports = "".join(f"{text}\n" for text in s.top if text.startswith(("import ", "from ")) and "\n" not in text)
        top = "".join(f"\n\n{text}" for text in s.top if text not in imports.splitlines())
        self.source = "\n".join([f"{imports}{header}{top}", "", *lines, ""])

    def shape_of(self, name: str, batch: int, steps: int) -> tuple[int, ...]:
        """The shape of an input."""
        T, B = steps, (batch,) if self.s.batch else ()
        if name == "x":
            length = {"strided": 2 * T + 1, "late": T + 1}.get(self.layout, T)
            return {"batch first": (*B, T, *self.shape), "constant": (*B, *self.shape),
                    "time last": (*B, *self.shape, T)}.get(self.layout, (length, *B, *self.shape))  # fmt: skip
        kind, shape = self.s.inputs[name]
        return (*((T,) if "per step" in kind else ()), *B, *(() if kind.startswith("classes") else shape))
