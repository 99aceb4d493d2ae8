"""The demo, `make demo`: it trains, times a training step beside snnTorch, draws, and finds its images."""

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest


def test_the_demo_trains_and_times_and_draws(run_example: Callable[..., str], tmp_path: Path) -> None:
    out = run_example("mnist", "--epochs", "4", "--num-steps", "5", TURNS=1)
    assert "scikit-learn's digits take its place" in out
    losses = [float(loss) for loss in re.findall(r"^epoch \d of 4: last loss (\S+), accuracy", out, re.MULTILINE)]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert float(re.search(r"^test accuracy .*: (\S+)$", out, re.MULTILINE)[1]) > 0.7
    rows = re.findall(r"^(snn.*?) +([\d.]+) +([\d.]+)x +([\d.]+)$", out, re.MULTILINE)
    assert [name for name, *_ in rows] == ["snnTorch", "snnTorch, snnfast.compile", "snnfast.MultiStep"]
    assert all(float(ms) > 0 for _, ms, _, _ in rows)
    assert [float(first) for *_, first in rows] == pytest.approx([float(rows[0][-1])] * 3, rel=1e-4)
    for name in ("training.png", "raster.png"):
        assert (tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG")


def test_images_of_the_folder(run_example: Callable[..., str], mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = import_module("data")
    found = data.load(str(mnist), "cpu")
    assert str(found) == f"data: MNIST from {mnist}, 160 training and 40 test images"
    assert found.train_images.shape == (160, 784)
    assert found.train_images.unique().tolist() == [0, 1]
    assert [len(images) for images, _ in found.batches(50)] == [50] * 3
    for path, message in (("nowhere", "no such folder: nowhere"), (".", r"no MNIST in \.: ")):
        with pytest.raises(data.InputError, match=message):
            data.load(path, "cpu")
    monkeypatch.setenv("SNNFAST_DATA", str(mnist))
    assert data.load(None, "cpu").name == found.name
