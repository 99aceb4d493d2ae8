"""What may stand between two spiking layers of a random program, as lines of Python (see ``tests/loop_fuzz.py``).

Calls that keep the shape, and need no weights, are statements (``random_statements.py``).
"""

from collections.abc import Callable
from dataclasses import dataclass

from random_source import Source, Value

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
