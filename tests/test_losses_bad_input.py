"""Losses and accuracies over time name the argument that is wrong."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from snnfast import losses

LOSSES = [name for name in losses.__all__ if name.endswith("_loss")]
CLASSES = 4


def call(name: str, rec: Any = None, targets: Any = None, **options: Any) -> Any:
    rec = torch.zeros(6, 5, CLASSES) if rec is None else rec
    targets = torch.zeros(5, dtype=torch.int64) if targets is None else targets
    return getattr(losses, name)(**options)(rec, targets)


WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: losses.ce_count_loss(reduction="median"), ValueError, "reduction: "),
    (lambda: losses.ce_count_loss(weight=[1.0, 2.0]), TypeError, "weight: "),
    (lambda: losses.ce_count_loss(population_code="yes"), TypeError, "population_code: "),
    (lambda: losses.ce_count_loss(population_code=True), ValueError, "num_classes: "),
    (lambda: losses.ce_count_loss(population_code=True, num_classes=2.0), TypeError, "num_classes: "),
    (lambda: losses.accuracy_rate(torch.zeros(2, 3, 4), torch.zeros(3), True), ValueError, "num_classes: "),
    (lambda: losses.mse_count_loss(correct_rate="high"), TypeError, "correct_rate: "),
    (lambda: losses.mse_count_loss(incorrect_rate=float("nan")), ValueError, "incorrect_rate: "),
    (lambda: losses.mse_membrane_loss(on_target=None), TypeError, "on_target: "),
    (lambda: losses.mse_temporal_loss(on_target=(1, 2)), TypeError, "on_target: "),
    (lambda: losses.mse_temporal_loss(multi_spike=True), TypeError, "on_target: "),
    (
        lambda: losses.mse_temporal_loss(on_target=(1, 2), off_target=(3,), multi_spike=True),
        ValueError,
        "off_target: ",
    ),
    (lambda: losses.mse_temporal_loss(tolerance="little"), TypeError, "tolerance: "),
    (lambda: losses.ce_temporal_loss("invert"), ValueError, "inverse: "),
    (lambda: losses.l1_rate_sparsity(torch.zeros(3)), TypeError, "Lambda: "),
    (lambda: losses.l1_rate_sparsity()([1.0]), TypeError, "spk_out: "),
    (lambda: call("ce_count_loss", population_code=True, num_classes=3), ValueError, "num_classes: "),
    (lambda: call("ce_rate_loss", population_code=True, num_classes=3), ValueError, "num_classes: "),
    (lambda: call("ce_rate_loss", np.zeros((6, 5, 4))), TypeError, "spk_out: "),
    (lambda: call("ce_rate_loss", torch.zeros(6, 5, 4, dtype=torch.complex64)), TypeError, "spk_out: "),
    (lambda: call("ce_rate_loss", torch.zeros(6, 4)), ValueError, "spk_out: "),
    (lambda: call("ce_max_membrane_loss", torch.zeros(0, 5, 4)), ValueError, "spk_out: "),
    (lambda: call("ce_temporal_loss", torch.zeros(6, 4)), ValueError, "spk_rec: "),
    (lambda: call("ce_rate_loss", targets=[0] * 5), TypeError, "targets: "),
    (lambda: call("ce_rate_loss", targets=torch.zeros(5)), TypeError, "targets: "),
    (lambda: call("mse_count_loss", targets=torch.zeros(5, 1)), ValueError, "targets: "),
    (lambda: call("mse_count_loss", targets=torch.zeros(4)), ValueError, "targets: "),
    (lambda: call("ce_rate_loss", targets=torch.zeros(5, dtype=torch.long, device="meta")), ValueError, "targets is "),
    (lambda: call("mse_membrane_loss", time_var_targets=True), ValueError, "targets: "),
    (lambda: call("mse_temporal_loss", target_is_time=True), ValueError, "targets: "),
    (lambda: call("mse_temporal_loss", target_is_time=True, multi_spike=True), ValueError, "targets: "),
    (lambda: call("ce_count_loss", weight=torch.ones(3)), ValueError, "weight: "),
    (lambda: call("mse_count_loss", weight=torch.ones(())), ValueError, "weight: "),
    (lambda: call("mse_count_loss", targets=torch.full((5,), 3), weight=torch.ones(3)), ValueError, "weight: "),
    (
        lambda: call("mse_temporal_loss", None, torch.full((4,), 5), target_is_time=True, weight=torch.ones(4)),
        ValueError,
        "weight: ",
    ),
    (lambda: call("ce_count_loss", weight=torch.ones(CLASSES, device="meta")), ValueError, "weight is "),
    (
        lambda: call("mse_temporal_loss", None, torch.zeros(4), target_is_time=True, weight=torch.ones(6)),
        TypeError,
        "targets: ",
    ),
    (lambda: losses.accuracy_temporal(torch.zeros(6, 5, 4), torch.zeros(4)), ValueError, "targets: "),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG, ids=[f"{i}-{w[2][:-2]}" for i, w in enumerate(WRONG)])
def test_a_wrong_argument_is_named(wrong: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        wrong()


@pytest.mark.parametrize("label", [CLASSES, -1, 10**6, -(10**6)])
@pytest.mark.parametrize("name", LOSSES)
def test_a_label_without_a_class(name: str, label: int) -> None:
    also = ", or -100 for a sample that does not count" if name.startswith("ce") else ""
    message = rf"^targets: expected 0 to {CLASSES - 1}, the numbers of classes{also}, got {label}$"
    targets = torch.tensor([0, 1, -100 if also else 3, label, 2])
    classes, lengths, weight = CLASSES, torch.tensor([6, 6, 3, 2, 1]), torch.ones(CLASSES)
    for options in ({}, {"weight": weight}):
        for given in ({}, {"lengths": lengths}):
            with pytest.raises(ValueError, match=message):
                getattr(losses, name)(**options)(torch.zeros(6, 5, classes), targets, **given)
    if "population_code" in getattr(losses, name).__init__.__code__.co_varnames:
        with pytest.raises(ValueError, match=message):
            call(name, torch.zeros(6, 5, 2 * classes), targets, population_code=True, num_classes=classes)
    if not also:
        with pytest.raises(ValueError, match=r"got -100$"):
            call(name, targets=torch.tensor([0, 1, -100, 2, 3]))


def test_a_label_of_a_step_without_a_class() -> None:
    targets = torch.zeros(6, 5, dtype=torch.int64)
    targets[4, 2] = CLASSES
    with pytest.raises(ValueError, match=r"^targets: expected 0 to 3, the numbers of classes, got 4"):
        call("mse_membrane_loss", targets=targets, time_var_targets=True)


@pytest.mark.parametrize("name", ["accuracy_rate", "accuracy_temporal"])
def test_an_accuracy_of_a_label_without_a_class(name: str) -> None:
    assert getattr(losses, name)(torch.zeros(6, 4, CLASSES), torch.tensor([0, CLASSES, -1, -100])) == 0.25
