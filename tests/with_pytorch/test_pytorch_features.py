"""What PyTorch offers around a network: compilation for any shape, export, mixed precision, and others."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from helpers import assert_all_bits_equal, assert_all_close, assert_bits_equal
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.export import Dim, export
from torch.utils.checkpoint import checkpoint

import snnfast
from snnfast import Lapicque, Leaky, MultiStep, Synaptic, functional

pytestmark = [pytest.mark.needs_extension, pytest.mark.usefixtures("nothing_compiled")]
LAYERS: dict[str, Callable[..., Any]] = {
    "leaky": partial(Leaky, 0.9, learn_beta=True),
    "synaptic": partial(Synaptic, 0.9, 0.8),
    "lapicque": partial(Lapicque, 0.9),
}
layers = pytest.mark.parametrize("name", LAYERS)


def dense(hidden: int = 8) -> MultiStep:
    return MultiStep(nn.Linear(6, hidden), Leaky(0.9, learn_beta=True), nn.Linear(hidden, 3), Leaky(0.8))


def convolutional() -> MultiStep:
    return MultiStep(nn.Conv2d(2, 4, 3), Leaky(0.9), nn.Flatten(), nn.Linear(64, 3), Leaky(0.8, learn_beta=True))


def train(net: nn.Module, *inputs: Any, **options: Any) -> list[Tensor]:
    """Outputs and gradients of every parameter."""
    net.zero_grad()
    spk, *_, mem = net(*inputs, **options)
    (spk.float().sum() + mem.float().square().mean()).backward()
    return [spk.detach(), mem.detach(), *(p.grad.clone() for p in net.parameters())]  # type: ignore[union-attr]


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-5) -> None:
    """Spikes to the bit; the rest to rounding, as PyTorch's products may add in another order."""
    assert_bits_equal(found[0], expected[0])
    assert_all_close(found[1:], expected[1:], relative=tolerance)


# ---- torch.compile


@pytest.mark.parametrize("constant", [False, True], ids=["sequence", "constant"])
def test_compiled_training_of_any_shape(constant: bool) -> None:
    net = dense()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True, dynamic=True)
    counters.clear()
    for T, B in ((5, 4), (40, 3), (70, 5), (131, 16), (64, 6)):
        args = (torch.rand(B, 6) * 3, T) if constant else (torch.rand(T, B, 6) * 3,)
        assert_same(train(compiled, *args), train(net, *args))
    assert counters["stats"]["unique_graphs"] == 2  # few steps, and many


def test_a_compiled_function_takes_any_decay() -> None:
    def lif(x: Tensor, beta: float | Tensor) -> tuple[Tensor, Tensor]:
        return snnfast.functional.lif(x, beta=beta, threshold=0.7)

    compiled, x = torch.compile(lif, backend="aot_eager", fullgraph=True, dynamic=True), torch.rand(9, 3, 6)
    for make, graphs in ((float, 3), (torch.tensor, 1)):  # PyTorch compiles a call for each number
        counters.clear()
        for beta in map(make, (0.9, 0.5, 0.25)):
            assert_all_bits_equal(compiled(x, beta), lif(x, beta))
        assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.thorough
def test_reduce_overhead_trains() -> None:
    net = MultiStep(nn.Linear(6, 8, bias=False), Leaky(0.9))  # no bias: nothing for inductor's compiler, which is slow
    compiled = torch.compile(net, mode="reduce-overhead", fullgraph=True)
    for _ in range(3):
        x = torch.rand(9, 4, 6) * 3
        assert_same(train(compiled, x), train(net, x))


# ---- torch.export; loading in a fresh process, and ONNX, are in test_remedies.py


class Unrolled(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer.unroll(x)


class Function(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return snnfast.functional.lif(x, beta=0.9)


EXPORTED: dict[str, Callable[[], nn.Module]] = {
    **{name: lambda make=make: Unrolled(make()) for name, make in LAYERS.items()},  # type: ignore[misc]
    "multistep": dense,
    "functional": Function,
}


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["nonstrict", "strict"])
@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_program_of_any_shape(name: str, strict: bool) -> None:
    net = EXPORTED[name]().eval()
    program = export(net, (torch.rand(7, 3, 6),), dynamic_shapes=({0: Dim("T"), 1: Dim("B")},), strict=strict)
    assert any(str(node.target).startswith("snnfast.") for node in program.graph.nodes)
    for T, B in ((7, 3), (2, 2), (40, 5), (131, 7)):
        x = torch.rand(T, B, 6) * 3
        assert_same(program.module()(x), net(x))


def test_an_exported_program_keeps_nothing() -> None:
    net, x = dense(), torch.rand(64, 8, 6) * 3
    with torch.no_grad():
        inference = export(net, (x,))
    assert inference.graph_module.code == export(net, (x,)).graph_module.code


# ---- mixed precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    net, x = convolutional(), torch.rand(9, 4, 2, 6, 6) * 3

    def cast() -> list[Tensor]:
        with torch.autocast("cpu", dtype):
            return train(net, x)

    found = cast()
    assert found[0].any()
    assert all(t.dtype == dtype for t in found[:2])
    assert all(t.dtype == torch.float32 for t in found[2:])
    with snnfast.use_backend("reference"):
        assert_same(found, cast(), 2e-2)


# ---- what else is done with a module


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not"])
def test_activation_checkpointing(reentrant: bool) -> None:
    net, x = convolutional(), (torch.rand(9, 4, 2, 6, 6) * 3).requires_grad_()
    again = partial(checkpoint, use_reentrant=reentrant)

    def by_layer(x: Tensor) -> tuple[Tensor, Tensor]:
        spk, _ = again(MultiStep(*net.layers[:2]), x)
        return again(MultiStep(*net.layers[2:]), spk)  # type: ignore[no-any-return]

    expected = [*train(net, x), x.grad.clone()]  # type: ignore[union-attr]
    for forward in (lambda x: again(net, x), by_layer):
        x.grad = None
        whole = nn.Module()
        whole.net, whole.forward = net, forward  # type: ignore[method-assign]
        assert_same([*train(whole, x), x.grad], expected)  # type: ignore[list-item]


@layers
def test_functional_call(name: str) -> None:
    net = MultiStep(nn.Linear(6, 8), LAYERS[name]())
    others = {key: (p.detach() * 0.7).requires_grad_() for key, p in net.named_parameters()}
    x = torch.rand(9, 4, 6) * 3
    spk, *_, mem = torch.func.functional_call(net, others, (x,))
    (spk.sum() + mem.square().mean()).backward()
    twin = copy.deepcopy(net)
    twin.load_state_dict(others, strict=False)
    expected = train(twin, x)
    assert_bits_equal(spk, expected[0])
    assert_all_bits_equal((p.grad for p in others.values()), expected[2:])
    assert all(p.grad is None for p in net.parameters())


class Normalised(nn.Module):
    """A loop over time, or the same layers in a MultiStep."""

    def __init__(self, by_loop: bool, init_hidden: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        lif = Leaky(0.9, learn_beta=True, learn_threshold=True, init_hidden=init_hidden, output=init_hidden)
        self.net = MultiStep(nn.Linear(6, 8), nn.BatchNorm1d(8), lif)
        self.by_loop = by_loop

    def forward(self, x: Tensor) -> Any:
        snnfast.reset(self)
        if not self.by_loop:
            return self.net(x)
        fc, norm, lif = self.net
        mem, steps = lif.reset_mem(), []
        for x_t in x:
            current = norm(fc(x_t))
            spk, mem = lif(current) if lif.init_hidden else lif(current, mem)
            steps.append((spk, mem))
        return tuple(torch.stack(of_steps) for of_steps in zip(*steps, strict=True))


class Average(nn.Module):
    """What timm's ``ModelEmaV3`` does: a copy of a network, in place moved towards its parameters and buffers."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(net).eval()

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        pairs = list(zip(self.module.state_dict().values(), net.state_dict().values(), strict=True))
        moved = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([a for a, _ in moved], [b for _, b in moved], weight=0.3)
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)


@pytest.mark.parametrize("init_hidden", [False, True], ids=["", "init_hidden"])
@pytest.mark.parametrize("compiled", ["", "before the copy", "after the copy", "both"])
def test_a_moving_average_of_a_network(compiled: str, init_hidden: bool) -> None:
    def evaluations(by_loop: bool, compiled: str) -> list[Tensor]:
        net = Normalised(by_loop, init_hidden).double()
        net = snnfast.compile(net) if "before" in compiled else net
        average = Average(net)
        assert average.module._compiled_call_impl is None
        if compiled in ("after the copy", "both"):
            snnfast.compile(net)
        if compiled == "both":
            snnfast.compile(average.module)
        optimizer, seen = torch.optim.SGD(net.parameters(), lr=0.1), []
        for i in range(4):
            x = torch.rand(9, 4, 6, generator=torch.Generator().manual_seed(i), dtype=torch.float64) * 3
            optimizer.zero_grad()
            sum(out.square().mean() for out in net(x)).backward()  # type: ignore[union-attr]
            optimizer.step()
            average.update(net)
            with torch.no_grad():
                seen += average.module(x)
        return [*seen, *average.module.state_dict().values()]

    expected = evaluations(by_loop=True, compiled="")
    assert_all_close(evaluations(by_loop=bool(compiled), compiled=compiled), expected, relative=1e-9)


@pytest.mark.parametrize(("linear", "threads_of_calls"), [(True, (2, 2)), (False, (1, 2, 2))])
def test_deterministic_mode(linear: bool, threads_of_calls: tuple[int, ...]) -> None:
    x = torch.rand(30, 64, 300) * 2
    # On some processors, PyTorch's products depend on the number of threads.
    layers = [nn.Linear(300, 9)] if linear else []
    net = MultiStep(Leaky(0.9, learn_beta=True), *layers, Leaky(0.8, learn_threshold=True))
    torch.use_deterministic_algorithms(True)
    try:
        results = []
        for threads in threads_of_calls:
            torch.set_num_threads(threads)
            results.append(train(net, x))
    finally:
        torch.use_deterministic_algorithms(False)
    for found in results[1:]:
        assert_all_bits_equal(found, results[0])


# ---- torch.set_default_device: another one than that of the tensors changes no number


X = torch.rand(40, 8, 12, generator=torch.Generator().manual_seed(0)) * 2
FUNCTIONS: dict[str, Callable[[], tuple[Tensor, ...]]] = {
    "lif": lambda: functional.lif(X, beta=0.9),
    "synaptic": lambda: functional.synaptic(X, alpha=1, beta=0.9),
    "lapicque": lambda: functional.lapicque(X, R=5, C=2.0),
    "lapicque by beta": lambda: functional.lapicque(X, beta=0.5),
    "alpha": lambda: functional.alpha(X, alpha=0.9, beta=0.5),
    "rleaky": lambda: functional.rleaky(X, beta=0.9, V=0.2),
    "rleaky with weights": lambda: functional.rleaky(X, beta=0.9, recurrent_weight=torch.eye(12, device="cpu")),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_another_default_device(name: str, backend: str) -> None:
    expected = FUNCTIONS[name]()
    with torch.device("meta"):
        found = FUNCTIONS[name]()
    assert_all_bits_equal(found, expected)
