"""MNIST as tensors, from the folder SNNFAST_DATA, which has MNIST/raw; without one, downloaded into ``data``."""

import os
from typing import NamedTuple

from torch import Tensor

from .peers import Unsupported


class Digits(NamedTuple):
    train_images: Tensor  # [N, 784] float32 in [0, 1]
    train_labels: Tensor  # [N] int64
    test_images: Tensor
    test_labels: Tensor


def load() -> Digits:
    folder = os.environ.get("SNNFAST_DATA")
    try:
        from torchvision.datasets import MNIST

        splits = [MNIST(folder or "data", train=train, download=not folder) for train in (True, False)]
    except (ImportError, OSError, RuntimeError) as error:
        raise Unsupported(f"needs MNIST (SNNFAST_DATA names the folder with MNIST/raw): {error}") from error
    return Digits(*(t for split in splits for t in (split.data.flatten(1).float() / 255, split.targets)))
