"""Whether the states that a step returns have all of their gradient, as in snnTorch."""

from typing import Any

from torch import Tensor

from snnfast._core.backend import warn_once
from snnfast._core.ops import RESET_MECHANISMS, STEP, Neuron
from snnfast._core.settings import Choice, Setting, check_flag
from snnfast._unroll.call import Options
from snnfast.surrogate import DISABLED

__all__ = ["use_state_gradients"]

setting = Setting("state_gradients", False)


def use_state_gradients(wanted: bool) -> Choice[bool]:
    """Choose, for all threads, whether the states that one step returns have all of their gradient, as in snnTorch.

    As a statement it holds from now on. As a context or as a decorator it holds inside the block or the function.

    In ``spk, mem = lif(x, mem)``, snnTorch computes ``spk`` from the ``mem`` that it returns. Here one kernel computes
    both. So a gradient that comes through ``spk`` goes past ``mem``: it reaches the inputs and parameters, but neither
    ``mem.grad`` after ``mem.retain_grad()``, nor a hook of ``mem``, nor ``torch.autograd.grad(loss, mem)``. The first
    two warn. With this setting they have snnTorch's numbers, and a hook may change the gradient. The step then runs
    as PyTorch operators, at snnTorch's speed; under ``use_backend("fused")`` it is an error.

    It is needed only for the gradient of a state. Gradients of inputs and parameters are the same without it. It
    concerns calls of one step. A record of :meth:`Leaky.unroll` or :class:`MultiStep` is a result: its gradient is what
    the loss has for it.

    Args:
        wanted: ``True``: a step that autograd records runs on the reference path, the spike behind the membrane.
            ``False``: as one function, the default.

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


def lacking(neuron: Neuron, options: Options) -> tuple[int, ...]:
    """The outputs of a step that another output is computed from in snnTorch."""
    mechanism, outputs = RESET_MECHANISMS[options.reset], len(neuron.states) + 1 - neuron.has_spike_feedback
    found = []
    if mechanism != "none" and (not options.reset_delay or neuron.whole_step is not None):
        found.append(0)  # the membrane is that after the reset, by the spike
    elif not isinstance(options.spike_grad, type(DISABLED)):  # a copied layer has another one
        found.append(outputs - 1)
    if mechanism in neuron.membrane_of_states:
        found += range(1, outputs - 1)
    return tuple(found)


def register_hook_dict(node: Any, tensor: Tensor) -> None:
    """Warn of a hook. ``Tensor.register_hook`` calls this on the node of autograd that made the tensor."""
    tell(node, tensor)
    super(type(node), node)._register_hook_dict(tensor)


def tell(node: Any, tensor: Tensor) -> None:
    """Warn if somebody looks at the gradient of an output of a step, and it is not all."""
    neuron, options, call = node.how[:3]
    if call.time == STEP and tensor.output_nr in lacking(neuron, options):
        warn_once(
            "snnfast: the gradient that a hook or retain_grad() sees of a result of one step lacks what comes through "
            "the other results of that step, such as the spikes. snnfast.use_state_gradients(True) gives snnTorch's."
        )
