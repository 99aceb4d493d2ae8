"""See :class:`MultiStep` and :class:`Residual`."""

from collections.abc import Sequence
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from snnfast._arguments import check_flag, check_num_steps, check_reduce
from snnfast._layer import SpikingLayer
from snnfast._neurons import LAYERS, is_snntorchs

__all__ = ["MultiStep", "Residual"]

State = Tensor | tuple[Tensor | None, ...] | None
"""Of one neuron layer: its state, or a tuple of them where its neurons have several."""


class MultiStep(nn.Sequential):
    """Layers in sequence, applied to all time steps at once instead of one step after the other.

    Each neuron layer (:class:`Leaky` and the like) is unrolled over time in one kernel. Every other layer has no
    state and is applied once to all steps together, ``[T * B, *]``; as long as the signal is still the same at every
    step, once to ``[B, *]``. The result is that of the loop over time, up to the order of floating-point sums inside
    matrix products. (Layers with statistics over the batch, such as batch normalisation, see all steps of it together,
    and dropout before the first neuron layer of a constant input draws one mask for all steps.)

    It is an ``nn.Sequential``: the same ``state_dict``, ``len``, indices and slices. A module of your own that needs
    all time steps, for a loop or a skip connection inside of it, has a method ``unroll``: it is called with
    ``[T, B, *]`` and returns ``[T, B, *]``.

    Args:
        *layers: Modules in order of application, or one ``OrderedDict`` of them. Nested ``nn.Sequential`` and
            ``MultiStep`` are opened (their own hooks do not run).

    Raises:
        TypeError: Something that is not a module, or a module that contains a neuron where it can't be unrolled.

    Example::

        >>> import torch, snnfast
        >>> from torch import nn
        >>> net = snnfast.MultiStep(nn.Linear(784, 1000), snnfast.Leaky(0.95), nn.Linear(1000, 10), snnfast.Leaky(0.95))
        >>> spk_rec, mem_rec = net(torch.rand(128, 784), num_steps=25)  # a constant input: the first layer runs once
        >>> spk_rec.shape
        torch.Size([25, 128, 10])
    """

    def __init__(self, *layers: Any) -> None:
        given = layers[0].values() if len(layers) == 1 and isinstance(layers[0], dict) else layers
        for layer in given:
            if not isinstance(layer, nn.Module):
                raise TypeError(f"layers: expected torch.nn.Module, got {type(layer).__name__}")
        super().__init__(*layers)
        if not self.layers:
            raise ValueError("layers: expected at least one module")
        for layer in self.layers:
            _check_layer(layer)

    @property
    def layers(self) -> list[nn.Module]:
        """The layers in order of application, nested ones opened."""
        return [layer for _, layer in _inside(self)]

    def forward(
        self,
        x: Tensor,
        num_steps: int | None = None,
        *,
        record_mem: bool = True,
        reduce: str | None = None,
        membrane_dtype: torch.dtype | None = None,
        states: Sequence[State] | None = None,
        return_states: bool = False,
        return_spikes: bool = False,
    ) -> Any:
        """Apply the layers to every time step.

        Args:
            x: Input of every step ``[T, B, *]``; with ``num_steps`` the same input ``[B, *]`` at each step.
            num_steps: Number of steps of a constant input.
            record_mem: Whether a final neuron layer returns its states at every step or only the last.
            reduce: ``"sum"``: a final neuron layer, which there must be, returns the sum of its spikes over time in
                place of those of every step, which are then never written. ``None``: the spikes.
            membrane_dtype: ``torch.bfloat16``: every :class:`Leaky` keeps its membranes for backward at half size,
                for gradients that are rounded (see :func:`snnfast.functional.lif`). Other neurons can't.
            states: What the neuron layers start from, one entry each in order of application: what the call before
                returned. An entry is ``mem [B, *]``, or ``(syn, mem)`` of :class:`Synaptic`. ``None``, also as an
                entry: zeros, or what an ``init_hidden`` layer holds.
            return_states: Return the last states as well, to go on with the next part of a long sequence.
            return_spikes: Return the spikes of every neuron layer as well, for example to regularise their rates.

        Returns:
            What ``unroll`` of a final neuron layer returns: ``(spk_rec, mem_rec)``, or ``(spk_rec, syn_rec, mem_rec)``
            of :class:`Synaptic`, all ``[T, B, *]`` (states ``[B, *]`` with ``record_mem=False``, the spike count
            ``[B, *]`` with ``reduce="sum"``). Else the output of the last layer ``[T, B, *]``, which is ``[B, *]`` if
            no neuron layer came before it and the input is constant.

            After these come, if asked for, the list of states, entries as in ``states`` (``None`` for a layer with
            ``init_hidden``, which holds its own), and the list of spikes ``[T, B, *]``, one entry per neuron layer in
            order of application. States keep their graph: ``detach`` them to cut it between two parts. They are in the
            dtype of the arithmetic, float32 for half-precision inputs.

        Raises:
            TypeError, ValueError: As :func:`snnfast.functional.lif`; ``x`` without time and batch dimensions;
                ``reduce`` where the last layer is no neuron layer; ``membrane_dtype`` where a neuron layer needs more
                than its membrane for backward; ``states`` of another number or shape, for a layer with
                ``init_hidden``, or where a module with an ``unroll`` of its own has neurons.

        Example::

            >>> import torch, snnfast
            >>> from torch import nn
            >>> net = snnfast.MultiStep(nn.Linear(6, 5), snnfast.Leaky(0.9), nn.Linear(5, 2), snnfast.Leaky(0.9))
            >>> states = None
            >>> for part in torch.rand(100, 8, 6).split(25):  # truncated backpropagation through time
            ...     spk_rec, mem_rec, states, spikes = net(part, states=states, return_states=True, return_spikes=True)
            ...     (mem_rec.square().mean() + 0.1 * spikes[0].mean()).backward()
            ...     states = [mem.detach() for mem in states]
        """
        num_steps = _check_input(x, num_steps)
        record_mem = check_flag("record_mem", record_mem)
        layers = self.layers
        final = layers[-1] if isinstance(layers[-1], SpikingLayer) else None
        if check_reduce(reduce) is not None and final is None:
            raise ValueError(f"reduce: needs a neuron as the last layer, got {type(layers[-1]).__name__}")
        return_states = check_flag("return_states", return_states)
        return_spikes = check_flag("return_spikes", return_spikes)
        if states is not None or return_states:
            _check_states(states, layers)
        call = _Call(membrane_dtype, states, return_states, return_spikes)
        x, num_steps = call.sequence(layers if final is None else layers[:-1], x, num_steps)
        results: tuple[Any, ...] = (x,)
        if final is not None:
            results = call.neuron(final, x, num_steps, record_mem, reduce)
        if return_states:
            results += (call.last,)
        if return_spikes:
            results += (call.spikes,)
        return results if len(results) > 1 else results[0]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # Before it was an nn.Sequential, its keys were "layers." and the number in order of application.
        old = f"{prefix}layers."
        names = [name for name, _ in _inside(self)]
        for key in [key for key in state_dict if key.startswith(old)]:
            number, dot, rest = key.removeprefix(old).partition(".")
            if dot and number.isdecimal() and int(number) < len(names):
                state_dict[f"{prefix}{names[int(number)]}.{rest}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Residual(nn.Module):
    """A skip connection around layers, over all time steps: ``layers(x) + x``, as in a spiking ResNet.

    In a :class:`MultiStep` it is one of the layers. What is added to ``x`` is the output of the last layer, so the
    spikes if that is a neuron layer (spike-element-wise), or currents if the next layer is one.

    Args:
        *layers: What :class:`MultiStep` takes.
        shortcut: The module that ``x`` goes through, such as a convolution with a stride or an ``nn.Sequential`` with
            a neuron layer. ``None``: ``x`` itself.

    Raises:
        TypeError: As :class:`MultiStep`.

    Example::

        >>> import torch, snnfast
        >>> from torch import nn
        >>> block = snnfast.Residual(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), snnfast.Leaky(0.9))
        >>> net = snnfast.MultiStep(nn.Conv2d(1, 8, 3), snnfast.Leaky(0.9), block, nn.Flatten(), nn.Linear(288, 10))
        >>> net(torch.rand(25, 4, 1, 8, 8)).shape
        torch.Size([25, 4, 10])

    Source: W. Fang et al., *Deep residual learning in spiking neural networks*, NeurIPS 2021.
    """

    def __init__(self, *layers: Any, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = MultiStep(*layers)
        if shortcut is not None:
            if not isinstance(shortcut, nn.Module):
                raise TypeError(f"shortcut: expected torch.nn.Module or None, got {type(shortcut).__name__}")
            for layer in _opened(shortcut):
                _check_layer(layer, "shortcut")
        self.shortcut = shortcut

    def forward(self, x: Tensor, num_steps: int | None = None) -> Tensor:
        """Input of every step ``[T, B, *]``, or ``[B, *]`` with ``num_steps``, to ``[T, B, *]``.

        Raises:
            ValueError: The shapes of the two that are to be added differ.
        """
        return _Call().residual(self, x, _check_input(x, num_steps))[0]


class _Call:
    """One pass through a network: what is asked for, and what is collected on the way.

    A signal is ``x`` and ``num_steps``: ``[B, *]`` as long as it is the same at ``num_steps`` steps, then ``[T, B, *]``
    and ``None``.
    """

    def __init__(
        self,
        membrane_dtype: torch.dtype | None = None,
        states: Sequence[State] | None = None,
        return_states: bool = False,
        return_spikes: bool = False,
    ) -> None:
        self.membrane_dtype = membrane_dtype
        self.states = states
        self.return_states = return_states
        self.return_spikes = return_spikes
        self.number = 0  # of the next neuron
        self.last: list[State] = []
        self.spikes: list[Tensor] = []

    def sequence(self, layers: Sequence[nn.Module], x: Tensor, num_steps: int | None) -> tuple[Tensor, int | None]:
        for layer in layers:
            if isinstance(layer, SpikingLayer):
                x, num_steps = self.neuron(layer, x, num_steps)[0], None
            elif isinstance(layer, Residual):
                x, num_steps = self.residual(layer, x, num_steps)
            elif _has_unroll(layer):
                x, num_steps = _unrolled(layer, x if num_steps is None else x.expand(num_steps, *x.shape)), None
            else:
                if not torch.compiler.is_compiling():
                    _check_layer(layer)  # a model may have been changed, or reverted to snnTorch's layers
                x = layer(x) if num_steps is not None else _over_time(layer, x)
        return x, num_steps

    def neuron(
        self, layer: SpikingLayer, x: Tensor, num_steps: int | None, record_mem: bool = False, reduce: str | None = None
    ) -> tuple[Tensor, ...]:
        number, n = self.number, len(layer.neuron.states)
        self.number += 1
        given = None if self.states is None else self.states[number]
        states = _check_state(number, given, layer, x.shape[1:] if num_steps is None else x.shape)
        found = layer._unroll(x, states, num_steps, record_mem, reduce, self.membrane_dtype, last=self.return_states)
        if self.return_states:
            found, last = found[:-n], found[-n:]
            self.last.append(None if layer.init_hidden else last[0] if n == 1 else last)
        if self.return_spikes:
            self.spikes.append(found[0])
        return found

    def residual(self, block: Residual, x: Tensor, num_steps: int | None) -> tuple[Tensor, int | None]:
        y, steps_y = self.sequence(block.layers.layers, x, num_steps)
        z, steps_z = x, num_steps
        if block.shortcut is not None:
            z, steps_z = self.sequence(_opened(block.shortcut), x, num_steps)
        shape_y, shape_z = (s.shape[1:] if n is None else s.shape for s, n in ((y, steps_y), (z, steps_z)))
        if shape_y != shape_z:
            raise ValueError(
                f"shortcut: expected steps of the shape that the layers return, {tuple(shape_y)}, got {tuple(shape_z)}"
            )
        return y + z, None if steps_y is None or steps_z is None else num_steps


def _check_input(x: object, num_steps: int | None) -> int | None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
    if x.dim() < (2 if num_steps is None else 1):
        expected = "[T, B, *]" if num_steps is None else "[B, *]"
        raise ValueError(f"x: expected {expected}, got shape {tuple(x.shape)}")
    return None if num_steps is None else check_num_steps(num_steps)


def _check_states(states: object, layers: Sequence[nn.Module]) -> None:
    layers = _without_skips(layers)
    for layer in layers:
        for module in () if isinstance(layer, SpikingLayer) or not _has_unroll(layer) else layer.modules():
            if (isinstance(module, SpikingLayer) or is_snntorchs(module)) and not getattr(module, "init_hidden", False):
                raise ValueError(
                    f"states: {type(layer).__name__} has an unroll of its own, and in it a neuron whose state can't be "
                    "passed; give that init_hidden=True"
                )
    if states is None:
        return
    if not isinstance(states, list | tuple):
        raise TypeError(f"states: expected a list of torch.Tensor or None, got {type(states).__name__}")
    number = sum(isinstance(layer, SpikingLayer) for layer in layers)
    if len(states) != number:
        raise ValueError(f"states: expected {number}, one per neuron layer, got {len(states)}")


def _check_state(number: int, given: object, layer: SpikingLayer, step_shape: torch.Size) -> tuple[Tensor | None, ...]:
    """The states that a layer starts from, in the order of its ``unroll``."""
    names = layer.neuron.states
    if given is None:
        return (None,) * len(names)
    if layer.init_hidden:
        raise ValueError(f"states[{number}]: expected None for a layer with init_hidden=True, which holds its own")
    states = (given,) if len(names) == 1 else given
    if not isinstance(states, tuple | list) or len(states) != len(names):
        raise TypeError(f"states[{number}]: expected ({', '.join(names)}) or None, got {type(given).__name__}")
    for i, state in enumerate(states):
        entry = f"states[{number}]" if len(names) == 1 else f"states[{number}][{i}]"
        if state is not None and not isinstance(state, Tensor):
            raise TypeError(f"{entry}: expected a torch.Tensor or None, got {type(state).__name__}")
        if state is not None and state.shape != step_shape:
            raise ValueError(f"{entry}: expected {tuple(step_shape)}, got {tuple(state.shape)}")
    return tuple(states)


def _over_time(layer: nn.Module, x: Tensor) -> Tensor:
    """A stateless layer on ``[T, B, *]``, as one batch of ``T * B``."""
    steps = x.shape[:2]
    y = layer(x.flatten(0, 1))
    return cast(Tensor, y.reshape(*steps, *y.shape[1:]))


def _has_unroll(layer: nn.Module) -> bool:
    return callable(getattr(layer, "unroll", None))


def _unrolled(layer: Any, x: Tensor) -> Tensor:
    y = layer.unroll(x)
    if not isinstance(y, Tensor) or y.shape[:1] != x.shape[:1]:
        got = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"{type(layer).__name__}.unroll: expected it to return [T, B, *], T={len(x)}, got {got}")
    return y


def _inside(sequence: nn.Sequential, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The layers of a sequence in order of application and their names, nested sequences opened."""
    layers: list[tuple[str, nn.Module]] = []
    for child, layer in zip(sequence._modules, sequence, strict=True):
        name = prefix + child
        layers += _inside(layer, f"{name}.") if _is_sequence(layer) else [(name, layer)]
    return layers


def _is_sequence(module: nn.Module) -> TypeGuard[nn.Sequential]:
    forward = type(module).forward
    return isinstance(module, nn.Sequential) and forward in (nn.Sequential.forward, MultiStep.forward)


def _opened(module: nn.Module) -> list[nn.Module]:
    return [layer for _, layer in _inside(module)] if _is_sequence(module) else [module]


def _without_skips(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """The same with what is in a :class:`Residual` in its place, in order of application."""
    flat: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, Residual):
            shortcut = [] if layer.shortcut is None else _opened(layer.shortcut)
            flat += _without_skips(layer.layers.layers + shortcut)
        else:
            flat.append(layer)
    return flat


def _check_layer(layer: nn.Module, argument: str = "layers") -> None:
    if isinstance(layer, SpikingLayer | Residual) or _has_unroll(layer):
        return
    kind = type(layer).__name__
    if isinstance(layer, nn.ModuleList | nn.ModuleDict):
        raise TypeError(
            f"{argument}: {kind} has no forward; pass its layers one by one, or give a subclass a method unroll that "
            "takes all time steps [T, B, *]"
        )
    for module in layer.modules():
        if isinstance(module, SpikingLayer):
            raise TypeError(
                f"{argument}: {kind} calls a {type(module).__name__} in its forward, which can't be unrolled; pass its "
                "layers one by one or in an nn.Sequential, or give it a method unroll that takes all time steps "
                "[T, B, *]"
            )
        if is_snntorchs(module):
            fused = [layer.__name__ for layer in LAYERS if layer.__name__ in [c.__name__ for c in type(module).__mro__]]
            remedy = "keep the loop over time, or give its module a method unroll with that loop in it"
            if fused:
                remedy = f"use snnfast.{fused[0]}, or snnfast.snntorch.convert"
            raise TypeError(
                f"{argument}: {kind} is or has a neuron of snnTorch ({type(module).__name__}), whose state can't be "
                f"carried over time; {remedy}"
            )
