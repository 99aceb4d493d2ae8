"""snnTorch with neurons on the fused kernels: ``import snnfast.snntorch as snn`` in place of ``import snntorch``.

Everything of ``snntorch`` is here under its own name: ``snn.SLSTM``, ``snn.surrogate``, ``snn.functional``,
``snn.spikegen``, ``snn.utils`` and so on. They are the objects of the installed snnTorch, which is not patched. Only
the neurons that :mod:`snnfast` has are replaced, such as ``snn.Leaky``, and ``snn.spikegen.rate``, which draws the same
spikes faster. The new classes are subclasses of snnTorch's, so that ``isinstance``, ``utils.reset``, ``backprop`` and
the NIR exporter know them. :func:`convert` puts the layers of an existing model on the kernels, and :func:`revert`
undoes it.

Submodules can be imported as well: ``import snnfast.snntorch.functional as SF`` gives ``snntorch.functional``.

Only this module needs snnTorch: ``pip install "snntorch>=1.0.0"``.

Example::

    >>> import torch
    >>> import snnfast.snntorch as snn
    >>> lif = snn.Leaky(beta=0.9, spike_grad=snn.surrogate.fast_sigmoid(slope=25))
    >>> spk, mem = lif(torch.rand(128, 10), lif.init_leaky())   # as in snnTorch, faster
    >>> spk_rec, mem_rec = lif.unroll(torch.rand(25, 128, 10))  # all time steps in one kernel, faster still
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from snnfast.snntorch._convert import Report, convert, revert
from snnfast.snntorch._drop_ins import LAYERS, snntorch

if TYPE_CHECKING:  # what editors and type checkers know, who do not run this file
    from snntorch import *  # noqa: F403
    from snntorch import (  # noqa: F401
        backprop,
        export_nir,
        functional,
        import_nir,
        spikeplot,
        spikevision,
        surrogate,
        utils,
    )

    from snnfast.neurons import *  # noqa: F403 - the same signatures
    from snnfast.snntorch import spikegen

globals().update({layer.__name__: layer for layer in LAYERS})

__all__ = ["Report", "convert", "revert"]
__all__ += sorted(
    {*(layer.__name__ for layer in LAYERS), *(name for name in dir(snntorch) if not name.startswith("_"))}
)


class _Submodules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds snnTorch's submodules under the name of this module: the same module objects, imported on demand."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(f"{__name__}.") or fullname in _OWN:
            return None  # the usual finder has it
        if importlib.util.find_spec(_snntorchs(fullname)) is None:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        # The import system returns what is in sys.modules after this. snnTorch's own module keeps its name and spec.
        sys.modules[module.__name__] = importlib.import_module(_snntorchs(module.__name__))


_OWN = (f"{__name__}.spikegen",)
"""Submodules that are files here, and not snnTorch's."""


def _snntorchs(fullname: str) -> str:
    return fullname.removeprefix("snnfast.")


# It is the first finder: the usual one would load a second copy of a module inside of snntorch.functional from its
# file.
sys.meta_path.insert(0, _Submodules())

if not TYPE_CHECKING:
    spikegen = importlib.import_module(f"{__name__}.spikegen")


def __getattr__(name: str) -> Any:
    """Everything else is snnTorch's; a submodule is imported when it is first asked for."""
    if name.startswith("__") and name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(snntorch, name)
    except AttributeError:
        if "." in name or importlib.util.find_spec(f"snntorch.{name}") is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}, and neither has snntorch") from None
    return importlib.import_module(f"snntorch.{name}")


def __dir__() -> list[str]:
    submodules = (m.name for m in pkgutil.iter_modules(snntorch.__path__) if not m.name.startswith("_"))
    own = (n for n in globals() if n.startswith("__"))
    return sorted({*__all__, *own, "__version__", *submodules})
