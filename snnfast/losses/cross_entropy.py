# ruff: noqa: N801 - the classes have snnTorch's names
"""The cross-entropies of :mod:`snnfast.losses`."""

import math

import torch
from torch import Tensor

from snnfast.losses.base import (
    Loss,
    PopulationLoss,
    Steps,
    add_populations,
    check_labels,
    check_record,
    count,
    not_ignored,
    spike_times,
    steps_of,
)


class ce_rate_loss(PopulationLoss):
    """Cross-entropy of the spikes at each step, mean over the steps.

    Args:
        population_code: Add the spikes of each class's neurons at each step.
        num_classes: Number of classes of a population code.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        weight: Factor per class, ``[classes]``.

    Returns:
        When called with ``spk_out`` ``[T, B, N]`` and ``targets`` ``[B]``: the loss, ``[1]``; with ``"none"`` ``[B]``;
        ``[]`` for the mean of a weighted loss. It is float32 whatever the spikes are.

    Raises:
        TypeError, ValueError: As listed in :mod:`snnfast.losses`; ``num_classes`` is missing or does not divide ``N``.

    Note:
        snnTorch's population code adds no spikes. It takes a label for the number of a neuron, and needs a ``weight``
        of two values: for the first ``N / num_classes`` neurons, and for the others. Here it is that of
        :class:`ce_count_loss`.

    Example::

        >>> import torch
        >>> from snnfast import losses
        >>> losses.ce_rate_loss()(torch.zeros(25, 2, 10), torch.tensor([3, 7]))
        tensor([2.3026])

    Source: ``snntorch.functional.ce_rate_loss``.
    """

    def _compute_loss(self, record: Tensor, targets: Tensor, steps: Steps) -> Tensor:
        labels, record = check_labels(targets, record), steps.only(record)
        logits = add_populations(record, self.num_classes) if self.population_code else record
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        reduction = self._first_reduction
        if reduction == "none" or steps.valid is not None:
            loss = steps.only(self._cross_entropy_over_time(logits, labels, "none")).sum(0, dtype=torch.float32)
            loss = loss / (steps.number if steps.valid is None else steps.number.squeeze(1))
            return loss if reduction == "none" else self._reduce_samples(loss, not_ignored(labels).sum()).view(1)
        # Every step has the same number of samples, so the mean of the steps' means is the mean over all.
        loss = self._cross_entropy_over_time(logits, labels, reduction)
        return (loss.float() if reduction == "mean" else loss.float() / steps.number).view(1)


class ce_count_loss(PopulationLoss):
    """Cross-entropy of the number of spikes.

    Args:
        population_code: Add the spikes of each class's neurons.
        num_classes: Number of classes of a population code.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        weight: Factor per class, ``[classes]``.

    Returns:
        When called with ``spk_out`` ``[T, B, N]`` and ``targets`` ``[B]``: the loss, ``[]`` or ``[B]``, in the dtype of
        the spikes. With a population code it has PyTorch's default dtype.

    Raises:
        TypeError, ValueError: As listed in :mod:`snnfast.losses`; ``num_classes`` is missing or does not divide ``N``.

    Example::

        >>> import torch
        >>> from snnfast import losses
        >>> loss_fn = losses.ce_count_loss(population_code=True, num_classes=10)
        >>> loss_fn(torch.zeros(25, 2, 200), torch.tensor([3, 7]))  # 20 neurons for each class
        tensor(2.3026)

    Source: ``snntorch.functional.ce_count_loss``.
    """

    def _compute_loss(self, record: Tensor, targets: Tensor, steps: Steps) -> Tensor:
        labels = check_labels(targets, record)
        counts = count(steps.only(record), self.population_code, self.num_classes)
        return self._cross_entropy(counts, labels, self._first_reduction)


class ce_max_membrane_loss(Loss):
    """Cross-entropy of the highest membrane that each neuron reaches.

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        weight: Factor per class, ``[classes]``.

    Returns:
        When called with membranes ``[T, B, N]`` and ``targets`` ``[B]``: the loss, ``[]`` or ``[B]``, in the dtype of
        the membranes. Its gradient goes to the first step of the maximum.

    Raises:
        TypeError, ValueError: As listed in :mod:`snnfast.losses`.

    Example::

        >>> import torch
        >>> from snnfast import losses
        >>> losses.ce_max_membrane_loss()(torch.zeros(25, 2, 10), torch.tensor([3, 7]))
        tensor(2.3026)

    Source: ``snntorch.functional.ce_max_membrane_loss``, after F. Zenke's SpyTorch.
    """

    def _compute_loss(self, record: Tensor, targets: Tensor, steps: Steps) -> Tensor:
        labels = check_labels(targets, record)
        return self._cross_entropy(steps.only(record, -math.inf).max(0).values, labels, self._first_reduction)


class ce_membrane_loss(Loss):
    """Cross-entropy of the membranes at each step, summed over the steps: the loss of snnTorch's tutorial 5.

    Equals ``sum(torch.nn.CrossEntropyLoss(weight, reduction=reduction)(mem[t], targets) for t in range(T))``.

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``; the mean is over the samples, weighted as in PyTorch.
        weight: Factor per class, ``[classes]``.

    Returns:
        When called with membranes ``[T, B, N]`` and ``targets`` ``[B]``: the loss, ``[]`` or ``[B]``, in the dtype of
        the membranes.

    Raises:
        TypeError, ValueError: As listed in :mod:`snnfast.losses`.

    Example::

        >>> import torch
        >>> from snnfast import losses
        >>> losses.ce_membrane_loss()(torch.zeros(25, 2, 10), torch.tensor([3, 7]))
        tensor(57.5646)

    Source: snnTorch's `tutorial 5 <https://snntorch.readthedocs.io/en/latest/tutorials/tutorial_5.html>`_.
    """

    def _compute_loss(self, record: Tensor, targets: Tensor, steps: Steps) -> Tensor:
        labels = check_labels(targets, record)
        if steps.valid is not None:
            loss = steps.only(self._cross_entropy_over_time(steps.only(record), labels, "none")).sum(0)
            weight, counted = self._weight_for(record), not_ignored(labels)
            of_samples = counted if weight is None else torch.where(counted, weight[labels.clamp(min=0)], 0)
            return self._reduce_samples(loss, of_samples.sum())
        loss = self._cross_entropy_over_time(record, labels, self.reduction)
        if self.reduction == "none":
            return loss.sum(0)
        return len(record) * loss if self.reduction == "mean" else loss

    def _reduce(self, loss: Tensor) -> Tensor:
        return loss


class ce_temporal_loss(Loss):
    """Cross-entropy of the inverted time of the first spike of each neuron: the right class should be the first.

    Times and their gradients are those of :class:`mse_temporal_loss`.

    Args:
        inverse: ``"negate"``: ``-time``; ``"reciprocal"``: ``1 / (time + 1)``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``; the mean is over the samples, weighted as in PyTorch.
        weight: Factor per class, ``[classes]``.

    Returns:
        When called with ``spk_rec`` ``[T, B, N]`` and ``targets`` ``[B]``: the loss, ``[]`` or ``[B]``, in the dtype of
        the spikes.

    Raises:
        TypeError, ValueError: As listed in :mod:`snnfast.losses`; another ``inverse``.

    Example::

        >>> import torch
        >>> from snnfast import losses
        >>> spk_rec = torch.zeros(25, 1, 10)
        >>> spk_rec[20, 0, 3] = 1
        >>> losses.ce_temporal_loss()(spk_rec, torch.tensor([3]))
        tensor(0.1526)

    Source: ``snntorch.functional.ce_temporal_loss``.
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


for _loss in (ce_rate_loss, ce_count_loss, ce_max_membrane_loss, ce_membrane_loss, ce_temporal_loss):
    _loss.__module__ = "snnfast.losses"  # where users find it, and where pickles look for it
