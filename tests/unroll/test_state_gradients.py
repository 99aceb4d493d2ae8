"""The gradient of a state that one step returned is snnTorch's on request, and who looks at it without is told."""

import copy
import warnings
import weakref
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import snntorch
import torch
from callables import steep
from helpers import RESETS
from snntorch import surrogate
from snntorch_checks import DECAYS, OTHER_DECAYS, STATES, TAKE_DELAY, learning, make
from torch import Tensor

import snnfast
import snnfast.snntorch as snn
from snnfast import functional
from snnfast._core import backend
from snnfast._unroll import state_gradients

pytestmark = pytest.mark.needs_extension

ALL = [*DECAYS, *OTHER_DECAYS]
CASES = [(n, reset, delay) for n in ALL for reset in RESETS for delay in (True, False) if delay or n in TAKE_DELAY]
cases = pytest.mark.parametrize(("name", "reset", "delay"), CASES)
KERNELS = surrogate.fast_sigmoid(slope=5)


def layer_of(library: Any, name: str, reset: str, delay: bool, spike_grad: Any = KERNELS) -> Any:
    torch.manual_seed(1)
    options = {**learning(name), **({"graded_spikes_factor": 1.3} if name == "Leaky" else {})}
    options |= {"reset_mechanism": reset, "reset_delay": delay, "spike_grad": spike_grad}
    return make(library, name, threshold=0.7, **options).double()


def steps(layer: Any, x: Tensor, hook: Any = None) -> list[tuple[Tensor, ...]]:
    """All results of every step."""
    states = tuple(torch.zeros_like(x[0]) for _ in STATES[type(layer).__name__])
    made = []
    for t in range(len(x)):
        found = layer(x[t], *states)
        states = found[1:] if len(found) > len(states) else found  # a last spike is a state
        if hook is not None:
            for state in found[1:]:
                state.register_hook(hook)
        made.append(found)
    return made


def inputs(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return (torch.rand(*shape, dtype=torch.float64) * 1.5 - 0.2).requires_grad_()


def clamped(grad: Tensor | None) -> Tensor | None:
    # The last states of an immediate reset have no gradient: nothing reads them.
    return None if grad is None else grad.clamp(-0.1, 0.1)


def objective(made: list[tuple[Tensor, ...]]) -> Tensor:
    spks = torch.stack([found[0] for found in made])
    weight = torch.linspace(-1, 2, spks.numel(), dtype=spks.dtype).view_as(spks)
    return (spks * weight).sum() + made[-2][-1].square().sum()


# ---- with the setting


@pytest.fixture
def whole() -> Iterator[None]:
    with warnings.catch_warnings(), snnfast.use_state_gradients(True):
        warnings.filterwarnings("error", message="snnfast: the gradient that")
        yield


@cases
@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("hooked", [False, True], ids=["as it is", "clamped"])
@pytest.mark.parametrize("spike_grad", [KERNELS, steep], ids=["kernel", "own"])
def test_every_result_of_a_step_has_snntorchs_gradient_and_obeys_its_hook(
    name: str, reset: str, delay: bool, hooked: bool, spike_grad: Any
) -> None:
    gradients = []
    for lib in (snnfast, snntorch):
        layer, x = layer_of(lib, name, reset, delay, spike_grad), inputs(4, 3, 5)
        made = steps(layer, x, hook=clamped if hooked else None)
        results = [t for found in made for t in found if t.requires_grad]
        for t in results:
            t.retain_grad()
        objective(made).backward()
        gradients.append([t.grad for t in (*results, x, *layer.parameters())])
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-5, atol=1e-6)  # its spikes are float32


@pytest.mark.usefixtures("whole")
def test_steps_that_must_run_on_the_kernels_have_no_such_gradient() -> None:
    layer, x = snnfast.Leaky(0.9), inputs(2, 3)
    with snnfast.use_backend("fused"):
        layer.unroll(x)
        layer(x[0].detach())
        with pytest.raises(RuntimeError, match=r"'fused' is not available for steps under use_state_gradients"):
            layer(x[0])


@pytest.mark.usefixtures("whole")
def test_the_steps_of_an_unroll_and_those_that_lack_nothing_run_on_the_kernels() -> None:
    x = torch.rand(6, 3, 4, requires_grad=True)
    with snnfast.use_backend("fused"):
        snnfast.functional.lif(x, beta=torch.rand(6, 1, 1))
        with torch.autocast("cpu", torch.bfloat16):
            snnfast.RLeaky(0.9, linear_features=4).unroll(x)
        snnfast.Leaky(0.9, reset_mechanism="none", surrogate_disable=True)(x[0])


# ---- without it


MESSAGE = "snnfast: the gradient that a hook or retain_grad.. sees .* snnfast.use_state_gradients.True. gives snnT"


def told(act: Any) -> int:
    """How often a call warns."""
    with warnings.catch_warnings(record=True, action="always") as found:
        act()
    return sum("use_state_gradients" in str(w.message) for w in found)


@cases
@pytest.mark.parametrize("spike_grad", [KERNELS, steep], ids=["kernel", "own"])
def test_a_hook_warns_where_it_sees_less_than_in_snntorch(name: str, reset: str, delay: bool, spike_grad: Any) -> None:
    differ, warn = [], []
    made = [steps(layer_of(lib, name, reset, delay, spike_grad), inputs(4, 3, 5)) for lib in (snnfast, snntorch)]
    for place, result in enumerate(made[0][1]):
        ours, theirs = (torch.autograd.grad(objective(m), m[1][place], retain_graph=True)[0].double() for m in made)
        if not torch.allclose(ours, theirs, 1e-5, 1e-6):
            differ.append(place)
        backend._warned.clear()
        if told(partial(result.register_hook, torch.clone)):
            warn.append(place)
    assert warn == differ


def test_the_warning_names_the_setting_and_the_line() -> None:
    layer, x = snnfast.Leaky(0.9), inputs(2, 3)
    _, mem = layer(x[0])
    with pytest.warns(UserWarning, match=MESSAGE) as found:
        mem.register_hook(lambda g: g)
    assert found[0].filename == __file__
    assert told(lambda: layer(x[1])[1].register_hook(lambda g: g)) == 0  # once per process


@pytest.mark.parametrize("last", [True, False])
def test_retain_grad_warns_before_the_gradient_can_be_read(last: bool) -> None:
    made = steps(snnfast.Leaky(0.9), inputs(3, 4))
    loss = objective(made)
    made[-1 if last else 0][1].retain_grad()
    with pytest.warns(UserWarning, match=MESSAGE) as found:
        loss.backward()
    assert found[0].filename == __file__


def test_nothing_else_warns() -> None:
    x = inputs(4, 3, 5)

    def others() -> None:
        layer = snnfast.Leaky(0.9)
        spk_rec, mem_rec = layer.unroll(x)
        mem_rec.retain_grad()
        mem_rec.register_hook(lambda g: g)
        (spk_rec.sum() + mem_rec.sum()).backward()
        made = steps(layer, x)
        made[0][0].register_hook(lambda g: g)
        made[1][0].retain_grad()
        objective(made).backward()
        made = steps(copy.deepcopy(snnfast.Leaky(0.9, surrogate_disable=True)), x, hook=lambda g: g)
        made[-2][-1].sum().backward()
        with snnfast.use_backend("reference"):
            objective(steps(layer, x, hook=lambda g: g)).backward()
        functional.lif(x, beta=0.9)[1].register_hook(lambda g: g)

    assert told(others) == 0


def test_a_result_is_not_kept_alive_by_its_step() -> None:
    _, mem = snnfast.Leaky(0.9)(inputs(2, 3)[0])
    gone = weakref.ref(mem)
    node = mem.grad_fn
    del mem
    assert gone() is None
    assert node is not None


# ---- torch.compile


def of_membranes(spk: Tensor, mem: Tensor) -> Tensor:
    mem.register_hook(clamped)
    return spk


def of_spikes_that_were_read(spk: Tensor, mem: Tensor) -> Tensor:
    double = 2 * spk
    spk.register_hook(clamped)
    return double


def in_a_loop(layer: Any, inside: Any = None, behind: Any = None) -> Any:
    """A loop over time. ``inside`` gives the spikes of a step that are returned, ``behind`` sees all results."""

    def loop(x: Tensor) -> list[tuple[Tensor, ...]]:
        mem, made = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            spk, mem = layer(x[t], mem)
            made.append((spk if inside is None else inside(spk, mem), mem))
        if behind is not None:
            behind(made)
        return made

    return loop


def of_input(loop: Any, outside: Any = None) -> Tensor:
    x = inputs(5, 2, 3).float().detach().requires_grad_()
    made = loop(x)
    if outside is not None:
        outside(made)
    return torch.autograd.grad(objective(made), x)[0]


@pytest.fixture
def compiled(nothing_compiled: None) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="snnfast: a compiled loop runs as it is")
        yield lambda function, inner=None: torch.compile(
            function, backend="snnfast", options={"inner": inner} if inner else None
        )


HOOKS: dict[str, tuple[Any, ...]] = {  # inside of the loop, behind it, and outside of what is compiled
    "inside": (of_membranes, None, None),
    "read before": (of_spikes_that_were_read, None, None),
    "last": (None, lambda made: made[-1][1].register_hook(clamped), None),
    "results": (None, None, lambda made: [mem.register_hook(clamped) for _, mem in made[:-1]]),
}
hooks_in_graphs = pytest.mark.skipif(
    find_spec("torch._higher_order_ops.register_hook") is None,
    reason="this PyTorch makes an autograd.Function of a hook in a graph",
)


@hooks_in_graphs
@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize(("hooks", "inner"), [*((name, None) for name in HOOKS), ("inside", "aot_eager")])
def test_a_compiled_loop_obeys_its_hooks(compiled: Any, hooks: str, inner: str | None) -> None:
    inside, behind, outside = HOOKS[hooks]
    ours, theirs = (in_a_loop(library.Leaky(beta=0.9), inside, behind) for library in (snn, snntorch))
    expected = of_input(theirs, outside)
    assert not torch.allclose(of_input(in_a_loop(snntorch.Leaky(beta=0.9))), expected)
    torch.testing.assert_close(of_input(compiled(ours, inner), outside), expected)


def test_a_compiled_step_follows_the_choice_that_it_is_called_under_or_makes(compiled: Any) -> None:
    layer, x = snnfast.Leaky(0.9), inputs(2, 3)

    def chosen(x: Tensor) -> Any:
        with snnfast.use_state_gradients(True):
            return layer(x)

    def tells(step: Any) -> bool:
        spk, mem = step(x)
        return torch.autograd.grad(spk.sum(), mem, allow_unused=True)[0] is not None

    step = compiled(layer)
    for wanted in (False, True, False):
        with snnfast.use_state_gradients(wanted):
            assert tells(step) == wanted
    assert tells(compiled(chosen))
    assert not state_gradients.setting.value


@hooks_in_graphs
@pytest.mark.usefixtures("whole", "compiled")
def test_explain_names_the_hook_that_keeps_a_loop() -> None:
    report = snnfast.explain(in_a_loop(snnfast.Leaky(0.9), of_membranes), inputs(5, 2, 3).float())
    assert "a hook" in str(report)
