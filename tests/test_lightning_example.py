"""The example under Lightning's ``Trainer``."""

import re

import pytest
from test_examples import Run, example, run  # noqa: F401 - fixtures

pytest.importorskip("lightning", reason="lightning is not installed")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("precision", "device"), [("32-true", "cpu"), ("bf16-mixed", "cpu:0")])
def test_the_trainer_trains(precision: str, device: str, run: Run) -> None:  # noqa: F811
    args = ["--hidden", "100", "--num-steps", "8", "--batch-size", "64", "--iterations", "40", "--device", device]
    out = run("lightning_mnist", *args, "--precision", precision)
    assert re.search(r"^40 iterations in [\d.]+ s, [\d.]+ ms each$", out, re.MULTILINE)
    assert float(re.search(r"^test accuracy \(rate code\): (\d\.\d{4})$", out, re.MULTILINE)[1]) > 0.5
