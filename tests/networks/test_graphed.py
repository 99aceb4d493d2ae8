"""``snnfast.graphed`` on a card of the test, which is the CPU. tests/cuda/test_gpu.py captures steps on a real one."""

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import training_steps
from helpers import assert_all_bits_equal
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam
from torch.optim.lr_scheduler import StepLR
from torch.utils._pytree import tree_leaves

import snnfast
from snnfast import spikingjelly
from snnfast.networks import graphed

STEPS, BATCH = 4, 6


class Card(graphed._Card):
    """A replay computes the step from what is in the inputs then, and writes over the results of the capture."""

    types = ("cpu",)
    memory: ClassVar[Callable[[], list[Tensor]]] = list  # that a step changes, and a capture does not
    ran: ClassVar[list[str]] = []

    def __init__(self, device: torch.device) -> None:
        self.ran.clear()

    def run(self, step: Callable[[], Any]) -> Any:
        self.ran.append("run")
        return step()

    def capture(self, step: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.ran.append("capture")
        before = [(t.detach(), t.detach().clone()) for t in type(self).memory()]
        results = step()
        for t, value in before:
            t.copy_(value)

        def replay() -> None:
            self.ran.append("replay")
            for to, new in zip(tree_leaves(results), tree_leaves(step()), strict=True):
                to.copy_(new)

        return results, replay


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> type[Card]:
    monkeypatch.setattr(graphed, "_Card", Card)
    return Card


class Training:
    """A network with batch normalisation, and an optimizer with momentum."""

    def __init__(self, lr: Any = 0.1) -> None:
        torch.manual_seed(0)
        self.net = snnfast.MultiStep(nn.Linear(5, 8), nn.BatchNorm1d(8), snnfast.Leaky(0.9), nn.Linear(8, 3))
        self.optimizer = SGD(self.net.parameters(), lr, momentum=0.9)

    def memory(self) -> list[Tensor]:
        return [*self.net.state_dict().values(), *tree_leaves(list(map(dict, self.optimizer.state.values())))]

    def step(self, x: Tensor, target: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        out = self.net(x)
        loss = scale * (out - target).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss, "out": out}


def minibatches(count: int, *batches: int) -> Iterator[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    for batch in itertools.islice(itertools.cycle(batches or (BATCH,)), count):
        yield torch.rand(STEPS, batch, 5, generator=g), torch.rand(STEPS, batch, 3, generator=g)


def graphed_training(lr: Any = 0.1) -> tuple[Training, Any]:
    training = Training(lr)
    Card.memory = training.memory
    return training, snnfast.graphed(training.step, training.optimizer)


@pytest.mark.parametrize("on_card", [True, False])
def test_trains_as_the_step(on_card: bool, card: type[Card], monkeypatch: pytest.MonkeyPatch) -> None:
    """With two sizes of minibatches, for which there are two graphs; what a call has returned stays as it was."""
    monkeypatch.setattr(card, "types", ("cpu",) if on_card else ("cuda",))
    (ours, train), theirs = graphed_training(), Training()
    found, wanted = (
        [list(of(x, target=y).values()) for x, y in minibatches(15, 6, 6, 4)] for of in (train, theirs.step)
    )
    for a, b in zip(found, wanted, strict=True):
        assert_all_bits_equal(a, b)
        assert not any(t.requires_grad for t in a)
    assert_all_bits_equal(ours.memory(), theirs.memory())
    if on_card:
        assert [card.ran.count(what) for what in ("run", "capture", "replay")] == [6, 2, 9]


@pytest.mark.parametrize("name", training_steps.NETWORKS)
def test_trains_a_network_of_each_kind(
    name: str, card: type[Card], nothing_compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphed._Graphed, "_check", lambda *given: None)  # of capturable, which no CPU takes
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(training_steps.training(name, device="cpu"))
    (ours, optimizer, captured), (theirs, _, step) = made
    card.memory = lambda: [*ours.state_dict().values(), *tree_leaves(list(map(dict, optimizer.state.values())))]
    train = snnfast.graphed(captured, optimizer)
    with warnings.catch_warnings(action="error"):
        for _ in range(6):
            x, labels = training_steps.minibatch(device="cpu")
            torch.testing.assert_close(train(x, labels), step(x, labels).detach())
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert card.ran == ["run"] * 3 + ["capture"] + ["replay"] * 3


def test_arguments_of_another_form_have_a_graph_of_their_own(card: type[Card]) -> None:
    (ours, train), theirs = graphed_training(), Training()
    for x, y in minibatches(5):
        for scale in (1.0, 0.5):
            assert torch.equal(train(x, y, scale)["loss"], theirs.step(x, y, scale)["loss"])
    assert card.ran.count("capture") == 2
    assert_all_bits_equal(ours.memory(), theirs.memory())
    for scale in range(2, 16):
        train(x, y, scale)
    with pytest.raises(RuntimeError, match=r"step: 16 graphs .* Pass numbers that change as tensors"):
        train(x, y, 16)


def test_a_number_of_the_optimizer_that_changes(card: type[Card]) -> None:
    x, y = next(minibatches(1))
    training, train = graphed_training()
    for _ in range(4):
        train(x, y)
    scheduler = StepLR(training.optimizer, 1)
    train(x, y)
    scheduler.step()
    with pytest.raises(RuntimeError, match=r"optimizer: lr of group 0 is another one .*lr=torch.tensor"):
        train(x, y)
    training, train = graphed_training(torch.tensor(0.1))
    for _ in range(4):
        train(x, y)
    scheduler = StepLR(training.optimizer, 1)
    train(x, y)
    scheduler.step()
    train(x, y)
    training.optimizer.load_state_dict(training.optimizer.state_dict())
    with pytest.raises(RuntimeError, match="optimizer: state is another one"):
        train(x, y)


def test_parameters_that_move(card: type[Card]) -> None:
    """As by ``net.cpu()``, a ``torch.save`` and ``net.cuda()``: a graph would go on with the memory that is free."""
    x, y = next(minibatches(1))
    training, train = graphed_training()
    for _ in range(5):
        train(x, y)
    training.net.load_state_dict(training.net.state_dict())
    train(x, y)
    training.net.double().float()
    with pytest.raises(RuntimeError, match=r"optimizer: the memory of the parameters is another one"):
        train(x, y)
    train = snnfast.graphed(training.step, training.optimizer)
    for _ in range(5):
        train(x, y)


def test_values_that_are_equal_and_of_another_type(card: type[Card]) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = SGD([weight], 0.1)

    def step(scale: Any) -> Tensor:
        return weight.detach().to(torch.int64) * scale

    train = snnfast.graphed(step, optimizer)
    for _ in range(5):
        assert train(1).dtype == torch.int64
        assert train(1.0).dtype == torch.float32
    with pytest.raises(TypeError, match=r"step: expected tensors and values that can be hashed, got .* 'set'"):
        train({1})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: Adam(p), r"make it with capturable=True: Adam\(\.\.\., capturable=True\)"),
        (lambda p: Adagrad(p), "Adagrad keeps 'step' of a parameter on the CPU"),
        (lambda p: SGD(p, torch.tensor(0.1)), "lr of group 0 must be a number or a tensor on the GPU"),
    ],
    ids=["Adam", "Adagrad", "lr"],
)
def test_optimizers_that_would_wait(make: Any, message: str, card: type[Card], monkeypatch: pytest.MonkeyPatch) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = make([weight])

    def step() -> None:
        weight.square().sum().backward()
        optimizer.step()

    train = snnfast.graphed(step, optimizer)
    # What is on the CPU is on no card when a graph is captured.
    monkeypatch.setattr(card, "run", lambda self, step: setattr(self, "types", ("cuda",)) or step())
    if optimizer.defaults.get("capturable", True):
        for _ in range(3):
            train()
    with pytest.raises(ValueError, match=f"optimizer: {message}"):
        train()


def held(kind: str) -> tuple[nn.Module, Callable[[nn.Module], None]]:
    if kind == "spikingjelly":
        node = spikingjelly.neuron.LIFNode(step_mode="m")
        return nn.Sequential(nn.Linear(5, 3), node), spikingjelly.functional.reset_net
    return snnfast.MultiStep(nn.Linear(5, 3), snnfast.Leaky(0.9, init_hidden=True)), snnfast.reset


@pytest.mark.parametrize("where", ["before", "behind", "nowhere"])
@pytest.mark.parametrize("kind", ["snnfast", "spikingjelly"])
def test_states_are_reset_in_the_step(kind: str, where: str) -> None:
    net, reset = held(kind)
    optimizer = SGD(net.parameters(), 0.1)

    def step(x: Tensor) -> None:
        if where == "before":
            reset(net)
        out = net(x)
        (out if isinstance(out, Tensor) else out[0]).sum().backward()
        optimizer.step()
        if where == "behind":
            reset(net)
        else:
            snnfast.Leaky.detach_hidden()
            spikingjelly.functional.detach_net(net)

    train, x = snnfast.graphed(step, optimizer), torch.rand(STEPS, BATCH, 5)
    train(x)
    # Behind the step, SpikingJelly's reset leaves a number, and ours a tensor of zeros.
    if where == "before" or (kind, where) == ("spikingjelly", "behind"):
        train(x)
    else:
        with pytest.raises(RuntimeError, match=r"state that a layer held before, \w+ of \w+, .*Reset the states first"):
            train(x)


def test_what_is_refused(card: type[Card]) -> None:
    training, train = graphed_training()
    with pytest.raises(TypeError, match="step: expected a function, got Parameter"):
        snnfast.graphed(training.net[0].weight, training.optimizer)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"optimizer: expected a torch\.optim\.Optimizer, got MultiStep"):
        snnfast.graphed(training.step, training.net)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"step: expected tensors and values that .* unhashable type: 'numpy"):
        train(*next(minibatches(1)), scale=np.ones(1))
    with torch.autocast("cpu"), pytest.raises(RuntimeError, match=r"step: enter torch\.autocast in it"):
        train(*next(minibatches(1)))
