"""What follows snnTorch 1.0.0: its new names go through, and what the fused neurons can't do is said."""

import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import snntorch
import torch
from helpers import assert_bits_equal, assert_close
from snntorch_next import VERSION, build
from synaptic_delay import SynapticDelay
from torch import Tensor, nn

import snnfast
import snnfast.snntorch as snn
from snnfast import MultiStep

# ---- a version to come, in a process of its own

NEXT = """
import json, warnings
import torch
from torch import nn
found = {}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import snnfast.snntorch as snn
    import snnfast, snntorch
found["version"] = snn.__version__
found["warnings"] = [str(w.message) for w in caught if "snnfast" in str(w.message)]

space = {}
exec("from snnfast.snntorch import *", space)
names = ("SynapticDelay", "CustomNeuron", "neuron_from_equations")
found["names"] = [getattr(snn, n) is getattr(snntorch, n) is space[n] for n in names]

def error(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as e:
        return f"{type(e).__name__}: {e}"

# dtypes and surrogates
x = torch.rand(6, 3, 4, dtype=torch.float64) * 2
found["dtypes"], found["bits"] = [], []
for kwargs in ({}, {"surrogate_disable": True}, {"spike_grad": snntorch.surrogate.LSO(0.2)}):
    ours, theirs = (library.Leaky(0.5, **kwargs) for library in (snn, snntorch))
    mem = other = torch.zeros(3, 4, dtype=torch.float64)
    for step in x:
        spk, mem = ours(step, mem)
        expected, other = theirs(step, other)
        found["dtypes"].append(str(spk.dtype) + str(expected.dtype))
        found["bits"].append(torch.equal(spk, expected) and torch.equal(mem, other))
atan = snntorch.surrogate.atan(alpha=3.0)
found["atan"] = snn.Leaky(0.5, spike_grad=atan).spike_grad == snnfast.surrogate.atan(alpha=3.0)

# convert and revert
Custom = snntorch.neuron_from_equations("Custom", ("v",), lambda states, x: {"v": 0.5 * states["v"] + x})
adaptive = snntorch.Leaky(0.9)
adaptive.enable_homeostasis()
net = nn.Sequential(
    nn.Linear(4, 4), snntorch.Leaky(0.9, spike_grad=atan), snntorch.SynapticDelay(3, 1.5), Custom(), adaptive
)
report = snn.convert(net)
found["report"] = report.swapped, report.left
snn.revert(net)
found["reverted"] = type(net[1]) is snntorch.Leaky and net[1].spike_grad is atan
made = snn.Leaky(0.9, spike_grad=snnfast.surrogate.atan(alpha=3.0))
snn.revert(made)
found["made"] = type(made.spike_grad).__name__, made.spike_grad.alpha
found["homeostasis"] = error(snn.Synaptic(0.9, 0.8).enable_homeostasis)
found["argument"] = error(snn.Leaky, 0.9, noise=0.1)

# reset: theirs and ours
a, b = (nn.Sequential(nn.Sequential(snn.Leaky(0.9, init_hidden=True))) for _ in range(2))
for each in (a, b):
    each(torch.rand(3, 4) + 0.1)
snn.utils.reset(a)
found["reset"] = [bool(each[0][0].mem.any()) for each in (a, b)]
mixed = nn.Sequential(nn.Sequential(snntorch.SynapticDelay(3, 1.0), Custom(init_hidden=True), snn.Leaky(0.9)))
for _ in range(3):
    mixed(torch.rand(3, 4) + 1)
states = lambda: [bool(s.any()) for s in (mixed[0][0]._buffer, mixed[0][1].v, mixed[0][2].mem)]
found["held"] = [states()]
snnfast.reset(mixed)
found["held"].append(states())

# over time
delay = snntorch.SynapticDelay(3, 1.5)
over_time = snnfast.MultiStep(nn.Linear(4, 4), delay)
x = torch.rand(6, 3, 4)
expected = torch.stack([delay(over_time[0](step)) for step in x])
delay.reset_delay()
found["delay"] = (over_time(x) - expected).abs().max().item()  # one product of all steps may round otherwise
found["custom"] = error(snnfast.MultiStep, nn.Linear(4, 4), Custom(init_hidden=True))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = build(tmp_path_factory.mktemp("next"))
    root = Path(snnfast.__file__).parents[1]
    path = os.pathsep.join([str(folder), str(root)])
    done = subprocess.run(
        [sys.executable, "-c", NEXT],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_a_newer_snntorch_is_imported_with_one_warning_of_whose_numbers_these_are(found: dict[str, Any]) -> None:
    assert found["version"] == VERSION
    (message,) = found["warnings"]
    assert f"snntorch {VERSION} is newer than snntorch 1.0, whose numbers the fused neurons have" in message


def test_its_new_names_are_here(found: dict[str, Any]) -> None:
    assert found["names"] == [True] * 3


def test_spikes_in_the_dtype_of_the_input_are_the_same_in_both(found: dict[str, Any]) -> None:
    assert set(found["dtypes"]) == {"torch.float64torch.float64"}
    assert all(found["bits"])


def test_its_atan_which_is_an_object_is_recognised_and_given_back(found: dict[str, Any]) -> None:
    assert found["atan"]
    assert found["reverted"]
    assert found["made"] == ["ATanSurrogate", 3.0]


def test_convert_takes_what_it_knows_and_tells_why_it_leaves_the_rest(found: dict[str, Any]) -> None:
    swapped, left = found["report"]
    assert swapped == ["1"]
    assert left == {
        "3": "snnfast has no kernel for Custom",
        "4": "its threshold follows its spikes (enable_homeostasis)",
    }


def test_what_a_fused_neuron_cannot_do_is_an_error_that_says_what_can(found: dict[str, Any]) -> None:
    assert found["homeostasis"] == (
        "NotImplementedError: enable_homeostasis: the fused step of snnfast.snntorch.Synaptic has a threshold that "
        "does not follow its spikes: use snntorch.Synaptic"
    )
    assert found["argument"].startswith("TypeError: ")
    assert "noise" in found["argument"]


def test_its_reset_of_one_network_leaves_the_layers_of_another(found: dict[str, Any]) -> None:
    assert found["reset"] == [False, True]


def test_our_reset_reaches_its_new_layers(found: dict[str, Any]) -> None:
    assert found["held"] == [[True] * 3, [False] * 3]


def test_over_time_a_delay_works_and_a_custom_neuron_is_refused(found: dict[str, Any]) -> None:
    assert found["delay"] < 1e-6
    assert found["custom"].startswith("TypeError: layers: Custom is or has a neuron of snnTorch (Custom)")
    assert "keep the loop over time" in found["custom"]


def test_1_0_has_no_homeostasis_and_neither_have_our_layers() -> None:
    for library in (snn, snntorch):
        assert not hasattr(library.Leaky, "enable_homeostasis")


# ---- SynapticDelay among layers over time


class Loop(nn.Module):
    """The loop that users write."""

    def __init__(self, delay: nn.Module) -> None:
        super().__init__()
        self.fc, self.delay, self.lif = nn.Linear(4, 5), delay, snnfast.Leaky(0.9)

    def forward(self, x: Tensor) -> Tensor:
        mem, record = torch.zeros(x.shape[1], 5), []
        for step in x:
            spk, mem = self.lif(self.delay(self.fc(step)), mem)
            record.append(spk)
        return torch.stack(record)


def made(**options: Any) -> SynapticDelay:
    return SynapticDelay(3, torch.tensor([0.0, 0.5, 1.0, 2.25, 3.0]), **options)


@pytest.mark.parametrize("step_mode", [True, False], ids=["steps", "sequence"])
def test_over_time_it_gives_what_its_loop_gives(step_mode: bool, backend: str) -> None:
    loop = Loop(made(learn_delay=True))
    over_time = MultiStep(loop.fc, made(learn_delay=True, step_mode=step_mode), loop.lif)
    x = torch.rand(8, 3, 4) * 4
    expected, found = loop(x), over_time(x)[0]
    assert_bits_equal(found, expected)
    assert expected.any()
    gradients = []
    for spk, delay in ((expected, loop.delay), (found, over_time[1])):
        gradients.append(torch.autograd.grad(spk.square().sum(), [loop.fc.weight, delay.delay]))
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, 1e-4)


def test_over_time_it_goes_on_from_what_it_holds_as_in_a_loop() -> None:
    loop, x = Loop(made()), torch.rand(8, 3, 4) * 4
    over_time = MultiStep(loop.fc, made(), loop.lif)
    expected = loop(x)
    first, states = over_time(x[:3], return_states=True)[0::2]
    second = over_time(x[3:], states=states)[0]
    assert_bits_equal(torch.cat([first, second]), expected)
    assert over_time[1]._buffer.any()
    snnfast.reset(over_time)
    assert not over_time[1]._buffer.any()
    assert_bits_equal(over_time(x)[0], expected)


def test_a_constant_input_comes_at_every_step() -> None:
    delay, x = made(), torch.rand(3, 5)
    found = MultiStep(delay)(x, 4)
    delay.reset_delay()
    assert_bits_equal(found, torch.stack([delay(x) for _ in range(4)]))
    assert MultiStep(delay)(x, 0).shape == (0, 3, 5)


def test_a_delay_that_a_module_calls_is_refused() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = made()

    with pytest.raises(TypeError, match=r"layers: Holder calls a SynapticDelay in its forward, .*a method unroll"):
        MultiStep(nn.Linear(4, 5), Holder())
    with pytest.raises(ValueError, match=r"step_mode=True: got"):
        MultiStep(made())(torch.rand(6, 3, 2, 5))


def test_from_sequential_takes_a_delay_but_not_twice_the_same() -> None:
    x, delay = torch.rand(8, 3, 4) * 4, made()
    layers = OrderedDict(fc=nn.Linear(4, 5), delay=delay, lif=snntorch.Leaky(0.9, init_hidden=True, output=True))
    expected = torch.stack([nn.Sequential(layers)(step)[0] for step in x])
    delay.reset_delay()
    layers["lif"].reset_mem()
    over_time = MultiStep.from_sequential(nn.Sequential(layers))
    assert_bits_equal(over_time(x)[0], expected)
    with pytest.raises(ValueError, match=r"net\.2: the same SynapticDelay as net\.0"):
        MultiStep.from_sequential(nn.Sequential(delay, nn.Linear(5, 5), delay))


def test_a_layer_of_a_later_version_counts_as_one_with_a_state() -> None:
    class Leap(nn.Module):
        __module__ = "snntorch._neurons.leap"

        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(TypeError, match=r"layers: Leap is or has a neuron of snnTorch \(Leap\), .*keep the loop"):
        MultiStep(nn.Linear(4, 5), Leap())


# ---- and in a compiled loop


@pytest.mark.needs_extension
@pytest.mark.parametrize("learn", [False, True], ids=["fixed", "learned"])
def test_a_compiled_loop_with_a_delay_gives_what_the_loop_gives(learn: bool) -> None:
    x = torch.rand(6, 3, 4) * 4
    eager, compiled = Loop(made(learn_delay=learn)), Loop(made(learn_delay=learn))
    compiled.load_state_dict(eager.state_dict())
    run = torch.compile(compiled, backend="snnfast")
    for _ in range(2):  # the second time from what the first one left
        expected, found = eager(x), run(x)
        assert_bits_equal(found, expected)
        assert_close(compiled.delay._buffer, eager.delay._buffer, 1e-6)
        for loop, spk in ((eager, expected), (compiled, found)):
            loop.zero_grad()
            spk.square().sum().backward()
        for (name, a), b in zip(eager.named_parameters(), compiled.parameters(), strict=True):
            assert_close(b.grad, a.grad, 1e-5, name)
        for loop in (eager, compiled):
            loop.delay._buffer = loop.delay._buffer.detach()  # type: ignore[union-attr]
    assert expected.any()
