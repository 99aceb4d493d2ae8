"""What a random program returns: records over time, sums, losses (see ``tests/loop_fuzz.py``)."""

from random_source import Source, Value

# Of a list ``rec`` of one value for each step.
OF_LIST = {
    "stack": ("torch.stack({rec})", "torch.stack({rec}, dim=0)", "torch.stack({rec}, 1)", "torch.stack({rec}, dim=-1)"),
    "list": ("{rec}",),
    "tuple": ("tuple({rec})", "{rec}[::-1]", "{rec}[-2:]", "list({rec})"),
    "dict": ("{{'rec': torch.stack({rec}), 'last': {rec}[-1]}}",),
    "sum": ("sum({rec})", "torch.stack({rec}).sum(0)", "torch.stack({rec}, 1).sum(1)", "torch.stack({rec}).sum()"),
    "mean": ("sum({rec}) / len({rec})", "torch.stack({rec}).mean(0)", "torch.stack({rec}, dim=1).mean(dim=1)",
             "torch.stack({rec}).mean()"),
    "cat": ("torch.cat({rec})", "torch.cat([r.unsqueeze(0) for r in {rec}])", "torch.cat({rec}, 1)",
            "torch.cat({rec}, dim=-1)", "torch.vstack({rec})"),
    "over time": ("torch.stack({rec}).max(0)[0]", "torch.stack({rec}).amax(0)", "torch.stack({rec})[1:]",
                  "torch.stack({rec}).flip(0)", "torch.stack({rec}).cumsum(0)",
                  "torch.stack({rec}).std(0, correction=0)",
                  "torch.stack({rec}[1:] + {rec}[:1])", "torch.stack({rec}).transpose(0, 1)"),
    "one of them": ("{rec}[0]", "{rec}[len({rec}) // 2]", "torch.stack({rec})[-1]", "torch.stack({rec})[:, 0]"),
    "twice": ("torch.stack({rec}), {rec}[-1]", "torch.stack({rec}), torch.stack({rec}).sum(0)", "{rec}, sum({rec})"),
    "changed": ("torch.stack({rec}).mul_(2)", "torch.stack({rec}).add_(1)[0]"),
}  # fmt: skip
WAYS = ("stack",) * 5 + tuple(OF_LIST)
APPENDS = ("{rec}.append({v})",) * 6 + (
    "{rec} += [{v}]", "{rec} = [*{rec}, {v}]", "{rec}.insert(0, {v})", "{rec}.extend([{v}, {v} * 2])",
    "if t > 0 or {T} == 1:\n    {rec}.append({v})", "if t % 2 == 0:\n    {rec}.append({v})",
    "{rec}.append({v}.detach())", "{rec}.append({v}.clone())", "{rec}.append({v}.sum(-1))",
    "{rec}.append(({v} > 0.3).sum(-1))",
)  # fmt: skip
SUMS = ("{rec} = {rec} + {v}",) * 3 + ("{rec} += {v}",) * 2 + (
    "{rec} = {v} + {rec}", "{rec} = {rec} - {v}", "{rec} = torch.add({rec}, {v})", "{rec} = 0.5 * {rec} + {v}",
    "{rec} = {rec} + {v} * (t + 1)", "{rec} = {rec} + {v} / {T}", "{rec} = torch.maximum({rec}, {v})",
    "{rec} = {rec} + {v} + {v}.abs()", "{rec} = {rec} + 0.5 * {v}", "if t > 0:\n    {rec} = {rec} + {v}",
    "{rec} = {rec} * ({v} > 0.5)", "{rec}.add_({v})", "{rec} = {rec} + {v}.sum()", "{rec} = {rec}.detach() + {v}",
)  # fmt: skip


def _lines(s: Source, form: str, **names: object) -> list[str]:
    """Of a form that may hold the number of steps."""
    s.uses_t |= any(part in form for part in ("if t ", "(t + 1)"))
    return form.format(T=s.literal_steps() if "{T}" in form else "", **names).splitlines()


def record(s: Source, v: Value, losses: bool) -> None:
    """Return ``v`` of all steps, in one of many ways."""
    if losses:
        return _loss(s, v)
    way = s.draw.choice(("list", "list", "list", "sum", "filled") if s.steps else ("sum", "filled"))
    if s.steps and s.some(0.08):
        s.results.append(str(v))  # the last one
    elif way == "sum":
        _sum(s, v)
    elif way == "filled":
        _filled(s, v)
    else:
        _list(s, v)


def _list(s: Source, v: Value) -> None:
    rec = s.name("rec")
    s.before.append(f"{rec} = []")
    append = s.draw.choice(APPENDS)
    if not s.batch and "sum(-1)" in append:
        append = APPENDS[0]
    s.body += _lines(s, append, rec=rec, v=v)
    forms = OF_LIST[s.draw.choice(WAYS)]
    if not s.batch or len(v.shape) + ("sum(-1)" not in append) < 2:
        of_a_batch = (", 1)", "dim=1", "[:,", "vstack", "transpose")
        forms = tuple(f for f in forms if not any(part in f for part in of_a_batch)) or OF_LIST["stack"][:1]
    if "> 0.3" in append:  # whole numbers have no mean
        forms = tuple(f for f in forms if "mean" not in f and "std" not in f) or OF_LIST["stack"][:1]
    s.results.append(s.draw.choice(forms).format(rec=rec))
    if s.batch and s.some(0.15) and "sum(-1)" not in append:
        s.after.append(f"late_{rec} = torch.stack({rec}).flatten(2).sum(-1)")
        s.results.append(f"late_{rec}")


def _sum(s: Source, v: Value) -> None:
    rec = s.name("rec")
    form = s.draw.choice(SUMS)
    if s.some(0.5) and not any(part in form for part in ("maximum", "add_", "> 0.5", "detach", "torch.add")):
        s.before.append(f"{rec} = 0")
    else:
        s.before.append(f"{rec} = {s.zeros(v.shape, 'zero')}")
    if not s.steps and "{T}" in form:
        form = SUMS[0]
    s.body += _lines(s, form, rec=rec, v=v)
    s.results.append(f"{rec} / {s.literal_steps()}" if s.steps and s.some(0.3) else rec)


def _filled(s: Source, v: Value) -> None:
    """A tensor made before the loop, filled step by step."""
    rec, first = s.name("rec"), s.some(0.5) or not s.batch
    s.uses_t = True
    dims, T = ", ".join(map(str, v.shape)), s.literal_steps()
    shape = f"{T}, {s.dims(*v.shape)}" if first else f"{s.batch}, {T}, {dims}"
    s.before.append(f"{rec} = {s.draw.choice((f'torch.zeros({shape}, dtype=x.dtype)', f'x.new_zeros({shape})'))}")
    place = f"{rec}[t]" if first else f"{rec}[:, t]"
    s.body.append(s.draw.choice((f"{place} = {v}", f"{place} = {v}", f"{place} += {v}", f"{place}.copy_({v})")))
    s.results.append(s.draw.choice((rec, rec, f"{rec}.sum({0 if first else 1})", f"{rec} * 2")))


def _loss(s: Source, v: Value) -> None:
    """A loss of each step, summed in the loop or behind it."""
    loss, draw = s.name("loss"), s.draw
    if len(v.shape) == 1 and v.size > 1 and s.some(0.7):
        y = s.add_input("classes", v.shape, per_step=s.some(0.15) and s.steps > 0)
        forms = [f"F.cross_entropy({{v}}, {y})", f"F.nll_loss(F.log_softmax({{v}}, dim=-1), {y})",
                 f"F.cross_entropy({{v}}, {y}, label_smoothing=0.1)", f"F.cross_entropy({{v}}, {y}, reduction='sum')",
                 f"F.multi_margin_loss({{v}}, {y})",
                 f"F.cross_entropy({{v}}, {y}, reduction='none').mean()"]  # fmt: skip
        if s.some(0.5):
            forms = [f"{s.module('criterion', 'nn.CrossEntropyLoss()')}({{v}}, {y})"]
    else:
        target = s.add_input("target", v.shape, per_step=s.some(0.4) and s.steps > 0)
        forms = [f"F.mse_loss({{v}}, {target})", f"(({{v}} - {target}) ** 2).mean()", f"F.l1_loss({{v}}, {target})",
                 f"F.smooth_l1_loss({{v}}, {target})", f"({{v}} * {target}).sum()", "{v}.square().mean()", "{v}.mean()",
                 f"F.binary_cross_entropy_with_logits({{v}}, {target}.clamp(0, 1))"]  # fmt: skip
    form = draw.choice(forms)
    code = form.format(v=v)
    ways = ["zero", "number", "tensor", *["list", "behind", "stack", "mean"] * bool(s.steps)]
    way = draw.choice([w for w in ways if w != "behind" or "[t]" not in form])
    if way in ("zero", "number", "tensor"):
        begin = {"zero": "torch.zeros((1), dtype=x.dtype)", "number": "0", "tensor": "x.new_zeros(())"}[way]
        s.before.append(f"{loss} = {begin}")
        weight = "" if s.some(0.8) or not s.steps else f" / {s.literal_steps()}"
        s.body.append(f"{loss} += {code}{weight}" if s.some(0.5) else f"{loss} = {loss} + {code}{weight}")
        s.results.append(loss)
    elif way == "behind":
        s.before.append(f"{loss}_rec = []")
        s.body.append(f"{loss}_rec.append({v})")
        s.after += [f"{loss} = 0", f"for mem in {loss}_rec:", f"    {loss} = {loss} + {form.format(v='mem')}"]
        s.results.append(loss)
    else:
        s.before.append(f"{loss} = []")
        s.body.append(f"{loss}.append({code})")
        forms = {"list": [f"sum({loss})"], "stack": [f"torch.stack({loss}).sum()", f"torch.stack({loss}).mean()"],
                 "mean": [f"sum({loss}) / len({loss})"]}[way]  # fmt: skip
        s.results.append(draw.choice(forms))
