"""What a random program keeps of its steps, makes of it and returns (see ``tests/loop_fuzz.py``)."""

import re

from random_source import Source, Value
from random_statements import in_block, statements

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
    for _ in range(s.draw.choice((1, 2, 2, 3, 4))):
        lines: list[str] = []
        with s.written_to(lines):
            for _ in range(s.draw.choice((1, 1, 2))):
                if s.some(0.75):
                    _of_kept(s)
                else:
                    statements(s, 1)
        s.body += in_block(s, lines) if s.some(0.35) else lines


def _of_kept(s: Source) -> None:
    way = s.draw.choices(("list", "record", "mix", "fill"), (4, 2.5, 2.5, 1))[0]
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
    elif s.records and s.values:
        a = s.draw.choice(s.records if s.some(0.7) else s.values[-6:])
        b = s.draw.choice([u for u in [*s.records, *s.values] if u.shape == a.shape])
        s.others.append(_named(s, "mix", s.draw.choice(MIXED).format(a=a, b=b)))


def _enter(s: Source, forms: tuple[str, ...], code: str, v: Value) -> None:
    """A statement on a record or a list of the shape of ``v``, and its result where later ones find it."""
    if forms in (SUMS, TO_STEPS):
        s.let(code, v.shape)
    elif forms is SEVERAL:
        s.others.append(_named(s, "u", code))
    elif forms in (STACKS, OF_RECORDS):
        s.records.append(Value(_named(s, "R", code), v.shape))
    else:
        s.lists.append(Value(_named(s, "L", code), v.shape))


def _named(s: Source, stem: str, code: str) -> str:
    name = s.name(stem)
    s.body.append(f"{name} = {code}")
    return name


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
