"""Every wrong argument raises an error that names it, before anything has changed; flags of every kind are taken."""

import contextlib
import itertools
import math
from typing import Any

import numpy as np
import pytest
import snntorch
import torch
from helpers import NEURONS, Case, assert_all_bits_equal, assert_bits_equal
from snntorch_checks import DECAYS, OTHER_DECAYS, make
from torch import nn

import snnfast
import snnfast.snntorch as snn
from snnfast import functional, reference, surrogate
from snnfast._core import ops

CURRENT = torch.rand(4, 3, 10)
LAYOUTS = (torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, torch.Tensor.to_mkldnn)


def of(rows: dict[str, dict[type[Exception], tuple[Any, ...]]]) -> list[tuple[str, Any, type[Exception]]]:
    """Argument, its wrong value, and the error, of a table by arguments and errors."""
    alike = [(names.split(), error, values) for names, of_them in rows.items() for error, values in of_them.items()]
    return [(name, value, error) for names, error, values in alike for name in names for value in values]


NESTED = torch.nested.nested_tensor([torch.zeros(3, 10), torch.zeros(2, 10)])
# Every other argument is right.
BAD_ARGUMENTS = of({
    "current": {
        TypeError: (
            [1.0, 2.0], np.zeros((4, 3, 10)), None, torch.zeros(4, 3, 10, dtype=torch.int64), NESTED,
            torch.zeros(4, 3, 10, dtype=torch.bool), torch.zeros(4, 3, 10, dtype=torch.complex64),
            torch.zeros(4, 3, 10).to_sparse(),
        ),
        ValueError: (torch.tensor(1.0),),
    },
    "mem": {
        TypeError: (
            0.0, np.zeros((3, 10)), torch.zeros(3, 10, dtype=torch.int32), torch.zeros(3, 10, dtype=torch.complex64),
            NESTED, *(layout(torch.zeros(3, 10)) for layout in LAYOUTS),
        ),
        ValueError: (
            torch.zeros(4, 3, 10), torch.zeros(10), torch.zeros(()), torch.zeros(0), torch.zeros(3, 10, device="meta"),
        ),
    },
    "beta threshold graded_spikes_factor": {
        TypeError: (
            "0.9", None, True, [0.9], 1j, torch.zeros(10, dtype=torch.complex64),
            torch.nested.nested_tensor([torch.zeros(10)]), *(layout(torch.zeros(3, 10)) for layout in LAYOUTS),
        ),
        ValueError: (
            math.nan, 10**400, torch.zeros(3), torch.zeros(5, 3, 10), torch.zeros(1, 3, 10), torch.zeros(0),
            torch.zeros(3, 0), torch.zeros(10, device="meta"), torch.zeros((), device="meta"),
        ),
    },
    "spike_grad": {TypeError: (2.0, "atan")},
    "reset_mechanism": {ValueError: ("substract", "Subtract", "subtract_beta"), TypeError: (0, None)},
    "reset_delay": {ValueError: (2,), TypeError: (None, torch.tensor(True))},
    "record_mem": {ValueError: (2,), TypeError: (None, "last")},
    "reduce": {ValueError: ("mean", ""), TypeError: (True, torch.sum)},
    "num_steps": {ValueError: (-1,), TypeError: (True, 3.0, "3", torch.rand(2))},
})  # fmt: skip


def label(value: Any) -> str | None:
    if isinstance(value, torch.Tensor):
        if value.is_nested or value.layout != torch.strided:
            return "nested" if value.is_nested else str(value.layout)
        return f"{str(value.dtype)[6:]}{list(value.shape)}{value.device}"
    if isinstance(value, (tuple, list, dict)):  # the numbers of a random tensor do not belong in a test's name
        return f"{type(value).__name__}({', '.join(filter(None, map(label, value)))})"
    if isinstance(value, np.ndarray):
        return "numpy"
    return value.__name__ if isinstance(value, type) else str(value)[:12]


@pytest.mark.parametrize(("argument", "value", "error"), BAD_ARGUMENTS, ids=label)
def test_a_function_names_the_wrong_argument(argument: str, value: Any, error: type[Exception], backend: str) -> None:
    for kind in (Case(neuron).kind for neuron in NEURONS):
        alike = {"mem": kind.ops.states, "beta": kind.decays}  # what holds for one holds for all of its kind
        for name, function in itertools.product(alike.get(argument, (argument,)), (kind.function, kind.reference)):
            with pytest.raises(error, match=rf"^{name}\b"):
                function(**{"current": CURRENT, **dict.fromkeys(kind.decays, 0.9), name: value})


WEIGHT = torch.rand(5, 10)
LENGTHS = torch.tensor([2, 4, 3])

# What lif alone takes, or takes in more forms: arguments, error, message; the others are right.
BAD_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    *(({"current": CURRENT.to(dtype)}, TypeError, r"current: expected .*; convert it, for example with \.float\(\)")
      for dtype in (torch.uint8, torch.bool)),
    *(({"current": torch.nested.nested_tensor([CURRENT[0], CURRENT[1]], layout=layout)}, TypeError, ".*; pad it")
      for layout in (torch.strided, torch.jagged)),
    ({"weight": 1.0}, TypeError, r"weight: expected a torch\.Tensor or None, got float"),
    ({"weight": WEIGHT.double()}, TypeError, r"weight: expected torch\.float32, as current, got torch\.float64"),
    ({"weight": WEIGHT.long()}, TypeError, "weight: expected torch.float32"),
    ({"weight": WEIGHT.to_sparse()}, TypeError, "weight: expected a dense tensor"),
    ({"weight": torch.nested.nested_tensor([WEIGHT], layout=torch.jagged)}, TypeError, "weight: expected a dense"),
    ({"weight": WEIGHT.to("meta")}, ValueError, "weight is on meta, but current is on cpu"),
    ({"weight": WEIGHT.T}, ValueError, r"weight: expected \[O, N\] of shape \(10, 10\), got \(10, 5\)"),
    ({"weight": WEIGHT[0]}, ValueError, r"weight: expected \[O, N\] of shape \(O, 10\), got \(10,\)"),
    ({"weight": WEIGHT, "bias": 0.0}, TypeError, r"bias: expected a torch\.Tensor or None, got float"),
    ({"weight": WEIGHT, "bias": torch.zeros(5).half()}, TypeError, r"bias: expected torch\.float32"),
    ({"weight": WEIGHT, "bias": torch.zeros(5, device="meta")}, ValueError, "bias is on meta"),
    ({"weight": WEIGHT, "bias": torch.zeros(4)}, ValueError, r"bias: expected \[O\] of shape \(5\), got \(4,\)"),
    ({"weight": WEIGHT, "bias": torch.zeros(())}, ValueError, r"bias: expected \[O\] of shape \(5\), got \(\)"),
    ({"bias": torch.zeros(5)}, ValueError, "bias: needs a weight"),
    ({"current": CURRENT[:, 0, 0], "weight": WEIGHT}, ValueError, "weight: needs steps with at least one dimension"),
    ({"lengths": [2, 4, 3]}, TypeError, "lengths: expected a torch.Tensor"),
    ({"lengths": LENGTHS.float()}, TypeError, "lengths: expected integers"),
    ({"lengths": LENGTHS > 0}, TypeError, "lengths: expected integers"),
    ({"lengths": LENGTHS.to_sparse()}, TypeError, "lengths: expected a dense tensor"),
    *(({"lengths": t}, ValueError, "lengths: expected shape") for t in (LENGTHS[:2], LENGTHS[None], LENGTHS[0])),
    *(({"lengths": torch.tensor([2, n, 3])}, ValueError, f"lengths: expected 0 to 4, .* got {n}") for n in (5, -1)),
    ({"lengths": LENGTHS.to("meta")}, ValueError, "lengths is on meta"),
    ({"current": CURRENT[:, 0, 0], "lengths": LENGTHS}, ValueError, "lengths: needs steps with a batch dimension"),
    *(({name: value}, error, f"{name}:? {message}") for name in ("beta", "threshold") for value, error, message in (
        (torch.rand(5, 3, 10), ValueError, r"shape \(5, 3, 10\) has values for 5 steps, but there are 4"),
        (torch.rand(1, 3, 10), ValueError, r"shape \(1, 3, 10\) has values for 1 steps, but there are 4"),
        (torch.rand(4, 2, 10), ValueError, r"shape \(2, 10\) does not broadcast to one step of current, \(3, 10\)"),
        (torch.rand(4, 1, 3, 10), ValueError, r"shape \(4, 1, 3, 10\) does not broadcast"),
        (torch.rand(4), ValueError, r"shape \(4,\) does not broadcast"),
        (torch.rand(4, 1, 10, dtype=torch.complex64), TypeError, "expected a real tensor"),
        (torch.rand(4, 1, 10).to_sparse(), TypeError, "expected a dense tensor"),
        (torch.rand(4, 1, 10, device="meta"), ValueError, "is on meta, but current is on cpu"),
    )),
    ({"current": CURRENT[0], "beta": torch.rand(0, 2, 10), "num_steps": 0}, ValueError, "beta: .*does not broadcast"),
    ({"graded_spikes_factor": torch.rand(4, 1, 10)}, ValueError, "graded_spikes_factor: .*does not broadcast"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "error", "message"), BAD_CALLS, ids=label)
def test_lif_names_a_wrong_argument(given: dict[str, Any], error: type[Exception], message: str, backend: str) -> None:
    calls = [{"current": CURRENT}, *[{"current": CURRENT[0], "num_steps": 4}] * ("current" not in given)]
    for call, function in itertools.product(calls, (functional.lif, reference.lif)):
        with pytest.raises(error, match=f"^{message}"):
            function(**{"beta": 0.9, **call, **given})


def test_other_neurons_take_no_values_over_time(backend: str) -> None:
    for function, decays, name in (
        (functional.synaptic, ("alpha",), "beta"),
        (functional.rleaky, ("beta",), "threshold"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: shape \(4, 1, 10\) does not broadcast to one step"):
            function(CURRENT, **dict.fromkeys(decays, 0.9), **{name: torch.rand(4, 1, 10)})


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


FLAGS = (
    "surrogate_disable", "init_hidden", "inhibition", "learn_beta", "learn_threshold", "output",
    "learn_graded_spikes_factor", "reset_delay",
)  # fmt: skip
BAD_LAYERS = of({
    "beta threshold graded_spikes_factor": {
        TypeError: ("0.9", None, True, ["0.9"], [0.9, [1.0]], [10**400], torch.zeros(3, 10).to_sparse()),
        ValueError: (math.nan, [0.9, math.nan], torch.tensor([0.9, math.nan]), 10**400, 2**70),
    },
    " ".join(FLAGS): {
        TypeError: ("yes", 1.0, torch.tensor(True), np.array([True])), ValueError: (2, -1, np.int64(2)),
    },
    "spike_grad": {TypeError: (2.0,)},
    "reset_mechanism": {ValueError: ("substract",), TypeError: (0,)},
    "state_quant": {TypeError: (True, 8)},
})  # fmt: skip


@pytest.mark.parametrize(("argument", "value", "error"), [*BAD_LAYERS, ("reset_delay", None, TypeError)], ids=label)
def test_leaky_names_the_wrong_argument(argument: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^{argument}\b"):
        snnfast.Leaky(**{"beta": 0.9, argument: value})


OF_UNROLL = [row for row in BAD_ARGUMENTS if row[0] in ("current", "mem", "num_steps", "record_mem", "reduce")]


@pytest.mark.parametrize("init_hidden", [False, True], ids=["passed", "held"])
@pytest.mark.parametrize(("argument", "value", "error"), OF_UNROLL, ids=label)
def test_a_failing_call_of_leaky_changes_nothing_in_it(
    argument: str, value: Any, error: type[Exception], init_hidden: bool, backend: str
) -> None:
    layer = snnfast.Leaky(torch.full((10,), 0.9), init_hidden=init_hidden)
    layer(torch.rand(3, 10))
    before = snapshot(layer)
    if init_hidden and argument == "mem":  # it must not be given at all
        error = TypeError
    with pytest.raises(error, match=rf"^{argument}\b"):
        layer.unroll(**{"current": CURRENT, argument: value})
    assert_unchanged(layer, before)
    if error is TypeError and argument in ("current", "mem"):  # a membrane of another shape counts as zeros
        name = argument.replace("current", "input_")
        with pytest.raises(TypeError, match=rf"^{name}\b"):
            layer(**{"input_": CURRENT[0], name: value})
        assert_unchanged(layer, before)


@pytest.mark.parametrize("method", ["forward", "unroll"])
def test_a_current_that_beta_does_not_fit_changes_nothing_in_leaky(method: str, backend: str) -> None:
    layer = snnfast.Leaky(torch.full((10,), 0.9))
    before = snapshot(layer)
    with pytest.raises(ValueError, match=r"^beta\b"):
        getattr(layer, method)(CURRENT[..., :4])
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
            (CURRENT, {"reduce": "mean"}, "reduce", ValueError),
            (CURRENT, {"reduce": 1}, "reduce", TypeError),
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
def test_a_wrong_checkpoint_names_the_entry(name: str, library: Any, entry: str, value: Any, message: str) -> None:
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


def test_the_ops_of_a_graph_name_an_unknown_neuron() -> None:
    asked = "nobody", CURRENT, [None] * 4, 0, 0, 0.0, 0.0, "auto"
    message = r"^neuron: expected one of .*leaky.*, got 'nobody'$"
    with pytest.raises(ValueError, match=message):
        torch.ops.snnfast.step(*asked, state_gradients=False, sources="")
    with pytest.raises(ValueError, match=message):
        torch.ops.snnfast.unroll(*asked, None, 0, False, False, sources="")


# A setting, its wrong value, error, and the argument that it names.
BAD_SETTINGS: list[tuple[Any, Any, type[Exception], str]] = [
    *((snnfast.use_backend, value, ValueError, "name") for value in ("cuda", "")),
    *((snnfast.use_backend, value, TypeError, "name") for value in (None, 1)),
    *((snnfast.use_events, value, TypeError, "wanted: expected True or False") for value in ("no", None)),
    (snnfast.use_events, 2, ValueError, "wanted: expected True or False"),
    *((snnfast.set_cache_limit, value, ValueError, "limit: expected") for value in (-1, 1 << 64)),
    *((snnfast.set_cache_limit, value, TypeError, "limit: expected") for value in (1.5, "1", True)),
    *((snnfast.reset, net, TypeError, r"net: expected a torch\.nn\.Module") for net in (None, [nn.ReLU()], "net")),
    (snnfast.use_state_gradients, 2, ValueError, "wanted: expected True or False"),
]


@pytest.mark.needs_extension
@pytest.mark.parametrize(("setting", "value", "error", "message"), BAD_SETTINGS, ids=label)
def test_a_wrong_setting_changes_nothing(setting: Any, value: Any, error: type[Exception], message: str) -> None:
    def settings() -> Any:
        return snnfast.config(), ops.extension.pool_idle_limit()

    before = settings()
    with pytest.raises(error, match=rf"^{message}\b"), contextlib.ExitStack() as stack:
        stack.enter_context(setting(value))
    assert settings() == before


# ---- flags and numbers come from sweeps, command lines and YAML, and are taken as snnTorch takes them


@pytest.mark.parametrize("value", [True, False, 1, 0, np.True_, np.False_, np.int64(1), np.uint8(0)], ids=repr)
@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("library", [snnfast, snn], ids=["snnfast", "snnfast.snntorch"])
@pytest.mark.filterwarnings("ignore:Inhibition")
def test_a_flag_may_be_a_bool_of_numpy_or_0_or_1(library: Any, flag: str, value: Any) -> None:
    ours = library.Leaky(0.9, graded_spikes_factor=1.5, **{flag: value})
    theirs = snntorch.Leaky(0.9, graded_spikes_factor=1.5, **{flag: value})
    if not flag.startswith("learn"):
        assert getattr(ours, flag) is bool(value)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for step in torch.rand(4, 2, 3) * 2:
        found, expected = ours(step), theirs(step)
        assert type(found) is type(expected)
        assert_all_bits_equal(torch.atleast_1d(*found), torch.atleast_1d(*expected))


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag != "reset_delay"])
def test_none_is_false_for_a_flag_whose_default_is_false(flag: str) -> None:
    layer = snnfast.Leaky(0.9, **{flag: None})
    assert repr(layer) == repr(snnfast.Leaky(0.9))
    assert not list(layer.parameters())
    assert getattr(layer, flag, False) is False


@pytest.mark.parametrize("number", [2, np.float32(2), np.int64(2), np.float64(2)], ids=repr)
def test_the_numbers_of_a_surrogate_may_be_numpys(number: Any) -> None:
    assert surrogate.fast_sigmoid(number) == surrogate.fast_sigmoid(2.0)
