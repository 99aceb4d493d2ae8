"""snnTorch's ``spikegen``, of which :func:`rate` and :func:`rate_conv` draw the same spikes faster.

Everything else is snnTorch's own.
"""

import threading
from typing import Any

import torch
from snntorch import spikegen as _theirs
from snntorch.spikegen import *  # noqa: F403 - all that snnTorch has
from torch import Tensor

from snnfast._core import backend, ops
from snnfast._core.pytorch import transforms_are_active

__all__ = [name for name in vars(_theirs) if not name.startswith("_")]  # as a star import of snnTorch's has them

_drawing = threading.Lock()


def rate(
    data: Tensor,
    num_steps: Any = False,
    gain: Any = 1,
    offset: Any = 0,
    first_spike_time: int = 0,
    time_var_input: bool = False,
) -> Tensor:
    """Encode values as spike rates: a spike at each step with a probability of ``data * gain + offset``.

    The arguments, the errors and the spikes are those of ``snntorch.spikegen.rate``, and so is the state of PyTorch's
    generator afterwards. float32 on the CPU is drawn by a kernel, from probabilities that are computed once instead of
    once for each step. Anything else is snnTorch's call: another dtype or device, data with gradients, tensors as
    ``gain`` or ``offset``, and calls that are traced or recorded.

    Args:
        data: Values ``[B, *]``, usually in 0 to 1; with ``time_var_input``, ``[T, B, *]``.
        num_steps: The number of steps T. Not with ``time_var_input``.
        gain: Scales the values.
        offset: Is added to them.
        first_spike_time: There are no spikes before this step.
        time_var_input: The values are others at each step.

    Returns:
        Spikes ``[T, B, *]``, 0 or 1, in the dtype of ``data``. They have no gradient.

    Raises:
        Exception: As snnTorch raises it, for arguments that do not go together.

    Example::

        >>> import torch
        >>> from snnfast.snntorch import spikegen
        >>> spikegen.rate(torch.tensor([0.0, 1.0]), num_steps=3)
        tensor([[0., 1.],
                [0., 1.],
                [0., 1.]])
    """
    steps = num_steps if type(num_steps) is int and num_steps > 0 else 0
    by_kernel = steps and not time_var_input and 0 <= first_spike_time < steps and _takes(data, gain, offset)
    if not by_kernel:
        return _theirs.rate(data, num_steps, gain, offset, first_spike_time, time_var_input)  # type: ignore[no-any-return]
    spikes = _drawn((data * gain + offset).clamp(0, 1).contiguous(), steps)
    spikes[:first_spike_time] = 0
    return spikes


def rate_conv(data: Tensor) -> Tensor:
    """Draw a spike with each probability in ``data``, as ``snntorch.spikegen.rate_conv``: see :func:`rate`.

    Args:
        data: Probabilities ``[*]``. Values below 0 and above 1 count as 0 and 1.

    Returns:
        Spikes ``[*]``, 0 or 1.

    Example::

        >>> import torch
        >>> from snnfast.snntorch import spikegen
        >>> spikegen.rate_conv(torch.tensor([0.0, 2.0]))
        tensor([0., 1.])
    """
    if _takes(data) and data.is_contiguous():
        return _drawn(data.clamp(0, 1), 1)[0]
    return _theirs.rate_conv(data)  # type: ignore[no-any-return]


def _takes(data: Any, *numbers: Any) -> bool:
    return (
        type(data) is Tensor
        and data.dtype == torch.float32
        and data.device.type == "cpu"
        and data.layout == torch.strided
        and not data.requires_grad
        and all(type(a) in (int, float) for a in numbers)
        and ops.extension is not None
        and backend.current_backend() != "reference"
        and not torch.compiler.is_compiling()
        and not transforms_are_active()
        and torch._C._len_torch_function_stack() == 0
        and torch._C._len_torch_dispatch_stack() == 0
    )


def _drawn(probabilities: Tensor, steps: int) -> Tensor:
    """Spikes ``[steps, *]`` with the next random numbers of PyTorch's generator.

    Another thread that draws by PyTorch at the same moment may get some of the same numbers: the lock of PyTorch's
    generator can't be taken from Python.
    """
    if probabilities.isnan().any():
        torch.bernoulli(probabilities)  # raises PyTorch's error
    with _drawing:
        state = torch.default_generator.get_state()
        spikes: Tensor = torch.ops.snnfast.draw_spikes(probabilities, steps, state)
        torch.default_generator.set_state(state)
    return spikes
