"""Whether a program that was compiled has done what its loop does: the one comparison of all programs and tests.

Compared are results and what may need a gradient, gradients, states, buffers, inputs that are changed in place, and
which of them share memory. Of random numbers, those that the loop draws equal must be equal, and no others.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

Named = Iterable[tuple[str, Any]]
Seen = list[tuple[str, Any]]

# Of a value relative to the largest of its tensor, and of a gradient. One product of all steps rounds in another way
# than the products of the steps.
TOLERANCES = {"float64": (1e-9, 1e-8), "float32": (1e-5, 1e-4), "bfloat16": (0.02, 0.1)}
# Where a program has no such product, its values are equal bit for bit.
EXACT = {"float64": (0.0, 1e-10), "float32": (0.0, 1e-5)}
# A tensor that is zero but for rounding is measured by the others.
SMALLEST = 1e-3


def seen(outputs: Any, held: Named = (), others: Named = (), parameters: Named = ()) -> Seen:
    """What a call leaves: its results, the states that layers hold, other values, and the memory that they share."""
    results, held = list(leaves("output", outputs)), list(held)
    everything = [*results, *held, *others]
    found = [(n, t.detach().clone() if isinstance(t, Tensor) else t) for n, t in everything]
    found += [(f"{n} needs a gradient", t.requires_grad) for n, t in results + held if isinstance(t, Tensor)]
    shared = ("shared memory", shared_memory([*everything, *parameters]))
    return [*found, shared, *((f"{n} is contiguous", t.is_contiguous()) for n, t in results if isinstance(t, Tensor))]


def leaves(name: str, out: Any) -> Iterator[tuple[str, Any]]:
    """The values in dicts, lists, tuples and data classes; and the kind and size of each of these."""
    if dataclasses.is_dataclass(out):
        out = vars(out)
    if isinstance(out, dict):
        yield f"{name}: {type(out).__name__}", list(out)
        for k, o in out.items():
            yield from leaves(f"{name}[{k!r}]", o)
    elif isinstance(out, list | tuple):
        yield f"{name}: {type(out).__name__}", len(out)
        for i, o in enumerate(out):
            yield from leaves(f"{name}[{i}]", o)
    else:
        yield name, out


def gradients(of: Named) -> Seen:
    """Gradients by the names of the tensors. Where a loss does not depend on one, no gradient and zeros are equal."""
    return [(f"grad of {n}", torch.zeros_like(t) if g is None else g.detach().clone()) for n, (t, g) in of]


def shared_memory(tensors: Named) -> list[str]:
    """Which elements of which tensors change when another one is written."""
    of_storages: dict[int, list[tuple[str, Tensor]]] = {}
    for name, t in tensors:
        if isinstance(t, Tensor) and t.numel():
            of_storages.setdefault(t.untyped_storage().data_ptr(), []).append((name, t))
    found: list[str] = []
    for named in of_storages.values():
        if len(named) == 1 and named[0][1].is_contiguous():
            continue
        others: list[tuple[str, set[int]]] = []
        for name, t in named:
            elements = _bytes(t)
            written = set(elements)
            if len(written) < len(elements):
                found.append(f"{name} with itself")
            for other, before in others:
                if changed := [i for i, b in enumerate(elements) if b in before]:
                    found.append(f"{other} with {name}{changed if len(changed) < len(elements) else ''}")
            others.append((name, written))
    return sorted(found)


def _bytes(t: Tensor) -> list[int]:
    """The byte of its storage at which each element begins."""
    size = t.element_size()
    places = torch.arange(t.untyped_storage().nbytes() // size).as_strided(t.shape, t.stride(), t.storage_offset())
    return [size * i for i in places.flatten().tolist()]


def difference(found: Seen, expected: Seen, tolerances: tuple[float, float]) -> str | None:
    """The first that differs: of values, relative to the largest, more than one number, and of gradients another."""
    if [n for n, _ in found] != [n for n, _ in expected]:
        return f"{[n for n, _ in found]} instead of {[n for n, _ in expected]}"
    for grads, tolerance in zip((False, True), tolerances, strict=True):
        some = [(n, a, b) for (n, a), (_, b) in zip(found, expected, strict=True) if n.startswith("grad") == grads]
        largest = max((size(b) for _, _, b in some), default=0.0)
        for name, a, b in some:
            if isinstance(a, Tensor) and isinstance(b, Tensor):
                differs = _tensors_differ(name, a, b, tolerance, largest)
            elif isinstance(a, float) and isinstance(b, float):
                differs = _tensors_differ(name, torch.tensor(a).double(), torch.tensor(b).double(), tolerance, largest)
            else:
                differs = _values_differ(name, a, b)
            if differs:
                return f"{name}: {differs}"
    same, expected_same = same_draws(found), same_draws(expected)
    return None if same == expected_same else f"same draws: {same} instead of {expected_same}"


def _values_differ(name: str, a: Any, b: Any) -> str | None:
    if name == "shared memory" and a != b:
        return f"{[n for n in a if n not in b]} instead of {[n for n in b if n not in a]}"
    # A view that was made under no_grad says that it needs a gradient, and leads to none. What is computed of such
    # views may do without: the gradients are compared by themselves.
    idle = name.endswith("needs a gradient") and b is True and a is False
    idle |= name.endswith("is contiguous") and a is True
    return None if idle or (type(a) is type(b) and a == b) else f"{a} instead of {b}"


def _tensors_differ(name: str, a: Tensor, b: Tensor, tolerance: float, largest: float) -> str | None:
    if a.shape == (0,) and not b.any():
        return None  # a layer that made no step: zeros of any shape
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype} {list(a.shape)} instead of {b.dtype} {list(b.shape)}"
    if "draws" in name:
        return None
    a, b = _real(a), _real(b)
    spikes = not name.startswith("grad") and bool(((b == 0) | (b == 1)).all() and b.any())
    if tolerance and b.dtype.is_floating_point:  # snnTorch's losses add up in float32, whatever they are given
        tolerance = max(tolerance, 2 * torch.finfo(b.dtype).eps)
    bound = 0.0 if spikes else tolerance * max(size(b), SMALLEST * largest)
    off = (a.double() - b.double()).abs()
    wrong = ((off > bound) & ~(a == b)) | (a.isnan() != b.isnan())
    if not tolerance:
        wrong |= (a.signbit() != b.signbit()) & ~b.isnan()
    return f"off by {off.max().item():.3g}, {'spikes' if spikes else f'scale {size(b):.3g}'}" if wrong.any() else None


def _real(t: Tensor) -> Tensor:
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def same_draws(results: Seen) -> list[tuple[str, str]]:
    """Which random numbers of one list are equal."""
    draws = [(n, t) for n, t in results if "draws" in n and isinstance(t, Tensor)]
    of_lists = (
        (a, b) for i, a in enumerate(draws) for b in draws[:i] if a[0].rpartition("[")[0] == b[0].rpartition("[")[0]
    )
    return [(b[0], a[0]) for a, b in of_lists if torch.equal(a[1], b[1])]


def size(t: Any) -> float:
    """The largest finite magnitude."""
    t = _real(t).double().abs() if isinstance(t, Tensor) else torch.zeros(0)
    return float(t[t.isfinite()].max()) if t.isfinite().any() else 0.0
