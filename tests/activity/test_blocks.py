"""A block of counting: what happens to a network in it and beside it, and what is left of it."""

import io
import threading
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snnfast
from snnfast._core import watch

T, B = 7, 3


class Loop(nn.Module):
    """Step by step, with a product of every kind that is summed differently."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 16), snnfast.Leaky(0.9)
        self.conv, self.out = nn.Conv2d(1, 2, 3), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        mem, rows = self.lif.reset_mem(), []
        for step in x:
            spk, mem = self.lif(self.fc(step), mem)
            rows.append(self.out(spk) + self.conv(spk.view(B, 1, 4, 4)).sum())
        return torch.stack(rows)


def networks() -> dict[str, nn.Module]:
    layers = nn.Linear(6, 16), snnfast.Leaky(0.9), nn.Linear(16, 4), snnfast.Leaky(0.9)
    return {"lif": Loop(), "1": snnfast.MultiStep(*layers)}


def hooks_of(net: nn.Module) -> int:
    kinds = "_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"
    return sum(len(getattr(m, kind)) for m in net.modules() for kind in kinds)


@pytest.mark.parametrize("order", [(True, False, True), (False, True, False)])
@pytest.mark.parametrize("name", ["lif", "1"])
def test_calls_with_and_without_inference_mode_add_up(name: str, order: tuple[bool, ...]) -> None:
    net, x = networks()[name], 3 * torch.rand(T, B, 6)
    once = snnfast.activity(net, x, record=[name])
    with snnfast.activity(net, record=[name]) as a:
        for inference in order:
            with torch.inference_mode(inference):
                net(x)
    assert (a.spikes, a.synops, a.macs) == (3 * once.spikes, 3 * once.synops, 3 * once.macs)
    assert once.synops > 0
    assert torch.equal(a.layers[name].bits.bytes, once.layers[name].bits.bytes)


def test_a_recorded_call_may_change_the_mode() -> None:
    lif = snnfast.Leaky(0.9, init_hidden=True)
    with snnfast.activity(nn.Sequential(lif), record=["0"]) as a:
        with torch.inference_mode():
            lif(torch.full((B, 4), 3.0))
        lif(torch.full((B, 4), 3.0))
    assert a.layers["0"].bits.unpack().all()


@pytest.mark.parametrize("name", ["lif", "1"])
@pytest.mark.parametrize("by", ["deepcopy", "save"])
def test_a_network_can_be_copied_and_saved_in_a_block(name: str, by: str) -> None:
    net, x = networks()[name], 3 * torch.rand(T, B, 6)
    with snnfast.activity(net) as a:
        net(x)
        if by == "deepcopy":
            copy = deepcopy(net)
        else:
            file = io.BytesIO()
            torch.save(net, file)
            file.seek(0)
            copy = torch.load(file, weights_only=False)
        found = copy(x)
        assert hooks_of(copy) == 0  # which would also keep it from some kernels
        assert hooks_of(net) > 0
        wanted = net(x)
    assert a.calls == 2
    for one, other in zip(*map(torch.utils._pytree.tree_leaves, (found, wanted)), strict=True):
        assert torch.equal(one, other)
    assert hooks_of(net) == 0


def test_a_part_of_a_copy_has_hooks_that_do_nothing() -> None:
    net = Loop()
    with snnfast.activity(net) as a:
        lif = deepcopy(net.lif)
    lif(torch.rand(B, 4))
    assert (a.layers, hooks_of(lif)) == ({}, 0)


def test_blocks_of_two_threads_may_end_in_any_order() -> None:
    import torch._dynamo

    def stance() -> str:
        return str(torch._dynamo.eval_frame._stance.stance)

    first, second, stances = threading.Event(), threading.Event(), []

    def other() -> None:
        with snnfast.activity(nn.Linear(2, 2)):
            first.set()
            second.wait(60)
        stances.append(stance())

    thread = threading.Thread(target=other)
    thread.start()
    assert first.wait(60)
    with snnfast.activity(nn.Linear(2, 2)):
        second.set()
        thread.join()
        stances.append(stance())
    assert (stances, stance()) == (["force_eager", "force_eager"], "default")


def test_a_replica_in_another_thread_runs_uncounted() -> None:
    lif, errors = snnfast.Leaky(0.9), []

    def run() -> None:
        try:
            replica(torch.rand(B, 4))
        except BaseException as error:
            errors.append(error)

    with snnfast.activity(lif) as a:
        replica: Any = lif._replicate_for_data_parallel()  # as nn.DataParallel makes for each device
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert not errors
    assert a.layers == {}


def test_a_layer_in_another_thread_does_not_end_that_which_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    net, other = networks()["1"], snnfast.Leaky(0.9)
    x = 3 * torch.rand(T, B, 6)
    wanted = snnfast.activity(net, x)

    class Between:
        """Calls the other layer before the spikes that are handed on are used."""

        def handed_on(self, *args: Any) -> None:
            thread = threading.Thread(target=other.unroll, args=(torch.rand(T, B, 4),))
            thread.start()
            thread.join()

        taken_by = unrolled = lambda self, *args: None

    with snnfast.activity(net) as a:
        monkeypatch.setattr(watch, "watchers", (*watch.watchers, Between()))
        with torch.no_grad():
            net(x)
        monkeypatch.undo()
    assert (a.spikes, a.synops) == (wanted.spikes, wanted.synops)
    assert a.layers["1"].spikes > 0
