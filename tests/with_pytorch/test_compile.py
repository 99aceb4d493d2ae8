"""Under torch.compile a call has no graph breaks, and the numbers and strides of the eager one; meta tensors."""

import copy
import functools
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import snntorch
import torch
from callables import steep
from helpers import (
    KINDS,
    NEURONS,
    VARIANTS,
    Case,
    assert_all_bits_equal,
    assert_all_close,
    assert_bits_equal,
    assert_close,
    emulated_if_thorough,
    fused,
    inputs,
    leaves,
    random_cases,
)
from layouts import CHANNELS_LAST, SHAPES, in_place, moved
from linear_checks import with_linear
from snntorch_checks import STATES, as_tuple, held, loop, make
from test_pytorch_features import dense, train
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

import snnfast
import snnfast.snntorch as snn
from snnfast import Leaky, MultiStep, Residual, functional, use_backend
from snnfast._core import ops
from snnfast._unroll import node

FAST = ("leaky", "Leaky")  # The other neurons share its code, and most of them belongs to a thorough run.
Function = Callable[[Mapping[str, Any]], Any]


def thorough(*values: str, quick: bool) -> Any:
    return pytest.param(*values, id="-".join(values), marks=[pytest.mark.thorough] * (not quick))


pytestmark = pytest.mark.usefixtures("nothing_compiled")
neurons = pytest.mark.parametrize("neuron", [thorough(n, quick=n in FAST) for n in NEURONS])


def compiled(function: Any, **options: Any) -> Any:
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


def assert_same_training(functions: tuple[Function, Function], tensors: Mapping[str, Any]) -> None:
    """Bits and strides of the outputs, and gradients to rounding, of two functions of tensors by name."""
    results = []
    for function in functions:
        given = in_place(dict(tensors), [n for n, t in tensors.items() if t is not None and t.requires_grad])
        outputs = [t for t in tree_leaves(function(given)) if isinstance(t, Tensor)]
        loss = sum((t * (2 + i)).sum() + t.square().sum() for i, t in enumerate(outputs) if t.requires_grad)
        asking = [t for t in given.values() if t is not None and t.requires_grad]
        results.append((outputs, torch.autograd.grad(loss, asking, allow_unused=True)))  # type: ignore[arg-type]
    (found, grads), (expected, wanted) = results
    for a, b in zip(found, expected, strict=True):
        assert_bits_equal(a, b)
        assert a.stride() == b.stride()
    for name, a, b in zip(tensors, grads, wanted, strict=False):
        assert_close(a, b, 1e-2 if b is not None and b.dtype.itemsize == 2 else 1e-6, f"gradient {name}")
        assert a is None or a.stride() == b.stride()


# ---- functions


@pytest.mark.parametrize(
    ("neuron", "variant"),
    [
        thorough(n, v, quick=n in FAST or v == "unroll")
        for n, v in itertools.product(KINDS, VARIANTS)
        # No layer and no callable can be made in compiled code: for steps see below, for callables test_callables.py.
        if "step" not in v and "callable" not in v and Case(n, v).fitted().variant == v
    ],
)
def test_a_call(neuron: str, variant: str, device: torch.device) -> None:
    shared = {"steps": (20,), "shape": ((3, 10),), "parameters": ("neuron", "scalar", "one"), "states": (True,)}
    number = 2 if (neuron, variant) == ("leaky", "unroll") else 1
    for case in random_cases(number, 1, neuron=(neuron,), variant=(variant,), **shared):
        eager = functools.partial(fused, case=case)
        function = compiled(eager)
        for seed in (0, 1):
            assert_same_training((function, eager), leaves(inputs(case, device, seed), case.wrt))
        with torch.no_grad():
            assert_all_bits_equal(function(inputs(case, device)).values(), eager(inputs(case, device)).values())


def ragged(record_mem: bool) -> tuple[Function, Mapping[str, Any]]:
    tensors = {"current": torch.rand(20, 3, 10), "beta": torch.tensor(0.9)}
    return (lambda t: functional.lif(**t, lengths=torch.tensor([2, 20, 5]), record_mem=record_mem), leaves(tensors))


def over_time() -> tuple[Function, Mapping[str, Any]]:
    tensors = {"current": torch.rand(6, 3, 10), "mem": torch.rand(3, 10), "beta": torch.rand(6, 1, 10)}
    return lambda t: functional.lif(**t), leaves({**tensors, "threshold": torch.rand(6, 3, 10) + 0.3})


def linear(neuron: str) -> tuple[Function, Mapping[str, Any]]:
    case = Case(neuron, "unroll", 9, (4, 6), torch.float64, record_mem=neuron == "leaky", parameters="neuron")
    return functools.partial(fused, case=case), leaves(with_linear(case))


def channels_last(neuron: str, variant: str) -> tuple[Function, Mapping[str, Any]]:
    case = Case(neuron, variant, 3, SHAPES[4], record_mem=variant == "unroll", parameters="channel")
    return functools.partial(fused, case=case), in_place(moved(inputs(case), CHANNELS_LAST))


FIRST = ("lengths", "lengths-last", "over-time", "linear-leaky", "linear-synaptic", "channels-last-leaky-unroll")
SPECIAL: dict[str, Callable[[], tuple[Function, Mapping[str, Any]]]] = {
    "lengths": lambda: ragged(True),
    "lengths-last": lambda: ragged(False),
    "over-time": over_time,
    **{f"linear-{n}": lambda n=n: linear(n) for n in NEURONS},
    **{f"channels-last-{n}-{v}": lambda n=n, v=v: channels_last(n, v) for n in NEURONS for v in ("unroll", "count")},
}


@pytest.mark.needs_extension
@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", [thorough(name, quick=name in FIRST) for name in SPECIAL])
def test_a_special_call(name: str, dynamic: bool) -> None:
    function, tensors = SPECIAL[name]()
    with use_backend("fused"):
        assert_same_training((compiled(function, dynamic=dynamic), function), tensors)


# ---- layers

HOW: dict[str, Callable[[Any], Any]] = {
    "steps": lambda layer: lambda x: loop(layer, x[:2]),
    "held": lambda layer: lambda x: layer(x[0]),
    "unroll": lambda layer: layer.unroll,
    "unroll-held": lambda layer: layer.unroll,
    "count": lambda layer: functools.partial(layer.unroll, reduce="sum", record_mem=False),
}

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "output": {"init_hidden": True, "output": True},
    "surrogate_disable": {"surrogate_disable": True},
    "inhibition": {"inhibition": True},
    "nodelay-zero": {"reset_delay": False, "reset_mechanism": "zero"},
    "learn": {"learn_beta": True, "learn_threshold": True, "learn_graded_spikes_factor": True},
    "vector": {"beta": torch.linspace(0.5, 1, 10), "learn_beta": True, "init_hidden": True},
    "integer": {"beta": 1, "threshold": 2},
    "closure": {"spike_grad": snntorch.surrogate.fast_sigmoid(slope=4)},
    "callable": {"spike_grad": steep},
    "callable-learn": {"spike_grad": steep, "learn_beta": True, "init_hidden": True, "output": True},
}
# What Synaptic adds to a step of a drop-in is its second state; the options are the same code.
DROP_INS = [*(("Leaky", o) for o in OPTIONS), *(("Synaptic", o) for o in ("callable-learn", "output", "nodelay-zero"))]
Layer = tuple[Any, str, str, dict[str, Any]]  # library, name, how it is called, options
LEARNED: dict[str, Any] = {"learn_beta": True, "beta": torch.full((10,), 0.5)}
LAYERS: dict[str, Layer] = {
    **{f"{n}-{h}": (snnfast, n, h, {**LEARNED, "init_hidden": "held" in h}) for n in STATES for h in HOW},
    **{f"drop-in-{n}-{o}": (snn, n, "held", OPTIONS[o]) for n, o in DROP_INS},
}
QUICK = {*(f"Leaky-{h}" for h in HOW), *(f"{n}-steps" for n in STATES)}
QUICK |= {"drop-in-Leaky-default", "drop-in-Synaptic-callable-learn"}


@emulated_if_thorough  # it compiles layers as calls, which are above
@pytest.mark.parametrize("case", [thorough(case, quick=case in QUICK) for case in LAYERS])
def test_a_layer(case: str, device: torch.device) -> None:
    library, name, how, options = LAYERS[case]
    layer = make(library, name, **options).to(device)
    other = copy.deepcopy(layer)
    function = compiled(HOW[how](layer))
    for _ in range(3):  # the next call goes on from what the layer holds
        results = []
        for each, call in ((layer, function), (other, HOW[how](other))):
            x = torch.linspace(0, 2, 210).view(3, 10, 7).permute(2, 0, 1).contiguous().to(device).requires_grad_()
            outputs = as_tuple(call(x))
            loss = sum(t.square().sum() for t in (*outputs, *held(each)))
            asked = [x, *each.parameters()]
            grads = torch.autograd.grad(loss, asked, allow_unused=True, materialize_grads=True)  # type: ignore[arg-type]
            for state in held(each):
                state.detach_()
            results.append((outputs, grads, held(each)))
        assert_all_bits_equal(*((*outputs, *states) for outputs, _, states in results))
        assert_all_close(*(grads for _, grads, _ in results), relative=1e-6)


@pytest.mark.needs_extension
def test_a_network() -> None:
    torch.manual_seed(2)
    net = MultiStep(
        nn.Sequential(nn.Linear(6, 8), Leaky(0.8, learn_beta=True)),
        Residual(nn.Linear(8, 8), snnfast.Synaptic(0.5, 0.25)), MultiStep(nn.Linear(8, 4), Leaky(0.9)),
    )  # fmt: skip
    x = torch.rand(9, 5, 6) * 4
    for options in (
        {"return_states": True, "return_spikes": True}, {"lengths": torch.tensor([4, 9, 0, 7, 9])}, {"reduce": "sum"},
    ):  # fmt: skip
        torch._dynamo.reset()
        found, expected = (tree_leaves(f(x, **options)) for f in (torch.compile(net, backend="aot_eager"), net))
        assert_all_close(found, expected, relative=1e-6)


# ---- meta tensors


@neurons
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_meta_tensors_give_the_shapes(backend: str, neuron: str) -> None:
    for record_mem, variant in itertools.product((True, False), ("unroll", "count", "constant")):
        case = Case(neuron, variant, 9, record_mem=record_mem, states=False)
        tensors: Any = {**inputs(case), "current": inputs(case)["current"].to("meta")}  # type: ignore[union-attr]
        with use_backend(backend):
            outputs = fused(tensors, case)
        for name, t in outputs.items():
            summed = variant == "count" if name == "spk" else not record_mem
            assert t.is_meta
            assert t.shape == ((3, 10) if summed else (9, 3, 10))


# ---- the graph of calls of all time steps: a node for each, and the kernels of the eager call


def recording(seen: list[Any]) -> Callable[..., Any]:
    """A backend that notes what a graph calls."""

    def backend(gm: GraphModule, example_inputs: Any) -> Any:
        seen.extend(n.target for n in gm.graph.nodes if n.op == "call_function")
        return gm.forward

    return backend


@pytest.mark.needs_extension
@pytest.mark.parametrize("backend", ["snnfast", "aot_eager"])
def test_a_number_that_was_assigned_to_a_layer_compiles(backend: str) -> None:
    layer, x = Leaky(0.9), torch.rand(5, 4) * 2
    del layer.beta
    layer.beta = 0.3
    for function in (lambda x: loop(layer, x)[1], lambda x: layer.unroll(x)[1]):
        assert_bits_equal(torch.compile(function, backend=backend, fullgraph=True)(x), function(x))


@pytest.mark.needs_extension
def test_other_compilers_find_the_kernels_in_the_node() -> None:
    from torch._dynamo.backends.common import aot_autograd

    seen: list[Any] = []
    net, x, backend = dense(hidden=40), torch.rand(64, 8, 6) * 3, aot_autograd(fw_compiler=recording(seen))
    wanted = train(net, x)
    found = train(torch.compile(net, backend=backend, fullgraph=True), x)
    for op in (torch.ops.snnfast.leaky_forward.default, torch.ops.snnfast.leaky_backward.default):
        assert seen.count(op) == 2
    assert ops.spikes_linear in seen  # the spikes go on as bits
    assert ops.spikes_linear_weight in seen
    assert_all_close(found, wanted, relative=1e-6)


@pytest.mark.needs_extension
def test_compiled_code_follows_use_events() -> None:
    net, x = dense(hidden=40), torch.rand(64, 8, 6) * 3
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for events, graphs in ((True, 1), (False, 2), (True, 2)):
        with snnfast.use_events(events):
            assert_all_close(train(compiled, x), train(net, x), relative=1e-6)
        assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.needs_extension
def test_a_cache_on_the_disk_is_one_of_these_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    layer, x = Leaky(0.9), torch.rand(5, 4)

    def hits() -> int:
        torch._dynamo.reset()
        counters.clear()
        torch.compile(layer.unroll, fullgraph=True)(x)
        return int(counters["aot_autograd"]["autograd_cache_hit"])

    assert [hits(), hits()] == [0, 1]
    monkeypatch.setattr(node, "_digest", lambda: "other sources")
    assert hits() == 0
