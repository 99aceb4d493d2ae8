"""Complex values of a recurrence are pairs of real ones: resonate-and-fire neurons, diagonal recurrences."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiler.forms import after, steps, tensor
from loop_nets import QUICK_WAYS
from loop_ops import Masked, Plain
from torch import Tensor
from torch.utils import _pytree as pytree

import snnfast
from benchmarks.collection.comparison import EXACT, TOLERANCES, difference, seen

pytestmark = [pytest.mark.usefixtures("nothing_compiled"), pytest.mark.needs_extension]


def test_a_complex_product_is_four_real_ones() -> None:
    def loop(xs: list[Tensor], z: Tensor, a: Tensor) -> Tensor:
        for x in xs:
            z = z * a + x
        return z.imag

    inputs = steps(2), tensor(2).to(torch.complex64), tensor(2).to(torch.complex64)
    after("pairs", loop, *inputs).expect("""\
real = real(x)
imag = imag(x)
real_1 = real(x_1)
imag_1 = imag(x_1)
mul = mul(real, real_1)
mul_1 = mul(imag, imag_1)
sub = sub(mul, mul_1)
mul_2 = mul(real, imag_1)
mul_3 = mul(imag, real_1)
add = add(mul_2, mul_3)
add_1 = add(sub, x_2)
mul_4 = mul(add_1, real_1)
mul_5 = mul(add, imag_1)
sub_1 = sub(mul_4, mul_5)
mul_6 = mul(add_1, imag_1)
mul_7 = mul(add, real_1)
add_2 = add(mul_6, mul_7)
add_3 = add(sub_1, x_3)
return [add_2]""")


def test_what_is_outside_of_a_recurrence_stays_complex() -> None:
    def loop(xs: list[Tensor]) -> Tensor:
        return torch.stack([(x * 1j + x).abs() for x in xs])

    after("pairs", loop, steps(2)).expect("""\
mul = mul(x, 1j)
add = add(mul, x)
abs = abs(add)
mul_1 = mul(x_1, 1j)
add_1 = add(mul_1, x_1)
abs_1 = abs(add_1)
stack = stack([abs, abs_1])
return [stack]""")


# ---- the numbers of programs: ``p`` are two parameters, ``a`` is complex


def _resonator(x: Tensor, p: Tensor, a: Tensor) -> Any:
    """Resonate-and-fire (E. M. Izhikevich, 2001)."""
    z, rec = torch.zeros(x.shape[1:], dtype=a.dtype), []
    for x_t in x:
        z = z * torch.exp(0.25 * (-p[0] + 1j * p[1])) + x_t
        spk = Masked.apply(z.imag - 0.5)
        z = z * (1 - spk.detach())
        rec.append(spk)
    return torch.stack(rec), z


def _parts(x: Tensor, p: Tensor, a: Tensor) -> Any:
    z, rec, both = torch.zeros_like(a).expand(x.shape[1:]), [], []
    for x_t in x:
        z = torch.complex(p[0] * z.real - p[1] * z.imag + x_t, p[1] * z.real + p[0] * z.imag)
        re, im = torch.view_as_real(z).unbind(-1)
        spk = Plain.apply(re - 0.5 * im - 0.25)
        z = torch.complex(re - spk, im)
        rec.append(spk)
        both.append(torch.view_as_real(z))
    return torch.stack(rec), torch.stack(both)


def _hopf(x: Tensor, p: Tensor, a: Tensor) -> Any:
    z, rec = torch.zeros(x.shape[1:], dtype=a.dtype), []
    for x_t in x:
        z = z + 0.25 * ((p[0] - z.real.square() - z.imag.square() + 1j * p[1]) * z + x_t)
        rec.append(z.real)
    return torch.stack(rec), z


def _diagonal(x: Tensor, p: Tensor, a: Tensor) -> Any:
    """As in S4D (A. Gu et al., 2022): a complex state of each channel, and a readout of all of them."""
    h, rec = torch.zeros(x.shape[1:], dtype=a.dtype), []
    for x_t in x:
        h = a * h + (1 - 0.5j) * p[0] * x_t
        rec.append((a * h).sum(-1).real)
    return torch.stack(rec), h


def _resets(x: Tensor, p: Tensor, a: Tensor) -> Any:
    z, rec = torch.zeros(x.shape[1:], dtype=a.dtype), []
    for x_t in x:
        z = 0.5j - (-z) / 3.0 + a * z - x_t
        spk = Masked.apply(torch.imag(z) - 0.5)
        z = torch.where(spk > 0, z * 0.5j, z).masked_fill(z.real > 1.5, 0.25)
        z = torch.where(x_t > 1.5, 0.0, z) + spk.detach() * (0.5 - 0.25j)
        rec.append(spk)
    return torch.stack(rec), z


def _in_place(x: Tensor, p: Tensor, a: Tensor) -> Any:
    z, rec = torch.zeros(x.shape[1:], dtype=a.dtype), torch.zeros(x.shape, dtype=a.dtype)
    for t in range(x.shape[0]):
        z = z.clone()
        z.mul_(a).add_(x[t])
        z[z.imag.detach() > 0.5] = 0
        rec[t] = z
    return rec, z


def _under_no_grad(x: Tensor, p: Tensor, a: Tensor) -> Any:
    z, trace, rec = torch.zeros(x.shape[1:], dtype=a.dtype), torch.zeros(x.shape[1:], dtype=a.dtype), []
    for x_t in x:
        z = z * a + x_t
        with torch.no_grad():
            part = z.real
            trace = trace * 0.5 + z
        z = z - 0.25 * part * trace.imag
        rec.append(z.imag)
    return torch.stack(rec), trace


def _layers(x: Tensor, p: Tensor, a: Tensor) -> Any:
    z, u, rec = torch.zeros(x.shape[1:], dtype=a.dtype), torch.zeros(x.shape[1:], dtype=a.dtype), []
    for x_t in x:
        z = z * a + x_t
        spk = Masked.apply(z.imag - 0.5)
        u = u * (0.5 - 0.25j) + torch.exp(1j * spk)
        rec.append(u.abs())
    return torch.stack(rec), u


def _conjugated(x: Tensor, p: Tensor, a: Tensor) -> Any:
    z, rec = torch.zeros(x.shape[1:], dtype=a.dtype), []
    for x_t in x:
        z = (z * a).conj() + 0.5 * x_t
        spk = Masked.apply((z * z.conj()).real - 0.5)
        z = z.resolve_conj() - spk
        rec.append(spk)
    return torch.stack(rec), z


def _of_a_number(x: Tensor, p: Tensor, a: Tensor) -> Any:
    z: Any = 0
    rec = []
    for x_t in x:
        z = a * z + x_t
        rec.append(z.imag)
    return torch.stack(rec), z


def _of_real_zeros(x: Tensor, p: Tensor, a: Tensor) -> Any:
    z, rec = torch.zeros(x.shape[-1], dtype=x.dtype), []
    for x_t in x:
        z = z * a + x_t
        rec.append(z.real)
    return torch.stack(rec), z


LOOPS = (
    _resonator,
    _parts,
    _hopf,
    _diagonal,
    _resets,
    _in_place,
    _under_no_grad,
    _layers,
    _conjugated,
    _of_a_number,
    _of_real_zeros,
)


def given(T: int, dtype: torch.dtype, B: int = 4, N: int = 16) -> list[Tensor]:
    """Rows of whole vectors: PyTorch rounds what is left of a complex product once less."""
    draw = torch.Generator().manual_seed(T)
    x, p, a = (
        torch.rand(T, B, N, generator=draw) * 2,
        torch.rand(2, N, generator=draw),
        torch.rand(N, 2, generator=draw),
    )
    return [t.to(dtype).requires_grad_() for t in (x, p)] + [torch.view_as_complex(a.to(dtype) * 0.7).requires_grad_()]


def left_by(function: Callable[..., Any], inputs: list[Tensor]) -> list[tuple[str, Any]]:
    outputs = function(*inputs)
    parts = [torch.view_as_real(t) if t.is_complex() else t for t in pytree.tree_leaves(outputs)]
    loss = sum((t * torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t)).sum() for t in parts if t.requires_grad)
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    return [*seen(outputs), *((f"grad {i}", g) for i, g in enumerate(gradients))]


@pytest.mark.parametrize("by", QUICK_WAYS)
@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_complex_recurrence_is_one_program_with_the_numbers_of_its_loop(
    loop: Callable[..., Any], dtype: torch.dtype, by: Any, reports: list[Any]
) -> None:
    compiled = by(loop)
    name = str(dtype).removeprefix("torch.")
    for T in (9, 9, 12) if by is snnfast.compile else (9,):
        inputs = given(T, dtype)
        # A sum over all channels, and ``exp`` of all steps at once, round in another way.
        tolerances = (TOLERANCES if loop in (_diagonal, _layers) else EXACT)[name]
        assert difference(left_by(compiled, inputs), left_by(loop, inputs), tolerances) is None
        with torch.no_grad():
            assert difference(seen(compiled(*inputs)), seen(loop(*inputs)), tolerances) is None
    if loop is _conjugated:
        assert "a tensor that is conjugated" in str(snnfast.explain(loop, *given(9, dtype)))
        return
    assert reports
    for report in reports:
        assert report.refused is None
        assert not report.repeated
        assert any("one recurrence" in str(line) for line in report.merged)


# ---- what stays as it is


def _turned(x: Tensor, p: Tensor, a: Tensor, change: Callable[[Tensor], Any]) -> tuple[list[Tensor], Tensor]:
    z, rec = torch.zeros(x.shape[1:], dtype=a.dtype), []
    for x_t in x:
        z = z * a + x_t
        z = z if (changed := change(z)) is None else changed
        rec.append(Masked.apply(z.imag - 0.5))
    return rec, z


def _hooked(x: Tensor, p: Tensor, a: Tensor) -> Any:
    def change(z: Tensor) -> None:
        if z.requires_grad:
            z.register_hook(lambda g: g * 0.5)

    return _turned(x, p, a, change)


def _hooked_part(x: Tensor, p: Tensor, a: Tensor) -> Any:
    def change(z: Tensor) -> Tensor:
        part = z.real
        if part.requires_grad:
            part.register_hook(lambda g: g * 0.5)
        return z - 0.25 * part

    return _turned(x, p, a, change)


def _shared(x: Tensor, p: Tensor, a: Tensor) -> Any:
    rec, z = _turned(x, p, a, lambda z: None)
    return rec, z, z.real, torch.view_as_real(z)


def _part_of_an_input(x: Tensor, p: Tensor, a: Tensor) -> Any:
    return *_turned(x, p, a, lambda z: z * a.detach()), a.real


def _written_part(x: Tensor, p: Tensor, a: Tensor) -> Any:
    def change(z: Tensor) -> Tensor:
        z = z.clone()
        z.real.mul_(0.5)
        return z

    return _turned(x, p, a, change)


def _without_a_form(x: Tensor, p: Tensor, a: Tensor) -> Any:
    return _turned(x, p, a, lambda z: z + 0.25 * (1 - z.abs()) * z)


def _summed(x: Tensor, p: Tensor, a: Tensor) -> Any:
    return _turned(x, p, a, lambda z: z - 0.125 * z.sum(-1, keepdim=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("by", QUICK_WAYS)
@pytest.mark.parametrize(
    "loop", [_hooked, _hooked_part, _shared, _part_of_an_input, _written_part, _without_a_form, _summed]
)
def test_what_shows_or_has_no_form_is_as_in_the_loop(loop: Callable[..., Any], by: Any) -> None:
    compiled, inputs = by(loop), given(7, torch.float64)
    for _ in range(2):
        assert difference(left_by(compiled, inputs), left_by(loop, inputs), TOLERANCES["float64"]) is None


@pytest.mark.parametrize("by", QUICK_WAYS)
def test_complex_results_are_verified(by: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNNFAST_VERIFY", "1")
    compiled = by(_resonator)
    for _ in range(3):
        compiled(*given(7, torch.float64))
