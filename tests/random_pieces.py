"""What may stand between two spiking layers of a random program, as lines of Python (see ``tests/loop_fuzz.py``)."""

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
            return found


def _one_of(shape_kept: tuple[str, ...]) -> Write:
    return lambda s, v: s.let(s.draw.choice(shape_kept).format(v=v), v.shape)


EXACT = (
    "F.relu({v})", "torch.relu({v})", "{v}.relu()", "{v} * 2", "0.5 * {v}", "{v} + 0.25", "1 - {v}", "-{v}",
    "{v}.abs()", "{v}.clamp(-1, 1)", "torch.where({v} > 0, {v}, 0.5 * {v})", "{v}.clone()", "{v} * {v}",
    "{v}.masked_fill({v} < 0, 0)", "torch.maximum({v}, -{v})", "F.dropout({v}, 0.5, training=False)", "{v}.to(x.dtype)",
    "{v} + ({v} > 0.5)", "({v} > 0.25).to({v}.dtype) + {v}", "{v} + torch.ones_like({v})", "{v}.add({v}, alpha=0.5)",
    "{v} * torch.full(({v}.shape[-1],), 0.5, dtype=x.dtype)", "F.dropout({v}, 0.0)", "torch.add({v}, {v}.detach())",
)  # fmt: skip
REAL = (
    "torch.sigmoid({v})", "torch.tanh({v}) + 0.2", "F.gelu({v})", "F.leaky_relu({v}, 0.1)", "{v}.exp().clamp(max=3)",
    "F.softplus({v})", "{v} * 1.1", "{v} / 0.9", "{v} ** 2", "F.elu({v})", "torch.sqrt({v}.abs() + 0.1)", "F.silu({v})",
    "torch.lerp({v}, torch.sigmoid({v}), 0.3)", "torch.addcmul({v}, {v}, {v}, value=0.3)", "torch.atan2({v}, {v} + 2)",
)  # fmt: skip
OVER_FEATURES = (
    "torch.softmax({v}, -1) * 2", "F.softmax({v}, dim=1)", "{v} - 0.5 * {v}.mean(-1, keepdim=True)", "{v}.flip(-1)",
    "{v}.roll(1, -1)", "{v}.cumsum(-1)", "F.normalize({v}, dim=-1)", "{v} + {v}.sum(1, keepdim=True) * 0.2",
    "{v} + {v}.amax(1, keepdim=True)", "{v} / (1 + {v}.norm(dim=-1, keepdim=True))", "{v}.cumsum(1)",
    "{v} + {v}.max(dim=-1, keepdim=True).values", "{v} + {v}[:, :1]", "{v} - {v}[..., -1:]", "F.softmin({v}, -1) + {v}",
    "torch.logsumexp({v}, -1, keepdim=True) * 0.3 + {v}", "{v} + F.layer_norm({v}, {v}.shape[-1:]) * 0.1",
    "torch.stack([{v}, {v} * 2], 1).sum(1)", "torch.cat([{v}, {v}], -1)[..., ::2]",
)  # fmt: skip
# What a batch of all time steps would get wrong.
OVER_BATCH = (
    "{v} - 0.5 * {v}.mean(0)", "{v} - 0.5 * {v}.mean(0, keepdim=True)", "torch.softmax({v}, 0) + {v}", "{v}.flip(0)",
    "{v} / (1 + {v}.abs().max())", "{v} + 0.3 * {v}.mean()", "{v}.roll(1, 0)", "{v}.cumsum(0)", "{v} + {v}[0]",
    "{v} + {v}[-1:]", "{v} + {v}.sum() / {v}.numel()", "{v} * (1 + {v}.square().mean().sqrt())", "{v} + {v}.amax(0)",
    "{v} / {v}.size(0) + {v}", "{v} + {v}.sum(0, keepdim=True) / {v}.shape[0]",
    "{v}.reshape(-1).flip(0).view({v}.shape)",
    "{v} + 0.1 * {v}.norm()", "{v}.roll(1)", "torch.cat([{v}[1:], {v}[:1]])", "{v} + {v}.flatten()[0]",
    "{v} + F.normalize({v}, dim=0)", "{v}.transpose(0, 1).flip(0).transpose(0, 1)", "torch.stack(list({v}))",
)  # fmt: skip
GRADIENTS = (
    "{v}.detach()", "{v} + {v}.detach() * 0.5", "({v} > 0.3).to(x.dtype) + 0.1 * {v}", "{v} - {v}.detach() + {v}.abs()",
)  # fmt: skip

piece(3, exact=True, unbatched=True)(_one_of(EXACT))
piece(2, unbatched=True)(_one_of(REAL))
piece(2)(_one_of(OVER_FEATURES))
piece(1)(_one_of(OVER_BATCH))
piece(0.3)(_one_of(GRADIENTS))


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


@piece(5, exact=True)
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
    if s.some(0.15):
        w = s.parameter("weight", out, channels // groups, *[kernel] * d)
        code = f"F.conv{d}d({v}, {w}, stride={stride}, padding={padding}, groups={groups})"
        return s.let(code, (out, *sizes))
    options = f", stride={stride}, padding={padding}" + (f", groups={groups}" if groups > 1 else "")
    options += ", bias=False" if s.some(0.2) else ""
    return s.let(f"{s.module('conv', f'nn.Conv{d}d({channels}, {out}, {kernel}{options})')}({v})", (out, *sizes))


@piece(3, exact=True)
def pool(s: Source, v: Value) -> Value | None:
    if len(v.shape) < 2 or min(v.shape[1:]) < 2:
        return None
    d, shape = len(v.shape) - 1, (v.shape[0], *(n // 2 for n in v.shape[1:]))
    kind = s.draw.choice(("Max", "Avg"))
    if s.some(0.4):
        return s.let(f"F.{kind.lower()}_pool{d}d({v}, 2)", shape)
    return s.let(f"{s.module('pool', f'nn.{kind}Pool{d}d(2)')}({v})", shape)


@piece(1)
def adaptive_pool_or_upsample(s: Source, v: Value) -> Value | None:
    if len(v.shape) < 2:
        return None
    d = len(v.shape) - 1
    if max(v.shape[1:]) <= 4 and s.some(0.5):
        return s.let(f"F.interpolate({v}, scale_factor=2)", (v.shape[0], *(2 * n for n in v.shape[1:])))
    return s.let(f"F.adaptive_avg_pool{d}d({v}, 1)", (v.shape[0], *[1] * d))


def flatten(s: Source, v: Value) -> Value:
    if s.some(0.3):
        return s.let(f"{s.module('flat', 'nn.Flatten()')}({v})", (v.size,))
    forms = [f"{v}.flatten(1)", f"torch.flatten({v}, 1)", f"{v}.reshape({v}.size(0), -1)", f"{v}.reshape(-1, {v.size})"]
    if not s.permuted:
        forms += [f"{v}.view({v}.shape[0], -1)", f"{v}.view(-1, {v.size})"]
    return s.let(s.draw.choice(forms), (v.size,))


@piece(3, exact=True)
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


@piece(1.5, exact=True)
def transpose(s: Source, v: Value) -> Value | None:
    if len(v.shape) < 2:
        return None
    s.permuted = True
    if len(v.shape) == 2:
        forms = [f"{v}.transpose(1, 2)", f"{v}.mT", f"{v}.permute(0, 2, 1)", f"torch.transpose({v}, -1, -2)"]
        return s.let(s.draw.choice(forms), v.shape[::-1])
    return s.let(f"{v}.permute(0, 2, 3, 1)", (*v.shape[1:], v.shape[0]))


@piece(1, exact=True)
def reduce(s: Source, v: Value) -> Value | None:
    if len(v.shape) < 2:
        return None
    forms = [f"{v}.sum(1)", f"{v}.amax(1)", f"{v}.max(1)[0]", f"{v}[:, 0]", f"{v}.select(1, -1)"]
    if not s.exact:
        forms += [f"{v}.mean(1)", f"{v}.var(1, correction=0)", f"torch.logsumexp({v}, dim=1)"]
    return s.let(s.draw.choice(forms), v.shape[1:])


@piece(1, exact=True)
def slice_or_pad(s: Source, v: Value) -> Value:
    n = v.shape[-1]
    if n > 1 and s.some(0.5):
        form = s.draw.choice(("{v}[..., ::2]", "{v}[..., 1:]", "{v}.narrow(-1, 0, {m})", "{v}.chunk(2, -1)[0]"))
        s.permuted = True
        m = (n + 1) // 2 if "1:" not in form else n - 1
        return s.let(form.format(v=v, m=m), (*v.shape[:-1], m))
    return s.let(f"F.pad({v}, (0, 1), value=0.5)", (*v.shape[:-1], n + 1))


@piece(2)
def norm(s: Source, v: Value) -> Value:
    forms = [f"nn.LayerNorm({v.shape[-1]})", f"nn.LayerNorm({list(v.shape)})", f"nn.RMSNorm({v.shape[-1]}, eps=1e-3)"]
    if len(v.shape) > 1:
        forms += [f"nn.GroupNorm(1, {v.shape[0]})"]
    return s.let(f"{s.module('norm', s.draw.choice(forms))}({v})", v.shape)


@piece(2)
def batch_norm(s: Source, v: Value) -> Value:
    # With momentum=None a number is read from a tensor at every step, where dynamo ends its graph.
    kinds = ["", "", "", ", momentum=0.3", ", affine=False", *[", track_running_stats=False"] * s.train]
    options = s.draw.choice(kinds)
    name = f"nn.BatchNorm{max(len(v.shape) - 1, 1)}d({v.shape[0]}{options})"
    if s.some(0.2):  # one for each step, as in "BatchNorm through time"
        s.uses_t = True
        return s.let(
            f"{s.module('bntt', f'nn.ModuleList([{name} for _ in range({s.literal_steps()})])')}[t]({v})", v.shape
        )
    return s.let(f"{s.module('bn', name)}({v})", v.shape)


@piece(1.5, exact=True)
def module_without_weights(s: Source, v: Value) -> Value:
    forms = ["nn.ReLU()", "nn.Dropout(p=0.0)", "nn.Identity()"]
    if not s.train:
        forms += ["nn.Dropout(0.5)", *["nn.Dropout1d(0.2)"] * (len(v.shape) < 3)]
    if not s.exact:
        forms += ["nn.PReLU()", "nn.Sigmoid()", "nn.Hardtanh()", "nn.Softmax(dim=-1)"]
    return s.let(f"{s.module('act', s.draw.choice(forms))}({v})", v.shape)


@piece(1.5, exact=True)
def in_place(s: Source, v: Value) -> Value:
    """Of a tensor of its own: what a neuron returned is another piece."""
    w = s.let(f"{v} + 0.25", v.shape)
    forms = [f"F.relu({w}, inplace=True)", f"{w}.mul_(2)", f"{w}.clamp_(min=0)", f"{w}.add_({v})", f"{w}.relu_()"]
    if s.some(0.4):
        return s.let(f"{s.module('relu', 'nn.ReLU(inplace=True)')}({w})", v.shape)
    if s.some(0.4):
        lines = [f"{w} += {v}", f"{w} *= 0.5", f"{w}[:, 0] = 0.5", f"{w}[..., -1] *= 2", f"{w}[0] += 1"]
        s.body.append(s.draw.choice(lines))
        return w
    return s.let(s.draw.choice(forms), v.shape)


@piece(1.5, exact=True, unbatched=True)
def sequential(s: Source, v: Value) -> Value:
    n, out = v.shape[-1], s.draw.randint(1, 9)
    parts = [f"nn.Linear({n}, {out})", s.draw.choice(("nn.ReLU()", "nn.Identity()")), f"nn.Linear({out}, {out})"]
    block = s.module("block", f"nn.Sequential({', '.join(parts)})")
    return s.let(f"{block}({v})", (*v.shape[:-1], out))


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


@piece(1.5, exact=True, unbatched=True)
def residual(s: Source, v: Value) -> Value:
    layer = s.module("fc", f"nn.Linear({v.shape[-1]}, {v.shape[-1]})")
    return s.let(s.draw.choice((f"{v} + {layer}({v})", f"{layer}({v}) + {v}", f"{layer}({layer}({v}))")), v.shape)


@piece(1, unbatched=True)
def gate(s: Source, v: Value) -> Value:
    layer = s.module("gate", f"nn.Linear({v.shape[-1]}, {v.shape[-1]})")
    return s.let(f"{v} * torch.sigmoid({layer}({v}))", v.shape)


@piece(1)
def attention(s: Source, v: Value) -> Value | None:
    if len(v.shape) != 2:
        return None
    forms = (f"torch.softmax({v} @ {v}.transpose(-2, -1), -1) @ {v}", f"F.scaled_dot_product_attention({v}, {v}, {v})",
             f"torch.bmm(torch.bmm({v}, {v}.transpose(1, 2)).softmax(2), {v})")  # fmt: skip
    return s.let(s.draw.choice(forms), v.shape)


@piece(1, exact=True, unbatched=True)
def by_step(s: Source, v: Value) -> Value:
    """What is another operation, or has another number, at each step."""
    s.uses_t = True
    steps = max(s.literal_steps(), 1)
    kind = s.draw.choice(("scale", "offset", "number", "if", "layers", "first", "input", "last", "growing"))
    if kind in ("scale", "offset"):
        w = s.parameter("scale", steps, v.shape[-1])
        return s.let(f"{v} {'*' if kind == 'scale' else '+'} {w}[t]", v.shape)
    if kind == "number":
        return s.let(s.draw.choice((f"{v} * (t + 1)", f"{v} * 0.5**t", f"{v} + t", f"{v} * (t % 2)")), v.shape)
    if kind == "layers":
        n = v.shape[-1]
        return s.let(
            f"{s.module('layers', f'nn.ModuleList([nn.Linear({n}, {n}) for _ in range({steps})])')}[t]({v})", v.shape
        )
    if kind == "input" and len(v.shape) == 1:
        return s.let(f"{v} + {s.add_input('input', v.shape, per_step=True)}", v.shape)
    if kind == "growing":
        return s.let(f"{v} + {v}[..., : t + 1].sum(-1, keepdim=True)", v.shape)
    w = s.let(f"{v}", v.shape)
    condition = {"first": "t == 0", "last": f"t == {steps - 1}"}.get(kind, "t % 2")
    s.body += [f"if {condition}:", f"    {w} = {v} * 2 + 0.5"]
    return w


@piece(0.7, exact=True, unbatched=True)
def constant(s: Source, v: Value) -> Value:
    """With something that is the same at every step, though it is computed in the loop."""
    n = v.shape[-1]
    kind = s.draw.choice(("parameter", "input", "computed"))
    if kind == "input" and len(v.shape) == 1:
        return s.let(f"{v} + {s.add_input('input', v.shape, per_step=False)}", v.shape)
    w = s.parameter("offset", n)
    return s.let(f"{v} + {w}" if kind == "parameter" else f"{v} * ({w} + {w}.abs().sum())", v.shape)


@piece(0.5, exact=True)
def buffer(s: Source, v: Value) -> Value:
    """A buffer that moves with the steps."""
    name = s.name("seen")
    s.init.append(f"self.register_buffer('{name}', torch.zeros({v.shape[-1]}))")
    rate = f"{v}.detach().reshape(-1, {v.shape[-1]}).sum(0)"
    lines = (f"self.{name} += {rate}", f"self.{name}.add_({rate})", f"self.{name} = 0.5 * self.{name} + {rate}")
    s.body.append(s.draw.choice(lines))
    return s.let(f"{v} - 0.25 * self.{name}", v.shape) if s.some(0.3) and not s.exact else v


@piece(1.5, exact=True)
def several_results(s: Source, v: Value) -> Value | None:
    """Of an operator that returns a tuple."""
    n = v.shape[-1]
    if n % 2 == 0:
        a, b = s.name("part"), s.name("part")
        form = s.draw.choice((f"{v}.chunk(2, -1)", f"torch.split({v}, {n // 2}, dim=-1)", f"{v}.tensor_split(2, -1)"))
        s.body.append(f"{a}, {b} = {form}")
        s.permuted = True
        return s.let(
            s.draw.choice((f"{a} + {b}", f"{a} * {b}", f"torch.cat([{b}, {a}], -1)[..., : {n // 2}]")),
            (*v.shape[:-1], n // 2),
        )
    values, indices = s.name("part"), s.name("part")
    form = s.draw.choice((f"{v}.max(-1, keepdim=True)", f"torch.sort({v}, dim=-1, stable=True)"))
    s.body.append(f"{values}, {indices} = {form}")
    return s.let(f"{v} + {values} + ({indices} * 0.25).to(x.dtype)", v.shape)


@piece(1, exact=True)
def whole_numbers(s: Source, v: Value) -> Value:
    n = v.shape[-1]
    embedding = s.module("embedding", f"nn.Embedding(2, {n})")
    forms = (f"{embedding}(({v} > 0.4).long()).sum(-1)", f"{v} + ({v} > 0.4).sum(-1, keepdim=True)",
             f"{v} * ({v} > 0.2).any(-1, keepdim=True)", f"{v} + F.one_hot(({v} > 0.4).long(), 2)[..., 1]",
             f"{v} + ({v} > 0).long().cumsum(-1)", f"{v} * (({v} > 0.3) & ({v} < 2))")  # fmt: skip
    return s.let(s.draw.choice(forms), v.shape)


@piece(1)
def larger_module(s: Source, v: Value) -> Value | None:
    n, out = v.shape[-1], s.draw.randint(1, 5)
    s.permuted = True
    if len(v.shape) == 1:
        if s.some(0.5):
            return s.let(f"{s.module('bilinear', f'nn.Bilinear({n}, {n}, {out})')}({v}, {v})", (out,))
        return s.let(
            f"{s.module('gru', f'nn.GRU({n}, {out}, batch_first=True)')}({v}.unsqueeze(1))[0].squeeze(1)", (out,)
        )
    if len(v.shape) == 3:
        return s.let(f"{s.module('up', f'nn.ConvTranspose2d({v.shape[0]}, {out}, 1)')}({v})", (out, *v.shape[1:]))
    if s.some(0.5):
        attention = s.module("attention", f"nn.MultiheadAttention({n}, 1, batch_first=True)")
        return s.let(f"{attention}({v}, {v}, {v}, need_weights=False)[0]", v.shape)
    return s.let(f"{s.module('gru', f'nn.GRU({n}, {out}, batch_first=True)')}({v})[0]", (v.shape[0], out))
