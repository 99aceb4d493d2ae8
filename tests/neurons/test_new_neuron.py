"""``docs/adding-a-neuron.md`` holds: a neuron that is added by its four steps works."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import assert_all_bits_equal, assert_all_close, gradients_of

import snnfast
from snnfast._core import ops

ROOT = Path(__file__).parents[2]
NEW = Path(__file__).parents[1] / "new_neuron"


@pytest.fixture
def new(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The Python file of the neuron, which the package knows for the duration of a test."""
    monkeypatch.setattr(ops, "NEURONS", dict(ops.NEURONS))
    spec = importlib.util.spec_from_file_location("resting", NEW / "resting.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with snnfast.use_backend("reference"):
        yield module


def test_the_python_file_alone_makes_a_neuron(new: Any) -> None:
    """On the reference path: with a resting membrane of 0 it is ``Leaky``, and function, layer and steps agree."""
    current, beta = torch.rand(12, 3, 5), torch.tensor(0.8, requires_grad=True)
    found, expected = new.resting(current, beta=beta), snnfast.functional.lif(current, beta=beta)
    assert expected[0].any()
    assert_all_bits_equal(found, expected)
    assert_all_close(*(gradients_of(outputs, [beta]) for outputs in (found, expected)), relative=1e-5)
    layer, rest = new.Resting(0.8, 0.3, learn_beta=True, learn_rest=True), torch.tensor(0.3, requires_grad=True)
    found, expected = layer.unroll(current), new.resting(current, beta=beta, rest=rest)
    assert_all_bits_equal(found, expected)
    assert_all_bits_equal(layer(current[0], torch.zeros(3, 5)), (t[0] for t in found))
    grads = gradients_of(found, [layer.beta, layer.rest]), gradients_of(expected, [beta, rest])
    assert_all_close(*grads, relative=1e-5)
    assert repr(layer).startswith("Resting(beta=0.8, rest=0.3, threshold=1")


ON_KERNELS = """
import torch, snnfast
from snnfast import Resting, functional, reference

assert "resting" in functional.__all__ and "Resting" in snnfast.__all__
for dtype in (torch.float32, torch.float64):
    for reset in ("subtract", "zero", "none"):
        for delay in (True, False):
            for lengths in (None, torch.tensor([3, 0, 40, 17])):
                made = []
                for module in (functional, reference):
                    torch.manual_seed(0)
                    tensors = [torch.rand(40, 4, 33), torch.rand(4, 33), torch.rand(33), torch.rand(33) * 0.2]
                    tensors = [t.to(dtype).requires_grad_() for t in tensors]
                    x, mem, beta, rest = tensors
                    options = {"reset_mechanism": reset, "reset_delay": delay, "lengths": lengths}
                    with snnfast.use_backend("fused"):
                        found = module.resting(x, mem, beta=beta, rest=rest, **options)
                    weights = torch.rand_like(found[0]) - 0.4
                    ((found[0] + found[1] ** 2) * weights).sum().backward()
                    made.append((found, [t.grad for t in tensors]))
                (found, grads), (expected, wanted) = made
                assert found[0].any()
                for a, b in zip(found, expected):
                    assert torch.equal(a, b)
                for a, b in zip(grads, wanted):
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
layer, x = Resting(0.9, 0.2), torch.rand(7, 4, 33)


def loop(x):
    mem, record = torch.zeros(4, 33), []
    for step in x:
        spk, mem = layer(step, mem)
        record.append(mem)
    return torch.stack(record)


compiled = snnfast.compile(loop)
assert torch.equal(compiled(x), layer.unroll(x)[1])
print("equal")
"""


@pytest.mark.thorough
@pytest.mark.needs_extension
def test_a_neuron_is_four_files(tmp_path: Path) -> None:
    """In a copy of the package with this neuron and those of ``NORM_RESETS`` alone, which builds in half the time."""
    copy = tmp_path / "copy"
    for folder in ("csrc", "snnfast"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    setup = copy / "setup.py"
    setup.write_text(setup.read_text().replace("-O3", "-O1"))  # which takes half of the time
    for header in (copy / "csrc/neurons").glob("*.h"):
        if header.stem not in ops.NORM_RESETS:  # which the kernels of batch normalisation include
            header.unlink()
    shutil.copy(NEW / "resting.h", copy / "csrc/neurons")
    shutil.copy(NEW / "resting.py", copy / "snnfast/neurons")
    kept_files = "|".join(["base", *ops.NORM_RESETS])
    for file, kept, name in (
        ("snnfast/neurons/__init__.py", "Leaky", "Resting"),
        ("snnfast/functional.py", "lif", "resting"),
    ):
        text = (copy / file).read_text()
        text = re.sub(rf"from snnfast\.neurons\.(?!{kept_files}).* import .*\n", "", text)
        names = f'from snnfast.neurons.resting import {name}\n__all__ = ["{kept}", "{name}"]'
        text = re.sub(r"__all__ = .*", names, text)
        (copy / file).write_text(text)
    env = {**os.environ, "SNNFAST_CUDA": "0", "SNNFAST_REQUIRE_EXT": "1", "PYTHONPATH": str(copy)}
    env.pop("SNNFAST_BUILD", None)
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(build, cwd=copy, env=env, check=True)
    run = [sys.executable, "-c", ON_KERNELS]
    found = subprocess.run(run, cwd=copy, env=env, check=True, capture_output=True, text=True)
    assert found.stdout == "equal\n"
