"""Networks to and from NIR, the Neuromorphic Intermediate Representation, in which simulators and chips exchange them.

:func:`export_to_nir` makes a graph of a network as it is called: layers in sequence, :class:`snnfast.MultiStep`, a loop
over time of your own, also a compiled one, and nodes of :mod:`snnfast.spikingjelly`. :func:`import_from_nir` makes a
:class:`snnfast.MultiStep` of a graph, which runs all time steps of a layer in one kernel. The two have the names of
snnTorch's and SpikingJelly's functions.

Only this module needs the library ``nir``: ``pip install "snnfast[nir]"``.

Example::

    >>> import torch, snnfast
    >>> from snnfast.nir import export_to_nir, import_from_nir
    >>> from torch import nn
    >>> reset = dict(reset_mechanism="zero", reset_delay=False)  # the reset that NIR has
    >>> net = snnfast.MultiStep(nn.Linear(8, 4), snnfast.Leaky(0.9, **reset))
    >>> graph = export_to_nir(net, torch.rand(2, 1, 8))
    >>> list(graph.nodes), graph.edges
    (['input', '0', '1', 'output'], [('input', '0'), ('0', '1'), ('1', 'output')])
    >>> x = torch.rand(25, 16, 8)
    >>> torch.equal(import_from_nir(graph)(x)[0], net(x)[0])
    True

Source: J. E. Pedersen et al., *Neuromorphic intermediate representation: A unified instruction set for interoperable
brain-inspired computing*, Nature Communications 15 (2024).
"""

try:
    import nir as _nir  # noqa: F401 - asked for here, so that the error says what to install
except ModuleNotFoundError as error:
    if error.name != "nir":
        raise
    raise ModuleNotFoundError(
        'snnfast.nir needs nir >= 1.0.6, which is not installed: pip install "snnfast[nir]"', name="nir"
    ) from None

from snnfast.nir._export import export_to_nir
from snnfast.nir._import import import_from_nir

__all__ = ["export_to_nir", "import_from_nir"]
