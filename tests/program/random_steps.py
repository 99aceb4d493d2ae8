"""Random step functions of ``@snnfast.neuron``, each drawn from a number and written as Python (see step_fuzz.py).

A step reads more than its arguments: globals, closures, attributes, sizes, dtypes and autograd's modes, all of which
change between calls, and some of which the step changes itself. What it computes is elementwise, for the most part.
"""

import random
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from string import Template
from typing import Any, NamedTuple

from torch import Tensor

HEAD = """
import collections, contextlib, contextvars, copy, dataclasses, enum, functools, math, os, random, types

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

import snnfast
from snnfast import surrogate


class Box:
    def __init__(self, **values):
        vars(self).update(values)
"""
NUMBERS = (
    "0.25", "0.5", "0.75", "1.5", "-0.5", "1.0", "0.0", "-0.25", "2.0",
)  # fmt: skip
# What is computed of two values and a number, exactly.
TERMS = (
    "{a} + {b}", "{a} - {b}", "{a} * {b}", "{k} * {a} + {b}", "{b} - {a} * {k}", "{a} / ({b}.abs() + 0.5)",
    "({a} - {b}) / 2.0", "1 - {a}", "-{a}", "1 / (1 + {a}.abs())", "torch.where({a} > {b}, {a}, {b} * {k})",
    "torch.where({a} <= 0.25, {a}, 0.0)", "{a}.clamp(-0.5, 0.5)", "torch.clamp({a}, min={b}.detach())",
    "F.hardtanh({a})", "F.relu({a}) * {k}", "F.leaky_relu({a}, 0.1)", "torch.maximum({a}, {b} * 0.5)",
    "torch.min({a}, {b} + 0.25)", "abs({a})", "torch.sign({a}) * {b}", "torch.sgn({a}) + {b}", "{a} ** 2",
    "{a}**3 / 4", "torch.floor({a} * 4) / 4 + {b}", "torch.round({a} * 3) + {a} - torch.ceil({b})",
    "{a}.detach() * {b}", "({a} > {b}).to({a}.dtype) * {b}", "(({a} > 0) & ({b} < {k})).to({a}.dtype) * {k} + {a}",
    "(~({a} > 0) | ({b} == 0)) * {a}", "{a}.masked_fill({b} > {k}, 0.5)",
    "torch.heaviside({a}.detach(), torch.zeros_like({a})) * {b}", "torch.full_like({a}, {k}) * {b}",
    "{a} * torch.tensor(0.5)", "{a}.clone()", "{a}.view_as({b})", "{a}.type_as({b})", "{a} * {a}",
    "{a} + {a}.detach()", "{a} * 1.0", "{a} + 0.0", "torch.zeros_like({a})", "{a}.square()", "torch.trunc({a} * 2)",
    "{a}.relu()", "torch.where(torch.isfinite({a}), {a}, {b})", "torch.isnan({a}) + {b}",
    "{a}.gt(0).type_as({a}) * {b}", "torch.logical_or({a}, {b} < 0) * {a}", "torch.rsub({a}, {k})",
    "torch.sub({a}, {b}, alpha={k})", "F.relu6({a})", "({a} > 0).float() * {b}", "({a} > 0).int() * {b}",
    "({a} > 0).double().to({a}.dtype)", "{a} * ({b} > 0)", "torch.where({b} > 0, {k}, {a})",
    "{a}.masked_fill({a} != {a}, 0)", "torch.relu_({a} * 1.5)", "{a}.neg().abs_()", "{a}.sign().mul_({b})",
)  # fmt: skip
# The same, to rounding.
SMOOTH = (
    "torch.exp(-{a}.abs()) * {b}", "torch.log({a}.abs() + 1.5)", "torch.sigmoid({a})",
    "({a}.abs() + 0.1).rsqrt() / 4", "({a}.abs() + 0.1).sqrt()", "0.8 * {a}.tanh()", "({a}.abs() + 0.2) ** 1.5",
    "torch.sqrt({a} * {a})", "2.0 ** {a}.clamp(-2, 2)", "({a}.abs() + 0.5) ** {b}.clamp(-1, 1)", "F.softsign({a})",
    "torch.sqrt(0.5 * {a}.abs() + {b}.abs())", "torch.sqrt(0.5 * mem + x)", "torch.sqrt({a}.abs())",
    "{a}.abs() ** 0.5",
)  # fmt: skip
# What programs do not know, for the most part.
ODD = (
    "{b}.lerp({a}, 0.5)", "torch.addcmul({a}, {a}, {b}, value=0.5)", "{a} % 0.75", "F.threshold({a}, 0.25, 0.5)",
    "torch.stack(({a}, {b})).sum(0)", "F.softplus({a})", "torch.cos({a}) * {b}", "{a} - {a}.mean()", "{a}.cumsum(-1)",
    "torch.zeros(x.shape) + {a}", "torch.arange(x.shape[-1]) * {a}", "{a} + torch.zeros(2, 2)", "{a}.T.T",
    "{a}.unsqueeze(0).squeeze(0) + {b}", "{a} + torch.rand_like({a})", "{a} + {a}[..., :1]", "{a}.half().to(x.dtype)",
    "{a} @ {a}", "{a}.to(torch.int32).to(x.dtype)", "torch.tensor([0.5, 0.5]) * {a}", "{a} * (torch.rand(()) > 2)",
)  # fmt: skip
# Names that are assigned, and then written to.
WRITES = (
    "{c} = {a}.clone()\n{c} += {b}\n{c} *= {k}", "{c} = {a} * 1.5\n{c}[{b} > 0] = 0.25",
    "{c} = {a}.clone()\n{c}.mul_(1 - ({b} > 0).to({b}.dtype))", "{c} = torch.zeros_like({a})\n{c}[{a} > {k}] = 1.0",
    "{c} = {a}.clone()\n{c}.view_as({c}).mul_(0.5)", "{c} = {a} + 0.0\n{c}.clamp_(-0.75, 0.75)",
    "{c} = {a}.clone()\n{c}.copy_(torch.where({b} > 0, {b}, {a}))",
    "{c} = {a}.clone()\n{c}.masked_fill_({b} > {k}, 0.5)", "with torch.no_grad():\n    {c} = {a} * {k} + {b}",
    "{c} = {a} * 1\nwith torch.no_grad():\n    {c}.mul_(0.5)", "{c} = {a}.clone()\n{c}.zero_().add_({b})",
    "{c} = {a} * 2\n{c}.sub_({b}).div_(4)", "{c} = torch.zeros({a}.shape, dtype={a}.dtype)\n{c} += {b}",
    "{c} = {b}.detach().clone()\n{c}.add_({a})", "{c} = {a} + {b}\n{d} = {c}\n{d} += 0.25",
    "{c} = {a}.clone()\n{c}.view(-1).mul_(0.5)", "{c} = {a}.clone()\n{c}[...] = {b}",
    "{c} = {a}.clone()\n{c}[:] = {b} * {k}", "{c} = {a}.clone()\n{c}.data.mul_(0.5)",
    "{c} = {a} + {b}\n{c}.detach_()", "{c} = {a} + {b}\n{c}.detach().mul_({k})", "{c} = {a}.clone()\n{c}.neg_()",
    "{c} = {a} * {b}\nif {c}.requires_grad:\n    {c}.register_hook(lambda g: g * 0.5)",
    "{c} = torch.where({a} > 0, {b}, {a})\n{c}.sgn_()",
    "with torch.no_grad():\n    {c} = {a}.clone()\n    with torch.enable_grad():\n        {c} = {c} * {b}",
    "mem.mul_({k})\n{c} = mem + {b}", "x.add_(0.25)\n{c} = x * {a}", "{c} = {a}.clone().requires_grad_()",
    "{c} = {a}.clone()\n{c}.view({a}.shape).view_as({a}).add_({b})",
    "{c} = {a}.clone()\n{c}.exponential_() if {k} > 5 else None", "{c} = mem\nmem = mem * {k}", "{c}, mem = mem, {a}",
)  # fmt: skip
ODD_WRITES = (
    "{c} = torch.empty_like({a}).copy_({b})", "{c} = {a}.new_empty({a}.shape).fill_({k}) * {b}",
    "{c} = {a}.clone()\n{c}.lerp_({b}, 0.25)", "{c} = {a}.clone()\n{c}.set_({b}.clone())",
)  # fmt: skip
# By ways that call no operator, or that are no plain operators.
UNSEEN = (
    "{c} = {a}.detach().clone()\n{c}.apply_(lambda v: v * 0.5)",
    "{c} = {a}.detach().clone()\n{c}.numpy()[...] *= 0.5", "{c} = {a}.detach() * 1\n{c}.data = {b}.detach().clone()",
    "{c} = torch.from_numpy({a}.detach().numpy() * 0.5)", "{c} = torch.tensor({a}.tolist(), dtype=x.dtype)",
    "{c} = {a}.detach().clone()\n{c}.untyped_storage().fill_(0)", "{c} = copy.deepcopy({a}.detach()) * {b}",
    "{c} = torch.from_dlpack({a}.detach()) * {b}", "{c} = {a}.clone().share_memory_()",
    "{c} = {a}.detach().clone()\ntorch.utils.swap_tensors({c}, {c} * 0.5)",
    "{c} = torch.utils.checkpoint.checkpoint(lambda y: y * 0.5, {a}, use_reentrant=False)",
    "{c} = torch.func.vmap(lambda y: y * 0.5)({a})", "{c} = torch.func.grad(lambda y: (y * y).sum())({a})",
    "{c} = {a}.clone()\n{c}[{b} > 0] = {b}[{b} > 0]", "{c} = {a}.clone()\ntorch.add({a}, {b}, out={c})",
    "{c} = {a} * 1\n{c}.tag = 1\nif hasattr({a}, 'tag'):\n    {c} = {c} * 0.5", "{c} = torch.relu(input={a})",
    "for _ in range(3):\n    {c} = {a} * 0.5\n    {d} = {c} + {b}", "{c} = torch.ops.aten.mul({a}, 0.5)",
    "{c} = {a}.as_subclass(torch.Tensor) * 0.5", "{c} = torch.nn.Parameter({a}.detach()) * 1",
)  # fmt: skip
# What takes a number that is read.
USES = (
    "{a} * {n}", "{a} - {n}", "{n} * {a} + {b}", "torch.where({a} > {n}, {b}, {a} * 0.5)", "{a}.clamp(max={n})",
    "torch.full_like({a}, {n}) * {b}", "{a}.masked_fill({b} > {n}, 0.25)", "{a} if {n} > 0.6 else {b}",
    "({a} > {n}).to({a}.dtype) * {b}", "torch.add({a}, {b}, alpha={n})", "{a} / ({n} + 3.0)",
    "F.leaky_relu({a}, {n})", "F.hardtanh({a}, -1.0, abs({n}) + 1.0)", "torch.tensor({n}, dtype={a}.dtype) * {a}",
    "{a} + torch.tensor({n})", "torch.full((), {n}, dtype={a}.dtype) + {a}", "F.threshold({a}, {n}, 0.0)",
    "{a} ** (2 if {n} > 0.6 else 3)", "{a}.add({n})", "{a} * {a}.new_tensor({n})",
    "{a}.fill_({n}) if {n} > 5 else {a} * {n}", "{a}.masked_fill({a} > 0, {n})",
    "snnfast.spike({a} - {n}, surrogate.atan(2.0))",
    "snnfast.spike({a} - 0.25, surrogate.fast_sigmoid(abs({n}) + 1.0))", "{a} * math.copysign(1.0, {n})",
    "{a} if {n} == {n} else {b}", "functools.reduce(torch.mul, [{a}] * int(abs({n}) + 1))",
    "sum({a} for _ in range(int(abs({n})) + 1)) * 0.5", "{a} * float({n})", "{a} - int({n})",
    "{a} * len(repr({n})) * 0.125", "{a} * (0.5 if isinstance({n}, bool) else 0.75)",
    "{a} * (0.5 if isinstance({n}, int) else 0.75)", "{a} * {n} * {n}", "torch.where({a} > 0, {n}, {a})",
)  # fmt: skip
FLAG_USES = (
    "{a} if {f} else {b}", "{a} * (0.5 if {f} else 0.75)", "(torch.relu if {f} else torch.abs)({a})",
    "{a}.detach() if {f} else {a}", "{a} + ({b} if {f} else 0.25)", "{a} * bool({f}) + {b}",
    "torch.where({a} > 0, {a}, {b}) if {f} else {a}",
)  # fmt: skip
# What the step asks of its arguments.
SIZES = (
    "x.shape[-1]", "len(x)", "x.size(-1)", "x.numel() ** -0.5", "x.dim()", "x.stride(-1)", "x.element_size()",
    "x.nbytes", "math.prod(x.shape)", "mem.shape[-1]", "len(x.shape)", "x.storage_offset()",
    "torch.finfo(x.dtype).bits / 32", "x.untyped_storage().nbytes()", "x.view(-1).shape[0]", "np.prod(x.shape)",
    "torch.zeros(x.shape).shape[-1]", "hash(x.shape) % 3", "x[0].numel()",
)  # fmt: skip
MODES = (
    "x.size(-1) > 2", "x.is_contiguous()", "x.device.type == 'cpu'", "x.dtype == torch.float64",
    "torch.get_default_dtype() == torch.float64", "torch.is_grad_enabled()", "mem.requires_grad", "x.grad_fn is None",
    "x.is_leaf", "torch.is_inference_mode_enabled()", "x.is_inference()", "torch.is_autocast_enabled('cpu')",
    "torch.is_anomaly_enabled()", "type(x) is torch.Tensor", "x._version == 0", "torch.compiler.is_compiling()",
    "x._base is None", "x is mem", "x.numel() == 0", "hasattr(x, 'tag')", "(x * mem).requires_grad",
    "torch.result_type(x, 1.0) == torch.float32", "x.data_ptr() == mem.data_ptr()", "x.grad is None",
    "'grad_fn' in str(x)", "x.retains_grad", "torch.are_deterministic_algorithms_enabled()", "x.is_shared()",
)  # fmt: skip
SHAPED = (
    "torch.zeros(x.shape, dtype=x.dtype) + {a}", "x.new_zeros(x.shape) + {a}", "{a}.view(-1).view(x.shape)",
    "{a}.expand(x.shape)", "{a}.reshape(x.shape)", "torch.zeros(*x.shape, dtype=x.dtype, device=x.device) - {a}",
    "torch.full(x.size(), {k}, dtype=x.dtype) * {a}", "{a}.view(2, 2)", "{a}.reshape(len(x), -1).view_as(x)",
    "torch.broadcast_to({a}, x.shape)", "{a}[...]", "{a} * torch.ones(1, dtype=x.dtype)",
    "{a} + x.new_full((1,), {k})", "{a}.view(x.shape[::-1]).view(x.shape)", "{a}.view(-1)[: x.numel()].view(x.shape)",
    "{a} * x.new_zeros(())", "{a}.contiguous()", "{a}.cpu()", "torch.atleast_2d({a}).view(x.shape)",
    "{a}.to(x.device)", "{a}.to(torch.float64).to(x.dtype)", "{a}.double() * {b}", "{a}.bool() * {b}",
    "torch.zeros_like({a}, dtype=torch.float64) + {a}", "{a}.storage().size() * {b} if False else {b}",
    "torch.tensor([0.5]) * {a}", "torch.dropout({a}, 0.5, False)", "F.dropout({a}, 0.0)",
    "{a} + float({a}.sum()) if x.numel() > 100 else {a}", "{a}.real", "{a}.conj() * {b}",
)  # fmt: skip
# Numbers that are made of values, some by ways that call no operator.
VALUES = (
    "float(x.detach().numpy().sum())", "x.tolist()[0] if x.dim() == 1 else 0.5", "len(repr(x.detach()))",
    "float(x.sum())", "mem.max().item()", "bool((x > 0).any())", "torch.equal(x, mem) * 0.5",
    "float(torch.from_dlpack(x.detach()).sum())", "x.untyped_storage().tolist()[0]", "float(next(iter(x.view(-1))))",
    "x.nonzero().shape[0]",
    "float(copy.deepcopy(x.detach()).numpy().min(initial=0))",
)  # fmt: skip


class Source(NamedTuple):
    """Something outside of the step that the step reads. ``$n`` is its name, ``$a`` and ``$b`` are two numbers."""

    definition: str
    reads: tuple[str, ...]
    changes: tuple[str, ...]
    values: tuple[str, ...] = ()  # of an option ``$n`` of the layer; the first is its default


def _outside(definition: str, reads: str | tuple[str, ...], *changes: str) -> Source:
    return Source(definition, (reads,) if isinstance(reads, str) else reads, changes)


def _option(reads: str, *values: str, definition: str = "", change: str = "") -> Source:
    assigned = tuple(f"LAYERS[0].$n = {value}" for value in values[1:])
    return Source(definition, (reads,), (change,) if change else assigned, values)


def _rebound(*values: str) -> tuple[str, ...]:
    return tuple(f"global $n\n$n = {value}" for value in values)


OTHER_K = "global ${n}_k\n${n}_k = $b"
NUMBERS_OUTSIDE = {
    "global": _outside("$n = $a", "$n", *_rebound("$b")),
    "global of another type": _outside(
        "$n = 1", "$n", *_rebound("True", "1.0", "np.float32(1)", "torch.tensor(1.0)", "np.int64(1)")
    ),
    "zero": _outside("$n = 0.0", "$n", *_rebound("-0.0", "False", "0")),
    "half": _outside(
        "$n = 0.5", "$n", *_rebound("float('nan')", "np.float64(0.75)", "np.float32(0.75)", "torch.tensor(0.75)")
    ),
    "option True": _option("$n", "True", "1", "1.0", "0.5"),
    "option False": _option("$n", "False", "0", "0.0", "-0.0"),
    "option NaN": _option(
        "(0.75 if $n is None else $n)", "None", "float('nan')", "0.5", "np.float32(0.5)", "np.float64(0.5)"
    ),
    "option tensor": _option("$n", "True", "torch.tensor(0.5)", "0.5"),
    "option list": _option("$n[0]", "[$a]", "[$b]", change="LAYERS[0].$n[0] = $b"),
    "option equal to others": _option(
        "$n.a",
        "${n}_(a=$a)",
        "${n}_(a=$b)",
        definition="class ${n}_(Box):\n    def __eq__(self, other):\n        return True\n\n"
        "    def __hash__(self):\n        return 0",
    ),
    "deep": _outside("$n = Box(layers=[{'k': (Box(a=$a),)}])", "$n.layers[0]['k'][0].a", "$n.layers[0]['k'][0].a = $b"),
    "dict": _outside(
        "$n = {'a': $a, 1: 0.5}",
        ("$n['a']", "$n.get('b', $a)", "sum($n.values())", "len($n) * 0.25"),
        "$n['a'] = $b",
        "$n.update(a=$b)",
        "$n['b'] = $b",
    ),
    "list": _outside(
        "$n = [$a, 0.25]",
        ("$n[0]", "sum($n)", "$n[-1]", "len($n) * 0.25", "max($n)"),
        "$n[0] = $b",
        "$n.append($b)",
        "$n.reverse()",
        "$n[:] = [$b, $a]",
    ),
    "class attribute": _outside(
        "class ${n}_:\n    a = $a\n\n\n$n = ${n}_()",
        ("$n.a", "${n}_.a", "getattr($n, 'a')", "${n}_().a"),
        "${n}_.a = $b",
        "$n.a = $b",
        "${n}_.a = $b\nvars($n).clear()",
    ),
    "tensor": _outside(
        "$n = torch.tensor($a)",
        ("$n", "$n.item()", "float($n)", "$n * 1.0", "$n.tolist()"),
        "$n.fill_($b)",
        *_rebound("torch.tensor($b)"),
    ),
    "module": _outside(
        "class ${n}_(nn.Module):\n    k = $a\n\n    def forward(self):\n"
        "        return self.k if self.training else 0.125\n\n\n$n = ${n}_()",
        ("$n()", "$n.k", "$n.training * 0.5 + 0.25"),
        "$n.k = $b",
        "$n.train(not $n.training)",
    ),
    "number of another class": _outside(
        "class ${n}_(float):\n    k = $a\n\n    def __mul__(self, other):\n"
        "        return other * self.k\n\n    __rmul__ = __mul__\n\n\n"
        "$n = ${n}_(0.5)",
        ("($n * 1.0)", "$n"),
        "${n}_.k = $b",
    ),
}
FLAGS_OUTSIDE = {
    "string": _outside("$n = 'soft'", "$n == 'soft'", *_rebound("'hard'")),
    "None": _outside("$n = None", "$n is None", *_rebound("0.5")),
    "string option": _option("$n == 'hard'", "'soft'", "'hard'"),
    "training": _outside("$n = nn.Identity()", "$n.training", "$n.train(not $n.training)"),
    "is the same": _outside("$n = Box()\n${n}_first = $n", "$n is ${n}_first", *_rebound("Box()")),
}
# Functions of a tensor that change.
FUNCTIONS_OUTSIDE = {
    "function in a dict": _outside(
        "$n = {'f': torch.relu}", "$n['f']({a})", "$n['f'] = torch.abs", "$n['f'] = torch.neg"
    ),
    "function as an option": _option("$n({a})", "torch.relu", "torch.abs", "torch.neg"),
    "Sequential": _outside(
        "$n = nn.Sequential(nn.ReLU())", "$n({a})", "$n.append(nn.LeakyReLU(0.5))", "$n[0] = nn.Hardtanh()"
    ),
    "PReLU": _outside("$n = nn.PReLU()", "$n({a})", "$n.requires_grad_(False)"),
    **{
        wrapper: _outside(f"$n = {wrapper}(lambda y: y * ${{n}}_k)\n${{n}}_k = $a", "$n({a})", OTHER_K)
        for wrapper in ("torch.no_grad()", "torch.enable_grad()", "torch.compiler.disable", "torch.vmap")
    },
}
_SPIKINGJELLY = """
class ${n}_f(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, alpha):
        if y.requires_grad:
            ctx.save_for_backward(y)
            ctx.alpha = alpha
        return (y >= 0).to(y)

    @staticmethod
    def backward(ctx, g):
        y, = ctx.saved_tensors
        return ctx.alpha / 2 / (1 + ctx.alpha * y.abs()).pow(2) * g, None


class ${n}_(nn.Module):
    def __init__(self, alpha, spiking=True):
        super().__init__()
        self.alpha, self.spiking = alpha, spiking

    def forward(self, y):
        return ${n}_f.apply(y, self.alpha) if self.spiking else (y * self.alpha).clamp(0, 1)


${n}_one = ${n}_($a)
"""
_DERIVATIVE = """
class ${n}_:
    def __init__(self, k):
        self.k = k

    def derivative(self, z):
        return 1 / (1 + self.k * z.abs()) ** 2


${n}_one = ${n}_($a)
"""
SPIKES_OUTSIDE = {
    "derivative": _outside(_DERIVATIVE, "snnfast.spike({a}, ${n}_one)", "${n}_one.k = abs($b) + 0.5"),
    "derivative as an option": _option(
        "snnfast.spike({a}, $n)", "${n}_one", definition=_DERIVATIVE, change="${n}_one.k = abs($b) + 0.5"
    ),
    "like SpikingJelly's": _outside(
        _SPIKINGJELLY,
        "${n}_one({a})",
        "${n}_one.alpha = abs($b) + 1",
        "${n}_one.alpha = 4.0",
        "${n}_one.spiking = False",
    ),
    "surrogate as an option": _option("$n({a})", "surrogate.atan()", "surrogate.atan(4.0)", "surrogate.triangular()"),
    "plain surrogate": _outside(
        "",
        (
            "snnfast.spike({a}, surrogate.atan())",
            "snnfast.spike({a}, surrogate.fast_sigmoid())",
            "surrogate.SFS()({a})",
            "snnfast.spike({a}, surrogate.triangular())",
            "surrogate.straight_through_estimator()({a})",
            "surrogate.heaviside()({a})",
        ),
    ),
}
_FUNCTION = """
${n}_K = $a


class ${n}(torch.autograd.Function):
    k = $a

    @staticmethod
    def forward(ctx, y):
        $begin
        out = $forward
        ctx.save_for_backward($saved)
        return out

    @staticmethod
    def backward(ctx, g):
        y, *_ = ctx.saved_tensors
        return $backward
"""
BACKWARDS = (
    "g / ({w} * y.abs() + 1) ** 2", "g * torch.clamp({w} - y.abs(), min=0)", "g * (y.abs() < {w})", "g * {w}",
    "torch.where(y > 0, g, g * {w})", "g.masked_fill(y.abs() > {w}, 0)", "g * y.abs().mean() * {w}",
    "g.clone().mul_({w})",
    "g / {w} if {w} > 0.6 else g * y.abs()", "None if {w} > 1.5 else g * {w}", "g * y.shape[-1] * {w}",
    "g * {w} if torch.is_grad_enabled() else g * {w} * 1.0",
)  # fmt: skip
# What the step itself changes: in the first place, what it does; behind that, what it may read of it, and what is seen
# of it after a call.
OWN_CHANGES: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "counter": ("$n = 0", "global $n\n$n += 1", ("", "($n % 2)", "($n * 0.125)"), "$n"),
    "error that is late": (
        "$n = Box(n=0)",
        "$n.n += 1\nif $n.n > 3:\n    raise OverflowError('too many')",
        ("",),
        "$n.n",
    ),
    "Counter": ("$n = collections.Counter()", "$n[x.dtype] += 1", ("", "sum($n.values()) * 0.25"), "sum($n.values())"),
    "iterator": ("$n = iter([0.25, 0.5, 0.75] * 1000)", "", ("next($n)",), ""),
    "random": ("$n = random.Random(0)", "", ("$n.random()",), ""),
    "property": (
        "class ${n}_:\n    n = 0\n\n    @property\n    def a(self):\n        self.n += 1\n"
        "        return self.n * 0.125\n\n\n$n = ${n}_()",
        "",
        ("$n.a",),
        "$n.n",
    ),
    "toggle": ("$n = Box(on=False)", "$n.on = not $n.on", ("(0.5 if $n.on else 0.25)",), "$n.on"),
    "tensor": ("$n = torch.zeros(())", "$n.add_(0.25)", ("", "$n", "$n.item()"), "$n.item()"),
    "last value": (
        "$n = Box(last=None)",
        "$n.last = mem.detach()",
        ("",),
        "$n.last if $n.last is None else $n.last.sum().item()",
    ),
    "value of the step before": (
        "$n = {}",
        "${n}_was = $n.get('was', 0.0)\n$n['was'] = mem.detach()",
        ("${n}_was",),
        "",
    ),
    "attribute of a tensor": ("", "mem.tag = 1", ("(0.5 if hasattr(x, 'tag') else 0.25)",), ""),
}
TRIED = (
    "try:\n    {c} = {a} - {a}.mean()\nexcept (ValueError, RuntimeError):\n    {c} = {a} * 0.5",
    "{c} = {a} * 0.5\nwith contextlib.suppress(Exception):\n    {c} = {a}.cumsum(0)",
    "try:\n    {c} = {a} * {d}['k']\nexcept KeyError:\n    {c} = {a} * 0.5",
    "try:\n    {c} = {a}.view(2, 2).view(x.shape)\nexcept RuntimeError:\n    {c} = {a} * 0.5",
    "try:\n    {c} = {a} * 0.5\nfinally:\n    {c} = {b} * {k}",
    "try:\n    {c} = x.reshape(x.shape[0], x.shape[1]) * {k}\nexcept IndexError:\n    {c} = {a}",
    "try:\n    {c} = torch.relu({a}, 1, 2)\nexcept TypeError:\n    {c} = torch.relu({a})",
    "if x.shape[-1] > 4:\n    raise ValueError('too wide')\n{c} = {a} * {k}",
)
INNER_LAYERS = (
    "$n = snnfast.neuron(lambda x, v, *, k=0.5: (x * k, v * k))()", "$n = snnfast.Leaky(beta=0.5)",
    "def ${n}_f(x, v, *, k=0.5):\n    return snnfast.spike(v - 1, surrogate.atan()), v * k + x\n\n\n"
    "$n = snnfast.neuron(${n}_f)(learn_k=True)",
)  # fmt: skip
LAYER_CHANGES = (
    "LAYERS[0] = copy.deepcopy(LAYERS[0])", "LAYERS[0].requires_grad_(False)", "LAYERS[0].double()", "LAYERS[0].eval()",
    "LAYERS.reverse()", "LAYERS[0].load_state_dict(LAYERS[0].state_dict())",
    "LAYERS[0].train()",
)  # fmt: skip
WRAPPERS = (
    "torch.no_grad()", "torch.enable_grad()", "torch.compiler.disable", "torch.autocast('cpu', enabled=False)",
)  # fmt: skip
CONTEXTS = (
    "no_grad", "no_grad", "inference", "enable_in_no_grad", "anomaly", "hooks", "copies", "default64", "autocast",
)  # fmt: skip
BACKWARD_WAYS = ("anomaly", "hooks", "default64", "no_grad", "twice", "create", "second", "some")


class StepProgram:
    """One program, drawn from its number. ``source`` defines the step, what changes, its layers and their calls."""

    def __init__(self, number: int, compiled: bool = False) -> None:
        self.number, self.draw, self.compiled = number, random.Random(number), compiled
        self.tags: Counter[str] = Counter()
        self.top: list[str] = []
        self.cells: list[tuple[str, str]] = []
        self.args: list[str] = []
        self.given: list[tuple[str, Sequence[str]]] = []  # of a layer: an argument, and the values that it may have
        self.lines: list[str] = []
        self.changes: list[str] = []
        self.effects: list[str] = []
        self.count = 0
        self.smooth = self.some(0.2)
        self.width = self.draw.choice((1, 2, 3, 4, 5))
        self.fixed_width = self.returned = False
        self._write()

    def __str__(self) -> str:
        return self.source

    # ---- drawing

    def some(self, probability: float) -> bool:
        return self.draw.random() < probability

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def pick(self, values: Sequence[str]) -> str:
        return self.draw.choice(values)

    def two(self) -> tuple[str, str]:
        """A number to begin with, and another one."""
        first, second = self.draw.sample(NUMBERS, 2)
        return first, second

    def value(self) -> str:
        return self.pick(self.values[-3:] if self.some(0.6) else self.values)

    def fill(self, template: str, **more: str) -> str:
        return template.format(**{"a": self.value(), "b": self.value(), "k": self.pick(NUMBERS), **more})

    def assign(self, text: str) -> None:
        """A line that gives a value a name: a new one, or that of a state."""
        name = self.name("v") if self.some(0.8) else self.pick(self.states)
        self.lines.append(f"{name} = {text}")
        if name not in self.values:
            self.values.append(name)

    def write(self, template: str, stem: str = "c") -> None:
        """Lines that give a new name a value."""
        name = self.name(stem)
        self.lines += self.fill(template, c=name, d=self.name("d")).split("\n")
        self.values.append(name)

    def outside(self, sources: dict[str, Source]) -> str:
        """Define something outside of the step that changes; the expression by which the step reads it."""
        kind = self.pick(list(sources))
        self.tags[kind] += 1
        source, (a, b), n = sources[kind], self.two(), self.name("g")

        def filled(text: str) -> str:
            return Template(text).substitute(n=n, a=a, b=b)

        if source.definition:
            self.top.append(filled(source.definition).strip("\n"))
        if source.values:
            self.args.append(f"{n}={filled(source.values[0])}")
            self.given.append((n, [filled(value) for value in source.values]))
        for change in self.draw.sample(source.changes, min(len(source.changes), self.draw.choice((1, 1, 2)))):
            self.changes.append(filled(change))
        return filled(self.pick(source.reads))

    # ---- the whole

    def _write(self) -> None:
        self.states = ["mem", "s1", "s2"][: self.draw.choice((1, 1, 2, 2, 3))]
        self.values = ["x", *self.states]
        self._parameters()
        self.lines.append(self.fill("mem = {k} * mem + x"))
        kinds: dict[Callable[[], None], float] = {
            self._term: 6, self._written: 2, self._number: 5, self._flag: 3, self._function: 1.5, self._spike: 3,
            self._size: 1.2, self._mode: 1.2, self._shaped: 0.5, self._own_change: 0.3, self._tried: 0.4,
            self._value_read: 0.15, self._unseen: 0.25, self._inner_layer: 0.05,
        }  # fmt: skip
        for _ in range(self.draw.randint(1, 7)):
            self.draw.choices(list(kinds), list(kinds.values()))[0]()
        self._results()
        self._wrap()
        self._calls()
        self._finish()

    def _parameters(self) -> None:
        if self.some(0.06):
            self.changes.append(self.pick(LAYER_CHANGES))
        for name in self.draw.sample(("beta", "b", "w"), self.draw.choice((0, 1, 1, 2))):
            learned = self.some(0.3)
            defaults = ("0.5", "0.75", "0.9", "torch.tensor(0.5)", "torch.tensor([0.25])", "2")
            self.args.append(f"{name}={self.pick(defaults[: 5 if learned else None])}")
            values = ["0.25", "torch.tensor(0.75)"]
            if self.some(0.3):
                self.fixed_width = True
                values = [f"torch.linspace(-0.5, 1, {self.width})", f"torch.full(({self.width},), 0.5)"]
            self.given.append((name, values))
            if learned:
                self.given.append((f"learn_{name}", ["True"]))
            elif self.some(0.4):
                self.changes.append(f"LAYERS[0].{name}{self.pick((' = torch.full((), 0.625)', '.fill_(0.625)'))}")
            if self.some(0.3):
                self.values.append(name)
            self.lines.append(f"mem = mem * {name}" if self.some(0.6) else f"mem = mem + {name}")
            if self.some(0.03):
                self.tags["writes to a parameter"] += 1
                self.lines.append(f"{name}.mul_(0.5)")

    def _term(self) -> None:
        odd = self.some(0.04)
        smooth = self.smooth and self.some(0.4)
        if odd:
            self.tags["odd"] += 1
            self.smooth = True  # some of them are, if they are known
        self.tags["smooth"] += smooth or odd
        self.assign(self.fill(self.pick(ODD if odd else SMOOTH if smooth else TERMS)))

    def _written(self) -> None:
        self.write(self.pick(ODD_WRITES if self.some(0.03) else WRITES))

    def _use(self, number: str) -> None:
        self.assign(self.fill(self.pick(USES), n=number))

    def _use_flag(self, flag: str) -> None:
        if not self.returned and self.some(0.12):
            self.returned = True
            self.lines.append(f"if {flag}:\n    return (x - mem).detach(), {', '.join(self.states)}")
        elif self.some(0.15):
            self.lines.append(f"if {flag}:\n    mem = {self.fill(self.pick(TERMS))}")
        else:
            self.assign(self.fill(self.pick(FLAG_USES), f=flag))

    def _number(self) -> None:
        number = self._cell() if self.some(0.06) else self.outside(NUMBERS_OUTSIDE)
        self._use(number) if self.some(0.85) else self._use_flag(f"{number} > 0.4")

    def _flag(self) -> None:
        flag = f"{self._cell()} > 0.4" if self.some(0.1) else self.outside(FLAGS_OUTSIDE)
        self._use_flag(flag) if self.some(0.8) else self._use(f"(1.5 if {flag} else 0.5)")

    def _cell(self) -> str:
        self.tags["cell"] += 1
        name, (a, b) = self.name("cell"), self.two()
        self.cells.append((name, a))
        self.changes.append(f"CLOSE({name}={b})")
        return name

    def _function(self) -> None:
        self.assign(self.fill(self.outside(FUNCTIONS_OUTSIDE)))

    def _size(self) -> None:
        self.tags["size"] += 1
        self._use(f"({self.pick(SIZES)})")

    def _mode(self) -> None:
        self.tags["mode"] += 1
        self._use_flag(f"({self.pick(MODES)})")

    def _shaped(self) -> None:
        self.tags["shaped"] += 1
        self.assign(self.fill(self.pick(SHAPED)))

    def _value_read(self) -> None:
        self.tags["value"] += 1
        self._use(f"({self.pick(VALUES)})")

    def _unseen(self) -> None:
        self.tags["unseen"] += 1
        self.write(self.pick(UNSEEN))

    def _tried(self) -> None:
        self.tags["tried"] += 1
        template = self.pick(TRIED)
        if "{d}" in template:
            d = self.name("g")
            template = template.replace("{d}", d)
            self.top.append(f"{d} = {{}}")
            self.changes.append(f"{d}['k'] = {self.pick(NUMBERS)}")
        self.write(template)

    def _inner_layer(self) -> None:
        self.tags["inner layer"] += 1
        n, spk = self.name("INNER"), self.name("spk")
        self.top.append(Template(self.pick(INNER_LAYERS)).substitute(n=n))
        self.lines.append(f"{spk}, mem = {n}({self.value()}, mem)")
        self.values.append(spk)

    def _own_change(self) -> None:
        kind = self.pick(list(OWN_CHANGES))
        self.tags["changes itself"] += 1
        self.tags[f"changes itself: {kind}"] += 1
        n = self.name("g")
        definition, line, reads, seen = OWN_CHANGES[kind]
        definition, line, read, seen = (Template(t).substitute(n=n) for t in (definition, line, self.pick(reads), seen))
        if definition:
            self.top.append(definition)
        declared, _, line = line.partition("\n") if line.startswith("global") else ("", "", line)
        self.lines = [*([declared] if declared else []), *self.lines, *line.split("\n")]
        if seen:
            self.effects.append(seen)
        if read:
            self.write(f"{{c}} = {{a}} * {read} + {{b}}")

    # ---- spikes

    def _spike(self) -> None:
        x = f"{self.value()} - {self.pick(('0.5', '1.0', '0.25', '0.0'))}"
        name = self.name("spk")
        if self.some(0.4):
            self.lines.append(f"{name} = {self._surrogate()}.apply({x})")
        elif self.some(0.1):
            self.lines.append(f"{name}_soft = F.hardtanh({x}, -0.5, 0.5) + 0.5")
            self.lines.append(f"{name} = {name}_soft + (({x} > 0).to(x.dtype) - {name}_soft).detach()")
        else:
            self.lines.append(f"{name} = {self.outside(SPIKES_OUTSIDE).format(a=x)}")
        self.values.append(name)
        resets = ("mem - {s} * 0.5", "mem * (1 - {s})", "mem * (1 - {s}.detach())", "torch.where({s} > 0, 0.0, mem)")
        if self.some(0.4):
            self.lines.append(f"mem = {self.pick(resets).format(s=name)}")

    def _surrogate(self) -> str:
        """A function of autograd whose numbers change, some of which only its backward reads."""
        n, (a, b) = self.name("Fn"), self.two()
        where = self.pick((f"{n}.k", f"{n}_K", "ctx.k"))
        begin = [f"ctx.k = {n}.k"]
        if self.some(0.1):
            where, begin = "ctx.k", [f"ctx.k = {n}.k if any(ctx.needs_input_grad) else 1.0"]
        if self.some(0.08):
            extra = ("ctx.set_materialize_grads(False)", "y = y * (0.5 if ctx.needs_input_grad[0] else 1)")
            begin.append(self.pick(extra))
        forwards = "(y > 0).to(y.dtype)", "(y > 0).to(y.dtype)", f"(y > {n}.k).to(y.dtype)", f"(y > 0).to(y) * {n}_K"
        self.top.append(Template(_FUNCTION).substitute(
            n=n, a=a, begin="\n        ".join(begin), forward=self.pick(forwards),
            saved=self.pick(("y", "y, y > 0", "y, out")), backward=self.pick(BACKWARDS).format(w=where),
        ).strip("\n"))  # fmt: skip
        self.tags[f"Function: {where.replace(n, '')}"] += 1
        self.changes.append(self.pick((f"{n}.k = {b}", f"{n}.k = {b}", f"global {n}_K\n{n}_K = {b}")))
        return n

    # ---- results

    def _results(self) -> None:
        spikes = [v for v in self.values if v.startswith("spk")]
        out = self.pick(spikes) if spikes and self.some(0.6) else self.value()
        if self.some(0.04):
            others = ("x", "mem", "mem > 0", "x.detach()", "torch.zeros_like(x)", "x * 0", "mem.clone()")
            out = self.pick(others)
        after = [self._next(name) for name in self.states]
        if len(after) > 1 and self.some(0.15):
            self.draw.shuffle(after)
        if len(after) > 1 and self.some(0.08):
            after[1] = after[0]
        text = ", ".join([out, *after])
        self.lines.append(f"return {text}" if self.some(0.9) else f"return [{text}]")

    def _next(self, name: str) -> str:
        if self.some(0.07):
            constants = ("torch.zeros_like({s})", "torch.full_like({s}, 0.25)", "{s} * 0", "{s}.new_zeros(())", "x")
            return self.pick((*constants, "{s}.new_zeros({s}.shape)", "{s}.detach()", "{s}.clone()")).format(s=name)
        value = name if self.some(0.5) else self.value()
        ways = (value, value, f"0.5 * {value}", f"{value}.clamp(-4, 4)", f"0.5 * {value} + 0.25 * {self.value()}")
        return self.pick(ways)

    def _wrap(self) -> None:
        """The step may be a method, or decorated."""
        self.how = self.draw.choices(("plain", "method", "decorated", "by a library"), (40, 2, 2, 2))[0]
        self.factor, other = self.two()
        self.tags[f"step: {self.how}"] += 1
        if self.how == "method":
            self.changes.append(f"step.__self__.k = {other}")
        elif self.how == "decorated":
            self.changes.append(f"step.scale.k = {other}")

    # ---- calls

    def _calls(self) -> None:
        self.layers = [self._layer() for _ in range(1 if self.some(0.6) else 2)]
        dims = self.draw.choice((1, 2, 2, 2, 3))
        shape = self._shape(dims)
        some = ("float32", "float64", *(("float16", "bfloat16") if self.some(0.2) else ()))
        dtype = "float64" if self.smooth else self.pick(some)
        self.calls: list[dict[str, Any]] = []
        for i in range(self.draw.choice((1, 2, 2, 3, 3, 4))):
            if i and self.some(0.25):
                dims = self.draw.choice((1, 2, 3)) if self.some(0.25) else dims
                shape = self._shape(dims)
            if i and self.some(0.1) and not self.smooth:
                dtype = self.pick(("float32", "float64"))
            self.calls.append(self._call(i, shape, dtype))

    def _layer(self) -> dict[str, str]:
        chosen = {}
        for name, values in self.given:
            if name.startswith("learn_") or (self.fixed_width and "linspace" in values[0]) or self.some(0.5):
                chosen[name] = self.pick(values)
        if self.some(0.08):
            chosen["init_hidden"] = "True"
        return chosen

    def _call(self, i: int, shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
        steps = self.draw.choice((1, 2, 3, 4, 5)) if self.some(0.92) else self.draw.choice((0, 17, 18))
        call: dict[str, Any] = {"shape": shape, "steps": steps, "dtype": dtype}
        ways = ("reference", "step", "step", "multistep", "linear")
        options: tuple[tuple[str, object, float], ...] = (
            ("layer", self.draw.randrange(len(self.layers)), 0.5), ("constant", True, 0.08), ("record", False, 0.15),
            ("reduce", "sum", 0.1), ("x_grad", False, 0.25), ("states", True, 0.15), ("strided", True, 0.1),
            ("special", True, 0.04), ("via", self.pick(ways), 0.15),
            ("before", self._some_changes(), 0.7 if i else 0.0),
            ("between", self._some_changes(), 0.12), ("forward", self.pick(CONTEXTS), 0.2),
            ("backward", self.pick(BACKWARD_WAYS), 0.15),
        )  # fmt: skip
        for name, value, probability in options:
            if self.some(probability) and value not in ([], 0):
                call[name] = value
        if self.compiled and self.some(0.7):
            call["via"] = "compile"
        if self.some(0.3 if self.smooth else 0.12):
            call["lengths"] = [self.draw.randint(0, steps) for _ in range(shape[0])]
        return call

    def _shape(self, dims: int) -> tuple[int, ...]:
        lead = tuple(self.draw.choice((1, 2, 3, 4)) if self.some(0.96) else 0 for _ in range(dims - 1))
        width = self.width if self.fixed_width or self.some(0.6) else self.draw.choice((1, 2, 3, 5, 9))
        return (*lead, width)

    def _some_changes(self) -> list[int]:
        count = min(len(self.changes), self.draw.choice((1, 1, 2, 3)))
        return sorted(self.draw.sample(range(len(self.changes)), count))

    # ---- as Python

    def _finish(self) -> None:
        def indented(*lines: str) -> str:
            return textwrap.indent("\n".join(lines), "    ")

        positional = ["self", "x"] if self.how == "method" else ["x"]
        for name in self.states:
            default = self.some(0.1) or "=" in positional[-1]
            positional.append(f"{name}={self.pick(NUMBERS)}" if default else name)
        arguments = ", ".join([*positional, *(["*", *self.args] if self.args else [])])
        lines = self.lines
        if self.how == "method":
            at = next(i for i, line in enumerate(lines) if not line.startswith("global"))
            lines = [*lines[:at], "x = x * self.k", *lines[at:]]
        inner = [f"{name} = {value}" for name, value in self.cells]
        inner += [f"\ndef step({arguments}):", indented(*lines), ""]
        names = [name for name, _ in self.cells]
        declared = [f"nonlocal {', '.join(names)}"] if names else []
        set_all = [f"{name} = values.get('{name}', {name})" for name in names] or ["pass"]
        inner += ["def close(**values):", indented(*declared, *set_all)]
        inner += {
            "plain": [],
            "method": [f"\nstep = types.MethodType(step, Box(k={self.factor}))"],
            "decorated": [
                f"\ninside, scale = step, Box(k={self.factor})\n\n@functools.wraps(inside)\n"
                "def step(x, *states, **options):\n    return inside(x * scale.k, *states, **options)\n\n"
                "step.scale = scale"
            ],
            "by a library": [f"\nstep = {self.pick(WRAPPERS)}(step)"],
        }[self.how]
        parts = [HEAD.strip("\n"), *self.top, "def make():\n" + indented(*inner, "\nreturn step, close")]
        parts.append("step, CLOSE = make()")
        parts += [f"def change_{i}():\n" + indented(change) for i, change in enumerate(self.changes)]
        parts.append(f"def effects():\n    return [{', '.join(self.effects)}]")
        layers = [", ".join(f"{k}={v}" for k, v in layer.items()) for layer in self.layers]
        parts.append("MADE = [\n" + "".join(f"    lambda kind: kind({layer}),\n" for layer in layers) + "]")
        parts.append("CALLS = [\n" + "".join(f"    {call!r},\n" for call in self.calls) + "]")
        parts.append(
            f"NUMBER, SMOOTH, CHANGES_ITSELF = {self.number}, {self.tags['smooth'] > 0}, "
            f"{self.tags['changes itself'] > 0}"
        )
        self.source = "\n\n\n".join(parts) + "\n"


class RandomStep:
    """``(x, *states, *parameters)`` to outputs and new states, the same for the same seed: what is known to programs.

    Parameters may be numbers, so that no term writes to a value or takes the shape of another one.
    """

    def __init__(self, seed: int, exact: bool) -> None:
        draw = random.Random(seed)
        self.states, self.parameters, self.outputs = draw.randint(1, 3), draw.randint(0, 3), draw.randint(1, 2)
        values = ["x", *(f"s{i}" for i in range(self.states)), *(f"p{i}" for i in range(self.parameters))]
        arguments, lines = ", ".join(values), []
        for i in range(draw.randint(2, 14)):
            kinds = [_BROADCASTING] if exact or draw.random() < 0.8 else [_ROUNDED]
            term = draw.choice(kinds[0])
            if draw.random() < 0.2:
                term = f"snnfast.spike({{a}} - {{k}}, surrogate.{draw.choice(_SURROGATES[: 6 if exact else None])})"
            recent = values[-4:] if draw.random() < 0.6 else values
            a, b, k = draw.choice(recent), draw.choice(values), draw.choice(("0.3", "0.5", "0.9", "-0.7"))
            lines += term.format(a=a, b=b, k=k, c=f"v{i}", x="x").split("\n") if "{c}" in term else [
                f"v{i} = {term.format(a=a, b=b, k=k)}"
            ]  # fmt: skip
            values.append(f"v{i}")
        results = [draw.choice(values[-6:]) for _ in range(self.outputs + self.states)]
        shown = [f"{r} + 0.0 * x" for r in results[: self.outputs]]
        shown += [f"(0.5 * {r} + 0.0 * x).clamp(-4, 4)" for r in results[self.outputs :]]
        lines.append(f"return ({', '.join(shown)},)")
        self.source = f"{HEAD.lstrip()}\n\ndef step({arguments}):\n" + textwrap.indent("\n".join(lines), "    ")
        names: dict[str, Any] = {}
        exec(self.source, names)
        self.function = names["step"]

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        return self.function(*arguments)  # type: ignore[no-any-return]


_WRITTEN = (
    "{c} = {a} + 0.0 * {b} + 0.0 * x\n{c} += {b}\n{c} *= 0.5",
    "{c} = {a} * 1.5 + 0.0 * x\n{c}[{b} + {c} > 0] = 0.25",
)
_BROADCASTING = (*(t for t in TERMS if not any(s in t for s in ("_(", "_as(", "sgn", ".float()", "alpha="))), *_WRITTEN)
# Without infinite derivatives at 0, which times 0 are NaN.
_ROUNDED = tuple(t for t in SMOOTH if not any(s in t for s in ("mem", "torch.sqrt", "** 0.5")))
_SURROGATES = (
    "atan()", "fast_sigmoid()", "sigmoid(4)", "straight_through_estimator()", "heaviside()", "triangular()",
    "spike_rate_escape()", "SFS()", "LSO()", "custom_surrogate(lambda z, grad, spk: grad * torch.exp(-z.abs()))",
)  # fmt: skip
