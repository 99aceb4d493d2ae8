"""Synaptic operations and multiplications of all kinds of products, however they are spelled."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from by_hooks import counted
from torch import Tensor, nn

import snnfast

CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (lambda: nn.Conv2d(2, 4, 3), (3, 2, 7, 6)),
    "padding": (lambda: nn.Conv2d(2, 4, 3, padding=(2, 1)), (3, 2, 7, 6)),
    "same": (lambda: nn.Conv2d(2, 4, (3, 4), padding="same"), (3, 2, 7, 6)),
    "circular": (lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (3, 2, 7, 6)),
    "stride": (lambda: nn.Conv2d(2, 4, 3, stride=(2, 3), padding=1), (3, 2, 7, 9)),
    "dilation": (lambda: nn.Conv2d(2, 4, 3, dilation=(1, 2), padding=2), (3, 2, 7, 6)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1, stride=2), (3, 4, 7, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (3, 4, 7, 6)),
    "unbatched": (lambda: nn.Conv2d(2, 4, 3, padding=1), (2, 7, 6)),
    "1d": (lambda: nn.Conv1d(2, 4, 5, stride=2, padding=2), (3, 2, 11)),
    "3d": (lambda: nn.Conv3d(2, 3, (2, 3, 3), padding=1, stride=(1, 2, 1)), (2, 2, 4, 5, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (3, 4, 5, 6)),
    "transposed-dilation": (lambda: nn.ConvTranspose1d(2, 3, 4, stride=3, dilation=2, padding=3), (3, 2, 7)),
    "linear": (lambda: nn.Linear(5, 3), (4, 2, 5)),
    "linear-unbatched": (lambda: nn.Linear(5, 3, bias=False), (5,)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("analog", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_layer_counts_what_weights_of_ones_add_up(name: str, analog: bool, dtype: torch.dtype) -> None:
    make, shape = CONVOLUTIONS[name]
    net = nn.Sequential(make()).to(dtype)
    x = torch.rand(shape).to(dtype) if analog else (torch.rand(shape) < 0.3).to(dtype)
    with counted(net, ()) as wanted, torch.no_grad():
        net(x)
        net(x)
    with snnfast.activity(net) as a, torch.no_grad():
        net(x)
        net(x)
    layer = a.layers["0"]
    assert (layer.synops, layer.macs) == wanted.of_weights["0"]
    assert (layer.macs if analog else layer.synops) > 0


@pytest.mark.needs_extension
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_convolutions_of_a_network_count_as_in_its_loop(order: torch.memory_format) -> None:
    layers = [nn.Conv2d(2, 32, 3, padding=1), snnfast.Leaky(0.9, init_hidden=True), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(32, 32, 3, stride=2), snnfast.Leaky(0.9, init_hidden=True)]
    net = snnfast.MultiStep(*layers)
    x = torch.rand(5, 3, 2, 8, 8)
    loop = nn.Sequential(*layers).to(memory_format=order)
    snnfast.reset(loop)
    with counted(loop, (snnfast.Leaky,)) as wanted, torch.no_grad():
        for step in x.flatten(0, 1).contiguous(memory_format=order).view(x.shape):
            loop(step)
    snnfast.reset(net)
    layers_ = snnfast.activity(net, x).layers
    assert {n: (layers_[n].spikes, layers_[n].neuron_steps) for n in wanted.spikes} == wanted.of_neurons
    assert {n: (layers_[n].synops, layers_[n].macs) for n in wanted.of_weights} == wanted.of_weights
    assert layers_["3"].synops > 0


def test_a_layer_that_was_ever_given_another_number_multiplies() -> None:
    net = nn.Linear(4, 3)
    spk, x = torch.ones(2, 4), torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 2.0]])
    for inputs in ((spk, x), (x, spk)):
        with snnfast.activity(net) as a:
            for given in inputs:
                net(given)
        assert (a.synops, a.macs) == (0, 2 * 2 * 12)
    for other in (float("nan"), float("inf"), 1e-30, -1.0):
        assert snnfast.activity(net, torch.tensor([[0.0, 1.0, 1.0, other]])).macs == 12


class Functional(nn.Module):
    """A product with a parameter of the module itself."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.product = nn.Parameter(torch.rand(4, 4)), product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight)


SPELLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "F.linear": F.linear,
    "@": lambda x, w: x @ w,
    "w @ x": lambda x, w: w @ x.mT,
    "mm": torch.mm,
    "addmm": lambda x, w: torch.addmm(torch.zeros(4), x, w),
    "matmul 3d": lambda x, w: x.unsqueeze(0) @ w,
    "einsum": lambda x, w: torch.einsum("bi,io->bo", x, w),
    "einsum batch": lambda x, w: torch.einsum("abc,cd->abd", x.unsqueeze(0), w),
    "mv": lambda x, w: torch.stack([torch.mv(w, row) for row in x]),
    "computed weight": lambda x, w: F.linear(x, w * 2),
    "out": lambda x, w: torch.mm(x, w.detach(), out=torch.empty(5, 4)),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_a_product_counts(name: str, inference: bool) -> None:
    net = Functional(SPELLINGS[name])
    x = (torch.rand(5, 4) < 0.5).float()
    with torch.inference_mode(inference), snnfast.activity(net) as a:
        net(x)
    assert (a.layers["Functional"].synops, a.macs) == (4 * int(x.sum()), 0)
    with torch.inference_mode(inference), snnfast.activity(net) as a:
        net(torch.rand(5, 4))
    assert (a.synops, a.layers["Functional"].macs) == (0, 5 * 16)


def test_a_product_of_activations_counts_the_spikes_of_the_first_and_no_product_outside_counts() -> None:
    class Scores(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return q @ k.mT

    net = nn.ModuleDict({"scores": Scores()})
    q, k = (torch.rand(2, 3, 5) < 0.5).float(), torch.rand(2, 7, 5)
    with snnfast.activity(net) as a:
        net["scores"](q, k)
        torch.rand(3, 3) @ torch.rand(3, 3)
    assert (a.synops, a.layers["scores"].synops, a.macs) == (7 * int(q.sum()), 7 * int(q.sum()), 0)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_pytorchs_recurrent_layers_count(kind: Any, grad: bool) -> None:
    net, x = kind(4, 3), (torch.rand(6, 2, 4) < 0.5).float()
    gates = {nn.RNN: 1, nn.LSTM: 4, nn.GRU: 3}[kind]
    with torch.set_grad_enabled(grad), snnfast.activity(net) as a:
        net(x)
    # The hidden state is zero, which is no other number than a spike, in the first step alone.
    assert a.synops == 3 * gates * int(x.sum())
    assert a.macs == 6 * 2 * 3 * 3 * gates


@pytest.mark.parametrize("training", [False, True])
def test_attention_counts(training: bool) -> None:
    net = nn.MultiheadAttention(8, 2, batch_first=True).train(training)
    x = torch.rand(3, 5, 8)
    with torch.set_grad_enabled(training), snnfast.activity(net) as a:
        net(x, x, x)
    projections, scores = 3 * 5 * 4 * 64, 2 * 3 * 5 * 5 * 8
    assert (a.synops, a.macs) == (0, projections + scores)


@pytest.mark.parametrize("training", [False, True])
def test_a_layer_of_a_transformer_counts(training: bool) -> None:
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).train(training)
    with torch.set_grad_enabled(training), snnfast.activity(net) as a:
        net(torch.rand(3, 5, 8))
    attention = 3 * 5 * 4 * 64 + 2 * 3 * 5 * 5 * 8
    assert (a.synops, a.macs) == (0, attention + 3 * 5 * 2 * 8 * 16)


def test_a_bilinear_layer_counts() -> None:
    assert snnfast.activity(nn.Bilinear(4, 5, 6), torch.rand(2, 4), torch.rand(2, 5)).macs == 2 * 6 * (4 + 1) * 5


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_products_of_nested_tensors_are_refused() -> None:
    x = torch.nested.nested_tensor([torch.rand(3, 4), torch.rand(5, 4)])
    with pytest.raises(RuntimeError, match="a product of nested tensors can't be counted"):
        snnfast.activity(nn.Linear(4, 2), x)


def test_recurrent_weights_of_connected_neurons_count(backend: str) -> None:
    net = snnfast.RLeaky(0.9, linear_features=6)
    current = 2 * torch.rand(7, 3, 6)
    with snnfast.activity(net) as a, torch.no_grad():
        spk_rec, _ = net.unroll(current)
    assert a.layers["RLeaky"].spikes == int(spk_rec.sum())
    assert a.layers["recurrent"].synops == 6 * int(spk_rec[:-1].sum()) > 0
