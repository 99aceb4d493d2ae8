"""A list of layers that does not keep them alive."""

import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, overload


class Instances(Sequence[Any]):
    """The layers that were added and still exist, oldest first.

    snnTorch's ``instances`` is a plain list, which keeps every layer and the memory of its state alive.
    """

    def __init__(self) -> None:
        self._refs: list[weakref.ref[Any]] = []
        self._lock = threading.RLock()  # a layer may be made by a finalizer, in the middle of an append

    def append(self, layer: object) -> None:
        with self._lock:
            # A new list without dead layers. A list that somebody iterates over stays as it is.
            self._refs = [ref for ref in self._refs if ref() is not None] + [weakref.ref(layer)]

    def remove(self, layer: object) -> None:
        with self._lock:
            self._refs = [ref for ref in self._refs if ref() is not layer]

    def clear(self) -> None:
        self._refs = []

    def _alive(self) -> list[Any]:
        return [layer for ref in self._refs if (layer := ref()) is not None]

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
