"""A package ``snntorch`` that has what snnTorch's main branch has after 1.0.0, made of the one that is installed."""

import shutil
from pathlib import Path

import snntorch

VERSION = "1.1.0"

_CUSTOM_NEURON = """
import torch
from .neurons import SpikingNeuron


class CustomNeuron(SpikingNeuron):
    state_names, update_fn = (), None

    def __init__(self, threshold=1.0, init_hidden=False):
        super().__init__(threshold=threshold, init_hidden=init_hidden)
        for name in self.state_names:
            self.register_buffer(name, torch.zeros(0), persistent=False)

    def reset_state(self):
        for name in self.state_names:
            setattr(self, name, torch.zeros_like(getattr(self, name)))

    def forward(self, input_):
        states = {}
        for name in self.state_names:
            state = getattr(self, name)
            states[name] = state if state.shape == input_.shape else torch.zeros_like(input_)
        for name, state in self.update_fn(states, input_).items():
            setattr(self, name, state)
        spk = self.fire(getattr(self, self.state_names[0]))
        return spk if self.init_hidden else (spk, *(getattr(self, name) for name in self.state_names))


def neuron_from_equations(name, state_names, update_fn):
    return type(name, (CustomNeuron,), {"state_names": state_names, "update_fn": staticmethod(update_fn)})
"""

_NAMES = """
from .synapticdelay import SynapticDelay
from .customneuron import CustomNeuron, neuron_from_equations
"""

_SURROGATE = """


class ATanSurrogate:
    def __init__(self, alpha=2.0):
        self.alpha = alpha

    def __call__(self, x):
        return ATan.apply(x, self.alpha)


def atan(alpha=2.0):
    return ATanSurrogate(alpha)


def LSO(slope=0.1):
    def inner(x):
        return LeakySpikeOperator.apply(x, slope)

    return inner
"""

_HOMEOSTASIS = """

def _enable_homeostasis(self, increment=0.5, tau=20.0):
    self._homeostasis_enabled = True


SpikingNeuron.enable_homeostasis = _enable_homeostasis
SpikingNeuron._homeostasis_enabled = False
"""

_RESET = """
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron) and hasattr(module, "reset_mem"):
            module.reset_mem()
"""


def build(folder: Path) -> Path:
    """Make the package in ``folder``, which is to come first on the path."""
    package = folder / "snntorch"
    shutil.copytree(Path(snntorch.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).with_name("synaptic_delay.py"), package / "_neurons" / "synapticdelay.py")
    (package / "_neurons" / "customneuron.py").write_text(_CUSTOM_NEURON)
    (package / "_version.py").write_text(f"__version__ = {VERSION!r}\n")
    metadata = folder / f"snntorch-{VERSION}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: snntorch\nVersion: {VERSION}\n")
    for name in ("surrogate.py", "_neurons/neurons.py"):
        _change(package / name, "(input_ > 0).float()", "(input_ > 0).to(input_.dtype)")
    _change(package / "utils.py", "\n    _layer_reset()\n", _RESET)
    for name, more in (
        ("surrogate.py", _SURROGATE), ("_neurons/neurons.py", _HOMEOSTASIS), ("_neurons/__init__.py", _NAMES),
    ):  # fmt: skip
        with (package / name).open("a") as file:
            file.write(more)
    return folder


def _change(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text, f"{path.name} of snnTorch is another one"
    path.write_text(text.replace(before, after))
