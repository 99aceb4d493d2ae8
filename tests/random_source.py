"""The Python text of a random program, while it is written (see ``tests/loop_fuzz.py``)."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Value:
    """A variable of the program: ``[B, *shape]``, or ``shape`` in a program without a batch."""

    name: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return self.name

    @property
    def size(self) -> int:
        n = 1
        for m in self.shape:
            n *= m
        return n


@dataclass
class Source:
    """The lines of a program while it is written, and what its parts agree on."""

    draw: random.Random
    exact: bool  # float32, of numbers whose sums are exact
    steps: int
    train: bool
    init: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    inputs: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)  # name: kind, shape behind the batch
    counts: Counter[str] = field(default_factory=Counter)
    drawn: Counter[Any] = field(default_factory=Counter)  # kinds of statements, and pieces
    uses_t: bool = False
    permuted: bool = False  # no ``view`` from here on
    batch: str = "x.shape[1]"  # empty: a program without a batch
    needs_steps: bool = False  # the number of steps stands in the program
    results: list[str] = field(default_factory=list)
    # What a statement may read and write: tensors of one step; [T, B, *] and lists of a tensor for each step, both with
    # the shape of one of them; any others.
    values: list[Value] = field(default_factory=list)
    records: list[Value] = field(default_factory=list)
    lists: list[Value] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    draws: list[str] = field(default_factory=list)  # lists of random numbers
    kept: list[Value] = field(default_factory=list)  # lists, whole behind the loop
    later: list[Value] = field(default_factory=list)  # sums and filled tensors, likewise
    modules: list[str] = field(default_factory=list)
    place: str = "before"  # where statements are written: "before" the loop, in a "step", "after" the loop

    def some(self, probability: float) -> bool:
        return self.draw.random() < probability

    def name(self, stem: str) -> str:
        self.counts[stem] += 1
        return f"{stem}{self.counts[stem]}"

    def module(self, stem: str, code: str) -> str:
        name = f"self.{self.name(stem)}"
        self.init.append(f"{name} = {code}")
        if not code.startswith(("nn.Parameter", "nn.ModuleList")):
            self.modules.append(name)
        return name

    def parameter(self, stem: str, *shape: int) -> str:
        return self.module(stem, f"nn.Parameter(torch.rand({', '.join(map(str, shape))}))")

    def let(self, code: str, shape: tuple[int, ...], stem: str = "h") -> Value:
        value = Value(self.name(stem), shape)
        self.body.append(f"{value} = {code}")
        self.values.append(value)
        return value

    @contextmanager
    def written_to(self, lines: list[str]) -> Iterator[None]:
        """Write statements there instead of in the body of the loop."""
        body, self.body = self.body, lines
        yield
        self.body = body

    def literal_steps(self) -> int:
        self.needs_steps = True
        return self.steps

    def dims(self, *shape: int) -> str:
        return ", ".join([*[self.batch] * bool(self.batch), *map(str, shape)])

    def zeros(self, shape: tuple[int, ...], stem: str) -> str:
        """A variable of zeros ``[B, *shape]`` from before the loop."""
        name = self.name(stem)
        dims = self.dims(*shape)
        made = self.draw.choice((f"x.new_zeros({dims})", f"torch.zeros({dims}, dtype=x.dtype, device=x.device)"))
        self.before.append(f"{name} = {made}")
        return name

    def add_input(self, kind: str, shape: tuple[int, ...], per_step: bool) -> str:
        """An argument of ``forward``; the expression of it at one step."""
        name = self.name({"classes": "y", "target": "target", "input": "z"}[kind])
        self.inputs[name] = (kind + (" per step" if per_step else ""), shape)
        if per_step:
            self.uses_t = True
        return f"{name}[t]" if per_step else name
