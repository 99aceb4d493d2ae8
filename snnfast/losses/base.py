"""The parts of :mod:`snnfast.losses`: reduction, cross-entropy, spike counts, spike times, targets, checks."""

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

from snnfast._core.pytorch import not_compiled_alone
from snnfast._core.settings import check_flag
from snnfast._unroll.ragged import check_steps, has_values, valid_steps


class Steps(NamedTuple):
    """The steps of each sample, by which it is measured."""

    number: Any  # [B, 1], or an int where it is that of all samples
    valid: Tensor | None = None  # [T, B, 1] bool; None: all

    def only(self, record: Tensor, elsewhere: float = 0) -> Tensor:
        """``record`` ``[T, B, *]`` with ``elsewhere`` at the steps that a sample does not have."""
        if self.valid is None:
            return record
        return torch.where(self.valid.view(*self.valid.shape[:2], *(1,) * (record.dim() - 2)), record, elsewhere)


def steps_of(name: str, record: Tensor, lengths: Tensor | None) -> Steps:
    """The steps of a record ``[T, B, *]``. ``lengths``: as a user gave them."""
    steps, samples = len(record), record.shape[1]
    checked = None if lengths is None else check_steps(lengths, record, name, steps, samples, least=1)
    if checked is None:
        return Steps(steps)
    checked = checked.clamp(1, steps)  # on CUDA nobody has looked at them
    return Steps(checked.view(-1, 1), valid_steps(checked, steps, 2))


class Loss(ABC):
    """A criterion with snnTorch's reduction: a loss is multiplied by its weights before it is reduced."""

    __name__: str  # by which snntorch.backprop tells what a criterion wants

    def __init__(self, reduction: str = "mean", weight: Tensor | None = None) -> None:
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
        if weight is not None and not isinstance(weight, Tensor):
            raise TypeError(f"weight: expected a torch.Tensor or None, got {type(weight).__name__}")
        self.reduction = reduction
        self.weight = weight
        self.__name__ = type(self).__name__

    def __call__(self, spk_out: Tensor, targets: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        record = check_record("spk_out", spk_out)
        return self._reduce(self._compute_loss(record, targets, steps_of("spk_out", record, lengths)))

    @abstractmethod
    def _compute_loss(
        self,
        record: Tensor,  # [T, B, N] floating
        targets: Tensor,
        steps: Steps,
    ) -> Tensor: ...

    @property
    def _first_reduction(self) -> str:
        return self.reduction if self.weight is None else "none"

    def _reduce(self, loss: Tensor) -> Tensor:
        return loss.mean() if self.weight is not None and self.reduction == "mean" else loss

    def _reduce_samples(self, loss: Tensor, number: Tensor | None = None) -> Tensor:
        """Reduce losses ``[B, *]`` without a weight. The mean divides by ``number``, or else by that of losses."""
        if self.reduction == "mean":
            return loss.mean() if number is None else loss.sum() / number
        return loss.sum() if self.reduction == "sum" else loss

    def _cross_entropy(
        self,
        logits: Tensor,  # [B, classes], or [T, B, classes]
        labels: Tensor,  # [B]
        reduction: str,
    ) -> Tensor:
        compute = F.cross_entropy if logits.dim() == 2 else cross_entropy_over_time
        weight = self._weight_for(logits)
        try:
            return compute(logits, labels, weight=weight, reduction=reduction)
        except _OUT_OF_RANGE:
            check_classes(labels, logits.shape[-1], ignored=True)
            raise

    def _weight_for(
        self,
        logits: Tensor,  # [*, classes]
    ) -> Tensor | None:
        weight = self.weight
        if weight is None:
            return None
        check_device("weight", weight, logits)
        if weight.shape != logits.shape[-1:]:
            raise ValueError(f"weight: expected [{logits.shape[-1]}], one per class, got {tuple(weight.shape)}")
        return weight.to(logits.dtype)

    def _weight_of(
        self,
        index: Tensor,  # [*] int64
    ) -> Tensor:
        assert self.weight is not None
        check_device("weight", self.weight, index)
        if self.weight.dim() == 0:
            raise ValueError("weight: expected one per class, got a tensor with no dimensions")
        try:
            return self.weight[index]
        except IndexError:
            size = len(self.weight)
            wrong = next(i for i in index.flatten().tolist() if not -size <= i < size)
            raise ValueError(f"weight: expected one for each of targets, got {size}, and a target of {wrong}") from None

    def _weight_of_class(
        self,
        labels: Tensor,  # [*] int64
    ) -> Tensor:  # [*, 1]
        weight = self._weight_of(labels)
        return weight if weight.dim() > labels.dim() else weight.unsqueeze(-1)


class PopulationLoss(Loss):
    """A criterion that can take several neurons for each class."""

    def __init__(
        self,
        population_code: bool = False,
        num_classes: int = False,
        reduction: str = "mean",
        weight: Tensor | None = None,
    ) -> None:
        super().__init__(reduction, weight)
        self.population_code, self.num_classes = check_population(population_code, num_classes)


def cross_entropy_over_time(
    logits: Tensor,  # [T, B, classes]
    labels: Tensor,  # [B], the same at every step
    **options: Any,
) -> Tensor:  # [T, B] with reduction="none", else []
    """``torch.nn.functional.cross_entropy`` of all steps in one call, with its options, reduced over steps and samples.

    PyTorch's softmax over the last dimension puts the classes of one sample into a vector. If there are fewer classes
    than a vector holds, it computes one after the other. With the samples last, a vector holds that many samples. This
    is done on the CPU only: CUDA adds up the losses of such samples in no fixed order.
    """
    steps = logits.shape[0]
    if logits.device.type == "cpu" and logits.shape[2] < _VECTOR:
        return F.cross_entropy(logits.transpose(1, 2), labels.expand(steps, -1), **options)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.repeat(steps), **options)
    return loss.view(steps, -1) if loss.dim() else loss


_VECTOR = 16
"""float32 numbers in the longest vector, that of AVX-512. For so many classes or more, classes last are as fast."""


_OUT_OF_RANGE = (IndexError, RuntimeError)
"""PyTorch's errors for a label without a class. The labels are looked at only then: looking first costs time."""

_IGNORED = -100
"""The label of samples that a cross-entropy does not count."""


def check_classes(labels: Tensor, classes: int, ignored: bool = False) -> None:
    """Raise if a label has no class. On another device than the CPU, nobody waits for the labels."""
    if labels.device.type != "cpu" or not has_values(labels):
        return
    for label in labels.flatten().tolist():
        if not (0 <= label < classes or (ignored and label == _IGNORED)):
            also = f", or {_IGNORED} for a sample that does not count" if ignored else ""
            raise ValueError(f"targets: expected 0 to {classes - 1}, the numbers of classes{also}, got {label}")


def not_ignored(labels: Tensor) -> Tensor:
    """Which samples a cross-entropy counts."""
    return labels != _IGNORED


def count(
    spk: Tensor,  # [T, B, N]
    population_code: bool,
    num_classes: int,
) -> Tensor:  # [B, N] or [B, num_classes]
    if not population_code:
        return spk.sum(0)
    return add_populations(spk.sum(0, dtype=torch.get_default_dtype()), num_classes)


def add_populations(
    spikes: Tensor,  # [*, N]
    num_classes: int,
) -> Tensor:  # [*, num_classes] of the default dtype, as in snnTorch
    neurons = spikes.shape[-1]
    if neurons % num_classes:
        raise ValueError(f"num_classes: expected a divisor of the {neurons} output neurons, got {num_classes}")
    groups = spikes.reshape(*spikes.shape[:-1], num_classes, neurons // num_classes)
    return groups.sum(-1, dtype=torch.get_default_dtype())


def first_step(
    fired: Tensor,  # [T, B, N] bool, at valid steps only
    steps: Steps,
) -> Tensor:  # [B, N] int64
    """The first step at which a neuron fired, the last one if it never did."""
    each = torch.arange(len(fired), dtype=torch.int32, device=fired.device).view(-1, 1, 1)
    return torch.where(fired, each, steps.number - 1).amin(0).long()


def squared_error(found: Tensor, wanted: Tensor, reduction: str) -> Tensor:
    """``mse_loss`` of tensors that may differ in dtype. With torch 2.11, PyTorch's fails in the backward pass."""
    dtype = torch.promote_types(found.dtype, wanted.dtype)
    return torch.nn.functional.mse_loss(found.to(dtype), wanted.to(dtype), reduction=reduction)


def spike_times(spk: Tensor, count: int, steps: Steps) -> Tensor:
    """Steps of the first ``count`` spikes of each neuron, ``[T, B, N]`` to ``[count, B, N]``, in the spikes' dtype."""
    return cast(Tensor, _SpikeTimes.apply(steps.only(spk), count, steps))


class _SpikeTimes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spk: Tensor, count: int, steps: Steps) -> Tensor:
        fired = spk != 0
        found = [first_step(fired, steps)]
        for _ in range(count - 1):
            # snnTorch clears the whole step, for all samples and neurons.
            if steps.valid is None:
                seen = torch.zeros(len(spk), dtype=torch.bool, device=spk.device)
                seen = seen.index_fill(0, found[-1].flatten(), True).view(-1, 1, 1)
            else:  # or those of each sample
                seen = torch.zeros(spk.shape[:2], dtype=torch.bool, device=spk.device)
                seen = seen.scatter(0, found[-1].t(), True).unsqueeze(2)
            fired = fired & ~seen
            found.append(first_step(fired, steps))
        times = torch.stack(found)
        ctx.save_for_backward(times)
        ctx.num_steps = len(spk)
        return times.to(spk.dtype)

    @staticmethod
    @not_compiled_alone
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (steps,) = ctx.saved_tensors
        grad = -grads[0]
        spk_grad = grad.new_zeros(ctx.num_steps, *steps.shape[1:])
        # One after the other. Silent neurons may have the same step several times: snnTorch keeps the last.
        for i in range(len(steps)):
            spk_grad = spk_grad.scatter(0, steps[i : i + 1], grad[i : i + 1])
        return spk_grad, None, None


def spread(
    labels: Tensor,  # [*] int64
    num_classes: int,
    on: Any,  # numbers, or [*, 1] float64
    off: Any,
) -> Tensor:  # [*, num_classes] float32
    """``on`` at the label and ``off`` elsewhere, as snnTorch's ``spikegen.targets_convert`` has it."""
    if isinstance(on, Tensor):
        elsewhere = torch.where(on > off, off.clamp(min=0), off).float()
        wanted, on = elsewhere.repeat(*(1,) * labels.dim(), num_classes), on.float()
    else:
        elsewhere = max(0.0, off) if on > off else off
        wanted = torch.full((*labels.shape, num_classes), elsewhere, dtype=torch.float32, device=labels.device)
    try:
        return wanted.scatter(-1, labels.unsqueeze(-1), on)
    except _OUT_OF_RANGE:
        check_classes(labels, num_classes)
        raise


def check_record(name: str, record: object) -> Tensor:
    """``record`` as a floating tensor ``[T, B, N]``."""
    tensor = check_real(name, record)
    if tensor.dim() != 3 or not len(tensor):
        raise ValueError(f"{name}: expected [T, B, N] with at least one time step, got shape {tuple(tensor.shape)}")
    return tensor


def check_real(name: str, value: object) -> Tensor:
    """``value`` as a floating tensor."""
    tensor = _check_tensor(name, value)
    if tensor.is_complex():
        raise TypeError(f"{name}: expected a real tensor, got {tensor.dtype}")
    return tensor if tensor.is_floating_point() else tensor.float()


def check_labels(
    targets: object,
    record: Tensor,
    time_var_targets: bool = False,
    floating: bool = False,  # whether snnTorch takes floating numbers here
) -> Tensor:  # [B] or [T, B] int64
    labels = _check_tensor("targets", targets)
    if labels.is_complex() or labels.dtype == torch.bool or (labels.is_floating_point() and not floating):
        raise TypeError(f"targets: expected integers, the numbers of classes, got {labels.dtype}")
    shape = record.shape[:2] if time_var_targets else record.shape[1:2]
    if labels.shape != shape:
        raise ValueError(f"targets: expected shape {tuple(shape)}, a class per sample, got {tuple(labels.shape)}")
    check_device("targets", labels, record)
    return labels.long()


def check_times(
    targets: object,
    record: Tensor,
    multi_spike: bool,
) -> Tensor:  # [F, B or 1, N or 1]; F is 1 without multi_spike
    times = _check_tensor("targets", targets)
    if times.is_complex() or times.dtype == torch.bool:
        raise TypeError(f"targets: expected times in steps, got {times.dtype}")
    check_device("targets", times, record)
    expected, shape = record.shape[1:], tuple(times.shape)
    if not multi_spike and times.dim() <= 2:
        times = times.reshape(1, *(1,) * (2 - times.dim()), *shape)
    if (
        times.dim() != 3
        or not len(times)
        or any(n not in (1, m) for n, m in zip(times.shape[1:], expected, strict=True))
    ):
        name = "[F, B, N]" if multi_spike else "[B, N]"
        raise ValueError(f"targets: expected {name}, with (B, N) broadcastable to {tuple(expected)}, got {shape}")
    return times


def check_device(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, but the record is on {like.device}")


def check_population(population_code: object, num_classes: object) -> tuple[bool, int]:
    code = check_flag("population_code", population_code)
    if not isinstance(num_classes, numbers.Integral):
        raise TypeError(f"num_classes: expected an int, got {type(num_classes).__name__}")
    if code and num_classes < 1:
        raise ValueError(f"num_classes: expected the number of classes, for population_code=True, got {num_classes}")
    return code, int(num_classes)


def check_numbers(name: str, values: object) -> tuple[float, ...]:
    if not isinstance(values, Iterable) or (isinstance(values, Tensor) and values.dim() == 0):
        raise TypeError(f"{name}: expected one number per spike, for multi_spike=True, got {type(values).__name__}")
    return tuple(check_finite(name, value) for value in values)


def check_finite(name: str, value: object) -> float:
    if isinstance(value, Tensor) and value.dim() == 0:
        value = value.item()
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return float(value)


def _check_tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    return value
