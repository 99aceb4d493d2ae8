"""Statements that may stand anywhere in a random program, as lines of Python (see ``tests/loop_fuzz.py``).

Whether PyTorch allows a statement where it stands is not asked here: a program that raises without a compiler is left
out. In the forms, ``v`` is a tensor that is read, ``w`` another one of its shape, ``o`` one that is written.
"""

from collections.abc import Callable

from random_pieces import add_piece
from random_source import Source, Value

# ---- in place

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
    "torch._assert_async({w}.isfinite().all())\n{o}.mul_(0.5)", "{o}.requires_grad_({o}.requires_grad).mul_(0.5)",
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
)  # fmt: skip

COUNTS = (
    "{a} += {v}", "{a} = {a} + {v}", "{a} = {v} + {a}", "{a} = {a} + {v}.detach()", "{a}.add_({v})", "{a} -= {v}",
    "{a} = torch.add({a}, {v})", "{a} = {a} + {v}.sum(-1, keepdims=True)", "torch._foreach_add_([{a}], [{v}])",
    "{a} = {a} + {v} * (t + 1)", "torch.add({a}, {v}, out={a})", "{a} = 0.5 * {a} + {v}", "{a}.data += {v}",
    "{a}.detach().add_({v})",
)  # fmt: skip

# ---- of the same shape

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
    "{v} + torch.full(({v}.shape[-1],), 0.5, dtype=x.dtype)", "{v}.cumsum(-1)", "{v} - {v}[..., -1:]",
    # What a batch of all time steps would get wrong.
    "{v}.flip(0)", "{v} + {v}[0]", "{v} + {v}[-1:]", "{v}.roll(1)", "torch.cat([{v}[1:], {v}[:1]])",
    "torch.stack(list({v}))", "{v} + 0.3 * {v}.mean()", "{v} / (1 + {v}.norm())", "{v} + {v}.sum() / {v}.numel()",
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
# ---- of other shapes

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

# ---- random numbers; ``c`` is a tensor [20]

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
        name = s.name("R")
        s.body.append(f"{name} = {found[0]}")
        s.records.append(Value(name, found[1].shape))
    elif found:
        s.let(found[0], found[1].shape)
    return found is not None


def other_shape(s: Source) -> bool:
    if found := fill(s, s.draw.choice(OTHERS), _any_pool(s)):
        s.others.append(s.name("u"))
        s.body.append(f"{s.others[-1]} = {found[0]}")
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
    weights = ("{m}.weight.data.mul_(0.5)", "with torch.no_grad():\n    {m}.weight.mul_(0.5)", "{m}.bias.data += 0.1")
    s.body += s.draw.choice(states if ".lif" in m else weights).format(m=m).splitlines()
    return True


def piece(s: Source) -> bool:
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


KINDS: dict[Statement, float] = {
    write: 4, written_results: 1, same_shape: 5, other_shape: 1, spelled: 2, draw_random: 1, hook: 0.7, held: 0.4,
    piece: 2, count: 1.5,
}  # fmt: skip


def statements(s: Source, count: int) -> None:
    """So many, each perhaps in a block."""
    for _ in range(count):
        lines: list[str] = []
        with s.written_to(lines):
            for _ in range(s.draw.choice((1, 1, 2))):
                (kind,) = s.draw.choices(list(KINDS), list(KINDS.values()))
                s.drawn[kind] += kind(s)
        s.body += in_block(s, lines) if s.some(0.3) else lines


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
