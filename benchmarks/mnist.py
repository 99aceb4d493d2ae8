"""MNIST, as the examples load it."""

import os
import sys
from pathlib import Path

import torch

from .peers import Unsupported

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import data


def load() -> data.Digits:
    """From the folder SNNFAST_DATA, which has MNIST/raw; without one, downloaded. Unsupported where there is none."""
    try:
        digits = data.load(os.environ.get("SNNFAST_DATA") or None, torch.device("cpu"))
    except data.InputError as error:
        raise Unsupported(f"needs MNIST: {error}") from error
    if not digits.name.startswith("MNIST"):
        raise Unsupported("needs MNIST; SNNFAST_DATA names the folder with MNIST/raw")
    return digits
