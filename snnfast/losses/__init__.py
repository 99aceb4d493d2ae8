# ruff: noqa: N801 - the classes have snnTorch's names
"""Losses, penalties and accuracies over time, vectorised: no loop over steps, samples, neurons or classes.

Names, arguments and values are those of `snntorch.functional
<https://snntorch.readthedocs.io/en/latest/snntorch.functional.html>`_ (1.0.0), and so are the shapes and dtypes of the
results. Gradients agree up to rounding. Only :class:`ce_membrane_loss`, the loss of snnTorch's tutorial 5, does not
exist there.

A loss is made once. It is called with the record of the output layer and the labels::

    >>> import torch
    >>> from snnfast.losses import ce_count_loss
    >>> loss_fn = ce_count_loss()
    >>> spk_out = torch.zeros(25, 2, 10, requires_grad=True)  # [T, B, N]
    >>> loss_fn(spk_out, torch.tensor([3, 7]))
    tensor(2.3026, grad_fn=<NllLossBackward0>)

All have this in common; the docstring of each tells the rest:

- The record is ``[T, B, N]`` with ``T >= 1``: spikes, or membranes in units of the threshold, of any real dtype.
  Integers and booleans count as float32; snnTorch's cross-entropies refuse them. Inputs are never changed in place. One
  sample without a batch dimension is an error, though some of snnTorch's losses take it.
- ``targets``, ``[B]``: the class of each sample, an integer from 0. Cross-entropies ignore targets of -100.
- The result is a scalar, ``[]``. With ``reduction="none"`` it is ``[B]``: a loss for each sample.
- ``population_code``: each of ``num_classes`` classes has ``N / num_classes`` neighbouring neurons, whose spikes are
  added up, in PyTorch's default dtype. ``num_classes`` must divide ``N``.
- ``reduction``: ``"mean"``, ``"sum"`` or ``"none"``, over samples (and neurons, where a loss has one per neuron).
- ``weight``, ``[classes]``: the factor of a sample, by its class. As in snnTorch, the mean of a weighted loss divides
  by the number of samples, and ``"sum"`` of a weighted loss returns the same as ``"none"``. Only
  :class:`ce_temporal_loss` and :class:`ce_membrane_loss` reduce as ``torch.nn.CrossEntropyLoss`` does. The dtype of a
  weight may differ from that of the record, which is an error in snnTorch.
- ``lengths``, ``[B]``, a keyword of every call: the number of steps of each sample, integers from 1 to ``T``, on the
  CPU or the device of the record. Later steps are ignored. ``T`` below then means the number of steps of each sample: a
  mean over steps is over those of the sample. The loss is the mean (or the sum) of the losses of the samples, so that
  each has the same weight, however long it is. Other numbers are an error if ``lengths`` is on the CPU; on CUDA they
  are clamped to the range.
- Errors name the argument: ``TypeError`` for a wrong type, ``ValueError`` for a wrong shape, device or value. A label
  without a class is such a value if ``targets`` are on the CPU. On CUDA, and in a compiled loss, PyTorch's own error
  tells of it, because a check would have to wait for the device. No loss waits, so all losses work in CUDA graphs. An
  accuracy counts such a sample as wrong.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from snnfast._core.settings import check_flag
from snnfast.losses.base import (
    Loss,
    PopulationLoss,
    Steps,
    add_populations,
    check_finite,
    check_labels,
    check_numbers,
    check_population,
    check_real,
    check_record,
    check_times,
    count,
    first_step,
    not_ignored,
    spike_times,
    spread,
    squared_error,
    steps_of,
)

__all__ = [
    "accuracy_rate",
    "accuracy_temporal",
    "ce_count_loss",
    "ce_max_membrane_loss",
    "ce_membrane_loss",
    "ce_rate_loss",
    "ce_temporal_loss",
    "l1_rate_sparsity",
    "mse_count_loss",
    "mse_membrane_loss",
    "mse_temporal_loss",
]


def __dir__() -> list[str]:
    """The losses and accuracies, without the names that this file imports."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


class ce_rate_loss(PopulationLoss):
    """Cross-entropy of the spikes at each step, mean over the steps.

    The result is float32 whatever the spikes are, and ``[1]`` instead of ``[]``, but for the mean of a weighted loss.

    Note:
        snnTorch's population code adds no spikes. It takes a label for the number of a neuron, and needs a ``weight``
        of two values: for the first ``N / num_classes`` neurons, and for the others. Here it is that of
        :class:`ce_count_loss`.

    Example::

        >>> ce_rate_loss()(torch.zeros(25, 2, 10), torch.tensor([3, 7]))
        tensor([2.3026])
    """

    def _compute_loss(self, record: Tensor, targets: Tensor, steps: Steps) -> Tensor:
        labels, record = check_labels(targets, record), steps.only(record)
        logits = add_populations(record, self.num_classes) if self.population_code else record
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        reduction = self._first_reduction
        if reduction == "none" or steps.valid is not None:
            loss = steps.only(self._cross_entropy(logits, labels, "none")).sum(0, dtype=torch.float32)
            loss = loss / (steps.number if steps.valid is None else steps.number.squeeze(1))
            return loss if reduction == "none" else self._reduce_samples(loss, not_ignored(labels).sum()).view(1)
        # Every step has the same number of samples, so the mean of the steps' means is the mean over all.
        loss = self._cross_entropy(logits, labels, reduction)
        return (loss.float() if reduction == "mean" else loss.float() / steps.number).view(1)


class ce_count_loss(PopulationLoss):
    """Cross-entropy of the number of spikes, in their dtype.

    Example::

        >>> loss_fn = ce_count_loss(population_code=True, num_classes=10)
        >>> loss_fn(torch.zeros(25, 2, 200), torch.tensor([3, 7]))  # 20 neurons for each class
        tensor(2.3026)
    """

    def _compute_loss(self, record: Tensor, targets: Tensor, steps: Steps) -> Tensor:
        labels = check_labels(targets, record)
        counts = count(steps.only(record), self.population_code, self.num_classes)
        return self._cross_entropy(counts, labels, self._first_reduction)


class ce_max_membrane_loss(Loss):
    """Cross-entropy of the highest membrane that each neuron reaches, in the dtype of the membranes.

    Its gradient goes to the first step of the maximum. The idea is of F. Zenke's SpyTorch.

    Example::

        >>> ce_max_membrane_loss()(torch.zeros(25, 2, 10), torch.tensor([3, 7]))
        tensor(2.3026)
    """

    def _compute_loss(self, record: Tensor, targets: Tensor, steps: Steps) -> Tensor:
        labels = check_labels(targets, record)
        return self._cross_entropy(steps.only(record, -math.inf).max(0).values, labels, self._first_reduction)


class ce_membrane_loss(Loss):
    """Cross-entropy of the membranes at each step, summed over the steps.

    The loss of snnTorch's `tutorial 5 <https://snntorch.readthedocs.io/en/latest/tutorials/tutorial_5.html>`_.
    Equals ``sum(torch.nn.CrossEntropyLoss(weight, reduction=reduction)(mem[t], targets) for t in range(T))``, in the
    dtype of the membranes.

    Example::

        >>> ce_membrane_loss()(torch.zeros(25, 2, 10), torch.tensor([3, 7]))
        tensor(57.5646)
    """

    def _compute_loss(self, record: Tensor, targets: Tensor, steps: Steps) -> Tensor:
        labels = check_labels(targets, record)
        if steps.valid is not None:
            loss = steps.only(self._cross_entropy(steps.only(record), labels, "none")).sum(0)
            weight, counted = self._weight_for(record), not_ignored(labels)
            of_samples = counted if weight is None else torch.where(counted, weight[labels.clamp(min=0)], 0)
            return self._reduce_samples(loss, of_samples.sum())
        loss = self._cross_entropy(record, labels, self.reduction)
        if self.reduction == "none":
            return loss.sum(0)
        return len(record) * loss if self.reduction == "mean" else loss

    def _reduce(self, loss: Tensor) -> Tensor:
        return loss


class ce_temporal_loss(Loss):
    """Cross-entropy of the inverted time of the first spike of each neuron: the right class should be the first.

    Times and their gradients are those of :class:`mse_temporal_loss`. The result has the dtype of the spikes.

    Args:
        inverse: ``"negate"``: ``-time``; ``"reciprocal"``: ``1 / (time + 1)``.

    Example::

        >>> spk_rec = torch.zeros(25, 1, 10)
        >>> spk_rec[20, 0, 3] = 1
        >>> ce_temporal_loss()(spk_rec, torch.tensor([3]))
        tensor(0.1526)
    """

    def __init__(self, inverse: str = "negate", reduction: str = "mean", weight: Tensor | None = None) -> None:
        super().__init__(reduction, weight)
        if inverse not in ("negate", "reciprocal"):
            raise ValueError(f"inverse: expected 'negate' or 'reciprocal', got {inverse!r}")
        self.inverse = inverse

    def __call__(self, spk_rec: Tensor, targets: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        record = check_record("spk_rec", spk_rec)
        return self._compute_loss(record, targets, steps_of("spk_rec", record, lengths))

    def _compute_loss(self, record: Tensor, targets: Tensor, steps: Steps) -> Tensor:
        labels = check_labels(targets, record)
        times = spike_times(record, 1, steps).squeeze(0)
        return self._cross_entropy(-times if self.inverse == "negate" else 1 / (times + 1), labels, self.reduction)


class mse_count_loss(PopulationLoss):
    """Squared error of the number of spikes, divided by the number of steps.

    The neuron of the right class should spike ``int(correct_rate * T)`` times, and each of the others
    ``int(incorrect_rate * T)`` times. With a population code, the neurons of a class together should spike
    ``N / num_classes`` times as often. The result is float32, or float64 if the spikes are, and ``[B, classes]`` with
    ``"none"``. The idea is of S. B. Shrestha, G. Orchard, *SLAYER*, NeurIPS 2018.

    Args:
        correct_rate: Spikes per step of the right class, 0 to 1.
        incorrect_rate: Spikes per step of the other classes, 0 to 1.

    Note:
        snnTorch multiplies the losses ``[B, classes]`` by weights ``[B]``, which fails unless ``B`` is 1 or the number
        of classes. Here each weight multiplies the losses of its sample. A weight of ``[classes, 1]`` does this in both
        libraries.

    Example::

        >>> mse_count_loss(correct_rate=0.8)(torch.zeros(25, 2, 10), torch.tensor([3, 7]))
        tensor(1.6000)
    """

    def __init__(
        self,
        correct_rate: float = 1,
        incorrect_rate: float = 0,
        population_code: bool = False,
        num_classes: int = False,
        reduction: str = "mean",
        weight: Tensor | None = None,
    ) -> None:
        super().__init__(population_code, num_classes, reduction, weight)
        self.correct_rate = check_finite("correct_rate", correct_rate)
        self.incorrect_rate = check_finite("incorrect_rate", incorrect_rate)

    def _compute_loss(self, record: Tensor, targets: Tensor, steps: Steps) -> Tensor:
        labels = check_labels(targets, record, floating=True)
        counts = count(steps.only(record), self.population_code, self.num_classes)
        size = record.shape[2] / self.num_classes if self.population_code else 1
        ragged = steps.valid is not None
        number = steps.number.double() if ragged else steps.number
        on, off = (number * rate * size for rate in (self.correct_rate, self.incorrect_rate))
        wanted = spread(labels, counts.shape[1], *((on.trunc(), off.trunc()) if ragged else (int(on), int(off))))
        loss = squared_error(counts, wanted, "none" if ragged else self._first_reduction)
        loss = (loss if self.weight is None else loss * self._weight_of_class(labels)) / steps.number
        return self._reduce_samples(loss) if ragged and self.weight is None else loss


class mse_membrane_loss(Loss):
    """Squared error of the membranes, averaged over the steps.

    The result is float32, or float64 with a float64 weight, and ``[1]`` instead of ``[]``, but for the mean of a
    weighted loss; ``[B, N]`` with ``"none"``.

    Args:
        time_var_targets: The targets change with time: they are ``[T, B]``. snnTorch fails on these.
        on_target: Wanted membrane of the right class.
        off_target: Wanted membrane of the other classes. As in snnTorch, a negative ``off_target`` below ``on_target``
            counts as 0.

    Note:
        snnTorch fails on weights as in :class:`mse_count_loss`.

    Example::

        >>> mse_membrane_loss()(torch.zeros(25, 2, 10), torch.tensor([3, 7]))
        tensor([0.1000])
    """

    def __init__(
        self,
        time_var_targets: bool = False,
        on_target: float = 1,
        off_target: float = 0,
        reduction: str = "mean",
        weight: Tensor | None = None,
    ) -> None:
        super().__init__(reduction, weight)
        self.time_var_targets = check_flag("time_var_targets", time_var_targets)
        self.on_target = check_finite("on_target", on_target)
        self.off_target = check_finite("off_target", off_target)

    def _compute_loss(self, record: Tensor, targets: Tensor, steps: Steps) -> Tensor:
        labels = check_labels(targets, record, self.time_var_targets, floating=True)
        labels = steps.only(labels) if self.time_var_targets else labels  # those of the padding may be no classes
        wanted = spread(labels, record.shape[2], self.on_target, self.off_target)
        ragged, reduction = steps.valid is not None, self._first_reduction
        loss = squared_error(steps.only(record), wanted.expand_as(record), "none" if ragged else reduction)
        if reduction == "none" or ragged:
            loss = steps.only(loss)
            if self.weight is not None:
                dtype = torch.promote_types(self.weight.dtype, torch.float32)
                weighted: Tensor = (loss * self._weight_of_class(labels)).sum(0, dtype=dtype) / steps.number
                return weighted
            found = self._reduce_samples(loss.sum(0, dtype=torch.float32) / steps.number)
            return found if reduction == "none" else found.view(1)
        return (loss.float() if reduction == "mean" else loss.float() / steps.number).view(1)


class mse_temporal_loss(Loss):
    """Squared error of the time of the first spike (or the first few spikes) of each neuron, in units of ``T``.

    A neuron that stays silent counts as spiking at the last step. The derivative of a spike time is set to -1 with
    respect to that spike, and to 0 with respect to all others. For a silent neuron, the last step counts as its spike.
    Any number but 0 is a spike. The result is float32, or float64 if the spikes or times are; ``[B, N]`` or
    ``[F, B, N]`` with ``"none"``.

    Args:
        target_is_time: ``targets`` are times in steps, not labels. They are broadcastable to ``[B, N]``, or to
            ``[F, B, N]`` with ``multi_spike``. Negative times count from the end.
        on_target: Wanted time of the right class. With ``multi_spike``, one for each of ``F`` spikes.
        off_target: Wanted time of other classes, of the same length. As in snnTorch, a negative ``off_target`` below
            ``on_target`` counts as 0. So the default ``(0, -1)`` wants *every* class to spike at the first step. For
            the last step, pass ``T - 1``.
        tolerance: A time that is closer to its target than this counts as no error.
        multi_spike: Compare the first ``F`` spikes instead of one.
        weight: With ``target_is_time``, the factor per target step.

    Note:
        As in snnTorch, ``multi_spike`` ignores a step for all neurons of the batch once *any* of them had a spike
        counted there; with ``lengths``, for all neurons of that sample. snnTorch changes negative ``targets`` in place,
        multiplies the time of a graded spike by its height, and fails on weights as in :class:`mse_count_loss`.

    Example::

        >>> loss_fn = mse_temporal_loss(on_target=0, off_target=24)
        >>> loss_fn(torch.zeros(25, 2, 10), torch.tensor([3, 7]))  # the right class should have spiked at once
        tensor(0.0922)
    """

    def __init__(
        self,
        target_is_time: bool = False,
        on_target: float | Iterable[float] = 0,
        off_target: float | Iterable[float] = -1,
        tolerance: float = 0,
        multi_spike: bool = False,
        reduction: str = "mean",
        weight: Tensor | None = None,
    ) -> None:
        super().__init__(reduction, weight)
        self.target_is_time = check_flag("target_is_time", target_is_time)
        self.multi_spike = check_flag("multi_spike", multi_spike)
        self.tolerance = check_finite("tolerance", tolerance)
        self.on_target, self.off_target = on_target, off_target
        self._wanted: tuple[tuple[float, float], ...] = ()
        if not target_is_time:
            on, off = (
                check_numbers(name, value) if multi_spike else (check_finite(name, value),)
                for name, value in (("on_target", on_target), ("off_target", off_target))
            )
            if not on or len(on) != len(off):
                raise ValueError(f"off_target: expected as many as on_target, at least 1, got {len(off)} and {len(on)}")
            self._wanted = tuple(zip(on, off, strict=True))

    # The argument has another name in snnTorch, too.
    def __call__(self, spk_rec: Tensor, targets: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        record = check_record("spk_rec", spk_rec)
        return self._reduce(self._compute_loss(record, targets, steps_of("spk_rec", record, lengths)))

    def _compute_loss(self, record: Tensor, targets: Tensor, steps: Steps) -> Tensor:
        number = steps.number
        if self.target_is_time:
            wanted = check_times(targets, record, self.multi_spike)
        else:
            labels = check_labels(targets, record, floating=True)
            wanted = torch.stack([spread(labels, record.shape[2], on, off) for on, off in self._wanted])
        wanted = torch.where(wanted < 0, wanted + number, wanted)
        times = spike_times(record, len(wanted), steps)
        if self.tolerance:
            # A time set to its target has no gradient, as the error of none has.
            near = (times - wanted).abs() < self.tolerance
            times = torch.where(near, wanted.to(times.dtype), times)
        loss = squared_error(times / number, (wanted / number).expand_as(times), self._first_reduction)
        if self.weight is not None and not self.target_is_time:
            loss = loss * self._weight_of_class(labels)
        elif self.weight is not None:
            if wanted.is_floating_point():
                raise TypeError(f"targets: expected integers, which select the weight, got {wanted.dtype}")
            loss = loss * self._weight_of(wanted.long())
        return loss if self.multi_spike or loss.dim() == 0 else loss.squeeze(0)


class l1_rate_sparsity:
    """Penalty on the number of spikes of any shape (``[T, B, *]`` with ``lengths``): ``Lambda`` times their sum.

    Example::

        >>> l1_rate_sparsity(1e-3)(torch.ones(25, 2, 10))
        tensor(0.5000)
    """

    def __init__(self, Lambda: float = 1e-5) -> None:
        self.Lambda = check_finite("Lambda", Lambda)
        self.__name__ = type(self).__name__

    def __call__(self, spk_out: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        record = check_real("spk_out", spk_out)
        if lengths is None:
            return self.Lambda * record.sum()
        if record.dim() < 2:
            raise ValueError(f"lengths: needs spk_out [T, B, *], got shape {tuple(record.shape)}")
        return self.Lambda * steps_of("spk_out", record, lengths).only(record).sum()


def accuracy_rate(
    spk_out: Tensor,  # [T, B, N]
    targets: Tensor,  # [B]
    population_code: bool = False,
    num_classes: int = False,
    *,
    lengths: Tensor | None = None,  # [B]
) -> float:
    """Accuracy by rate code: the share of samples whose class spikes most often (the first of equals).

    It is a Python ``float``, 0 to 1, where snnTorch's is a ``numpy.float64`` of the same value; NaN for an empty batch.

    Example::

        >>> spk_out = torch.zeros(25, 2, 10)
        >>> spk_out[:5, :, 3] = 1
        >>> accuracy_rate(spk_out, torch.tensor([3, 7]))
        0.5
    """
    record = check_record("spk_out", spk_out)
    valid = steps_of("spk_out", record, lengths).only(record)
    counts = count(valid, *check_population(population_code, num_classes))
    return _share(counts.max(1).indices, targets, record)


def accuracy_temporal(
    spk_out: Tensor,  # [T, B, N]
    targets: Tensor,  # [B]
    *,
    lengths: Tensor | None = None,  # [B]
) -> float:
    """Accuracy by latency code: the share of samples whose class spikes first, as :func:`accuracy_rate` returns it.

    A neuron that stays silent counts as one that spikes at the last step, and the first of equals is taken.

    Example::

        >>> spk_out = torch.zeros(25, 2, 10)
        >>> spk_out[4, :, 7] = 1
        >>> accuracy_temporal(spk_out, torch.tensor([3, 7]))
        0.5
    """
    record = check_record("spk_out", spk_out)
    steps = steps_of("spk_out", record, lengths)
    return _share(first_step(steps.only(record) != 0, steps).min(1).indices, targets, record)


def _share(
    predicted: Tensor,  # [B]
    targets: Tensor,
    record: Tensor,
) -> float:
    return (predicted == check_labels(targets, record, floating=True)).double().mean().item()
