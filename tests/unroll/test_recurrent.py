"""Connections between the neurons of RLeaky and RSynaptic, and what is particular to these layers."""

import copy
import functools
import itertools
import pickle
import warnings
from typing import Any

import pytest
import snntorch
import torch
from callables import steep
from helpers import Case, assert_all_bits_equal, assert_all_close, assert_bits_equal, assert_close
from ops import forward_arguments, ordered, permuted
from snntorch_checks import CONNECTED, RECURRENT, connected, current_of, loop, trained
from torch import Tensor, nn

import snnfast
import snnfast.snntorch as snn
from snnfast import functional
from snnfast._core import backend, ops


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small products wait for threads longer than they take."""
    torch.set_num_threads(1)


@RECURRENT
@CONNECTED
def test_numbers(kind: str, name: str) -> None:
    resets = itertools.product(("subtract", "zero", "none"), (True, False), (torch.float32, torch.float64))
    for reset, delay, dtype in resets:
        delay = delay or name == "RSynaptic"  # of snnTorch it raises an error without the delay
        options = {"reset_mechanism": reset, "reset_delay": delay, "learn_beta": True, "learn_threshold": True}
        theirs, ours = (connected(library, name, kind, **options).to(dtype) for library in (snntorch, snnfast))
        x = current_of(kind, dtype=dtype)
        start = [torch.rand_like(x[0]) for _ in theirs.reset_mem()]
        results = []
        for layer, call in ((theirs, loop), (ours, loop), (ours, type(ours).unroll)):
            leaves = [t.clone().requires_grad_() for t in (x, *start)]
            outputs = call(layer, *leaves)
            results.append((outputs, trained(layer, outputs, leaves)))
        assert 0.02 < results[0][0][0].mean() < 0.98
        for outputs, grads in results[1:]:
            assert_all_bits_equal(outputs, results[0][0])
            assert_all_close(grads, results[0][1], relative=2e-5 if dtype == torch.float32 else 1e-11)


@CONNECTED
def test_numbers_of_the_cuda_sources(kind: str, device: torch.device) -> None:
    layer, x = connected(snnfast, "RSynaptic", kind, reset_delay=False).to(device), current_of(kind).to(device)
    found = layer.unroll(x.requires_grad_())
    with snnfast.use_backend("reference"):
        expected = layer.unroll(x)
    assert_all_bits_equal(found, expected)
    assert_all_close(trained(layer, found, [x]), trained(layer, expected, [x]), relative=1e-5)


@RECURRENT
def test_ways_of_asking(name: str) -> None:
    layer, x = connected(snnfast, name, "linear", learn_beta=True), current_of("linear")
    for constant, reduce, record_mem in itertools.product((False, True), (None, "sum"), (True, False)):
        leaf = (x[0] if constant else x).clone().requires_grad_()
        options = {"num_steps": 19 if constant else None, "reduce": reduce, "record_mem": record_mem}
        found = layer.unroll(leaf, **options)
        spk, *record = loop(layer, leaf.expand(19, *leaf.shape) if constant else leaf)
        expected = spk.sum(0) if reduce else spk, *(r if record_mem else r[-1] for r in record)
        assert spk.any()
        assert_all_bits_equal(found, expected)
        assert_all_close(trained(layer, found, [leaf]), trained(layer, expected, [leaf]), relative=1e-5)
        with torch.no_grad():
            assert_all_bits_equal(layer.unroll(leaf, **options), found)


def test_no_steps_and_meta_tensors() -> None:
    layer, x = connected(snnfast, "RLeaky", "linear"), torch.zeros(0, 4, 16, requires_grad=True)
    mem = torch.rand(4, 16, requires_grad=True)
    spk, record = layer.unroll(x, None, mem)
    assert spk.shape == record.shape == (0, 4, 16)
    _, last = layer.unroll(x, None, mem, record_mem=False)
    assert_bits_equal(last, mem)
    assert last.data_ptr() != mem.data_ptr()
    (spk.sum() + last.sum()).backward()
    assert mem.grad is not None
    assert_bits_equal(mem.grad, torch.ones(4, 16))
    assert not layer.recurrent.weight.grad.any()
    spk, mem = layer.to("meta").unroll(torch.rand(5, 4, 16, device="meta"))
    assert spk.is_meta
    assert spk.shape == mem.shape == (5, 4, 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    layer, x = connected(snnfast, "RLeaky", "linear").to(dtype), current_of("linear", dtype=torch.float32).to(dtype)
    spk, mem = layer.unroll(x.requires_grad_())
    with snnfast.use_backend("reference"):
        expected = layer.unroll(x)
    assert_all_bits_equal((spk, mem), expected)
    spk.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == layer.recurrent.weight.grad.dtype == dtype


@pytest.mark.needs_extension
def test_gradients_of_weights_by_events() -> None:
    found = []
    for enabled in (True, False):
        layer = connected(snnfast, "RLeaky", "linear")
        with snnfast.use_events(enabled):
            layer.unroll(current_of("linear", 40))[0].square().sum().backward()
        found.append(layer.recurrent.weight.grad)
        assert found[-1].abs().max() > 0
        torch.manual_seed(0)
    assert_close(*found, 1e-5)


@pytest.mark.needs_extension
@pytest.mark.filterwarnings("ignore:snnfast. a layer runs step by step", "ignore:Inhibition is an unstable feature")
@pytest.mark.parametrize(
    "options", [{"spike_grad": steep}, {"inhibition": True}, {"state_quant": torch.round}], ids=lambda o: next(iter(o))
)
def test_what_runs_step_by_step(options: dict[str, Any]) -> None:
    theirs, ours = (connected(library, "RLeaky", "linear", **options) for library in (snntorch, snnfast))
    leaf = current_of("linear").requires_grad_()
    expected, found = loop(theirs, leaf), ours.unroll(leaf)
    assert_all_bits_equal(found, expected)
    assert_all_close(trained(ours, found, [leaf]), trained(theirs, expected, [leaf]), relative=1e-5)


@pytest.mark.needs_extension
def test_what_makes_a_neuron_wait_for_others_says_so() -> None:
    for options, why in (
        ({"inhibition": True}, "inhibition in a rleaky layer makes each neuron wait for all others"),
        ({"state_quant": torch.round}, "state_quant is called on the states of every step"),
    ):
        call = functools.partial(functional.rleaky, torch.rand(7, 3, 10) * 2, beta=0.9, V=0.5, **options)  # type: ignore[arg-type]
        with snnfast.use_backend("fused"), pytest.raises(RuntimeError, match=why):
            call()
        backend._warned.clear()
        with snnfast.use_backend("auto"), pytest.warns(UserWarning, match=why):
            found = call()
        with warnings.catch_warnings(action="error"), snnfast.use_backend("reference"):
            assert_all_bits_equal(found, call())


@CONNECTED
def test_orders_in_memory(kind: str, backend: str) -> None:
    for spike_grad in (None, steep):
        layer, x = connected(snnfast, "RLeaky", kind, spike_grad=spike_grad), current_of(kind)
        start = [torch.rand_like(x[0]) for _ in range(2)]
        expected = layer.unroll(x, *start)
        over_time = x.new_empty(len(x), *reversed(x.shape[1:])).permute(0, *reversed(range(1, x.dim()))).copy_(x)
        for given in (over_time, x):
            states = [permuted(t) for t in start]
            for found in (layer.unroll(given, *states), loop(layer, given, *states)):
                assert_all_bits_equal(found, expected)


def test_connections_by_any_module() -> None:
    layer, x = connected(snnfast, "RLeaky", "linear"), current_of("linear")
    expected = layer.unroll(x)
    calls: list[Any] = []
    layer.recurrent.register_forward_hook(lambda *given: calls.append(given))
    assert_all_bits_equal(layer.unroll(x), expected)
    assert len(calls) == 19
    plain = connected(snnfast, "RLeaky", "linear")
    with nn.modules.module.register_module_forward_hook(lambda *given: calls.append(given)):
        plain.unroll(x)
    assert [module for module, *_ in calls[19:]] == [plain.recurrent] * 19
    layer.recurrent = nn.Sequential(nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 16))
    assert_all_bits_equal(layer.unroll(x), loop(layer, x))


@pytest.mark.parametrize("of", ["parameter", "state"])
def test_float64_beside_a_float32_current(of: str, backend: str) -> None:
    layer, x = connected(snnfast, "RLeaky", "linear"), current_of("linear").requires_grad_()
    start = [torch.rand_like(x[0]), torch.rand(x[0].shape, dtype=torch.float64)] if of == "state" else []
    if of == "parameter":
        layer.beta = torch.linspace(0.5, 1, 16, dtype=torch.float64)
    expected, found = loop(layer, x, *start), layer.unroll(x, *start)
    assert [t.dtype for t in found] == [torch.float32, torch.float64]
    assert_all_bits_equal(found, expected)
    assert_all_close(trained(layer, found, [x]), trained(layer, expected, [x]), relative=1e-5)
    assert [t.dtype for t in layer.unroll(x[:0], *start)] == [torch.float32, torch.float64]


def test_a_convolution_may_name_its_padding() -> None:
    layer, x = snnfast.RLeaky(0.9, conv2d_channels=2, kernel_size=1), current_of("conv").requires_grad_()
    by_number = trained(layer, layer.unroll(x), [x])
    layer.recurrent.padding = "valid"
    assert_all_close(trained(layer, layer.unroll(x), [x]), by_number, relative=1e-5)


@RECURRENT
@CONNECTED
def test_a_second_derivative_is_that_of_the_loop(kind: str, name: str) -> None:
    layer = connected(snnfast, name, kind, learn_beta=True, learn_threshold=True).double()
    x = current_of(kind, dtype=torch.float64).requires_grad_()
    lengths = None if kind == "one sample" else torch.arange(x.shape[1]).clamp(max=len(x))
    asking, found = [x, *layer.parameters()], []
    for chosen in ("auto", "reference"):
        with snnfast.use_backend(chosen):
            spk, *_, mem = layer.unroll(x, lengths=lengths)
        first = torch.autograd.grad((spk * mem).square().sum(), asking, create_graph=True)
        again = sum(g.sin().sum() for g in first)
        found.append([*first, *torch.autograd.grad(again, asking)])  # type: ignore[arg-type]
    assert_all_close([g.detach() for g in found[0]], [g.detach() for g in found[1]], relative=1e-10)


def test_a_result_changed_in_place() -> None:
    layer = connected(snnfast, "RLeaky", "linear")
    spk, mem = layer.unroll(current_of("linear"))
    loss = spk.sum()
    mem.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_threshold_moved_before_the_backward_pass() -> None:
    layer, x = connected(snnfast, "RLeaky", "linear"), current_of("linear").requires_grad_()
    found = []
    for moved in (0.0, 0.5):
        spk, mem = layer.unroll(x)
        layer.threshold.add_(moved)
        found.append(torch.autograd.grad(spk.sum() + mem.square().sum(), [x])[0])
    assert_bits_equal(*found)


def test_the_functions_take_weights() -> None:
    for kind in ("linear", "conv"):
        layer, x = connected(snnfast, "RLeaky", kind), current_of(kind)
        weight, bias = layer.recurrent.weight, layer.recurrent.bias
        found = functional.rleaky(x, beta=layer.beta, recurrent_weight=weight, recurrent_bias=bias)
        stepped = snnfast.reference.rleaky(x, beta=layer.beta, recurrent_weight=weight, recurrent_bias=bias)
        for other in (layer.unroll(x), stepped):
            assert_all_bits_equal(found, other)


X = torch.rand(5, 3, 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recurrent_bias": X[0, 0]}, ValueError, "recurrent_bias: needs a recurrent_weight"),
        ({"recurrent_weight": 3}, TypeError, "recurrent_weight: expected a torch.Tensor or None, got int"),
        ({"recurrent_weight": X[0].double()}, TypeError, "recurrent_weight: expected torch.float32, as current"),
        ({"recurrent_weight": X[0]}, ValueError, r"recurrent_weight: expected \[N, N\].*got \(3, 4\)"),
        ({"recurrent_weight": torch.eye(3)}, ValueError, "recurrent_weight: expected 4 inputs, got 3"),
        ({"recurrent_weight": torch.rand(3, 3, 2, 2)}, ValueError, "kernels of odd sizes"),
        ({"recurrent_weight": torch.eye(4), "recurrent_bias": X[0, :, 0]}, ValueError, r"expected \(4,\), got \(3,\)"),
        ({"recurrent_weight": torch.eye(4), "V": 2.0}, ValueError, "V: must not be given beside a recurrent_weight"),
    ],
    ids=["bias", "type", "dtype", "shape", "inputs", "even", "bias-shape", "V"],
)
def test_wrong_weights(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        functional.rleaky(X, beta=0.9, **options)


def test_wrong_sizes() -> None:
    for options in (
        {}, {"conv2d_channels": 2}, {"kernel_size": 3}, {"linear_features": 3, "kernel_size": 3},
        {"all_to_all": False, "linear_features": 3},
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"linear_features|kernel_size"):
            snnfast.RLeaky(0.9, **options)
        with pytest.raises(TypeError):
            snntorch.RLeaky(0.9, **options)
    with pytest.raises(ValueError, match="kernel_size: expected odd sizes"):
        snnfast.RLeaky(0.9, conv2d_channels=2, kernel_size=4)


# ---- layers: checkpoints, states, and what of snnTorch is mended


@RECURRENT
@pytest.mark.parametrize("kind", ["linear", None])
def test_convert_and_revert_leave_the_numbers(kind: str | None, name: str) -> None:
    net = nn.Sequential(connected(snntorch, name, kind, init_hidden=True))
    x, recurrent = current_of(kind), net[0].recurrent
    expected = [torch.stack([net(step) for step in x]) for _ in range(2)]  # the second goes on
    net[0].reset_mem()
    assert snn.convert(net).swapped == ("0",)
    assert type(net[0]) is getattr(snn, name)
    assert net[0].recurrent is recurrent
    assert_bits_equal(net[0].unroll(x)[0], expected[0])
    assert_bits_equal(torch.stack([net(step) for step in x]), expected[1])
    assert snn.revert(net).swapped == ("0",)
    assert type(net[0]) is getattr(snntorch, name)
    net[0].reset_mem()
    assert_bits_equal(torch.stack([net(step) for step in x]), expected[0])


def test_a_layer_whose_connection_was_replaced_is_left() -> None:
    layer = connected(snntorch, "RLeaky", None)
    layer.recurrent = nn.Identity()
    assert snn.convert(layer).left == {"": "its recurrent was replaced"}


def test_v_follows_the_layer_to_another_dtype() -> None:
    layer = connected(snnfast, "RLeaky", None, learn_recurrent=False).double()
    assert layer.recurrent.V is layer.V
    assert layer.V.dtype == torch.float64
    learned = connected(snnfast, "RLeaky", None).double()
    assert learned.recurrent.V is learned.V
    assert len(list(learned.parameters())) == 1
    fixed = connected(snnfast, "RLeaky", "linear", learn_recurrent=False)
    assert not fixed.recurrent.weight.requires_grad


def test_an_immediate_reset_of_rsynaptic() -> None:
    """snnTorch's raises an error where no spikes are passed, and loses the reset where they are."""
    layer, x = connected(snnfast, "RSynaptic", None, reset_delay=False), current_of(None)
    twin = copy.deepcopy(layer)
    now = [torch.zeros(3, 10) for _ in range(3)]
    for step, *found in zip(x, *layer.unroll(x), strict=True):
        spk, syn, mem = now
        reset = (mem > 1).float()
        syn = twin.alpha * syn + step + spk * twin.V
        base = twin.beta * mem + syn - reset
        spk = (base > 1).float()
        now = [spk, syn, base - (spk - reset)]
        assert_all_bits_equal(found, now)


@RECURRENT
def test_checkpoints_and_copies_of_connections(name: str) -> None:
    layers, x = [connected(lib, name, "conv", learn_beta=True) for lib in (snntorch, snn, snnfast)], current_of("conv")
    params = [[(n, p.requires_grad) for n, p in layer.named_parameters()] for layer in layers]
    assert params[0] == params[1] == params[2]
    state = {k: v + 0.125 if v.is_floating_point() else v for k, v in layers[0].state_dict().items()}
    for layer in layers:
        assert list(layer.state_dict()) == list(state)
        layer.load_state_dict(state)
    own = connected(snn, name, None)
    assert copy.deepcopy(own).recurrent.V is not own.V
    expected = loop(layers[0], x)
    for layer in (layers[1], pickle.loads(pickle.dumps(layers[2]))):
        assert_all_bits_equal(layer.unroll(x), expected)


# ---- compiled loops


def sample_by_sample(layer: Any, x: Tensor) -> Tensor:
    """All samples begin with the product of the same zeros."""
    out = []
    for b in range(x.shape[1]):
        state, record = [torch.zeros_like(x[0, 0])] * 2, []
        for step in x:
            state = layer(step[b], *state)
            record.append(state[-1])
        out.append(torch.stack(record))
    return torch.stack(out, 1)


def single_steps(layer: Any, x: Tensor) -> Tensor:
    """No step goes on from another."""
    return torch.stack([layer(x[t], x[0].abs(), torch.zeros_like(x[0]))[-1] for t in range(len(x))])


def with_its_products(layer: Any, x: Tensor) -> Tensor:
    """Somebody else reads the product of the spikes, too."""
    products: list[Tensor] = []
    hook = layer.recurrent.register_forward_hook(lambda module, inputs, output: products.append(output))
    spk, mem = torch.ones_like(x[0]), torch.zeros_like(x[0])
    for step in x:
        spk, mem = layer(step, spk, mem * 0.5)
    hook.remove()
    return torch.stack([*products, mem])


@pytest.mark.parametrize("loop_of", [sample_by_sample, single_steps, with_its_products])
@pytest.mark.parametrize("kind", [None, "linear", "conv"])
def test_a_compiled_loop_of_connected_neurons_is_the_loop(kind: str | None, loop_of: Any) -> None:
    torch._dynamo.reset()
    layer, x = connected(snnfast, "RLeaky", kind), current_of(kind, steps=4).requires_grad_()
    with warnings.catch_warnings(record=True, action="always") as caught:
        found = snnfast.compile(functools.partial(loop_of, layer))(x)
    assert not any("fault of snnfast" in str(w.message) for w in caught)
    expected = loop_of(layer, x)
    assert_all_bits_equal([found], [expected])
    for a, b in zip(*(trained(layer, out, [x]) for out in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)


# ---- the ops of a loop


@pytest.mark.needs_extension
def test_spikes_become_the_bits_that_a_product_takes() -> None:
    for dtype, steps in itertools.product((torch.float32, torch.float64, torch.float16, torch.bfloat16), (1, 8, 19)):
        spk = (torch.rand(steps, 3, 7) < 0.4).to(dtype) * -0.5
        bits, count, height = ops.spikes_as_bits(spk)
        assert (count, height) == ((spk != 0).sum(), -0.5)
        for t in range(steps):
            assert torch.equal(bits[t // 8] >> t % 8 & 1, (spk[t] != 0).byte())
        assert bits.shape == ((steps + 7) // 8, 3, 7)
    for wrong in (torch.rand(3, 4), torch.rand(4, 3, 2).transpose(0, 1), torch.ones(2, 3, 4, dtype=torch.int64)):
        with pytest.raises(RuntimeError, match="spk: expected"):
            ops.spikes_as_bits(wrong)


@pytest.mark.needs_extension
def test_rows_are_like_a_tensor_of_one_step() -> None:
    rows = ops.rows_like(torch.rand(3, 7, dtype=torch.float64), 5)
    assert rows.shape == (5, 3, 7)
    assert rows.dtype == torch.float64
    assert rows.is_contiguous()
    with pytest.raises(RuntimeError, match="rows: expected 0 or more"):
        ops.rows_like(rows, -1)
    with pytest.raises(RuntimeError, match="like: expected float32, float64, float16 or bfloat16"):
        ops.rows_like(torch.zeros(100_000, dtype=torch.int64), 4)


@pytest.mark.needs_extension
def test_no_step_writes_to_what_is_no_output_of_it() -> None:
    given = forward_arguments(Case("rleaky", "step", 1), torch.device("cpu"))
    arguments = ordered(ops.NEURONS["rleaky"].forward, given)
    expected = ops.NEURONS["rleaky"].forward(*arguments)
    out = [torch.empty_like(t) for t in expected]
    into = arguments[:-1]  # a step has no lengths
    ops.NEURONS["rleaky"].forward_into(*into, out)
    assert_all_bits_equal(out, expected)
    for wrong in (
        [torch.empty(3, 9), out[1]], [out[0].double(), out[1]], [out[0].t().contiguous().t(), out[1]], out[:1],
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="out: "):
            ops.NEURONS["rleaky"].forward_into(*into, wrong)
