"""See :class:`MultiStep` and :class:`Residual`."""

import importlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from snnfast._core import watch
from snnfast._core.linear import Linear
from snnfast._core.norm import Norm
from snnfast._core.ops import has_cpu_kernels
from snnfast._core.settings import check_flag
from snnfast._images.batch_norm import has_batch_statistics, normalised, normalised_constant
from snnfast._images.channels_last import Order, keeps_order
from snnfast._unroll.checks import check_reduce
from snnfast._unroll.ragged import check_steps
from snnfast.networks.checkpoint import State, check_part, in_parts
from snnfast.networks.over_time import (
    check_input,
    check_state,
    check_stateless,
    check_states,
    has_unroll,
    linear_behind,
    norm_before,
    over_time,
    pool_behind,
    unrolled,
)
from snnfast.neurons import LAYERS
from snnfast.neurons.base import SpikingLayer
from snnfast.neurons.network import convert, is_snntorchs

__all__ = ["MultiStep", "Residual"]


class MultiStep(nn.Sequential):
    """Layers in sequence, applied to all time steps at once instead of one step after the other.

    A neuron layer, such as :class:`Leaky`, is unrolled over time in one kernel. Any other layer is applied once to all
    steps together, ``[T * B, *]``. Before the first neuron layer of a constant input, it is applied once to ``[B, *]``.

    The result is that of the loop over time, up to the order of sums inside matrix products, with one exception:
    Dropout before the first neuron layer of a constant input draws one mask for all steps.

    Batch normalisation in training takes the statistics of each step by itself, as in the loop, and updates its running
    averages step by step. Inside of a module of your own, it gets all steps as one batch.

    It is an ``nn.Sequential``, with the same ``state_dict``, ``len``, indices and slices. If a module of your own needs
    all time steps, for a loop or a skip connection inside of it, give it a method ``unroll`` that takes and returns
    ``[T, B, *]``.

    A record, such as ``mem_rec``, is a result: its gradient, which a hook or ``mem_rec.retain_grad()`` sees, is the one
    that the loss has for it. What passes from step to step inside of a layer is not in it.

    On the CPU, two things make it faster:

    - A neuron layer passes its spikes as bits to the ``nn.Linear`` that follows it (:func:`use_events`).
      ``nn.Flatten``, ``nn.Identity`` and an ``nn.Dropout`` that drops nothing may lie between the two. This does not
      apply to modules with hooks, nor to spikes that ``return_spikes`` asks for.
    - float32 ``nn.Conv2d`` layers, and the pooling and neurons behind them, run in channels_last order. The result of a
      call, and the input of a module of your own or of a layer with a hook, have the memory format of the input.

    A batch normalisation in training and the :class:`Leaky` or SpikingJelly's node behind it, which is not the last
    layer, run as one: on CUDA for up to 16 steps, on the CPU where no linear layer takes the spikes. On CUDA, its
    rounding differs from PyTorch's, so that now and then a spike differs. On the CPU, an ``nn.MaxPool2d`` or
    ``nn.AvgPool2d`` behind the two is a part of the call.

    Args:
        *layers: Modules in order of application, or one ``OrderedDict`` of them. The layers of a nested
            ``nn.Sequential`` or ``MultiStep`` are called directly, so that its own hooks do not run.
        batch_norm_over_time: Whether batch normalisation in training takes its statistics from all steps together, and
            updates its running averages once for all, as in SpikingJelly's multi-step mode. It can be changed later, as
            the attribute of this name. That of the outermost ``MultiStep`` counts.

    Raises:
        TypeError: A layer is not a module, or contains a neuron where it can't be unrolled. In a call: a layer returns
            something else than a tensor, such as ``nn.LSTM``.
        ValueError: There is no layer.

    Example::

        >>> import torch, snnfast
        >>> from torch import nn
        >>> net = snnfast.MultiStep(nn.Linear(784, 1000), snnfast.Leaky(0.95), nn.Linear(1000, 10), snnfast.Leaky(0.95))
        >>> spk_rec, mem_rec = net(torch.rand(128, 784), num_steps=25)  # a constant input: the first layer runs once
        >>> spk_rec.shape
        torch.Size([25, 128, 10])
    """

    batch_norm_over_time: bool = False

    def __init__(self, *layers: Any, batch_norm_over_time: bool = False) -> None:
        given = layers[0].values() if len(layers) == 1 and isinstance(layers[0], dict) else layers
        for layer in given:
            if not isinstance(layer, nn.Module):
                raise TypeError(f"layers: expected torch.nn.Module, got {type(layer).__name__}")
        super().__init__(*layers)
        self.batch_norm_over_time = check_flag("batch_norm_over_time", batch_norm_over_time)
        if not self.layers:
            raise ValueError("layers: expected at least one module")
        for layer in self.layers:
            _check_layer(layer)

    def __getitem__(self, idx: slice | int) -> Any:
        found: Any = super().__getitem__(idx)
        if isinstance(idx, slice):
            found.batch_norm_over_time = self.batch_norm_over_time
        return found

    @classmethod
    def from_sequential(cls, net: nn.Sequential) -> Self:
        """Make a ``MultiStep`` of a network that is called step by step in a loop over time.

        It has the same modules under the same names. So its ``state_dict``, optimizers and references stay valid, and
        ``net`` itself still runs step by step. Neurons of snnTorch are put on the kernels in place, as
        :func:`snnfast.snntorch.convert` does.

        A call goes on from the states that layers with ``init_hidden=True`` hold, as the loop does. Reset them between
        samples, as before: ``snntorch.utils.reset`` reaches snnTorch's layers, :func:`snnfast.reset` all layers.

        The numbers are those of the loop up to rounding, with one exception: a last layer without ``init_hidden``
        starts every call from zeros. A call returns ``(spk_rec, mem_rec)`` whatever ``output`` is, also where a step
        returns only the spikes. Hooks of neuron layers, nested sequences and ``net`` do not run.

        Args:
            net: Layers of snnTorch or snnfast among others, in order of application. Nested sequences are opened.

        Raises:
            TypeError: ``net`` is no ``nn.Sequential``, or has a ``forward`` of its own. A neuron can't be converted, or
                is inside of a module where it can't be unrolled. Nothing was converted then.
            ValueError: ``net`` is empty, has the same neuron layer twice, or a module named as an attribute of
                ``MultiStep``.

        Example::

            >>> import torch, snnfast, snntorch
            >>> from snntorch import utils
            >>> from torch import nn
            >>> net = nn.Sequential(
            ...     nn.Linear(784, 100), snntorch.Leaky(0.95, init_hidden=True),
            ...     nn.Linear(100, 10), snntorch.Leaky(0.95, init_hidden=True, output=True),
            ... )
            >>> over_time = snnfast.MultiStep.from_sequential(net)
            >>> x = torch.rand(25, 128, 784)
            >>> utils.reset(net)
            >>> spk_rec, mem_rec = over_time(x)  # in place of: for step in range(25): spk, mem = net(x[step])
            >>> spk_rec.shape
            torch.Size([25, 128, 10])
        """
        if not _is_sequence(net):
            problem = ", which has a forward of its own" if isinstance(net, nn.Sequential) else ""
            raise TypeError(f"net: expected torch.nn.Sequential, got {type(net).__name__}{problem}")
        layers = _inside(net)
        _check_names(cls, net)
        _check_neurons(layers)
        for name, layer in layers:
            if not is_snntorchs(layer):
                _check_layer(layer, f"net.{name}", to_convert=True)
        convert(net)
        made = cls(OrderedDict(net._modules))
        made.training = net.training
        return made

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
        states: Sequence[State] | None = None,
        return_states: bool = False,
        return_spikes: bool = False,
        lengths: Tensor | None = None,
        checkpoint: bool | int = False,
    ) -> Any:
        """Apply the layers to every time step.

        Args:
            x: Input of every step ``[T, B, *]``. With ``num_steps``, ``[B, *]``: the same input at each step. A shape
                does not tell what its dimensions mean: ``[B, T, *]`` is read as ``B`` steps of ``T`` samples, so
                ``x.transpose(0, 1)`` first.
            num_steps: Number of steps of a constant input. An input that has time already is taken as one step, and
                repeated as a whole.
            record_mem: Whether a final neuron layer returns its states after every step, or only after the last.
            reduce: ``"sum"``: the last layer, which must be a neuron layer, returns its spike count over time. Its
                spikes are then never written. ``None``: the spikes.
            states: States from which the neuron layers start, as the previous call returned them: one entry for each
                layer in order of application. An entry is ``mem [B, *]``, or for a layer with several states all of
                them, in the order of its ``unroll``. ``None``, for all or as an entry: zeros, or the state that an
                ``init_hidden`` layer holds.
            return_states: Return the last states as well, to continue with the next part of a long sequence.
            return_spikes: Return the spikes of every neuron layer as well, for example to regularise their rates.
            lengths: The number of steps of each sample ``[B]``, for every neuron layer (see
                :func:`snnfast.functional.lif`). Other layers compute the padding, too. ``None``: all have ``T``.
            checkpoint: Whether to trade time for memory in long sequences: the steps run in parts, autograd keeps the
                states between these, and the backward pass computes each part again, but for the last one. ``True``:
                parts of ``sqrt(T)`` steps or more, so long that the layers return at least 3 MiB in each; a sequence
                that is shorter costs little more than without. The first step is then a part of its own, which is
                kept. An integer: parts of so many steps. Neither parameters in place nor options of layers may change
                before the backward pass.

        Returns:
            If the last layer is a neuron layer, what its ``unroll`` returns: ``(spk_rec, mem_rec)``, or
            ``(spk_rec, syn_rec, mem_rec)`` for :class:`Synaptic`, all ``[T, B, *]``. With ``record_mem=False`` the
            states are ``[B, *]``, and with ``reduce="sum"`` the first is the spike count ``[B, *]``. Otherwise, the
            output of the last layer ``[T, B, *]``, or ``[B, *]`` if the input is constant and there is no neuron layer.

            With ``return_states``, the list of states follows, with entries as in ``states``. The entry is ``None`` for
            a layer with ``init_hidden``, which holds its own. States keep their graph: ``detach`` them to cut it
            between two parts. They have the opmath dtype, float32 for half-precision inputs.

            With ``return_spikes``, the list of spikes ``[T, B, *]`` follows, one entry per neuron layer in order of
            application.

        Raises:
            TypeError, ValueError: As :func:`snnfast.functional.lif`. ``x`` has no time or batch dimension, or one of
                PyTorch's layers can't take its shape. ``reduce`` is given, and the last layer is no neuron layer.
                ``states`` has another number of entries or other shapes, has an entry for a layer with ``init_hidden``,
                or is given where a module with an ``unroll`` of its own has neurons; with ``lengths``, that ``unroll``
                must take them as an argument of that name. ``checkpoint`` is less than 1, or given with a module that
                has an ``unroll`` of its own, or with ``batch_norm_over_time`` in training.

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
        num_steps = check_input(x, num_steps)
        record_mem = check_flag("record_mem", record_mem)
        layers = self.layers
        final = layers[-1] if isinstance(layers[-1], SpikingLayer) else None
        if check_reduce(reduce) is not None and final is None:
            raise ValueError(f"reduce: needs a neuron as the last layer, got {type(layers[-1]).__name__}")
        return_states = check_flag("return_states", return_states)
        return_spikes = check_flag("return_spikes", return_spikes)
        every = _without_skips(layers)
        if states is not None or return_states:
            check_states(states, every)
        if lengths is not None:
            lengths = check_steps(lengths, x, "x", *(x.shape[:2] if num_steps is None else (num_steps, x.shape[0])))
        steps = x.shape[0] if num_steps is None else num_steps
        size = check_part(checkpoint, steps, every, self.batch_norm_over_time)
        if size is None:
            run = _Pass(states, return_states, return_spikes, lengths, self.batch_norm_over_time)
            results, last, spikes = run.network(layers, x, num_steps, record_mem, reduce), run.last, run.spikes
        else:
            options = num_steps, record_mem, reduce, states, return_spikes, lengths
            found = self._in_parts(size, checkpoint is True, layers, x, *options)
            results, last, spikes = found
        results += (last,) * return_states + (spikes,) * return_spikes  # type: ignore[operator]
        return results if len(results) > 1 else results[0]

    def _in_parts(
        self,
        size: int,
        grows: bool,
        layers: Sequence[nn.Module],
        x: Tensor,
        num_steps: int | None,
        record_mem: bool,
        reduce: str | None,
        states: Sequence[State] | None,
        return_spikes: bool,
        lengths: Tensor | None,
    ) -> tuple[tuple[Tensor, ...], list[State], list[Tensor]]:
        """The results of a pass in parts, its last states, and the spikes if they are asked for."""
        if num_steps is not None:  # what is the same at every step is computed once
            first = next((i for i, layer in enumerate(layers) if isinstance(layer, SpikingLayer | Residual)), None)
            lead = _Pass(batch_norm_over_time=self.batch_norm_over_time)
            x = lead.order.usual(lead.sequence(layers[:first], x, num_steps)[0])
            if first is None:
                return (x,), [], []
            layers = layers[first:]

        def run(
            x: Tensor, num_steps: int | None, states: Sequence[State], lengths: Tensor | None
        ) -> tuple[tuple[tuple[Tensor, ...], list[Tensor]], list[State], int]:
            run = _Pass(states, True, return_spikes, lengths, self.batch_norm_over_time)
            return (run.network(layers, x, num_steps, record_mem, reduce), run.spikes), run.last, run.returned

        every = _without_skips(layers)
        if states is None:
            states = [None] * sum(isinstance(layer, SpikingLayer) for layer in every)
        parts, last = in_parts(self, run, every, x, num_steps, states, lengths, size, grows)
        results, every_spikes = zip(*parts, strict=True)
        first_results, *others = zip(*results, strict=True)
        head = _over_parts(first_results) if reduce is None else torch.stack(first_results).sum(0)
        rest = [_over_parts(each) if record_mem else each[-1] for each in others]
        spikes = list(map(_over_parts, zip(*every_spikes, strict=True)))
        if spikes and isinstance(layers[-1], SpikingLayer):
            spikes[-1] = head  # the two are one result, a count with ``reduce``
        return (head, *rest), last, spikes


class Residual(nn.Module):
    """A skip connection around layers, over all time steps: ``layers(x) + x``, as in a spiking ResNet.

    Use it as a layer of a :class:`MultiStep`. It adds ``x`` to the output of its last layer: to spikes if that is a
    neuron layer (spike-element-wise), otherwise to currents.

    Args:
        *layers: Layers, as :class:`MultiStep` takes them.
        shortcut: A module that is applied to ``x`` first, such as a convolution with a stride, or an ``nn.Sequential``
            with a neuron layer. ``None``: ``x`` itself.

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
        """Map the input of every step ``[T, B, *]``, or ``[B, *]`` with ``num_steps``, to ``[T, B, *]``.

        Raises:
            ValueError: The shapes of the two summands differ.
        """
        run = _Pass()
        return run.order.usual(run.residual(self, x, check_input(x, num_steps))[0])


class _Pass:
    """One pass through a network: the options of the call, and the states and spikes that it collects.

    A signal is the pair of ``x`` and ``num_steps``. A signal that is the same at every step is ``[B, *]`` and
    ``num_steps``. Any other is ``[T, B, *]`` and ``None``.
    """

    def __init__(
        self,
        states: Sequence[State] | None = None,
        return_states: bool = False,
        return_spikes: bool = False,
        lengths: Tensor | None = None,
        batch_norm_over_time: bool = False,
    ) -> None:
        self.states = states
        self.return_states = return_states
        self.return_spikes = return_spikes
        self.lengths = lengths
        self.batch_norm_over_time = batch_norm_over_time
        self.number = 0  # of the next neuron
        self.order = Order()
        self.last: list[State] = []
        self.spikes: list[Tensor] = []
        self.returned = 0  # bytes of what the layers return

    def network(
        self, layers: Sequence[nn.Module], x: Tensor, num_steps: int | None, record_mem: bool, reduce: str | None
    ) -> tuple[Tensor, ...]:
        """Run all layers. Returns what a call does, without the last states and the spikes."""
        final = layers[-1] if isinstance(layers[-1], SpikingLayer) else None
        x, num_steps = self.sequence(layers if final is None else layers[:-1], x, num_steps)
        x = self.order.usual(x)
        return (x,) if final is None else self.neuron(final, x, num_steps, record_mem, reduce)

    def sequence(self, layers: Sequence[nn.Module], x: Tensor, num_steps: int | None) -> tuple[Tensor, int | None]:
        rest = list(layers)
        while rest:
            layer = rest.pop(0)
            if not isinstance(layer, SpikingLayer | Residual) and not keeps_order(layer):
                x = self.order.usual(x)
            if isinstance(layer, SpikingLayer):
                linear, taken = None, 0
                if not self.return_spikes:
                    linear, taken = linear_behind(rest, x.dim() - (num_steps is None))
                if linear is not None:
                    for watcher in watch.watchers:
                        watcher.taken_by(rest[taken - 1])
                rest = rest[taken:]
                x, num_steps = self.neuron(layer, x, num_steps, linear=linear)[0], None
            elif isinstance(layer, Residual):
                x, num_steps = self.residual(layer, x, num_steps)
            elif (norm := self._norm(layer, rest, x, num_steps)) is not None:
                neurons: Any = rest.pop(0)
                if rest and not self.return_spikes:
                    pool = pool_behind(rest[0], x, partial(self._stateless, rest[0], num_steps=None))
                    rest, norm = rest[pool is not None :], norm._replace(pool=pool)
                x = self.neuron(neurons, x, None, norm=norm)[0]
            elif has_unroll(layer):
                x = x if num_steps is None else x.expand(num_steps, *x.shape)
                x, num_steps = unrolled(layer, x, self.lengths), None
            else:
                if not torch.compiler.is_compiling():
                    _check_layer(layer)  # a model may have been changed, or reverted to snnTorch's layers
                x = self._stateless(layer, x, num_steps)
        return x, num_steps

    def _stateless(self, layer: nn.Module, x: Tensor, num_steps: int | None) -> Tensor:
        call = self._of_each_step(layer, x, num_steps) or self.order.to_call(layer, x, num_steps is not None)
        x = over_time(layer, call, x, num_steps)
        self.returned += _bytes(x)
        return x

    def _norm(self, layer: nn.Module, rest: list[nn.Module], x: Tensor, num_steps: int | None) -> Norm | None:
        """The batch normalisation that a layer is, if neurons follow and there are kernels for both."""
        if num_steps is not None or not rest or not isinstance(rest[0], SpikingLayer):
            return None
        if has_cpu_kernels(x.device) and not self.return_spikes and linear_behind(rest[1:], x.dim())[0] is not None:
            return None  # which takes the spikes as bits
        return norm_before(layer, x, self.batch_norm_over_time, lambda x: self._stateless(layer, x, None))

    def _of_each_step(self, layer: nn.Module, x: Tensor, num_steps: int | None) -> Callable[[Tensor], Tensor] | None:
        """The call of a normalisation that takes its statistics from each step; ``None`` for any other layer."""
        averages = isinstance(layer, _InstanceNorm) and layer.training and layer.track_running_stats
        if self.batch_norm_over_time or not (averages or has_batch_statistics(layer)):
            return None
        norm: Any = layer
        if num_steps is not None:
            return lambda batch: normalised_constant(norm, batch, num_steps)
        return lambda batch: normalised(norm, batch.view(x.shape)).flatten(0, 1)

    def neuron(
        self,
        layer: SpikingLayer,
        x: Tensor,
        num_steps: int | None,
        record_mem: bool = False,
        reduce: str | None = None,
        linear: Linear | None = None,
        norm: Norm | None = None,
    ) -> tuple[Tensor, ...]:
        number, n = self.number, len(layer.neuron.states)
        self.number += 1
        given = None if self.states is None else self.states[number]
        states = check_state(number, given, layer, x.shape[1:] if num_steps is None else x.shape)
        options = record_mem, reduce, self.return_states, linear, self.lengths, norm
        found = layer._unroll(x, states, num_steps, *options)
        self.returned += _bytes(found[0])
        if self.return_states:
            found, last = found[:-n], found[-n:]
            last = tuple(map(self.order.shown, last))
            self.last.append(None if layer.init_hidden else last[0] if n == 1 else last)
        if self.return_spikes:
            self.spikes.append(self.order.shown(found[0]))
        return found

    def residual(self, block: Residual, x: Tensor, num_steps: int | None) -> tuple[Tensor, int | None]:
        before = self.order.is_channels_last
        y, steps_y = self.sequence(block.layers.layers, x, num_steps)
        y_is_channels_last, self.order.is_channels_last = self.order.is_channels_last, before
        z, steps_z = x, num_steps
        if block.shortcut is not None:
            z, steps_z = self.sequence(_opened(block.shortcut), x, num_steps)
        shape_y, shape_z = (s.shape[1:] if n is None else s.shape for s, n in ((y, steps_y), (z, steps_z)))
        if shape_y != shape_z:
            raise ValueError(
                f"shortcut: expected steps of the shape that the layers return, {tuple(shape_y)}, got {tuple(shape_z)}"
            )
        self.order.is_channels_last |= y_is_channels_last
        return y + z, None if steps_y is None or steps_z is None else num_steps


def _over_parts(parts: Sequence[Tensor]) -> Tensor:
    """All steps ``[T, B, *]`` of some parts, in their memory format, which ``torch.cat`` knows of batches alone."""
    steps = sum(map(len, parts))
    return torch.cat([part.flatten(0, 1) for part in parts]).view(steps, *parts[0].shape[1:])


def _inside(sequence: nn.Sequential, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The layers of a sequence in order of application and their names, nested sequences opened."""
    layers: list[tuple[str, nn.Module]] = []
    for child, layer in zip(sequence._modules, sequence, strict=True):
        name = prefix + child
        layers += _inside(layer, f"{name}.") if _is_sequence(layer) else [(name, layer)]
    return layers


def _is_sequence(module: object) -> TypeGuard[nn.Sequential]:
    own = (nn.Sequential.forward, MultiStep.forward)
    return isinstance(module, nn.Sequential) and type(module).forward in own


def _opened(module: nn.Module) -> list[nn.Module]:
    return [layer for _, layer in _inside(module)] if _is_sequence(module) else [module]


def _without_skips(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """The layers in order of application, each :class:`Residual` replaced by the layers in it."""
    flat: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, Residual):
            shortcut = [] if layer.shortcut is None else _opened(layer.shortcut)
            flat += _without_skips(layer.layers.layers + shortcut)
        else:
            flat.append(layer)
    return flat


def _check_layer(layer: nn.Module, argument: str = "layers", *, to_convert: bool = False) -> None:
    if not isinstance(layer, SpikingLayer | Residual) and not has_unroll(layer):
        check_stateless(layer, argument, to_convert)


# ---- the checks of ``from_sequential``


def _check_names(cls: type[nn.Sequential], net: nn.Sequential) -> None:
    """Raise unless an instance of ``cls`` can have the modules under their names."""
    if not len(net):
        raise ValueError("net: expected at least one module")
    for name in net._modules:
        if hasattr(cls, name):
            raise ValueError(f"net: {cls.__name__} has an attribute {name!r} already; give that module another name")


def _check_neurons(layers: Sequence[tuple[str, nn.Module]]) -> None:
    """Raise unless every neuron layer can be unrolled and has a state of its own."""
    names: dict[nn.Module, str] = {}
    for name, layer in layers:
        if not isinstance(layer, SpikingLayer) and not is_snntorchs(layer):
            continue
        kind = type(layer).__name__
        if layer in names:
            raise ValueError(
                f"net.{name}: the same {kind} as net.{names[layer]}; in a loop the two share one state, which can't be "
                "unrolled; make a layer for each"
            )
        names[layer] = name
        if (reason := _why_not_unrolled(layer)) is not None:
            raise TypeError(f"net.{name}: {kind} can't be unrolled: {reason}; keep the loop over time")


def _why_not_unrolled(layer: nn.Module) -> str | None:
    """Why a neuron layer can't be unrolled."""
    if not isinstance(layer, SpikingLayer):
        reason: str | None = importlib.import_module("snnfast.snntorch._convert")._reason_to_leave(layer)
        return reason
    own = "forward" in vars(layer) or not any(type(layer).forward is known.forward for known in LAYERS.values())
    return f"{type(layer).__name__} has its own forward" if own else None


def _bytes(t: Tensor) -> int:
    return t.numel() * t.element_size()  # unlike nbytes, it takes sizes that are symbols
