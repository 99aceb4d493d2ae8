"""What is said of a wrong weight or bias of the linear layer behind the neurons."""

from typing import Any

import pytest
import torch

from snnfast import functional, reference

pytestmark = pytest.mark.needs_extension

CURRENT = torch.rand(4, 3, 10)
WEIGHT = torch.rand(5, 10)
NESTED = torch.nested.nested_tensor([WEIGHT], layout=torch.jagged)


@pytest.mark.parametrize("function", [functional.lif, reference.lif], ids=["fused", "reference"])
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"weight": 1.0}, TypeError, r"weight: expected a torch\.Tensor or None, got float"),
        ({"weight": WEIGHT.double()}, TypeError, r"weight: expected torch\.float32, as current, got torch\.float64"),
        ({"weight": WEIGHT.long()}, TypeError, "weight: expected torch.float32"),
        ({"weight": WEIGHT.to_sparse()}, TypeError, "weight: expected a dense tensor"),
        ({"weight": NESTED}, TypeError, "weight: expected a dense tensor"),
        ({"weight": WEIGHT.to("meta")}, ValueError, "weight is on meta, but current is on cpu"),
        ({"weight": WEIGHT.T}, ValueError, r"weight: expected \[O, N\] of shape \(10, 10\), got \(10, 5\)"),
        ({"weight": WEIGHT[0]}, ValueError, r"weight: expected \[O, N\] of shape \(O, 10\), got \(10,\)"),
        ({"weight": WEIGHT, "bias": 0.0}, TypeError, r"bias: expected a torch\.Tensor or None, got float"),
        ({"weight": WEIGHT, "bias": torch.zeros(5).half()}, TypeError, r"bias: expected torch\.float32"),
        ({"weight": WEIGHT, "bias": torch.zeros(5, device="meta")}, ValueError, "bias is on meta"),
        ({"weight": WEIGHT, "bias": torch.zeros(4)}, ValueError, r"bias: expected \[O\] of shape \(5\), got \(4,\)"),
        ({"weight": WEIGHT, "bias": torch.zeros(())}, ValueError, r"bias: expected \[O\] of shape \(5\), got \(\)"),
        ({"bias": torch.zeros(5)}, ValueError, "bias: needs a weight"),
        ({"current": CURRENT[:, 0, 0], "weight": WEIGHT}, ValueError, "weight: needs steps with at least one dim"),
    ],
)
def test_a_wrong_weight_or_bias_is_an_error_that_names_it(
    given: dict[str, Any], error: type[Exception], message: str, function: Any
) -> None:
    with pytest.raises(error, match=message):
        function(**{"current": CURRENT, "beta": 0.9, **given})


def test_autocast_takes_a_weight_of_another_dtype() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = functional.lif(CURRENT.bfloat16(), beta=0.9, weight=WEIGHT)
    assert out.dtype == torch.bfloat16
