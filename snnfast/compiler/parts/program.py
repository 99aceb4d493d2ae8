"""Elementwise calls that wait for one another over the steps, such as a neuron that the user wrote: one program.

The calls of one step are a step function. ``snnfast._program`` makes a program of it, which runs for all steps.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from snnfast._core.linear import Linear
from snnfast._core.norm import Norm
from snnfast._program.between import Between, Product, Source
from snnfast._program.between import Part as Layered
from snnfast._program.between import unroll as unroll_between
from snnfast._program.call import orders_of
from snnfast._program.run import Program as StepProgram
from snnfast._program.trace import NotElementwiseError
from snnfast.compiler.emit.emitter import Emitter
from snnfast.compiler.emit.linear import fuse_linear
from snnfast.compiler.emit.norm import fuse_norm_of_series
from snnfast.compiler.errors import UnmergedError
from snnfast.compiler.graph.memory import erase_unread
from snnfast.compiler.graph.nodes import (
    aten,
    fake_call,
    name_of,
    product_of,
    run_call,
    tensors_of,
    value,
)
from snnfast.compiler.loop.loop import Each, Of, Same, Statement
from snnfast.compiler.loop.roll import Rolled
from snnfast.compiler.parts.base import Part, at_line
from snnfast.compiler.parts.between import Layer, is_piece, layers_of
from snnfast.compiler.parts.integers import check_whole

UNLIKE = "its steps are not all alike"

Row = dict[Statement, Node]
"""The calls of one step. Of the first and the last step, those that nobody reads may be missing."""


class Program(Part):
    """Statements of a loop that run as one program.

    Attributes:
        statements: In the order in which they run.
        samples: One call of each.
        rows: The calls of each step.
        args: The leaves of the arguments of each statement. ``Of(statement, 1, (begin,))`` is a state.
        products: Statements that are products with a weight, and pieces of their results. They run before the programs
            of the others.
        layers: The others, by the shape of their results.
    """

    kind = "Program"

    def __init__(self, statements: Sequence[Statement], rows: list[Row], model: Row, products: set[Statement]) -> None:
        self.statements, self.rows, self.products = list(statements), rows, products
        self.samples = {s: model[s] for s in statements}
        self.args: dict[Statement, list[Any]] = {}
        own = [s for s in statements if s not in products]
        self.layers = [Layer(own, {}, self.samples)]
        self.fused = self.normed = False
        self._call: Any = None
        self._results: dict[int, Node] = {}

    # ---- what it reads

    def _given(self, kind: type[Any], back: int = 0) -> list[Any]:
        every = itertools.chain.from_iterable(self.args.get(s, ()) for s in self.statements)
        found = dict.fromkeys(a for a in every if isinstance(a, kind))
        return [a for a in found if not isinstance(a, Of) or a.back == back]

    @property
    def series(self) -> list[Each]:
        """Inputs of each step."""
        return self._given(Each)

    @property
    def states(self) -> list[Of]:
        """Results that the next step reads, each with what the first step reads in its place; layer after layer."""
        return [a for layer in self.layers for a in self._states_of(layer)]

    def _states_of(self, layer: Layer) -> list[Of]:
        every = {*layer.statements, *layer.inputs()}
        return [a for a in self._given(Of, back=1) if len(self.layers) == 1 or a.statement in every]

    @property
    def constants(self) -> list[Same]:
        """Tensors that are the same at every step."""
        return self._given(Same)

    def begins(self) -> list[Any]:
        """The initial value of each state, which the first step reads: a node or a number."""
        return [a.first[0] for a in self.states]

    def arguments(self, statement: Statement) -> list[Any]:
        return self.args[statement]

    def reads(self) -> list[Node]:
        begins = [n for n in self.begins() if isinstance(n, Node)]
        return [*(n for a in self.series for n in a.rows), *begins, *(a.value for a in self.constants)]

    # ---- what it is

    @property
    def steps(self) -> int:
        return len(self.rows)

    def _own(self) -> list[Node]:
        return [n for s, n in self.samples.items() if s not in self.products]

    @property
    def shape(self) -> torch.Size:
        """The shape of a step of the results; of several layers, of the first."""
        return self.layers[0].shape

    @property
    def dtype(self) -> torch.dtype:
        return next(t.dtype for n in self._own() for t in tensors_of(n) if t.is_floating_point())

    @property
    def device(self) -> torch.device:
        return tensors_of(self.samples[self.statements[0]])[0].device

    @property
    def context(self) -> Any:
        contexts = [n.meta["context"] for n in self._own()]
        return next((c for c in contexts if c.records), contexts[0])

    def calls(self) -> list[Node]:
        return [n for row in self.rows for n in row.values()]

    def length(self, statement: Statement) -> int:
        return self.steps

    def take(self, rolled: Rolled) -> None:
        """Let its calls be those of the statements, and let go of the other calls that these had."""
        gone = {node for s in self.statements for node in s.calls}
        for statement in self.statements:
            steps = dict(zip(statement.calls, statement.steps, strict=True))
            numbers = {row[statement]: t for t, row in enumerate(self.rows) if statement in row}
            first = next(steps[node] - t for node, t in numbers.items() if node in steps)
            statement.calls, statement.steps = list(numbers), [first + t for t in numbers.values()]
            statement.part, statement.reason = self, None
            rolled.at |= {node: (statement, t) for node, t in numbers.items()}
            gone.difference_update(numbers)
        for node in gone:
            del rolled.at[node]

    def apart(self) -> list["Program"]:
        """The programs that it consists of, where some of its statements have nothing to do with others.

        Two results that share nothing are then two nodes of autograd, each with a backward pass of its own.
        """
        if self.products:
            return [self]
        of = {s: {s} for s in self.statements}
        for statement, args in self.args.items():
            for a in args:
                if isinstance(a, Of) and a.statement not in of[statement]:
                    of[statement] |= of[a.statement]
                    of.update(dict.fromkeys(of[statement], of[statement]))
        every = {id(some): some for some in of.values()}
        return [self._of_some(some) for some in every.values()] if len(every) > 1 else [self]

    def _of_some(self, some: set[Statement]) -> "Program":
        statements = [s for s in self.statements if s in some]
        rows = [{s: n for s, n in row.items() if s in some} for row in self.rows]
        made = Program(statements, rows, self.samples, set())
        made.args = {s: self.args[s] for s in statements}
        return made

    def outputs(self) -> list[Statement]:
        """The statements whose results may be read outside, layer after layer."""
        return [s for layer in self.layers for s in layer.outputs()]

    # ---- as a step function

    def step_program(self, layer: Layer, outputs: Sequence[Statement]) -> StepProgram:
        """The program of a layer, which returns the results of some statements."""
        series, constants = self._read(layer, Each), self._read(layer, Same)
        made, states = [Of(s, 0) for s in layer.inputs()], self._states_of(layer)
        given, wanted = [*series, *made, *states, *constants], [*outputs, *(a.statement for a in states)]

        def step(*tensors: Tensor) -> tuple[Tensor, ...]:
            env = self.run(layer, given, tensors)
            return tuple(env[Of(s, 0)].to(self.dtype) for s in wanted)

        return StepProgram(step, len(series) + len(made), len(states), len(constants), len(outputs))

    def _read(self, layer: Layer, kind: type[Any]) -> list[Any]:
        """The series or constants that a layer reads itself, and not its products alone."""
        read = {a for s in layer.statements for a in self.args[s] if isinstance(a, kind)}
        return [a for a in self._given(kind) if a in read]

    def run(self, layer: Layer, given: Sequence[Any], tensors: Sequence[Tensor]) -> dict[Any, Any]:
        """The result of each statement in a step, from the tensors that are given for some arguments."""
        env: dict[Any, Any] = {a: as_of(self.node_of(a), t) for a, t in zip(given, tensors, strict=True)}
        for statement in layer.statements:
            node = layer.samples[statement]
            leaves = [env[a] if isinstance(a, Of | Each | Same) else a for a in self.args[statement]]
            spec = pytree.tree_structure((node.args, node.kwargs))
            args, kwargs = pytree.tree_unflatten(leaves, spec)
            env[Of(statement, 0)] = run_call(node, args, kwargs, self.dtype)
        return env

    def node_of(self, a: Of | Each | Same) -> Node:
        """Some node that stands for an argument."""
        return self.samples[a.statement] if isinstance(a, Of) else a.rows[0] if isinstance(a, Each) else a.value

    def check(self) -> None:
        """Check that a program can compute it.

        Raises:
            UnmergedError: None can.
        """
        check_whole(self)
        try:
            for layer in self.layers:
                program = self.step_program(layer, layer.outputs())
                program.check(self.dtype, len(layer.shape), self.context.records)
        except NotElementwiseError as error:
            raise UnmergedError(error.problem) from None
        except RuntimeError as error:  # of an operator: a program is traced with tensors of other sizes
            message = f"an operator takes tensors of its own sizes alone: {str(error).splitlines()[0]}"
            raise UnmergedError(message) from None

    # ---- products between the steps

    def arrange(self) -> None:
        """Find the layers.

        Raises:
            UnmergedError: A product is none of a result and a weight that is the same at every step.
        """
        for statement in self.statements:
            if statement in self.products:
                self._check_product(statement)
        self.layers = layers_of(self)

    def _check_product(self, statement: Statement) -> None:
        node = self.samples[statement]
        name = name_of(node.target)
        found = product_of(node)
        if self.device.type != "cpu" or (found is None and not is_piece(node)):
            raise UnmergedError(f"{name} is not elementwise")
        if value(node).dtype != self.dtype or node.meta["context"] != self.context:
            raise UnmergedError(f"{name} runs under no_grad or autocast, unlike the rest of the step")
        if value(node).dim() != len(self.shape):
            raise UnmergedError(f"{name} has another number of dimensions than the rest of the step")
        source, *weights = self._operands(statement) if found is not None else self.args[statement][:1]
        if not isinstance(source, Of) or (source.statement in self.products) != (found is None):
            raise UnmergedError(f"{name} is not elementwise, and takes no result of the recurrence alone")
        if not all(isinstance(a, Same) for a in weights):
            raise UnmergedError(f"{name} has another weight or bias at another step")
        if found is None and source.back > 0:
            raise UnmergedError(f"{name} takes a part of a product of the step before")

    def _operands(self, product: Statement) -> list[Any]:
        """The operands of a product: a result, a weight, and a bias, if it has one."""
        node = self.samples[product]
        args = dict(zip(pytree.tree_leaves((node.args, node.kwargs)), self.args[product], strict=True))
        return [args[a] for a in product_of(node)[1:]]  # type: ignore[index]

    def source_of(self, product: Statement) -> Of:
        """The result that a product takes."""
        return self._operands(product)[0]  # type: ignore[no-any-return]

    def read_by_products(self) -> set[Statement]:
        """The statements whose results of the same step are in products."""
        sources = [self.source_of(p) for layer in self.layers for p in layer.products]
        return {a.statement for a in sources if a.back == 0}

    def between(self, outputs: Sequence[Statement]) -> Between:
        """The layers, and the products that are computed before each, where some results are read."""
        of_layers = [[s for s in layer.outputs() if s in outputs] for layer in self.layers]
        parts, products = [], []
        for number, (layer, wanted) in enumerate(zip(self.layers, of_layers, strict=True)):
            series, states, constants = self._read(layer, Each), self._states_of(layer), self._read(layer, Same)
            pairs: Any = ((self.series, series), (self.states, states), (self.constants, constants))
            numbers = [tuple(map(every.index, some)) for every, some in pairs]
            parts.append(Layered(self.step_program(layer, wanted), *numbers))
            for product, pieces in layer.products.items():
                source, *weights = self._operands(product)
                of = [source.statement in (*other.statements, *other.inputs()) for other in self.layers].index(True)
                now = source.back == 0
                place = of_layers[of].index(source.statement) if now else self._states_of(self.layers[of]).index(source)
                name = product_of(self.samples[product])[0]  # type: ignore[index]
                made = Product(name, Source(of, place, now), number, *map(self.constants.index, weights))
                products.append(made._replace(pieces=len(pieces)))
        counts = len(self.series), len(self.states), len(self.constants)
        return Between(tuple(parts), tuple(products), counts)

    # ---- the new graph

    def emit(self, to: Emitter) -> None:
        shape, states = self.shape, self.begins()
        series = [_with_rank(to.over_time(list(a.rows)), len(shape), to) for a in self.series]
        if any(value(a).shape[1:] == shape for a in series) and not self.products:  # else zeros tell the shape
            states = [0.0 if isinstance(n, Node) and to.is_zeros(n, shape, self.dtype) else n for n in states]
        begins = [to.get(n) if isinstance(n, Node) else n for n in states]
        # The program keeps a first state for its backward pass. A part of a tensor that is filled step by step changes.
        begins = [
            to.call(aten.clone.default, a) if n in to.facts.written else a for a, n in zip(begins, states, strict=True)
        ]
        given = [*series, *begins, *(to.get(a.value) for a in self.constants)]
        other = [isinstance(a, Node) and value(a).dtype != self.dtype for a in given]
        given = [to.call(aten.to.dtype, a, self.dtype) if b else a for a, b in zip(given, other, strict=True)]
        node = to.graph.call_function(
            Unrolled(self, self.outputs()), tuple(given), {"steps": to.times(self.statements[0])}
        )
        step, record = orders_of(value(given[0]) if series and not self.products else None, shape)
        options = {"dtype": self.dtype, "device": self.device}
        wanted: list[Any] = [((self.steps, *value(self.samples[s]).shape), record) for s in self.outputs()]
        wanted += [(tuple(value(self.samples[a.statement]).shape), step) for a in self.states]
        found = [fake_call(torch.empty_permuted, args, options, to.mode) for args in wanted]
        node.meta |= {"example_value": tuple(found), "context": to.context}
        self._call = node

    def _result(self, number: int, to: Emitter) -> Node:
        return to.result_of(self._call, number)

    def whole(self, statement: Statement, to: Emitter) -> Node:
        made = self._result(self.outputs().index(statement), to)
        dtype = value(statement.node).dtype
        return made if dtype == self.dtype else to.behind(made, aten.to.dtype, made, dtype)

    def last(self, statement: Statement, to: Emitter) -> Node | None:
        state = next((i for i, a in enumerate(self.states) if a.statement is statement), None)
        if state is None or value(statement.node).dtype != self.dtype:
            return None
        return self._result(len(self.outputs()) + state, to)

    def finish(self, to: Emitter) -> None:
        """Make the program return only what is read."""
        node, outputs = self._call, self.outputs()
        read: set[Any] = {user.args[1] for user in node.users if user.users}
        needed = self.read_by_products()
        chosen = [i for i, s in enumerate(outputs) if i in read or s in needed]
        for user in list(node.users):
            number: Any = user.args[1]
            if erase_unread(user):
                continue
            if number < len(outputs):
                user.args = (node, chosen.index(number))
            else:
                user.args = (node, number - len(outputs) + len(chosen))
        made = node.target = Unrolled(self, [outputs[i] for i in chosen])
        if made.program is None:
            return
        self.fused = self._fuse_linear(node, made, to)
        found = fuse_norm_of_series(to, node, made.series(node))
        if found is not None:
            made.normed, made.norm = found
            self.normed = True

    def _fuse_linear(self, node: Node, made: "Unrolled", to: Emitter) -> bool:
        """Let the linear layer that alone reads an output become a part of the call, and return whether it did."""
        assert made.program is not None
        binary = made.program.binary(self.dtype, len(self.shape))
        users: dict[Any, Any] = {user: user.args[1] for user in node.users if user.args[1] in range(len(binary))}
        for user, number in sorted(users.items(), key=lambda entry: not binary[entry[1]]):  # bits gain the most
            linear = fuse_linear(to, node, user)
            if linear is not None:
                *weights, dims = linear
                node.args = (*node.args, *weights)
                made.output, made.dims = number, dims
                return True
        return False

    def describe(self) -> Iterator[str]:
        name = f"{self.steps} steps of {len(self.statements)} calls{at_line(self.samples[self.statements[0]])}"
        how = ", with the batch normalisation before it" * self.normed + ", with the linear behind it" * self.fused
        if self.products:
            calls = sorted({name_of(p.node.target) for layer in self.layers for p in layer.products})
            how = f", with {' and '.join(calls)} between its steps"
        yield f"{name}: one recurrence{how}"


class Unrolled:
    """All steps of a program as a function of the inputs, the first states and what is constant.

    Attributes:
        output: The one that a linear layer alone reads. Its weight and bias are then the next arguments.
        dims: How many dimensions of a step, from the last, are the inputs of this layer; 0 where there is none.
        normed: The input before which there is a batch normalisation, whose other arguments are then the last ones.
        norm: Makes what it is of these; ``None`` where there is none.
    """

    __name__ = __qualname__ = "recurrence"

    def __init__(self, part: Program, outputs: Sequence[Statement]) -> None:
        self.between = part.between(outputs) if part.products else None
        self.program = None if part.products else part.step_program(part.layers[0], outputs)
        self.shape = part.shape
        self.output = self.dims = self.normed = 0
        self.norm: Callable[..., Norm] | None = None

    def series(self, node: Node) -> list[Any]:
        """The inputs of a node that calls it, without those that have fewer dimensions than a step."""
        made = self.between or self.program
        assert made is not None
        found: Any = node.args[: made.counts[0]]
        return [n for n in found if value(n).shape[1:] == self.shape]

    def __call__(self, *tensors: Any, steps: int) -> tuple[Tensor, ...]:
        if self.program is None:
            assert self.between is not None
            return unroll_between(self.between, tensors, steps)
        inputs, states, constants = self.program.counts
        given, rest = tensors[: inputs + states + constants], list(tensors[inputs + states + constants :])
        linear = Linear(rest.pop(0), rest.pop(0), self.dims) if self.dims else None
        norm = None if self.norm is None else self.norm(*rest)
        return self.program.unroll(
            *given, steps=steps, output=self.output, linear=linear, normed=self.normed, norm=norm
        )


def _with_rank(whole: Node, rank: int, to: Emitter) -> Node:
    """Inputs of all steps, with the dimensions of a step; a program broadcasts them when it runs."""
    for _ in range(rank + 1 - value(whole).dim()):
        whole = to.call(aten.unsqueeze.default, whole, 1)
    return whole


def as_of(node: Node, t: Tensor) -> Tensor:
    """A tensor of a program, in which truth values are numbers, as what a node takes."""
    return t.to(torch.bool) if tensors_of(node)[0].dtype == torch.bool else t
