"""MNIST and Fashion-MNIST as tensors, or scikit-learn's bundled digits where there is neither data nor a network."""

import contextlib
import gzip
import io
import os
import shutil
import socket
import tempfile
import zlib
from dataclasses import dataclass, replace
from http.client import HTTPException
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
_MNIST, _FASHION = "MNIST", "FashionMNIST"  # torchvision's names of the classes and their folders
_TITLES = {_MNIST: "MNIST", _FASHION: "Fashion-MNIST"}
# Where Debian's package dataset-fashion-mnist puts the files, each compressed.
_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
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
    return _load(_MNIST, path, device)


def load_fashion(path: str | None, device: torch.device) -> Digits:
    """Fashion-MNIST from the folder ``path``; without one, from SNNFAST_DATA, ``./data`` or Debian's package.

    Where none of them has it, it is downloaded, and offline the bundled digits take its place.

    Raises:
        InputError: ``path`` holds no Fashion-MNIST, a file is corrupt, or a package is missing.
    """
    shared = os.environ.get("SNNFAST_DATA")
    if path is None and shared:
        if _has(_FASHION, Path(shared)):
            path = shared
        else:
            print(f"no Fashion-MNIST in SNNFAST_DATA ({shared}); looking elsewhere")
    if path is None and not _has(_FASHION, _DOWNLOAD_ROOT) and (unpacked := _from_debian(device)) is not None:
        return unpacked
    return _load(_FASHION, path, device)


def _load(dataset: str, path: str | None, device: torch.device) -> Digits:
    if path is not None:
        return _read(dataset, Path(path), device)
    if not _has(dataset, _DOWNLOAD_ROOT):
        title = _TITLES[dataset]
        print(f"no --data-path: downloading {title} into {_DOWNLOAD_ROOT}/", flush=True)
        if (reason := _download(dataset)) is not None:
            print(f"{title} can't be downloaded ({reason}); going on with the small digits set of scikit-learn")
            return _bundled(device)
    return _read(dataset, _DOWNLOAD_ROOT, device)


def _has(dataset: str, root: Path) -> bool:
    return all((root / dataset / "raw" / name).is_file() for name in _FILES)


def _from_debian(device: torch.device) -> Digits | None:
    archives = [_DEBIAN_FASHION / f"{name}.gz" for name in _FILES]
    if not all(archive.is_file() for archive in archives):
        return None
    with tempfile.TemporaryDirectory() as root:
        raw = Path(root) / _FASHION / "raw"
        raw.mkdir(parents=True)
        for archive in archives:
            try:
                with gzip.open(archive) as source, (raw / archive.stem).open("wb") as target:
                    shutil.copyfileobj(source, target)
            except (EOFError, OSError, zlib.error) as error:
                raise InputError(f"{archive} is corrupt: {_one_line(error)}") from None
        return replace(_read(_FASHION, Path(root), device), origin=f"from {_DEBIAN_FASHION}")


def _download(dataset: str) -> str | None:
    """Fetch a data set; returns why that failed, or ``None``."""
    try:
        from torchvision import datasets
    except ModuleNotFoundError:
        return "no torchvision: pip install torchvision"
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        # torchvision prints every mirror that it tries; its progress bar goes to stderr and stays.
        with contextlib.redirect_stdout(io.StringIO()):
            getattr(datasets, dataset)(str(_DOWNLOAD_ROOT), download=True)
    except (HTTPException, OSError, RuntimeError) as error:
        return _one_line(error, -1)  # before it come the mirrors
    finally:
        socket.setdefaulttimeout(before)
    return None


def _read(dataset: str, root: Path, device: torch.device) -> Digits:
    title = _TITLES[dataset]
    if not root.is_dir():
        raise InputError(f"no such folder: {root}")
    if not _has(dataset, root):
        raise InputError(f"no {title} in {root}: expected {', '.join(_FILES)} in {root / dataset / 'raw'}")
    try:
        from torchvision import datasets
    except ModuleNotFoundError:
        raise InputError(f"reading {title} needs torchvision: pip install torchvision") from None
    try:
        train, test = (getattr(datasets, dataset)(str(root), train=train, download=False) for train in (True, False))
    except _CORRUPT as error:
        raise InputError(f"{title} in {root} is corrupt: {_one_line(error)}") from None
    for split in (train, test):
        if len(split.data) != len(split.targets) or not 0 <= int(split.targets.max()) < CLASSES:
            raise InputError(f"{title} in {root} is corrupt: its labels don't fit its images")
    return Digits(
        title,
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


def _one_line(error: Exception, which: int = 0) -> str:
    lines = str(error).strip().splitlines()
    return lines[which] if lines else type(error).__name__
