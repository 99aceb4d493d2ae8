"""A list of layers that does not keep them alive."""

import weakref
from collections.abc import Iterator, Sequence
from typing import Any, overload


class Instances(Sequence[Any]):
    """The layers that were added and still exist, oldest first.

    snnTorch's ``instances`` is a plain list, which keeps every layer and the memory of its state alive.
    """

    def __init__(self) -> None:
        # By their ids. Each change is one operation of a dict, so that no thread misses that of another.
        self._refs: dict[int, weakref.ref[Any]] = {}

    def append(self, layer: object) -> None:
        ref = weakref.ref(layer, self._forget)
        self._refs[id(ref)] = ref

    def remove(self, layer: object) -> None:
        for ref in list(self._refs.values()):
            if ref() is layer:
                self._forget(ref)

    def clear(self) -> None:
        self._refs.clear()

    def _forget(self, ref: weakref.ref[Any]) -> None:
        self._refs.pop(id(ref), None)

    def _alive(self) -> list[Any]:
        return [layer for ref in list(self._refs.values()) if (layer := ref()) is not None]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._alive())

    def __len__(self) -> int:
        return len(self._alive())

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._alive()[index]

    def __repr__(self) -> str:
        return f"Instances({self._alive()!r})"
