"""``torch.utils.flop_counter`` sees the products inside of our ops as PyTorch's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fresh import fresh
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import snnfast

pytestmark = pytest.mark.needs_extension
T, B = 9, 4


def flops(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def trained(net: nn.Module, x: Tensor) -> Callable[[], None]:
    def run() -> None:
        found = net(x)
        (found if isinstance(found, Tensor) else found[0]).sum().backward()

    return run


@pytest.mark.parametrize("outputs", [5, 64])
@pytest.mark.parametrize("training", [False, True])
def test_a_linear_layer_behind_spikes_counts_as_with_numbers(training: bool, outputs: int) -> None:
    net = snnfast.MultiStep(nn.Linear(6, 20), snnfast.Leaky(0.9), nn.Linear(20, outputs), snnfast.Leaky(0.9))
    run = trained(net, torch.rand(T, B, 6)) if training else lambda: net(torch.rand(T, B, 6))
    found = flops(run)
    with snnfast.use_events(False):
        wanted = flops(run)
    assert found == wanted > 0


NETWORKS: dict[str, tuple[Callable[[Callable[[], nn.Module]], list[nn.Module]], tuple[int, ...]]] = {
    "dense": (lambda lif: [nn.Linear(6, 20), lif(), nn.Linear(20, 5), lif()], (6,)),
    "convolutional": (
        lambda lif: [
            *(nn.Conv2d(1, 32, 5), nn.MaxPool2d(2), lif(), nn.Conv2d(32, 64, 3, padding=1), nn.MaxPool2d(2), lif()),
            *(nn.Flatten(), nn.Linear(64 * 9, 10), lif()),
        ],
        (1, 16, 16),
    ),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_steps_at_once_and_compiled_loops_count_as_snntorchs_loop(name: str, training: bool) -> None:
    snntorch = pytest.importorskip("snntorch")
    make, shape = NETWORKS[name]
    x = torch.rand(T, B, *shape)

    def loop(net: nn.Module) -> Callable[[], None]:
        def run() -> None:
            snnfast.reset(net)
            spk = torch.stack([net(step) for step in x])
            if training:
                spk.sum().backward()

        return run

    theirs = nn.Sequential(*make(lambda: snntorch.Leaky(0.9, init_hidden=True)))
    wanted = flops(loop(theirs))
    net = snnfast.MultiStep(*make(lambda: snnfast.Leaky(0.9)))
    assert flops(trained(net, x) if training else lambda: net(x)) == wanted > 0
    ours = nn.Sequential(*make(lambda: snnfast.Leaky(0.9, init_hidden=True)))
    compiled = snnfast.compile(loop(ours))
    compiled()
    assert flops(compiled) == wanted


@pytest.mark.parametrize("share", [0.02, 0.6])
@pytest.mark.parametrize("needs_input", [False, True])
def test_a_convolution_of_spikes_counts_as_pytorchs(needs_input: bool, share: float) -> None:
    from snnfast._images.conv2d import conv2d

    conv = nn.Conv2d(32, 32, 3, padding=1)
    x = (torch.rand(8, 32, 8, 8) < share).float().contiguous(memory_format=torch.channels_last)
    x.requires_grad_(needs_input)
    ours = flops(lambda: conv2d(x, conv.weight, conv.bias, 1, 1).sum().backward())
    assert conv.weight.grad is not None
    assert ours == flops(lambda: conv(x).sum().backward()) > 0


def test_connected_neurons_count_their_recurrent_product() -> None:
    net = snnfast.RLeaky(0.9, linear_features=6)
    found = flops(lambda: net.unroll(torch.rand(T, B, 6)))
    assert found == T * 2 * B * 36


def test_products_between_the_steps_of_a_program_count() -> None:
    from snnfast._core.flops import _FORMULAS

    shapes = [(6, 6), (1, 6, 6)]
    forward = (None, [], [], [], [], [], [], shapes, [None, None], [], T, B, True)
    backward = (None, [], [], [], [], [], [], [], [], [], shapes, [], T, B)
    schemas = {n: str(getattr(torch.ops.snnfast, n).default._schema) for n in _FORMULAS if "between" in n}
    for name, args in (("program_between_forward", forward), ("program_between_backward", backward)):
        names = [a.name for a in getattr(torch.ops.snnfast, name).default._schema.arguments]
        assert len(names) == len(args), schemas[name]
        given = dict(zip(names, args, strict=True))
        assert (given["weights"], given["steps"], given["rows"]) == (shapes, T, B)
        assert _FORMULAS[name](*args) == 2 * T * 2 * B * 36


def test_importing_snnfast_does_not_import_the_counter_and_either_order_has_the_formulas() -> None:
    check = "assert torch.ops.snnfast.spikes_linear in flop_counter.flop_registry"
    first = "import sys, torch, snnfast; assert 'torch.utils.flop_counter' not in sys.modules"
    late = "from torch.utils import flop_counter; assert not any('AtImport' in str(f) for f in sys.meta_path)"
    fresh(f"{first}; {late}; {check}")
    fresh(f"import torch; from torch.utils import flop_counter; import snnfast; {check}")
    probe = "import importlib.util, sys, torch, snnfast; importlib.util.find_spec('torch.utils.flop_counter')"
    fresh(f"{probe}; {late}; {check}")
