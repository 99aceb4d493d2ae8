"""Products of a sparse matrix in a recorded loop: one for all steps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiler.internals import ByRecording
from helpers import pairs
from loop_ops import Masked
from torch import Tensor, nn

import snnfast

pytestmark = [pytest.mark.needs_extension, pytest.mark.filterwarnings("ignore:Sparse")]

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "coo": Tensor.to_sparse_coo,
    "uncoalesced": lambda w: torch.sparse_coo_tensor([[0, 3, 0, 1], [0, 1, 0, 4]], w[0, :4], w.shape),
    "csr": Tensor.to_sparse_csr,
}
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sparse.mm": lambda w, s: torch.sparse.mm(w, s.t()).t(),
    "mm": lambda w, s: torch.mm(w, s.mT).mT,
    "method": lambda w, s: w.mm(s.t().contiguous()).t(),
    "spmm": lambda w, s: torch.spmm(w, s.T).T,
    "@": lambda w, s: (w @ s.t()).t(),
    "matmul": lambda w, s: torch.matmul(w, s.t()).t().contiguous(),
}


def currents(T: int = 9, B: int = 4, N: int = 6) -> Tensor:
    return torch.rand(T, B, N, generator=torch.Generator().manual_seed(T)) * 2


def weight(layout: str, learns: bool = False, rows: int = 5) -> Tensor:
    w = torch.rand(rows, 6, generator=torch.Generator().manual_seed(1))
    made = LAYOUTS[layout](w * (w > 0.6))
    return nn.Parameter(made) if learns else made


def layers(w: Tensor, x: Tensor, product: Callable[[Tensor, Tensor], Tensor] = PRODUCTS["sparse.mm"]) -> Any:
    """Two layers of neurons with a sparse product between them."""
    v, u, rec = torch.zeros_like(x[0]), torch.zeros(x.shape[1], w.shape[0]), []
    for x_t in x:
        v = 0.9 * v + x_t
        spk = Masked.apply(v - 1.0)
        v = v - spk
        u = 0.8 * u + product(w, spk)
        out = Masked.apply(u - 1.0)
        u = u - out
        rec.append(out)
    return torch.stack(rec), u


def results(function: Callable[..., Any], w: Tensor, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    spk, u = function(w, x)
    asking = [t for t in (x, w) if t.requires_grad]
    gradients = torch.autograd.grad((spk * u).square().sum() + u.sum(), asking)
    return [spk, u, *gradients]


def check(recorded: Any, loop: Callable[..., Any], w: Tensor, x: Tensor) -> None:
    found, wanted = results(recorded, w, x), results(loop, w, x)
    assert [t.layout for t in found] == [t.layout for t in wanted]
    for a, b in zip(found[:2], wanted[:2], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(found[2:], wanted[2:], strict=True):
        torch.testing.assert_close(a.to_dense(), b.to_dense())


@pytest.mark.parametrize(("layout", "product", "learns"), pairs(LAYOUTS, PRODUCTS, (False, True)))
def test_the_products_of_all_steps_are_one(layout: str, product: str, learns: bool) -> None:
    def loop(w: Tensor, x: Tensor) -> Any:
        return layers(w, x, PRODUCTS[product])

    w, recorded = weight(layout, learns), ByRecording(loop)
    for T in (9, 9, 12, 6):
        check(recorded, loop, w, currents(T))
    check(recorded, loop, w, currents(9, B=3))
    check(recorded, loop, w, currents(9, B=11))
    explained = snnfast.explain(loop, w, currents())
    (graph,) = explained.graphs
    assert not graph.repeated
    assert any("9 x snnfast.sparse_mm" in str(line) for line in graph.merged)
    assert "its graph is for any number of steps" in str(explained)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_product_of_a_matrix_with_as_many_rows_as_there_are_steps(layout: str) -> None:
    w, recorded = weight(layout, True, rows=9), ByRecording(layers)
    for T in (9, 9, 12, 12):
        check(recorded, layers, w, currents(T))


def test_a_product_of_the_spikes_of_the_step_before_is_repeated() -> None:
    def loop(w: Tensor, x: Tensor) -> Any:
        v, spk, rec = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
        u = torch.zeros_like(v)
        for x_t in x:
            v = 0.9 * v + x_t - 0.5 * torch.sparse.mm(w, spk.t()).t()
            spk = Masked.apply(v - 1.0)
            v = v - spk
            u = 0.9 * u + spk
            rec.append(spk)
        return torch.stack(rec), u

    recorded = ByRecording(loop)
    for T in (9, 9, 12):
        check(recorded, loop, weight("csr", True, rows=6), currents(T))


def test_a_matrix_may_change_between_calls() -> None:
    recorded = ByRecording(layers)
    for layout in ("coo", "csr", "coo"):
        w = weight(layout)
        for factor in (1.0, 0.5, 2.0):
            check(recorded, layers, w * factor, currents())


def test_a_matrix_whose_values_change_in_the_loop() -> None:
    indices, values = torch.tensor([[0, 1, 2], [1, 3, 5]]), torch.tensor([1.0, 2.0, 3.0])

    def loop(w: Tensor, changes: Tensor, x: Tensor) -> Any:
        v, rec = torch.zeros(x.shape[1], 5), []
        for x_t in x:
            v = 0.9 * v + torch.sparse.mm(w, x_t.t()).t()
            changes.mul_(0.5)
            rec.append(Masked.apply(v - 1.0))
        return torch.stack(rec), v

    recorded, of_both = ByRecording(loop), []
    for function in (recorded, recorded, recorded, loop):
        changes = values.clone()
        w = torch.sparse_coo_tensor(indices, changes, (5, 6), is_coalesced=True)
        of_both.append(function(w, changes, currents()))
    for found in of_both[:3]:
        torch.testing.assert_close(found, of_both[3])


def _sums(w: Tensor, x_t: Tensor) -> Tensor:
    return torch.sparse.mm(w, x_t.t()).t() * torch.sparse.sum(w)


def _vector(w: Tensor, x_t: Tensor) -> Tensor:
    return torch.mv(w, x_t[0]) + torch.matmul(w, x_t[1])


def _from_the_left(w: Tensor, x_t: Tensor) -> Tensor:
    return x_t @ w.t()


def _masked(w: Tensor, x_t: Tensor) -> Tensor:
    return torch.sparse.mm(w * 0.5, x_t.t()).t()


def _named(w: Tensor, x_t: Tensor) -> Tensor:
    return torch.mm(input=w, mat2=x_t.t()).t()


def _dense(w: Tensor, x_t: Tensor) -> Tensor:
    return x_t @ w.to_dense().t()


def _fails(w: Tensor, x_t: Tensor) -> Tensor:
    return torch.sparse.mm(w, x_t)


def _adds(w: Tensor, x_t: Tensor) -> Tensor:
    return x_t.t() + w


@pytest.mark.parametrize("use", [_sums, _vector, _from_the_left, _masked, _named, _dense, _fails, _adds])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_uses_of_a_sparse_matrix_are_as_in_the_loop(use: Callable[..., Tensor], layout: str) -> None:
    def loop(w: Tensor, x: Tensor) -> Tensor:
        v = torch.zeros(x.shape[1], 5)
        for x_t in x:
            v = 0.9 * v + use(w, x_t)
        return v

    recorded, found = ByRecording(loop), []
    for function in (recorded, recorded, loop):
        try:
            found.append(function(weight(layout), currents()))
        except RuntimeError as error:
            found.append(str(error))
    if isinstance(found[2], str):
        assert found[:2] == [found[2]] * 2
    else:
        for t in found[:2]:
            torch.testing.assert_close(t, found[2])


def test_another_matrix_at_each_step_is_as_in_the_loop() -> None:
    ws = [weight("coo") * factor for factor in range(9)]

    def loop(x: Tensor) -> Tensor:
        v = torch.zeros(x.shape[1], 5)
        for x_t, w in zip(x, ws, strict=False):
            v = 0.9 * v + torch.sparse.mm(w, x_t.t()).t()
        return v

    recorded = ByRecording(loop)
    for _ in range(3):
        torch.testing.assert_close(recorded(currents()), loop(currents()))


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_autocast_is_that_of_the_loop(layout: str) -> None:
    w, x, found = weight(layout), currents(), []
    for function in (ByRecording(layers), layers):
        with torch.autocast("cpu", torch.bfloat16):
            try:
                found.append(function(w, x))
            except RuntimeError as error:
                found.append(str(error))
    assert found[0] == found[1] if isinstance(found[1], str) else torch.equal(found[0][0], found[1][0])
