"""Two forms that differ by numbers alone, such as the sizes of two batches, as one form for all such numbers."""

from collections.abc import Sequence
from typing import Any

from snnfast.compiler.graph.nodes import are_same
from snnfast.compiler.record.form import Constant, Form, Inside, Size, UnknownFormError, resized
from snnfast.compiler.record.later import Like


class Told:
    """The key of a form as its structure, and the numbers in it, in order.

    Attributes:
        structure: Equal for two forms that differ by numbers alone.
        numbers: Those of the calls, and behind them the sizes of the inputs.
        calls: How many are of calls.
    """

    def __init__(self, form: Form) -> None:
        self.numbers: list[Any] = []
        is_general, steps, calls, outputs, likes, sharing = form.key
        calls = tuple([c._replace(args=self._split(c.args), kwargs=self._split(c.kwargs)) for c in calls])
        self.calls = len(self.numbers)
        likes = tuple([(self._sizes(like[0]), *like[1:]) for like in likes])
        self.structure = is_general, steps, calls, outputs, likes, sharing

    def _split(self, a: Any) -> Any:
        if type(a) is Inside:
            return Inside(a.kind, tuple([self._split(b) for b in a.entries]))
        if type(a) is Constant and type(a.value) in (int, float):
            self.numbers.append(a.value)
            return type(a.value)
        return a

    def _sizes(self, shape: tuple[Any, ...]) -> tuple[Any, ...]:
        self.numbers += [size for size in shape if type(size) is int]
        return tuple([int if type(size) is int else size for size in shape])


class Twins(Form):
    """A form for any size of a batch: where the numbers of two forms differ, they are multiples of it.

    Args:
        form: The form. Its steps have one more number, that size.
        other: One of the same structure.
        any_steps: It is for any number of steps, too.

    Raises:
        UnknownFormError: The numbers differ in another way.
    """

    def __init__(self, form: Form, other: Form, any_steps: bool) -> None:
        self.__dict__.update(form.__dict__)
        self._other = other
        self._batch = len(form.steps)
        told = Told(form)
        ours, others = told.numbers, Told(other).numbers
        sizes = {(a, b) for a, b in zip(ours[told.calls :], others[told.calls :], strict=True) if a != b}
        if not sizes or min(map(min, sizes)) < 2:  # a dimension of size 1 is broadcast
            raise UnknownFormError("it differs by more than the size of a batch")
        self._unit = min(sizes)
        differ = [type(a) is not type(b) or not are_same(a, b) for a, b in zip(ours, others, strict=True)]
        self._told = [self._multiple(a, b) if d else a for a, b, d in zip(ours, others, differ, strict=True)]
        numbers = iter(self._told)
        self.calls = [
            call._replace(args=self._replaced(call.args, numbers), kwargs=self._replaced(call.kwargs, numbers))
            for call in form.calls
        ]
        self.steps = [*form.steps, self._unit[0]]
        self._any_steps = any_steps
        self.like = [*(form.like if any_steps else [(None, n) for n in form.steps]), (self._batch, 0)]
        self.is_general = True

    def _multiple(self, a: Any, b: Any) -> Size:
        factor, rest = divmod(a, self._unit[0])
        if type(a) is not int or rest or b != factor * self._unit[1]:
            raise UnknownFormError("it differs by more than the size of a batch")
        return Size(self._batch, factor, 0)

    def _replaced(self, a: Any, numbers: Any) -> Any:
        if type(a) is Inside:
            return Inside(a.kind, tuple([self._replaced(b, numbers) for b in a.entries]))
        if type(a) is Constant and type(a.value) in (int, float):
            number = next(numbers)
            return number if type(number) is Size else a
        return a

    def fits(self, told: Told, form: Form) -> int | None:
        """The size of the batch of a form of this structure; ``None`` if it differs by more."""
        if not self._any_steps and form.steps != self.steps[:-1]:
            return None
        found: set[int] = set()
        for a, b in zip(self._told, told.numbers, strict=True):
            if type(a) is Size:
                size, rest = divmod(b, a.factor)
                if rest:
                    return None
                found.add(size)
            elif type(a) is not type(b) or not are_same(a, b):
                return None
        size = found.pop()
        return size if not found and size > 1 else None

    # ---- at other numbers

    @property
    def sizes(self) -> list[Size]:
        """The sizes that follow from the numbers of steps, and from the size of the batch."""
        return [*super().sizes, *dict.fromkeys(a for a in self._told if type(a) is Size)]

    def input_at(self, number: int, steps: Sequence[int]) -> Like:
        ours, others = (form.like_of_input(number) for form in (self, self._other))
        return self._between(ours, others, steps, True)

    def results_at(self, place: int, steps: Sequence[int], grows: bool) -> list[Like]:
        ours, others = (form.kinds[form.at[place]].likes for form in (self, self._other))
        return [self._between(a, b, steps, grows) for a, b in zip(ours, others, strict=True)]

    def _between(self, a: Like, b: Like, steps: Sequence[int], grows: bool) -> Like:
        if a.is_fixed:
            return a

        def size(m: int, n: int) -> int:
            if m in self._sizes and self._sizes[m] == self._other._sizes.get(n):
                return self._sizes[m].at(steps) if grows else m
            return m if m == n else self._multiple(m, n).at(steps)

        return resized(a, tuple(map(size, a.shape, b.shape)))
