"""MNIST, as the examples load it."""

import os
import sys
from pathlib import Path

import torch

from .peers import Unsupported

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import data


def load(path: str | None = None) -> data.Digits:
    """From a folder with MNIST/raw; without one from SNNFAST_DATA, or downloaded."""
    digits = data.load(path or os.environ.get("SNNFAST_DATA") or None, torch.device("cpu"))
    if not digits.name.startswith("MNIST"):
        raise Unsupported("needs MNIST; SNNFAST_DATA names the folder with MNIST/raw")
    return digits
