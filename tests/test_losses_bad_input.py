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


def test_a_label_without_a_class_is_an_error() -> None:
    for name in LOSSES:
        with pytest.raises((IndexError, RuntimeError), match=r"out of (bounds|range)"):
            call(name, targets=torch.full((5,), CLASSES))
