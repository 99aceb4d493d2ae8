"""The accuracies of :mod:`snnfast.losses`."""

from torch import Tensor

from snnfast.losses.base import check_labels, check_population, check_record, count, first_step, steps_of


def accuracy_rate(
    spk_out: Tensor,  # [T, B, N]
    targets: Tensor,  # [B]
    population_code: bool = False,
    num_classes: int = False,
    *,
    lengths: Tensor | None = None,  # [B]
) -> float:
    """Accuracy by rate code: the share of samples whose class spikes most often (the first of equals).

    Args:
        spk_out: Spikes of the output layer, ``[T, B, N]``.
        targets: Class of each sample, ``[B]``.
        population_code: Add the spikes of each class's neurons.
        num_classes: Number of classes of a population code.
        lengths: As listed in :mod:`snnfast.losses`.

    Returns:
        0 to 1, NaN for an empty batch; a Python ``float``, where snnTorch's is a ``numpy.float64`` of the same value.

    Raises:
        TypeError, ValueError: As listed in :mod:`snnfast.losses`; ``num_classes`` is missing or does not divide ``N``.

    Example::

        >>> import torch
        >>> from snnfast import losses
        >>> spk_out = torch.zeros(25, 2, 10)
        >>> spk_out[:5, :, 3] = 1
        >>> losses.accuracy_rate(spk_out, torch.tensor([3, 7]))
        0.5

    Source: ``snntorch.functional.accuracy_rate``.
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
    """Accuracy by latency code: the share of samples whose class spikes first.

    A neuron that stays silent counts as one that spikes at the last step, and the first of equals is taken.

    Args:
        spk_out: Spikes of the output layer, ``[T, B, N]`` (0: no spike, else: a spike).
        targets: Class of each sample, ``[B]``.
        lengths: As listed in :mod:`snnfast.losses`.

    Returns:
        0 to 1, NaN for an empty batch; a Python ``float``, where snnTorch's is a ``numpy.float64`` of the same value.

    Raises:
        TypeError, ValueError: As listed in :mod:`snnfast.losses`.

    Example::

        >>> import torch
        >>> from snnfast import losses
        >>> spk_out = torch.zeros(25, 2, 10)
        >>> spk_out[4, :, 7] = 1
        >>> losses.accuracy_temporal(spk_out, torch.tensor([3, 7]))
        0.5

    Source: ``snntorch.functional.accuracy_temporal``.
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


for _accuracy in (accuracy_rate, accuracy_temporal):
    _accuracy.__module__ = "snnfast.losses"  # where users find it, and where pickles look for it
