"""Every wrong argument raises an error that names it, before anything has changed."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Case, assert_bits_equal, call, inputs
from torch import nn

import snnfast
from snnfast import _ops, surrogate

CURRENT = torch.rand(4, 3, 10)


LAYOUTS = (torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, torch.Tensor.to_mkldnn)


class Wrong:
    """A value whose type no argument takes."""


# argument, its wrong value, error; every other argument is right
BAD_ARGUMENTS: list[tuple[str, Any, type[Exception]]] = [
    ("current", [1.0, 2.0], TypeError),
    ("current", np.zeros((4, 3, 10)), TypeError),
    ("current", None, TypeError),
    ("current", torch.zeros(4, 3, 10, dtype=torch.int64), TypeError),
    ("current", torch.zeros(4, 3, 10, dtype=torch.bool), TypeError),
    ("current", torch.zeros(4, 3, 10, dtype=torch.complex64), TypeError),
    ("current", torch.zeros(4, 3, 10).to_sparse(), TypeError),
    ("current", torch.tensor(1.0), ValueError),
    ("mem", 0.0, TypeError),
    ("mem", np.zeros((3, 10)), TypeError),
    ("mem", torch.zeros(3, 10, dtype=torch.int32), TypeError),
    ("mem", torch.zeros(3, 10, dtype=torch.complex64), TypeError),
    ("mem", torch.zeros(4, 3, 10), ValueError),
    ("mem", torch.zeros(10), ValueError),
    ("mem", torch.zeros(()), ValueError),
    ("mem", torch.zeros(0), ValueError),
    ("mem", torch.zeros(3, 10, device="meta"), ValueError),
    ("current", torch.nested.nested_tensor([torch.zeros(3, 10), torch.zeros(2, 10)]), TypeError),
    ("mem", torch.nested.nested_tensor([torch.zeros(3, 10), torch.zeros(2, 10)]), TypeError),
    *(("mem", layout(torch.zeros(3, 10)), TypeError) for layout in LAYOUTS),
    *((name, layout(torch.zeros(3, 10)), TypeError) for name in ("beta", "threshold") for layout in LAYOUTS),
    *((name, value, error) for name in ("beta", "threshold", "graded_spikes_factor") for value, error in (
        ("0.9", TypeError), (None, TypeError), (True, TypeError), ([0.9], TypeError), (1j, TypeError),
        (Wrong(), TypeError), (math.nan, ValueError), (10**400, ValueError), (torch.zeros(3), ValueError),
        (torch.zeros(10, dtype=torch.complex64), TypeError), (torch.zeros(4, 3, 10), ValueError),
        (torch.zeros(1, 3, 10), ValueError), (torch.zeros(0), ValueError), (torch.zeros(3, 0), ValueError),
        (torch.zeros(10, device="meta"), ValueError), (torch.zeros((), device="meta"), ValueError),
    )),
    ("spike_grad", 2.0, TypeError),
    ("spike_grad", "atan", TypeError),
    ("reset_mechanism", "substract", ValueError),
    ("reset_mechanism", "Subtract", ValueError),
    ("reset_mechanism", 0, TypeError),
    ("reset_mechanism", None, TypeError),
    ("reset_delay", 2, ValueError),
    ("reset_delay", None, TypeError),
    ("reset_delay", torch.tensor(True), TypeError),
    ("record_mem", 2, ValueError),
    ("record_mem", None, TypeError),
    ("record_mem", "last", TypeError),
    ("reduce", "mean", ValueError),
    ("reduce", "", ValueError),
    ("reduce", True, TypeError),
    ("reduce", torch.sum, TypeError),
    ("num_steps", -1, ValueError),
    ("num_steps", True, TypeError),
    ("num_steps", 3.0, TypeError),
    ("num_steps", "3", TypeError),
    ("num_steps", torch.rand(2), TypeError),
]  # fmt: skip


def label(value: Any) -> str | None:
    if isinstance(value, torch.Tensor):
        if value.is_nested or value.layout != torch.strided:
            return "nested" if value.is_nested else str(value.layout)
        return f"{str(value.dtype)[6:]}{list(value.shape)}{value.device}"
    return (
        value.__name__ if isinstance(value, type) else str(value)[:12] if not isinstance(value, np.ndarray) else "numpy"
    )


@pytest.mark.parametrize("lif", [snnfast.functional.lif, snnfast.reference.lif], ids=["functional", "reference"])
@pytest.mark.parametrize(("argument", "value", "error"), BAD_ARGUMENTS, ids=label)
def test_lif_names_the_wrong_argument(
    argument: str, value: Any, error: type[Exception], lif: Any, backend: str
) -> None:
    kwargs = {"current": CURRENT, "beta": 0.9, argument: value}
    with pytest.raises(error, match=rf"^{argument}\b"):
        lif(**kwargs)


def test_unknown_and_missing_arguments(backend: str) -> None:
    for kwargs in ({}, {"beta": 0.9, "decay": 0.9}):
        with pytest.raises(TypeError, match=r"beta|decay"):
            snnfast.functional.lif(CURRENT, **kwargs)


@pytest.mark.parametrize("shape", [(0, 3, 10), (4, 0, 10), (4, 3, 0), (0,), (0, 0)], ids=str)
def test_an_empty_current_is_legal(shape: tuple[int, ...], backend: str) -> None:
    current = torch.zeros(shape, requires_grad=True)
    for record_mem in (True, False):
        spk, mem = snnfast.functional.lif(current, beta=torch.tensor(0.9), record_mem=record_mem)
        assert spk.shape == shape
        assert mem.shape == (shape if record_mem else shape[1:])
        if spk.requires_grad:
            (spk.sum() + mem.sum()).backward()
            assert current.grad is not None
            assert current.grad.shape == shape


def test_no_steps_leave_the_membrane_as_it_is(backend: str) -> None:
    mem0 = torch.rand(3, 10)
    for current, num_steps in ((torch.zeros(0, 3, 10), None), (torch.zeros(3, 10), 0)):
        _, mem = snnfast.functional.lif(current, mem0, beta=0.9, num_steps=num_steps, record_mem=False)
        assert_bits_equal(mem, mem0)


def snapshot(layer: nn.Module) -> dict[str, Any]:
    return {
        **{name: (id(t), t.clone()) for name, t in (*layer.named_buffers(), *layer.named_parameters())},
        **{name: value for name, value in vars(layer).items() if not name.startswith("_")},
    }


def assert_unchanged(layer: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(layer)
    assert after.keys() == before.keys()
    for name, value in before.items():
        if isinstance(value, tuple):
            assert after[name][0] == value[0], f"{name} was replaced"
            assert_bits_equal(after[name][1], value[1], name)
        else:
            assert after[name] is value or after[name] == value, name


BAD_LAYERS: list[tuple[str, Any, type[Exception]]] = [
    *((name, value, error) for name in ("beta", "threshold", "graded_spikes_factor") for value, error in (
        ("0.9", TypeError), (None, TypeError), (True, TypeError), (["0.9"], TypeError), (math.nan, ValueError),
        ([0.9, [1.0]], TypeError), ([0.9, math.nan], ValueError), (torch.tensor([0.9, math.nan]), ValueError),
        (10**400, ValueError), (2**70, ValueError), ([10**400], TypeError), (torch.zeros(3, 10).to_sparse(), TypeError),
    )),
    *((name, value, error) for value, error in (
        ("yes", TypeError), (1.0, TypeError), (torch.tensor(True), TypeError), (np.array([True]), TypeError),
        (2, ValueError), (-1, ValueError), (np.int64(2), ValueError),
    ) for name in (
        "init_hidden", "learn_beta", "learn_threshold", "output", "learn_graded_spikes_factor", "reset_delay",
        "surrogate_disable", "inhibition",
    )),
    ("reset_delay", None, TypeError),
    ("spike_grad", 2.0, TypeError),
    ("reset_mechanism", "substract", ValueError),
    ("reset_mechanism", 0, TypeError),
    ("state_quant", True, TypeError),
    ("state_quant", 8, TypeError),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "value", "error"), BAD_LAYERS, ids=label)
def test_leaky_names_the_wrong_argument(argument: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^{argument}\b"):
        snnfast.Leaky(**{"beta": 0.9, argument: value})


@pytest.mark.parametrize("name", ["beta", "threshold", "graded_spikes_factor"])
def test_leaky_learns_floating_tensors_only(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name}\b"):
        snnfast.Leaky(**{"beta": 0.9, name: torch.tensor(1), f"learn_{name}": True})


@pytest.mark.parametrize("init_hidden", [False, True], ids=["passed", "held"])
@pytest.mark.parametrize(
    ("method", "args", "kwargs", "argument", "error"),
    [
        ("forward", ([1.0],), {}, "input_", TypeError),
        ("forward", (torch.zeros(3, 10, dtype=torch.int64),), {}, "input_", TypeError),
        ("forward", (torch.zeros(3, 4),), {}, "beta", ValueError),
        ("forward", (torch.zeros(3, 10), 0.5), {}, "mem", TypeError),
        ("forward", (torch.zeros(3, 10), torch.zeros(3, 10, dtype=torch.int64)), {}, "mem", TypeError),
        ("forward", (torch.zeros(3, 10), torch.zeros(3, 10).to_sparse()), {}, "mem", TypeError),
        ("unroll", ([1.0],), {}, "current", TypeError),
        ("unroll", (torch.tensor(1.0),), {}, "current", ValueError),
        ("unroll", (torch.zeros(4, 3, 10, dtype=torch.int64),), {}, "current", TypeError),
        ("unroll", (torch.zeros(4, 3, 10).to_sparse(),), {}, "current", TypeError),
        ("unroll", (torch.zeros(4, 3, 4),), {}, "beta", ValueError),
        ("unroll", (torch.zeros(3, 4),), {"num_steps": 4}, "beta", ValueError),
        ("unroll", (CURRENT, torch.zeros(10)), {}, "mem", ValueError),
        ("unroll", (CURRENT, 0.5), {}, "mem", TypeError),
        ("unroll", (CURRENT, torch.zeros(CURRENT.shape[1:], dtype=torch.int64)), {}, "mem", TypeError),
        ("unroll", (CURRENT,), {"num_steps": -2}, "num_steps", ValueError),
        ("unroll", (CURRENT,), {"num_steps": 2.0}, "num_steps", TypeError),
        ("unroll", (CURRENT,), {"num_steps": True}, "num_steps", TypeError),
        ("unroll", (CURRENT,), {"record_mem": None}, "record_mem", TypeError),
        ("unroll", (CURRENT,), {"record_mem": 2}, "record_mem", ValueError),
        ("unroll", (CURRENT, torch.zeros(3, 10).to_sparse()), {}, "mem", TypeError),
        ("unroll", (CURRENT,), {"reduce": "mean"}, "reduce", ValueError),
        ("unroll", (CURRENT,), {"membrane_dtype": torch.float16}, "membrane_dtype", ValueError),
    ],
    ids=label,
)
def test_a_failing_call_of_leaky_changes_nothing_in_it(
    method: str, args: Any, kwargs: Any, argument: str, error: type[Exception], init_hidden: bool, backend: str
) -> None:
    layer = snnfast.Leaky(torch.full((10,), 0.9), init_hidden=init_hidden)
    layer(torch.rand(3, 10))
    before = snapshot(layer)
    if init_hidden and argument == "mem":  # it must not be given at all
        error = TypeError
    with pytest.raises(error, match=rf"^{argument}\b"):
        getattr(layer, method)(*args, **kwargs)
    assert_unchanged(layer, before)


def test_multistep_names_the_wrong_argument(backend: str) -> None:
    class OwnLoop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = snnfast.Leaky(0.9)

    for layers, error in (((), ValueError), ((nn.Linear(2, 2), torch.relu), TypeError), ((OwnLoop(),), TypeError)):
        with pytest.raises(error, match=r"^layers\b"):
            snnfast.MultiStep(*layers)
    for net in (snnfast.MultiStep(nn.Linear(10, 10), snnfast.Leaky(0.9)), snnfast.MultiStep(nn.Linear(10, 10))):
        for x, kwargs, argument, error in (
            ([1.0], {}, "x", TypeError),
            (torch.zeros(10), {}, "x", ValueError),
            (torch.tensor(0.0), {"num_steps": 3}, "x", ValueError),
            (CURRENT[0], {"num_steps": -1}, "num_steps", ValueError),
            (CURRENT[0], {"num_steps": 2.0}, "num_steps", TypeError),
            (CURRENT, {"record_mem": "no"}, "record_mem", TypeError),
        ):
            with pytest.raises(error, match=rf"^{argument}\b"):
                net(x, **kwargs)


@pytest.mark.parametrize("name", surrogate.__all__)
def test_surrogates_name_the_wrong_argument(name: str) -> None:
    factory = getattr(surrogate, name)
    if name == "Surrogate" or not factory.__defaults__:
        pytest.skip("takes no numbers")
    for argument in factory.__code__.co_varnames[: factory.__code__.co_argcount]:
        for value, error in (
            ("2", TypeError), (None, TypeError), (True, TypeError), (math.nan, ValueError), (10**400, ValueError)
        ):  # fmt: skip
            with pytest.raises(error, match=rf"^{argument}\b"):
                factory(**{argument: value})


@pytest.mark.parametrize(
    ("value", "error"), [("cuda", ValueError), ("", ValueError), (None, TypeError), (1, TypeError)]
)
def test_use_backend_names_the_wrong_argument(value: Any, error: type[Exception]) -> None:
    before = snnfast.config()["backend"]
    with pytest.raises(error, match=r"^name\b"), snnfast.use_backend(value):
        pass
    assert snnfast.config()["backend"] == before


# ---- tensors that never passed the checks of the public functions must not reach a kernel --------------------------

FORWARD = {
    "x": torch.rand(20, 3, 10), "mem0": torch.rand(3, 10), "beta": torch.tensor(0.9), "threshold": torch.tensor(1.0),
    "graded": torch.tensor(1.0), "num_steps": None, "reset": 0, "reset_delay": True, "record_mem": True,
    "count": False, "keep": _ops.KEEP_NOTHING,
}  # fmt: skip
BAD_FORWARD: list[dict[str, Any]] = [
    {"x": torch.zeros(20, 3, 10, dtype=torch.int32)},
    {"x": torch.tensor(1.0)},
    {"x": torch.rand(20, 3, 10).double()},
    {"x": torch.rand(20, 3, 9)},
    {"mem0": torch.rand(10)},
    {"mem0": torch.rand(20, 3, 10)},
    {"mem0": torch.rand(3, 10).double()},
    {"num_steps": -1},
    {"num_steps": 5},
    {"reset": 3},
    {"reset": -1},
    {"keep": -1},
    {"keep": 4},
    {"keep": _ops.KEEP_ROUNDED, "reset_delay": False},
    {"keep": _ops.KEEP_BITS, "reset_delay": False},
    *({name: value} for name in ("beta", "threshold", "graded") for value in (
        torch.tensor(1, dtype=torch.int32), torch.rand(10).double(), torch.ones(10, dtype=torch.int64), torch.rand(9),
        torch.rand(3), torch.rand(20, 3, 10), torch.rand(0),
    )),
]  # fmt: skip


@pytest.mark.parametrize("wrong", BAD_FORWARD, ids=lambda w: "-".join(f"{k}-{label(v)}" for k, v in w.items()))
def test_the_forward_op_refuses_inconsistent_arguments(wrong: dict[str, Any], device: torch.device) -> None:
    args = [a.to(device) if isinstance(a, torch.Tensor) and a.dim() else a for a in {**FORWARD, **wrong}.values()]
    with pytest.raises(RuntimeError):
        _ops.lif_forward(*args)


BACKWARD = {
    "grad_spk": torch.rand(40, 3, 10), "grad_mem": torch.rand(40, 3, 10), "x": torch.rand(40, 3, 10), "mem_rec": None,
    "kept": None, "mem0": torch.rand(3, 10), "beta": torch.tensor(0.9), "threshold": torch.tensor(1.0),
    "graded": torch.tensor(1.0), "derivative": None, "steps": 40, "constant": False, "reset": 0, "reset_delay": True,
    "count": False, "keep": _ops.KEEP_CHECKPOINTS, "surrogate": 0, "p0": 2.0, "p1": 0.0, "needs": 31,
}  # fmt: skip
FROM_MEM = {"x": None, "kept": None, "keep": _ops.KEEP_NOTHING, "mem_rec": torch.rand(40, 3, 10)}
FROM_ROUNDED = {"x": None, "keep": _ops.KEEP_ROUNDED, "kept": torch.rand(40, 3, 10).bfloat16()}
FROM_BITS = {
    "x": None, "keep": _ops.KEEP_BITS, "kept": torch.zeros(5, 3, 10, dtype=torch.uint8), "surrogate": 3, "needs": 1,
}  # fmt: skip
BAD_BACKWARD: list[dict[str, Any]] = [
    {"x": None, "kept": None},
    {"grad_spk": None, "grad_mem": None},
    {**FROM_MEM, "mem_rec": torch.rand(39, 3, 10)},
    {**FROM_MEM, "mem_rec": torch.rand(40, 3, 9)},
    {**FROM_MEM, "mem_rec": torch.rand(40, 3, 10).double()},
    {**FROM_MEM, "steps": 39},
    {**FROM_MEM, "keep": _ops.KEEP_CHECKPOINTS},
    {**FROM_MEM, "reset_delay": False},
    {**FROM_ROUNDED, "kept": torch.rand(40, 3, 10)},
    {**FROM_ROUNDED, "kept": torch.rand(39, 3, 10).bfloat16()},
    {**FROM_ROUNDED, "kept": None},
    {**FROM_ROUNDED, "x": torch.rand(40, 3, 10)},
    {**FROM_ROUNDED, "reset_delay": False},
    {**FROM_ROUNDED, "needs": 4},
    {**FROM_BITS, "kept": torch.zeros(4, 3, 10, dtype=torch.uint8)},
    {**FROM_BITS, "surrogate": 0},
    {**FROM_BITS, "derivative": torch.rand(40, 3, 10)},
    {**FROM_BITS, "needs": 4},
    {**FROM_BITS, "needs": 16},
    {**FROM_BITS, "reset_delay": False},
    {"keep": -1},
    {"keep": 4},
    {"x": torch.zeros(40, 3, 10, dtype=torch.int64)},
    {"x": torch.rand(40, 3, 9)},
    {"x": torch.rand(3, 10), "constant": True, "steps": 39},
    {"x": torch.rand(3, 10), "constant": True, "steps": -1},
    {"x": torch.rand(3, 10)},
    {"kept": None},
    {"kept": None, "keep": _ops.KEEP_NOTHING},
    {"kept": torch.rand(0, 3, 10), "keep": _ops.KEEP_NOTHING},
    {"kept": torch.rand(0, 3, 10)},
    {"kept": torch.rand(41, 3, 10)},
    {"grad_spk": torch.rand(39, 3, 10)},
    {"grad_spk": torch.rand(3, 10)},
    {"grad_spk": torch.rand(40, 3, 10).double()},
    {"grad_spk": torch.rand(40, 3, 10), "count": True},
    {"grad_spk": torch.rand(10), "count": True},
    {"grad_spk": torch.rand(3, 10).double(), "count": True},
    {"grad_spk": torch.rand(40, 3, 10), "x": torch.rand(3, 10), "constant": True, "count": True},
    {"grad_mem": torch.rand(39, 3, 10)},
    {"grad_mem": torch.rand(10)},
    {"grad_mem": torch.rand(3, 10).half()},
    {"mem0": torch.rand(10)},
    {"mem0": torch.rand(3, 10).double()},
    {"beta": torch.rand(9)},
    {"threshold": torch.rand(10).double()},
    {"threshold": torch.tensor(True)},
    {"graded": torch.rand(40, 3, 10)},
    {"reset": 3},
    {"reset": -1},
    {"derivative": torch.rand(39, 3, 10)},
    {"derivative": torch.rand(3, 10)},
    {"derivative": torch.rand(40, 3, 10).double()},
    {"surrogate": 10},
    {"surrogate": -1},
    {"needs": -1},
    {"needs": 32},
]


def backward_arguments(device: torch.device, changes: dict[str, Any]) -> list[Any]:
    rows = _ops.lif_forward(*(FORWARD | {"x": BACKWARD["x"], "keep": _ops.KEEP_CHECKPOINTS}).values())[2]
    args = {**BACKWARD, "kept": rows, **changes}
    return [a.to(device) if isinstance(a, torch.Tensor) and a.dim() else a for a in args.values()]


@pytest.mark.parametrize("wrong", BAD_BACKWARD, ids=lambda w: "-".join(f"{k}-{label(v)}" for k, v in w.items()))
def test_the_backward_op_refuses_inconsistent_arguments(wrong: dict[str, Any], device: torch.device) -> None:
    _ops.lif_backward(*backward_arguments(device, {}))
    with pytest.raises(RuntimeError):
        _ops.lif_backward(*backward_arguments(device, wrong))


def test_the_ops_refuse_tensors_on_different_devices(device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("needs a second device")
    case = Case()
    tensors = inputs(case, device)
    for name in ("mem", "beta"):
        elsewhere = torch.rand(3, 10)
        with pytest.raises(ValueError, match=f"^{name} is on cpu, but current is on cuda"):
            call(snnfast.functional.lif, {**tensors, name: elsewhere}, case)
        with pytest.raises(RuntimeError):
            _ops.lif_forward(*({**FORWARD, "x": tensors["current"], "mem0": None, "beta": elsewhere}).values())


@pytest.mark.needs_extension
def test_sizes_that_no_memory_can_hold_are_an_error_and_not_a_crash():
    with snnfast.use_backend("fused"), pytest.raises((RuntimeError, MemoryError)):
        snnfast.functional.lif(torch.ones(3), beta=0.9, num_steps=2**62 - 1)
