"""The layers of a program with products between its steps: elementwise statements, and the products that they take.

``snnfast._program.between`` runs them one after the other at every step.
"""

from collections import defaultdict
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from snnfast.compiler.errors import UnmergedError
from snnfast.compiler.graph.nodes import arguments, aten, name_of, product_of, tensors_of, value
from snnfast.compiler.loop.loop import Of, Statement


@dataclass(eq=False)
class Layer:
    """Elementwise statements of one shape.

    Attributes:
        statements: In the order in which they run.
        products: The products that they take the results of, each with the pieces of its result.
        samples: One call of each statement of the program.
    """

    statements: list[Statement]
    products: dict[Statement, list[Statement]]
    samples: dict[Statement, Node]

    @property
    def shape(self) -> torch.Size:
        return tensors_of(self.samples[self.statements[0]])[0].shape

    def inputs(self) -> list[Statement]:
        return [piece for pieces in self.products.values() for piece in pieces]

    def outputs(self) -> list[Statement]:
        """The statements whose results may be read outside. Calls that return several are taken apart by others."""
        every = ((s, value(self.samples[s])) for s in (*self.inputs(), *self.statements))
        return [s for s, t in every if isinstance(t, Tensor) and t.shape == self.shape]


def layers_of(part: Any) -> list[Layer]:
    """The layers of a program, each behind those whose results of the same step it takes.

    Raises:
        UnmergedError: There are none. The message is the reason.
    """
    samples: dict[Statement, Node] = part.samples
    products = _products(part)
    # Each statement leads to another one of its set; the last one leads to itself.
    ends: dict[Statement, Statement] = {s: s for s in part.statements}

    def end_of(statement: Statement) -> Statement:
        while ends[statement] is not statement:
            statement = ends[statement]
        return statement

    def shape_of(statement: Statement) -> tuple[str, ...]:
        node = samples[products[statement][0]] if statement in products else samples[statement]
        return tuple(map(str, tensors_of(node)[0].shape))

    for product, pieces in products.items():
        for piece in pieces:
            ends[end_of(piece)] = end_of(product)
    for s in part.statements:
        for a in part.args[s] if s not in part.products else ():
            if isinstance(a, Of):
                ends[end_of(s)] = end_of(a.statement)
    shapes: dict[Statement, dict[Any, None]] = defaultdict(dict)
    for s in part.statements:
        if s not in part.products or s in products:
            shapes[end_of(s)][shape_of(s)] = None
    several = next((found for found in shapes.values() if len(found) > 1), None)
    if several is not None:
        told = [f"[{', '.join(shape)}]" for shape in several]
        raise UnmergedError(f"a step computes tensors of several shapes: {', '.join(told)}")
    levels = dict.fromkeys(shapes, 0)
    sources = {p: part.source_of(p) for p in products}
    for turn in count():
        before = dict(levels)
        for product, source in sources.items():
            if source.back == 0:
                levels[end_of(product)] = max(levels[end_of(product)], levels[end_of(source.statement)] + 1)
        if levels == before:
            break
        if turn > len(levels):
            raise UnmergedError("a layer takes a result of its own step by a product and by itself")
    found: dict[Any, Layer] = defaultdict(lambda: Layer([], {}, samples))
    for s in part.statements:
        layer = found[levels[end_of(s)], shape_of(s)] if s not in part.products or s in products else None
        if layer is not None and s in products:
            layer.products[s] = products[s]
        elif layer is not None:
            layer.statements.append(s)
    if any(not layer.statements for layer in found.values()):
        raise UnmergedError("the result of a product is read outside of the recurrence alone")
    return [found[key] for key in sorted(found, key=lambda key: key[0])]


def _products(part: Any) -> dict[Statement, list[Statement]]:
    """The products, each with the pieces of its result, or with itself."""
    found: dict[Statement, list[Statement]] = {s: [] for s in part.products if product_of(part.samples[s]) is not None}
    for s in part.statements:
        if s in part.products and s not in found:
            found[part.args[s][0].statement].append(s)
    for product, pieces in found.items():
        if pieces:
            _check_pieces(part, product, pieces)
        else:
            pieces.append(product)
    return {s: found[s] for s in part.statements if s in found}


def _check_pieces(part: Any, product: Statement, pieces: list[Statement]) -> None:
    """Put the pieces of a result in order, and check that they are all of it, and alike."""
    samples = part.samples
    given = {s: arguments(samples[s]) for s in pieces}
    pieces.sort(key=lambda s: given[s]["start"])
    whole, width = value(samples[product]), value(samples[pieces[0]]).shape[-1]
    rows = [row[product] for row in part.rows if product in row]
    inside = {row[s] for row in part.rows for s in pieces if s in row}
    fits = whole.shape[-1] == width * len(pieces) and all(u in inside for n in rows for u in n.users)
    for i, s in enumerate(pieces):
        a = given[s]
        fits = fits and (a["start"], a["dim"] % whole.dim()) == (i * width, whole.dim() - 1)
        fits = fits and value(samples[s]).shape[-1] == width
    if not fits:
        raise UnmergedError(f"the result of {name_of(product.node.target)} is not cut into equal parts alone")


def is_piece(node: Node) -> bool:
    """Whether a node is a part of the result of a product."""
    return node.target is aten.slice.Tensor and product_of(node.args[0]) is not None  # type: ignore[arg-type]
