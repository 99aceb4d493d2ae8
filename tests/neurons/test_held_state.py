"""A layer that holds its membrane, where PyTorch runs it twice, transforms it or compiles it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import snntorch
import torch
from helpers import assert_all_bits_equal
from snntorch import utils
from snntorch_checks import DECAYS, NEURONS, STATES, held, make
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import snnfast
import snnfast.snntorch as snn
from snnfast import Leaky

# ---- activation checkpointing -------------------------------------------------------------------------------------

X = torch.rand(6, 3, 10) * 2


def holding(name: str, library: Any = snnfast) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [make(library, name, init_hidden=True) for _ in range(2)]
    return nn.Sequential(nn.Linear(10, 8), layers[0], nn.Linear(8, 4), layers[1])


def gradient(net: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(net.parameters())))


@NEURONS
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_step_recomputed_from_a_later_state(backend: str, reentrant: bool, name: str) -> None:
    net = holding(name)
    x = X.clone().requires_grad_()
    loss = sum(checkpoint(net, x[t], use_reentrant=reentrant).sum() for t in range(len(X)))
    with pytest.raises(RuntimeError, match="holds its membrane"):
        loss.backward()  # type: ignore[union-attr]


@NEURONS
@pytest.mark.parametrize("how", ["unroll", "step without init_hidden"])
def test_the_same_of_an_unroll_and_of_states_not_passed(backend: str, how: str, name: str) -> None:
    layer = make(snnfast, name, init_hidden=how == "unroll", learn_beta=True)
    call, inputs = (layer.unroll, (X, X)) if how == "unroll" else (layer, X)
    loss = sum(checkpoint(call, x, use_reentrant=False)[-1].sum() for x in inputs)
    with pytest.raises(RuntimeError, match="holds its membrane"):
        gradient(layer, loss)


@NEURONS
@pytest.mark.parametrize("how", ["ours", "snntorch", "reset_hidden"])
def test_what_begins_with_a_reset_is_recomputed(backend: str, how: str, name: str) -> None:
    """From the first call on, and when the size of the batch changes."""
    resets: dict[str, Callable[[nn.Module], object]] = {
        "ours": snnfast.reset,
        "snntorch": utils.reset,
        "reset_hidden": lambda _: getattr(snn, name).reset_hidden(),
    }
    net, reset = holding(name, snnfast if how == "ours" else snn), resets[how]

    def whole(x: Tensor) -> Tensor:
        reset(net)
        return torch.stack([net(step) for step in x]).sum()

    for x in (X, X[:, :2], X[:, :2], X):
        found, exact = (gradient(net, loss) for loss in (checkpoint(whole, x, use_reentrant=False), whole(x)))
        assert_all_bits_equal(found, exact)


def test_a_recomputation_in_another_thread(backend: str) -> None:
    """As PyTorch computes CUDA tensors again in a thread of its own."""
    layer, x = Leaky(0.9, learn_beta=True), X.clone().requires_grad_()
    out = checkpoint(lambda x: layer.unroll(x)[0], x, use_reentrant=False)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(out.sum().backward).result()
    assert layer.beta.grad is not None


# ---- torch.func ---------------------------------------------------------------------------------------------------


@NEURONS
def test_a_step_under_vmap_leaves_the_layer_usable(backend: str, name: str) -> None:
    layer = make(snnfast, name)
    x, *states = (torch.rand(4, 3, 10) for _ in range(1 + len(STATES[name])))
    assert_all_bits_equal(torch.func.vmap(layer)(x, *states), layer(x, *states))
    layer = make(snnfast, name)
    torch.func.vmap(layer)(x, *states)
    assert all(state.numel() == 0 for state in held(layer))
    layer(x)


def test_a_reset_under_a_transform_gives_zeros(backend: str) -> None:
    layer, x = Leaky(0.9), torch.full((2, 3), 0.7)
    layer(x, torch.ones(2, 3))
    _, mem = torch.func.vmap(lambda x: layer(x, layer.init_leaky()))(x.unsqueeze(0))
    assert torch.equal(mem[0], x)
    assert not layer.mem.any()


@NEURONS
@pytest.mark.parametrize("init_hidden", [False, True])
def test_a_transform_of_a_state_not_passed(backend: str, init_hidden: bool, name: str) -> None:
    layer = make(snnfast, name, init_hidden=init_hidden)
    with pytest.raises(RuntimeError, match=rf"^{STATES[name][0]}: must be passed under a torch"):
        torch.func.vmap(layer)(torch.rand(4, 3, 10))
    layer(torch.rand(3, 10))


# ---- torch.compile ------------------------------------------------------------------------------------------------


@pytest.fixture
def compiler(nothing_compiled: None) -> Callable[..., Any]:
    return lambda function: torch.compile(function, backend="aot_eager")


def assign(net: nn.Sequential, library: Any) -> None:
    net[1].mem = torch.full((5, 8), 0.25)
    net[3].syn, net[3].mem = torch.zeros(5, 4), torch.full((5, 4), 0.5)


STARTS: dict[str, Callable[[nn.Sequential, Any], object]] = {
    "utils.reset": lambda net, library: utils.reset(net),
    "assign": assign,
    "reset_mem": lambda net, library: [net[i].reset_mem() for i in (1, 3)],
    "reset_hidden": lambda net, library: [getattr(library, name).reset_hidden() for name in DECAYS],
    "detach_hidden": lambda net, library: [getattr(library, name).detach_hidden() for name in DECAYS],
    "detach": lambda net, library: [state.detach_() for state in (*held(net[1]), *held(net[3]))],
}


@pytest.mark.parametrize(
    "start", [pytest.param(n, marks=[pytest.mark.thorough] * (n not in ("utils.reset", "assign"))) for n in STARTS]
)
def test_a_compiled_training_step(start: str, compiler: Callable[..., Any]) -> None:
    def losses(library: Any, compiled: bool) -> list[float]:
        for name in DECAYS:
            getattr(library, name).instances.clear()  # of other tests
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(20, 8), library.Leaky(0.9, init_hidden=True),
            nn.Linear(8, 4), library.Synaptic(0.7, 0.8, init_hidden=True, output=True, learn_beta=True),
        )  # fmt: skip
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

        def forward(x: Tensor) -> Tensor:
            STARTS[start](net, library)
            return torch.stack([net(step)[-1] for step in x]).square().mean()

        run, values = compiler(forward) if compiled else forward, []
        for seed in range(3):
            torch.manual_seed(seed)
            optimizer.zero_grad()
            loss = run(torch.rand(3, 5, 20))
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        return [*values, *(state.sum().item() for layer in (net[1], net[3]) for state in held(layer))]

    expected = losses(snntorch, compiled=False)
    assert losses(snn, compiled=False) == pytest.approx(expected, rel=1e-5)
    assert losses(snn, compiled=True) == pytest.approx(expected, rel=1e-5)
