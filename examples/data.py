"""Handwritten digits as tensors: MNIST, or scikit-learn's bundled digits where there is no MNIST and no network."""

import contextlib
import io
import socket
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

SIDE = 28  # pixels
CLASSES = 10
# Passes over the training images after which the test accuracy has stopped rising, or is that of snnTorch's tutorial.
MNIST_EPOCHS, DIGITS_EPOCHS = 1, 40
_DOWNLOAD_ROOT = Path("data")
_DOWNLOAD_TIMEOUT = 5.0  # seconds without an answer
_DIGITS_TEST_SIZE = 360  # of 1797 images
_FILES = tuple(f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
# What torchvision raises on a file that is truncated, empty, unreadable or something else altogether.
_CORRUPT = (AssertionError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError)


class InputError(Exception):
    """What the user gave can't be used; the message is one line that says why."""


@dataclass(frozen=True)
class Digits:
    """Images as the network takes them, and what they show."""

    name: str
    origin: str
    epochs: int  # for which it is trained by default
    train_images: Tensor  # [N, 784] float32 in [0, 1]
    train_labels: Tensor  # [N] int64
    test_images: Tensor  # [M, 784]
    test_labels: Tensor  # [M]


def load(path: str | None, device: torch.device) -> Digits:
    """MNIST from the folder ``path``; without one, downloaded MNIST, or the bundled digits when offline.

    Raises:
        InputError: ``path`` holds no MNIST, a file is corrupt, or a package is missing.
    """
    if path is not None:
        return _mnist(Path(path), device)
    if not _has_mnist(_DOWNLOAD_ROOT):
        print(f"no --data-path: downloading MNIST into {_DOWNLOAD_ROOT}/", flush=True)
        if (reason := _download()) is not None:
            print(f"MNIST can't be downloaded ({reason}); going on with the small digits set of scikit-learn")
            return _bundled(device)
    return _mnist(_DOWNLOAD_ROOT, device)


def _has_mnist(root: Path) -> bool:
    return all((root / "MNIST" / "raw" / name).is_file() for name in _FILES)


def _download() -> str | None:
    """Fetch MNIST; returns why that failed, or ``None``."""
    try:
        from torchvision import datasets
    except ModuleNotFoundError:
        return "no torchvision: pip install torchvision"
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        # torchvision prints every mirror that it tries; its progress bar goes to stderr and stays.
        with contextlib.redirect_stdout(io.StringIO()):
            datasets.MNIST(str(_DOWNLOAD_ROOT), download=True)
    except (OSError, RuntimeError) as error:
        return str(error).strip().splitlines()[-1]
    finally:
        socket.setdefaulttimeout(before)
    return None


def _mnist(root: Path, device: torch.device) -> Digits:
    if not root.is_dir():
        raise InputError(f"no such folder: {root}")
    if not _has_mnist(root):
        raise InputError(f"no MNIST in {root}: expected {', '.join(_FILES)} in {root / 'MNIST' / 'raw'}")
    try:
        from torchvision import datasets
    except ModuleNotFoundError:
        raise InputError("reading MNIST needs torchvision: pip install torchvision") from None
    try:
        train, test = (datasets.MNIST(str(root), train=train, download=False) for train in (True, False))
    except _CORRUPT as error:
        raise InputError(f"MNIST in {root} is corrupt: {_one_line(error)}") from None
    for split in (train, test):
        if len(split.data) != len(split.targets) or not 0 <= int(split.targets.max()) < CLASSES:
            raise InputError(f"MNIST in {root} is corrupt: its labels don't fit its images")
    return Digits(
        "MNIST",
        f"from {root}",
        MNIST_EPOCHS,
        _as_input(train.data, 255, device),
        train.targets.to(device),
        _as_input(test.data, 255, device),
        test.targets.to(device),
    )


def _bundled(device: torch.device) -> Digits:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise InputError("the bundled digits need scikit-learn: pip install scikit-learn") from None
    bundle = load_digits()
    # The writers come one after the other: without the shuffle the test set would be a few people's hands.
    order = torch.randperm(len(bundle.target), generator=torch.Generator().manual_seed(0))
    images = _as_input(torch.from_numpy(bundle.images)[order], 16, device)
    labels = torch.from_numpy(bundle.target)[order].long().to(device)
    train, test = slice(_DIGITS_TEST_SIZE, None), slice(_DIGITS_TEST_SIZE)
    return Digits(
        "scikit-learn's digits",
        f"8 x 8 pixels resized to {SIDE} x {SIDE}",
        DIGITS_EPOCHS,
        images[train],
        labels[train],
        images[test],
        labels[test],
    )


def _as_input(
    images: Tensor,  # [N, H, W] grey, any dtype
    white: int,
    device: torch.device,
) -> Tensor:  # [N, 784]
    grey = images.to(device).float() / white
    if grey.shape[1:] != (SIDE, SIDE):
        grey = F.interpolate(grey[:, None], (SIDE, SIDE), mode="bilinear", align_corners=False)
    return grey.flatten(1)


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else f"unreadable ({type(error).__name__})"
