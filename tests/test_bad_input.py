"""Every wrong argument raises an error that names it, before anything has changed."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import NEURONS, Case, assert_bits_equal
from snntorch_checks import DECAYS, OTHER_DECAYS, make
from torch import nn

import snnfast
import snnfast.snntorch as snn
from snnfast import surrogate

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
    ("beta", torch.nested.nested_tensor([torch.zeros(10)]), TypeError),
    *(("mem", layout(torch.zeros(3, 10)), TypeError) for layout in LAYOUTS),
    *((name, layout(torch.zeros(3, 10)), TypeError) for name in ("beta", "threshold") for layout in LAYOUTS),
    *((name, value, error) for name in ("beta", "threshold", "graded_spikes_factor") for value, error in (
        ("0.9", TypeError), (None, TypeError), (True, TypeError), ([0.9], TypeError), (1j, TypeError),
        (Wrong(), TypeError), (math.nan, ValueError), (10**400, ValueError), (torch.zeros(3), ValueError),
        (torch.zeros(10, dtype=torch.complex64), TypeError), (torch.zeros(5, 3, 10), ValueError),
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
    if isinstance(value, (tuple, list, dict)):  # the numbers of a random tensor do not belong in a test's name
        return f"{type(value).__name__}({', '.join(filter(None, map(label, value)))})"
    return (
        value.__name__ if isinstance(value, type) else str(value)[:12] if not isinstance(value, np.ndarray) else "numpy"
    )


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize(("argument", "value", "error"), BAD_ARGUMENTS, ids=label)
def test_a_function_names_the_wrong_argument(
    argument: str, value: Any, error: type[Exception], neuron: str, backend: str
) -> None:
    kind = Case(neuron).kind
    alike = {"mem": kind.ops.states, "beta": kind.decays}  # what holds for one holds for all of its kind
    for name in alike.get(argument, (argument,)):
        for function in (kind.function, kind.reference):
            with pytest.raises(error, match=rf"^{name}\b"):
                function(**{"current": CURRENT, **dict.fromkeys(kind.decays, 0.9), name: value})


def test_unknown_and_missing_arguments(backend: str) -> None:
    for kwargs in ({}, {"beta": 0.9, "decay": 0.9}):
        with pytest.raises(TypeError, match=r"beta|decay"):
            snnfast.functional.lif(CURRENT, **kwargs)


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


BAD_ENTRIES: list[tuple[str, Any, str]] = [
    *(("reset_mechanism_val", value, "expected 0, 1 or 2") for value in (7, -1, 3, math.nan, 0.5, 2**40)),
    ("reset_mechanism_val", 1j, "expected a real tensor, got complex64"),
    ("threshold", 1 + 1j, "expected a real tensor, got complex64"),
    ("beta", 0.5 + 0j, "expected a real tensor, got complex64"),
]


@pytest.mark.parametrize(("entry", "value", "message"), BAD_ENTRIES, ids=label)
@pytest.mark.parametrize("library", [snnfast, snn], ids=["snnfast", "snnfast.snntorch"])
@pytest.mark.parametrize("name", [*DECAYS, *OTHER_DECAYS])
def test_a_checkpoint_that_fits_no_layer_is_an_error_that_names_the_entry(
    name: str, library: Any, entry: str, value: Any, message: str
) -> None:
    net = nn.Sequential(nn.Linear(3, 3), make(library, name, reset_mechanism="zero"))
    before = {key: tensor.clone() for key, tensor in net[1].state_dict().items()}
    for assign in (False, True):
        state = {**net.state_dict(), f"1.{entry}": torch.tensor(value)}
        with pytest.raises(RuntimeError, match=rf"(?s)^Error\(s\) in loading state_dict .*1\.{entry}: {message}"):
            net.load_state_dict(state, assign=assign)
        assert net[1].reset_mechanism == "zero"
        for key, tensor in net[1].state_dict().items():
            assert_bits_equal(tensor, before[key], key)
    net.load_state_dict({**net.state_dict(), "1.reset_mechanism_val": torch.tensor([2.0])})
    assert net[1].reset_mechanism == "none"


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
