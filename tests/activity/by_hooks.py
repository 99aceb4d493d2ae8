"""A count by hooks on the loop, written in another way than the package: products with weights of ones."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

SYNAPSES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Counted:
    """The counts of a network: spikes and outputs of its neurons; synaptic operations or products of its weights."""

    def __init__(self) -> None:
        self.spikes: dict[str, int] = defaultdict(int)
        self.neuron_steps: dict[str, int] = defaultdict(int)
        self._events: dict[tuple[str, str], int] = defaultdict(int)
        self._dense: dict[tuple[str, str], int] = defaultdict(int)
        self._analog: set[tuple[str, str]] = set()

    def of_weight(self, key: tuple[str, str], x: Tensor, events: int, dense: int) -> None:
        self._events[key] += events
        self._dense[key] += dense
        if not ((x == 0) | (x == 1)).all():
            self._analog.add(key)

    @property
    def of_neurons(self) -> dict[str, tuple[int, int]]:
        """Spikes, and how often neurons were asked."""
        return {name: (n, self.neuron_steps[name]) for name, n in self.spikes.items()}

    @property
    def of_weights(self) -> dict[str, tuple[int, int]]:
        """Synaptic operations and multiplications."""
        found: dict[str, tuple[int, int]] = {}
        for key, dense in self._dense.items():
            synops, macs = found.get(key[0], (0, 0))
            is_analog = key in self._analog
            found[key[0]] = (synops, macs + dense) if is_analog else (synops + self._events[key], macs)
        return found


@contextmanager
def counted(net: nn.Module, neurons: tuple[type, ...]) -> Iterator[Counted]:
    found, hooks = Counted(), []
    for name, module in net.named_modules():
        if isinstance(module, neurons):
            hooks.append(module.register_forward_hook(_of_neurons(found, name)))
        if isinstance(module, SYNAPSES) and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
            hooks.append(module.register_forward_hook(_of_synapses(found, name)))
        if isinstance(module, nn.RNNCellBase):
            hooks.append(module.register_forward_hook(_of_cell(found, name)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _of_neurons(found: Counted, name: str) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        spk = output[0] if isinstance(output, tuple) else output
        found.spikes[name] += int((spk.detach() != 0).sum())
        found.neuron_steps[name] += spk.numel()

    return hook


def _of_synapses(found: Counted, name: str) -> Any:
    def hook(module: Any, args: Any, output: Tensor) -> None:
        x = args[0].detach()
        if not isinstance(module, nn.Linear) and x.dim() > module.weight.dim():  # of all steps
            x = x.flatten(0, 1)
        spk, ones = (x != 0).double(), torch.ones_like(module.weight, dtype=torch.float64)
        with torch.no_grad():
            if isinstance(module, nn.Linear):
                events = F.linear(spk, ones).sum()
            elif isinstance(module, nn.modules.conv._ConvTransposeNd):
                transposed = getattr(F, f"conv_transpose{x.dim() - 2}d")
                how = module.stride, module.padding, module.output_padding, module.groups, module.dilation
                events = transposed(spk, ones, None, *how).sum()
            else:
                events = module._conv_forward(spk, ones, None).sum()
        taps = module.weight.numel()
        if isinstance(module, nn.Linear):
            positions = x.numel() // module.in_features
        else:
            of = x if isinstance(module, nn.modules.conv._ConvTransposeNd) else output
            positions = of.numel() // (module.in_channels if of is x else module.out_channels)
        found.of_weight((name, ""), x, int(events), taps * positions)

    return hook


def _of_cell(found: Counted, name: str) -> Any:
    def hook(module: Any, args: Any, output: Any) -> None:
        x, state = args[0].detach(), args[1] if len(args) > 1 else None
        samples = x.numel() // module.input_size
        hidden = state[0] if isinstance(state, tuple) else state
        hidden = x.new_zeros(samples, module.hidden_size) if hidden is None else hidden.detach()
        for key, given, weight in (("ih", x, module.weight_ih), ("hh", hidden, module.weight_hh)):
            found.of_weight((name, key), given, int((given != 0).sum()) * len(weight), samples * weight.numel())

    return hook
