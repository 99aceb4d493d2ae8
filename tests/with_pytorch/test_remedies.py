"""What the docs tell users to do instead, where something is not supported, works; what they call an error is one."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import snntorch
import torch
from fresh import fresh
from helpers import assert_all_bits_equal, assert_close, pairs
from snntorch_checks import EVERY, make
from torch import Tensor, nn

import snnfast
import snnfast.snntorch as snn
from snnfast import surrogate


def loss(lif: Any) -> Callable[[Tensor], Tensor]:
    def loss(x: Tensor) -> Tensor:
        spk, mem = lif.unroll(x)
        return spk.sum() + mem.square().sum()  # type: ignore[no-any-return]

    return loss


# ---- derivatives

SURROGATES: dict[str, Any] = {
    "atan": surrogate.atan(),
    "LSO": surrogate.LSO(),
    "disabled": surrogate.DISABLED,
    "custom": surrogate.custom_surrogate(lambda z, grad, spk: grad * torch.exp(-z.abs())),
    "snntorchs": snntorch.surrogate.fast_sigmoid(slope=5),
}


@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
@pytest.mark.parametrize("name", SURROGATES)
def test_transforms_under_the_reference(name: str, delay: bool) -> None:
    f, x = loss(snn.Leaky(0.9, spike_grad=SURROGATES[name], reset_delay=delay)), torch.rand(7, 3, 6) * 2
    leaf = x.clone().requires_grad_()
    with snnfast.use_backend("reference"):
        (expected,) = torch.autograd.grad(f(leaf), leaf)
        assert_close(torch.func.grad(f)(x), expected, 1e-6)
        assert_close(torch.func.vjp(f, x)[1](torch.tensor(1.0))[0], expected, 1e-6)
        assert_close(torch.func.jacrev(f)(x), expected, 1e-6)
        per_sample = torch.func.vmap(torch.func.grad(f), in_dims=1, out_dims=1)(x)
        assert_close(per_sample, expected, 1e-6)
        (second,) = torch.autograd.grad(
            torch.autograd.grad(f(leaf), leaf, create_graph=True)[0].square().sum(), leaf, allow_unused=True
        )
        assert second is not None


@EVERY
def test_vmap_without_a_derivative(name: str, backend: str) -> None:
    lif, x = make(snnfast, name), torch.rand(7, 3, 6) * 2
    with torch.no_grad(), warnings.catch_warnings(action="error"):  # PyTorch would say that it goes sample by sample
        found = torch.func.vmap(lif.unroll, in_dims=1, out_dims=1)(x)
        expected = lif.unroll(x)
    assert_all_bits_equal(found, expected)


NO_TRANSFORM = r"no derivative under a transform of torch\.func .*use_backend\('reference'\)"


@pytest.mark.needs_extension
@pytest.mark.parametrize("how", ["unroll", "step", "linear", "connected"])
def test_gradient_transforms_of_the_kernels(how: str) -> None:
    lif, connected = snnfast.Leaky(0.9), snnfast.RLeaky(0.9, linear_features=6)
    weight = torch.rand(2, 6)

    def f(x: Tensor) -> Tensor:  # [T, B, N]
        if how == "step":
            return lif(x[0], torch.zeros_like(x[0]))[1].sum()  # type: ignore[no-any-return]
        if how == "linear":
            return snnfast.functional.lif(x, beta=0.9, weight=weight)[0].sum()
        return (connected if how == "connected" else lif).unroll(x)[1].sum()  # type: ignore[no-any-return]

    x, many = torch.rand(4, 3, 6), torch.rand(2, 4, 3, 6)
    func, each = torch.func, torch.func.vmap
    for call in (
        lambda: func.grad(f)(x), lambda: func.vjp(f, x), lambda: func.jacrev(f)(x), lambda: each(func.grad(f))(many),
        lambda: func.grad(lambda x: each(f)(x).sum())(many),
        lambda: each(func.grad(lambda x: each(f)(x).sum()))(many.unsqueeze(0)),
        lambda: each(f)(many.clone().requires_grad_()).sum().backward(),
        lambda: each(each(f))(many.unsqueeze(0).requires_grad_()).sum().backward(),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=NO_TRANSFORM):
            call()


def test_an_ensemble_in_grad_mode(backend: str) -> None:
    nets = [snnfast.MultiStep(nn.Linear(5, 4), snnfast.Leaky(0.9), nn.Linear(4, 3)) for _ in range(3)]
    x, (parameters, buffers) = torch.rand(6, 2, 5) * 3, torch.func.stack_module_state(nets)  # type: ignore[arg-type]
    found = torch.func.vmap(lambda *state: torch.func.functional_call(nets[0], state, (x,)))(parameters, buffers)
    for one, net in zip(found, nets, strict=True):
        assert_close(one, net(x), 1e-6)
    if backend == "fused":
        with pytest.raises(RuntimeError, match=NO_TRANSFORM):
            found.sum().backward()
        return
    found.sum().backward()
    for i, net in enumerate(nets):
        net(x).sum().backward()
        for name, parameter in net.named_parameters():
            assert_close(parameters[name].grad[i], parameter.grad, 1e-5, name)


@pytest.mark.filterwarnings("ignore:snnfast. a layer runs step by step")
def test_a_callable_under_a_transform() -> None:
    lif, x = snnfast.Leaky(0.9, spike_grad=lambda z: surrogate.atan()(z)), torch.rand(4, 3, 6) * 2
    assert_all_bits_equal(torch.func.vmap(lif.unroll, in_dims=1, out_dims=1)(x), lif.unroll(x))
    leaf = x.clone().requires_grad_()
    loss(lif)(leaf).backward()
    assert_close(torch.func.vmap(torch.func.grad(loss(lif)), in_dims=1, out_dims=1)(x), leaf.grad, 1e-6)


# ---- export


class Step(nn.Module):
    """One step, its membrane passed and returned."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 5), snn.Leaky(0.9)

    def forward(self, x: Tensor, mem: Tensor) -> Any:
        return self.lif(self.fc(x), mem)


def programs() -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    net = snnfast.MultiStep(nn.Linear(6, 5), snnfast.Leaky(0.9), nn.Linear(5, 2), snnfast.Leaky(0.8, 0.1)).eval()
    return {"unroll": (net, (torch.rand(7, 3, 6) * 3,)), "step": (Step().eval(), (torch.rand(3, 6), torch.rand(3, 5)))}


LOAD = """
import sys, torch
{first}
program = torch.{kind}.load("program")
program = program.module() if "{kind}" == "export" else program
args, expected = torch.load("expected.pt")
with torch.no_grad():
    print(all(torch.equal(a, b) for a, b in zip(program(*args), expected)), "snnfast" in sys.modules)
"""
FAILS = """
import torch
try:
    torch.{kind}.load("program")
except Exception:
    print("fails")
"""


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *pairs(["export", "export-reference"], ["unroll", "step"]),
        *[pytest.param("jit", name, marks=pytest.mark.thorough) for name in ("unroll", "step")],
    ],
)
@pytest.mark.filterwarnings("ignore:The tensor attribute", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_exported_program_in_a_fresh_process(kind: str, name: str, tmp_path: Path) -> None:
    model, args = programs()[name]
    kind, _, backend = kind.partition("-")
    with torch.no_grad(), snnfast.use_backend(backend or "fused"):
        torch.save((args, model(*args)), tmp_path / "expected.pt")
        if kind == "jit":
            torch.jit.save(torch.jit.trace(model, args), tmp_path / "program")
        else:
            torch.export.save(torch.export.export(model, args), tmp_path / "program")
    if backend:
        assert fresh(LOAD.format(kind=kind, first=""), tmp_path) == "True False"
    else:
        assert fresh(LOAD.format(kind=kind, first="import snnfast"), tmp_path) == "True True"
        assert fresh(FAILS.format(kind=kind), tmp_path) == "fails"


@pytest.mark.parametrize("name", ["unroll", "step"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_of_the_reference(name: str, tmp_path: Path) -> None:
    model, args = programs()[name]
    with torch.no_grad(), snnfast.use_backend("reference"):
        traced = torch.jit.trace(model, args)
        assert_all_bits_equal(traced(*args), model(*args))
        with pytest.raises(RuntimeError, match="Could not export Python function call"):
            torch.jit.save(traced, tmp_path / "program")


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["unroll", "step"])
@pytest.mark.filterwarnings("ignore")
def test_onnx(name: str, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed; the extra 'onnx' brings it")
    import onnx
    from onnx.reference import ReferenceEvaluator

    model, args = programs()[name]
    torch.onnx.export(model, args, tmp_path / "net.onnx", dynamo=True, verbose=False)
    loaded = onnx.load(tmp_path / "net.onnx")
    assert {node.domain for node in loaded.graph.node} <= {"", "pkg.onnxscript.torch_lib"}
    inputs = {i.name: arg.numpy() for i, arg in zip(loaded.graph.input, args, strict=True)}
    for found, expected in zip(ReferenceEvaluator(loaded).run(None, inputs), model(*args), strict=True):
        torch.testing.assert_close(torch.as_tensor(found), expected.detach())
    with (
        snnfast.use_backend("fused"),
        pytest.raises(Exception, match=r"ONNX, .* export under use_backend\('reference'\)"),
    ):
        torch.onnx.export(model, args, tmp_path / "fused.onnx", dynamo=True, verbose=False)
