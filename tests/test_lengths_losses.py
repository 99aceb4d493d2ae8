"""With lengths, a loss or an accuracy is the mean of those of each sample alone."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_losses import CASES, CLASSES, case_id, neurons, record
from torch import Tensor

from snnfast import losses

T, LENGTHS = 9, torch.tensor([4, 9, 1, 7, 9])
TARGETS = torch.tensor([0, 3, 1, 2, 3])
ALL = [*CASES, ("ce_membrane_loss", {}), ("ce_rate_loss", {"population_code": True, "num_classes": CLASSES})]


def spoiled(rec: Tensor, lengths: Tensor, value: float = float("nan")) -> Tensor:
    return rec.masked_fill((torch.arange(len(rec)).view(-1, 1) >= lengths).unsqueeze(2), value)


def each_alone(loss: Any, rec: Tensor, targets: Tensor, lengths: Tensor) -> list[Tensor]:
    return [loss(rec[:n, b : b + 1], targets[b : b + 1]) for b, n in enumerate(lengths.tolist())]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("name", "options"), ALL, ids=case_id)
def test_a_loss_is_that_of_each_sample_alone(name: str, options: dict[str, Any], reduction: str) -> None:
    loss = getattr(losses, name)(**options, reduction=reduction)
    for dtype in (torch.float32, torch.float64):
        rec = record(name, T, len(LENGTHS), neurons(options), dtype).requires_grad_()
        one_by_one = each_alone(loss, rec, TARGETS, LENGTHS)
        dim = 1 if one_by_one[0].dim() == 3 else 0
        wanted = torch.cat(one_by_one, dim) if reduction == "none" else torch.stack(one_by_one)
        if reduction != "none":
            wanted = wanted.mean(0) if reduction == "mean" else wanted.sum(0)
        found = loss(spoiled(rec, LENGTHS), TARGETS, lengths=LENGTHS)
        dense = loss(rec, TARGETS)
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype) == (dense.shape, dense.dtype)
        torch.testing.assert_close(found, wanted, rtol=2e-6, atol=2e-6)
        upstream = torch.linspace(1, 2, found.numel(), dtype=found.dtype).view_as(found)
        a, b = (torch.autograd.grad(t, rec, upstream)[0] for t in (found, wanted))
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)
        assert not spoiled(a, LENGTHS, 0).ne(a).any()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("name", "options"), ALL, ids=case_id)
def test_weights(name: str, options: dict[str, Any], reduction: str) -> None:
    classes = CLASSES
    weight = torch.rand(classes) + 0.5
    rec = record(name, T, len(LENGTHS), neurons(options))
    plain = getattr(losses, name)(**options, reduction="none")(rec, TARGETS, lengths=LENGTHS)
    found = getattr(losses, name)(**options, reduction=reduction, weight=weight)(rec, TARGETS, lengths=LENGTHS)
    of_samples = weight[TARGETS]
    weighted = plain * (of_samples if plain.dim() == 1 else of_samples.unsqueeze(1))
    if reduction == "mean":
        by_pytorch = name in ("ce_membrane_loss", "ce_temporal_loss")
        weighted = weighted.sum() / of_samples.sum() if by_pytorch else weighted.mean()
    torch.testing.assert_close(found, weighted)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_accuracies_and_the_penalty(data: st.DataObject) -> None:
    samples = data.draw(st.integers(1, 5))
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, T), min_size=samples, max_size=samples)))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    spk, targets = record("ce_rate_loss", T, samples, 12), torch.randint(CLASSES, (samples,))
    beyond = spoiled(spk, lengths, 1.0)
    code = {"population_code": True, "num_classes": CLASSES}
    for accuracy, options in ((losses.accuracy_rate, {}), (losses.accuracy_rate, code), (losses.accuracy_temporal, {})):
        one_by_one = [
            accuracy(spk[:n, b : b + 1], targets[b : b + 1], **options) for b, n in enumerate(lengths.tolist())
        ]
        assert accuracy(beyond, targets, **options, lengths=lengths) == pytest.approx(sum(one_by_one) / samples)
    for shaped in (beyond, beyond.view(T, samples, 3, 4), beyond[..., 0]):
        wanted = sum(shaped[:n, b].sum() for b, n in enumerate(lengths.tolist()))
        torch.testing.assert_close(losses.l1_rate_sparsity(0.5)(shaped, lengths=lengths), 0.5 * torch.as_tensor(wanted))


def test_targets_that_change_with_time_and_ignored_ones() -> None:
    mem, targets = record("mse_membrane_loss", T, 5, CLASSES), torch.randint(CLASSES, (T, 5))
    loss = losses.mse_membrane_loss(time_var_targets=True)
    one_by_one = [loss(mem[:n, b : b + 1], targets[:n, b : b + 1]) for b, n in enumerate(LENGTHS.tolist())]
    padded = targets.masked_fill(torch.arange(T).view(-1, 1) >= LENGTHS, -100)
    torch.testing.assert_close(loss(mem, padded, lengths=LENGTHS), torch.stack(one_by_one).mean(0))
    ignored = TARGETS.index_fill(0, torch.tensor([1, 3]), -100)
    kept = torch.tensor([0, 2, 4])
    for name in (name for name in losses.__all__ if name.startswith("ce_")):
        loss = getattr(losses, name)()
        rec = record(name, T, 5, CLASSES)
        wanted = loss(rec[:, kept], ignored[kept], lengths=LENGTHS[kept])
        torch.testing.assert_close(loss(rec, ignored, lengths=LENGTHS), wanted)


def test_bad_lengths() -> None:
    rec = torch.rand(T, 5, CLASSES)
    for wrong, error in (
        ([1], TypeError), (LENGTHS.double(), TypeError), (LENGTHS[:2], ValueError), (LENGTHS + 1, ValueError),
        (LENGTHS - 1, ValueError),
    ):  # fmt: skip
        for name in losses.__all__:
            function = getattr(losses, name)
            given = (rec,) if name == "l1_rate_sparsity" else (rec, TARGETS)
            with pytest.raises(error, match=r"^lengths\b"):
                (function() if isinstance(function, type) else function)(*given, lengths=wrong)
    with pytest.raises(ValueError, match=r"^lengths: needs spk_out"):
        losses.l1_rate_sparsity()(rec[:, 0, 0], lengths=LENGTHS)


def test_whole_samples_are_no_ragged_batch() -> None:
    whole = torch.full((5,), T)
    for name, options in ALL:
        rec = record(name, T, 5, neurons(options))
        loss = getattr(losses, name)(**options)
        assert torch.equal(loss(rec, TARGETS, lengths=whole), loss(rec, TARGETS)), name
