"""Whether the states that a step returns have all of their gradient, as in snnTorch."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from snnfast._core.backend import warn_once
from snnfast._core.ops import RESET_MECHANISMS, STEP, Neuron
from snnfast._core.settings import Choice, Setting, check_flag
from snnfast._unroll.call import Options, UnrollCall, needs_graph
from snnfast.surrogate import DISABLED

__all__ = ["use_state_gradients"]

setting = Setting("state_gradients", False)


def use_state_gradients(wanted: bool) -> Choice[bool]:
    """Choose, for all threads, whether the states that one step returns have all of their gradient, as in snnTorch.

    As a statement it holds from now on. As a context or as a decorator it holds inside the block or the function.

    In ``spk, mem = lif(x, mem)``, snnTorch computes ``spk`` from the ``mem`` that it returns. Here one kernel computes
    both. So a gradient that comes through ``spk`` goes past ``mem``: it reaches the inputs and parameters, but neither
    ``mem.grad`` after ``mem.retain_grad()``, nor a hook of ``mem``, nor ``torch.autograd.grad(loss, mem)``. The first
    two warn. With this setting they have snnTorch's numbers, and a hook may change the gradient. A training step
    takes longer.

    It is needed only for the gradient of a state. Gradients of inputs and parameters are the same without it. It
    concerns calls of one step. A record of :meth:`Leaky.unroll` or :class:`MultiStep` is a result: its gradient is what
    the loss has for it.

    Args:
        wanted: ``True``: a step is recorded as in snnTorch, the spike behind the membrane. ``False``: as one function,
            the default.

    Raises:
        TypeError: ``wanted`` is not a bool.

    Example::

        >>> import torch, snnfast
        >>> lif, mem = snnfast.Leaky(0.9), torch.zeros(3)
        >>> x = torch.tensor([0.5, 1.0, 1.5], requires_grad=True)
        >>> with snnfast.use_state_gradients(True):
        ...     for step in range(5):
        ...         spk, mem = lif(x, mem)
        ...         handle = mem.register_hook(lambda grad: grad.clamp(-0.1, 0.1))
        >>> spk.sum().backward()
    """
    return Choice(setting, check_flag("wanted", wanted))


@lru_cache
def lacking(neuron: Neuron, reset: int, reset_delay: bool, disabled: bool) -> tuple[int, ...]:
    """The outputs of a step that another output is computed from in snnTorch. ``disabled``: no gradient of spikes."""
    mechanism, outputs = RESET_MECHANISMS[reset], len(neuron.states) + 1 - neuron.has_spike_feedback
    found = []
    if mechanism != "none" and (not reset_delay or neuron.whole_step is not None):
        found.append(0)  # the membrane is that after the reset, by the spike
    elif not disabled:
        found.append(outputs - 1)
    if mechanism in neuron.membrane_of_states:
        found += range(1, outputs - 1)
    return tuple(found)


def lacking_of(neuron: Neuron, options: Options) -> tuple[int, ...]:
    disabled = isinstance(options.spike_grad, type(DISABLED))  # a copied layer has another one
    return lacking(neuron, options.reset, options.reset_delay, disabled)


def wants_parts(call: UnrollCall) -> bool:
    """Whether autograd is to see a result of a step before the others that are computed from it."""
    return call.request.time == STEP and needs_graph(call) and len(lacking_of(call.neuron, call.options)) > 0


def kernels_take(call: UnrollCall) -> bool:
    """Whether the kernels can compute such results one after the other."""
    apart = lacking_of(call.neuron, call.options)
    fits = 0 not in apart and (len(apart) <= 1 or call.neuron.synapse is not None)
    return fits and not torch.compiler.is_compiling()


def register_hook_dict(node: Any, tensor: Tensor) -> None:
    """Warn of a hook. ``Tensor.register_hook`` calls this on the node of autograd that made the tensor."""
    tell(node, tensor)
    super(type(node), node)._register_hook_dict(tensor)


def tell(node: Any, tensor: Tensor) -> None:
    """Warn if somebody looks at the gradient of an output of a step, and it is not all."""
    neuron, options, call = node.how[:3]
    if call.time == STEP and tensor.output_nr in lacking_of(neuron, options):
        warn_once(
            "snnfast: the gradient that a hook or retain_grad() sees of a result of one step lacks what comes through "
            "the other results of that step, such as the spikes. snnfast.use_state_gradients(True) gives snnTorch's."
        )
