"""SpikingJelly's layers: PyTorch's with a step mode, and containers of layers."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from snnfast._core.settings import check_flag
from snnfast._images.batch_norm import of_batch
from snnfast._images.channels_last import to_call
from snnfast._images.conv2d import conv2d
from snnfast._images.pool2d import pooled
from snnfast.spikingjelly.base import StepModule
from snnfast.spikingjelly.functional import multi_step_forward, seq_to_ann_forward

__all__ = [
    "Conv2d", "Dropout", "Dropout2d", "MaxPool2d", "MultiStepContainer", "MultiStepDropout", "MultiStepDropout2d",
    "SeqToANNContainer", "StepModeContainer", "VotingLayer",
]  # fmt: skip


class _Layer(StepModule):
    """A layer of PyTorch with a step mode: ``"m"`` takes all steps ``[T, B, *]`` as one batch ``[T * B, *]``."""

    dims: tuple[int, ...] = ()  # that all steps may have; PyTorch's layers would take one less for a single sample

    def __init__(self, *args: Any, step_mode: str = "s", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.step_mode = step_mode

    def forward(self, x: Tensor) -> Tensor:
        if self._step_mode == "s":
            return self._of_batch(x)
        if self.dims and x.dim() not in self.dims:
            expected = " or ".join(map(str, self.dims))
            raise ValueError(f"x: expected all steps [T, B, *] with {expected} dimensions, got shape {tuple(x.shape)}")
        return seq_to_ann_forward(x, self._of_batch)  # type: ignore[no-any-return]

    def _of_batch(self, x: Tensor) -> Tensor:
        return super().forward(x)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return f"{shown}{', ' if shown else ''}step_mode={self.step_mode}"


class Conv2d(_Layer, nn.Conv2d):
    """``nn.Conv2d`` with a step mode.

    On the CPU, it goes by the spikes of an input in channels_last order, if there are few: :func:`snnfast.use_events`.
    """

    dims = (5,)

    def _of_batch(self, x: Tensor) -> Tensor:
        if self.padding_mode != "zeros":
            return super()._of_batch(x)
        return conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class MaxPool2d(_Layer, nn.MaxPool2d):
    """``nn.MaxPool2d`` with a step mode.

    On the CPU, one byte is kept for the gradient of each output, if windows do not overlap.
    """

    dims = (5,)

    def _of_batch(self, x: Tensor) -> Tensor:
        return pooled(self, x)


class _BatchNorm(_Layer, nn.modules.batchnorm._BatchNorm):
    """On the CPU, training goes by kernels that add in another order than PyTorch, if the input is large."""

    def _of_batch(self, x: Tensor) -> Tensor:
        return of_batch(self, x, super()._of_batch)


def _with_step_mode(name: str, *dims: int) -> type[_Layer]:
    doc, kind = f"``nn.{name}`` with a step mode.", _Layer
    if "BatchNorm" in name:
        doc, kind = f'{doc} ``"m"`` takes the statistics over all steps together.\n\n{_BatchNorm.__doc__}', _BatchNorm
    return type(name, (kind, getattr(nn, name)), {"dims": dims, "__module__": __name__, "__doc__": doc})


_MADE = {name: _with_step_mode(name) for name in ("Flatten", "GroupNorm", "Linear", "Upsample")}
for _kind in ("AdaptiveAvgPool", "AvgPool", "BatchNorm", "Conv", "ConvTranspose", "MaxPool"):
    for _n in (1, 2, 3):
        _MADE[f"{_kind}{_n}d"] = _with_step_mode(f"{_kind}{_n}d", *(3,) * (_kind + str(_n) == "BatchNorm1"), _n + 3)
del _MADE["Conv2d"], _MADE["MaxPool2d"]  # above
globals().update(_MADE)
__all__ += sorted(_MADE)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


class VotingLayer(_Layer):
    """The mean of each ``voting_size`` neighbours: ``[*, C * voting_size]`` to ``[*, C]``.

    Args:
        voting_size: The number of neurons that vote for a class.
        step_mode: ``"s"`` or ``"m"``.
    """

    def __init__(self, voting_size: int = 10, step_mode: str = "s") -> None:
        super().__init__(step_mode=step_mode)
        self.voting_size = voting_size

    def _of_batch(self, x: Tensor) -> Tensor:
        return F.avg_pool1d(x.unsqueeze(1), self.voting_size, self.voting_size).squeeze(1)


class Dropout(StepModule):
    """Dropout with one mask for all steps, drawn at the first one after ``functional.reset_net``.

    Args:
        p: The probability of a zero.
        step_mode: ``"s"`` or ``"m"``.
    """

    def __init__(self, p: float = 0.5, step_mode: str = "s") -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p: expected a probability from 0 to below 1, got {p}")
        self.p = p
        self.step_mode = step_mode
        self.mask: Tensor | None = None

    def reset(self) -> None:
        """Draw another mask at the next step."""
        self.mask = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.mask is None:
            self.mask = self._drawn(torch.ones_like(x if self._step_mode == "s" else x[0]))
        return x * self.mask

    def _drawn(self, ones: Tensor) -> Tensor:
        return F.dropout(ones, self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Dropout2d(Dropout):
    """:class:`Dropout` of whole channels."""

    def __init__(self, p: float = 0.2, step_mode: str = "s") -> None:
        super().__init__(p, step_mode)

    def _drawn(self, ones: Tensor) -> Tensor:
        return F.dropout2d(ones, self.p)


class MultiStepDropout(Dropout):
    """:class:`Dropout` for all steps, as in ``clock_driven`` of SpikingJelly 0.0.0.0.12 and before."""

    supported = ("m",)

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p, "m")


class MultiStepDropout2d(Dropout2d):
    """:class:`Dropout2d` for all steps, as in ``clock_driven`` of SpikingJelly 0.0.0.0.12 and before."""

    supported = ("m",)

    def __init__(self, p: float = 0.2) -> None:
        super().__init__(p, "m")


class _Container(nn.Sequential):
    """Layers for one step: ``functional.set_step_mode`` leaves them in ``"s"``."""

    keeps_step_mode = True

    def _check_layers(self) -> None:
        """SpikingJelly's own ``set_step_mode`` knows its own containers only."""
        for name, module in self.named_modules():
            if module is not self and (mode := getattr(module, "step_mode", "s")) != "s":
                raise ValueError(
                    f"step_mode: expected 's' of the layers in a {type(self).__name__}, got {mode!r} of {name}; set "
                    "that of the network by snnfast.spikingjelly.functional.set_step_mode"
                )


class SeqToANNContainer(_Container):
    """Layers without a state, which are called once on all steps of ``[T, B, *]`` as one batch ``[T * B, *]``.

    ``module[i]`` is layer ``i``, and checkpoints may have ``module.`` before the numbers of layers, as versions up to
    0.0.0.0.4 had both.
    """

    @property
    def module(self) -> Any:
        """These layers."""
        return self if len(self) > 1 else self[0]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        old = f"{prefix}module."
        for key in [key for key in state_dict if key.startswith(old)]:
            number = "" if len(self) > 1 else "0."
            state_dict[prefix + number + key.removeprefix(old)] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x_seq: Tensor) -> Tensor:
        self._check_layers()
        return seq_to_ann_forward(x_seq, [to_call(module) for module in self])  # type: ignore[no-any-return]


class MultiStepContainer(_Container):
    """Layers for one step, which are called on each step of ``[T, B, *]``."""

    def forward(self, x_seq: Tensor) -> Tensor:
        self._check_layers()
        return multi_step_forward(x_seq, super().forward)


class StepModeContainer(StepModule, _Container):
    """Layers for one step, with a step mode: for all steps, those with a state are called on each of them.

    Args:
        stateful: Whether a layer has a state.
        step_mode: ``"s"`` or ``"m"``.
        *layers: Layers in order of application.
    """

    def __init__(self, stateful: bool, step_mode: str = "s", *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.stateful = check_flag("stateful", stateful)
        self.step_mode = step_mode

    def forward(self, x: Tensor) -> Tensor:
        self._check_layers()
        if self._step_mode == "s":
            return super().forward(x)  # type: ignore[no-any-return,no-untyped-call]
        return multi_step_forward(x, super().forward) if self.stateful else seq_to_ann_forward(x, super().forward)
