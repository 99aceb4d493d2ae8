"""The images of the examples: MNIST from a folder, downloaded MNIST, or scikit-learn's small digits where both fail."""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it


class InputError(Exception):
    """There is no MNIST where the user said it is."""


@dataclass(frozen=True)
class Digits:
    name: str
    epochs: int  # after which the test accuracy is about that of snnTorch's tutorial 5
    train_images: Tensor  # [N, 784] float32 in [0, 1]
    train_labels: Tensor  # [N] int64
    test_images: Tensor  # [M, 784]
    test_labels: Tensor  # [M]

    def __str__(self) -> str:
        return f"data: {self.name}, {len(self.train_images)} training and {len(self.test_images)} test images"

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of shuffled minibatches. The last, smaller one is left out."""
        for batch in torch.randperm(len(self.train_images)).split(size):
            if len(batch) == size:
                yield self.train_images[batch], self.train_labels[batch]


def load(path: str | None, device: torch.device | str) -> Digits:
    """Load the images onto ``device``.

    Args:
        path: Folder that holds ``MNIST/raw``. ``None``: the one that the environment variable SNNFAST_DATA names.
            Without either, MNIST is downloaded into ``./data``, and where that fails, it is scikit-learn's digits.

    Raises:
        InputError: There is no such folder, or it holds no MNIST.
    """
    path = path or os.environ.get("SNNFAST_DATA")
    if path:
        if not os.path.isdir(path):
            raise InputError(f"no such folder: {path}")
        try:
            return _mnist(path, False, device)
        except (ImportError, RuntimeError) as error:
            raise InputError(f"no MNIST in {path}: {error}") from error
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(5)  # seconds without an answer
    try:
        return _mnist("data", True, device)
    except (HTTPException, ImportError, OSError, RuntimeError) as error:
        print(f"MNIST can't be downloaded, scikit-learn's digits take its place: {error!r}")
        return _bundled(device)
    finally:
        socket.setdefaulttimeout(timeout)


def _mnist(root: str, download: bool, device: torch.device | str) -> Digits:
    from torchvision import datasets  # without it, scikit-learn's digits do

    train, test = (datasets.MNIST(root, train=train, download=download) for train in (True, False))
    images = [split.data.flatten(1).to(device).float() / 255 for split in (train, test)]
    return Digits(f"MNIST from {root}", 1, images[0], train.targets.to(device), images[1], test.targets.to(device))


def _bundled(device: torch.device | str) -> Digits:
    from sklearn.datasets import load_digits

    found = load_digits()
    # The writers come one after the other: without the shuffle, the test set would be a few people's hands.
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    small = torch.from_numpy(found.images)[order].to(device).float() / 16  # [N, 8, 8]
    images = F.interpolate(small[:, None], (28, 28), mode="bilinear", align_corners=False).flatten(1)
    labels = torch.from_numpy(found.target)[order].long().to(device)
    return Digits("scikit-learn's digits", 40, images[360:], labels[360:], images[:360], labels[:360])
