"""Products of a sparse matrix and the results of each step, which a recorder writes down.

PyTorch has no fake sparse tensors that share memory or have strides. While a graph is made, a dense matrix of the same
shape stands for a sparse one: no call but these products takes it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from snnfast._core.ops import NAMESPACE

LAYOUTS = {torch.sparse_coo, torch.sparse_csr}

_PRODUCTS = {
    torch.sparse.mm: True,
    **dict.fromkeys([torch.mm, torch.spmm, torch.matmul, Tensor.mm, Tensor.matmul, Tensor.__matmul__], False),
}
"""Functions that multiply a sparse matrix, and whether its gradient is sparse, too."""


def memory_of(t: Tensor) -> int:
    """A number that tensors share if they share memory; of a sparse one, that of its values."""
    if t.layout is torch.strided:
        return int(t.untyped_storage()._cdata)
    with torch.no_grad():
        dense = t._values() if t.layout is torch.sparse_coo else t.values()
    return int(dense.untyped_storage()._cdata)


def is_product(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call is the product of a sparse matrix and a dense one."""
    if func not in _PRODUCTS or len(args) != 2 or kwargs:
        return False
    weight, x = args
    return weight.layout in LAYOUTS and x.layout is torch.strided and weight.dim() == x.dim() == 2


def as_op(func: Any, args: Any) -> tuple[Any, Any]:
    """A product as a call of the op ``snnfast::sparse_mm``, and its arguments."""
    return torch.ops.snnfast.sparse_mm.default, (*args, _PRODUCTS[func])


def sparse_mm(
    weight: Tensor,  # [N, K]
    x: Tensor,  # [K, M]
    sparse_gradient: bool,  # of the weight
) -> Tensor:  # [N, M]
    """The op ``snnfast::sparse_mm``."""
    # The stand-in has the result of either: torch.sparse.mm of two dense matrices has another order in memory.
    return torch.sparse.mm(weight, x) if sparse_gradient and weight.layout in LAYOUTS else torch.mm(weight, x)


def sparse_mm_over_time(
    weight: Tensor,  # [N, K]
    x: Tensor,  # [T, K, M]
    sparse_gradient: bool,
) -> Tensor:  # [T, N, M]
    """The product of all steps: their columns stand side by side, ``[K, T * M]``.

    Rows that are contiguous, also those of the gradient, make the product of a COO matrix several times faster.
    """
    columns = x.permute(1, 0, 2).flatten(1, 2).contiguous()
    found = _WithGradientInRows.apply(sparse_mm(weight, columns, sparse_gradient))
    return found.unflatten(1, (x.shape[0], -1)).permute(1, 0, 2)  # type: ignore[no-any-return]


class _WithGradientInRows(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous()


_library = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("sparse_mm(Tensor weight, Tensor x, bool sparse_gradient) -> Tensor")  # type: ignore[no-untyped-call]
_library.impl("sparse_mm", sparse_mm, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
