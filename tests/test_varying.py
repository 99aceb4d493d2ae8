"""``beta`` and ``threshold`` of ``lif`` with values for every step: snnTorch's loop that sets them before each step."""

from typing import Any

import pytest
import snntorch
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import FLOATS, HALVES, RESETS, SURROGATES, Bump, assert_bits_equal, assert_close
from torch import Tensor
from torch.autograd import gradcheck

import snnfast
from snnfast.functional import lif

STEPS = 6
# Shapes of a step, and of beta and threshold over time; "T" stands for the steps.
SHAPES: list[tuple[tuple[int, ...], tuple[Any, ...] | None, tuple[Any, ...] | None]] = [
    ((3, 10), ("T", 1, 10), ("T", 3, 10)),
    ((3, 10), ("T", 3, 1), None),
    ((3, 10), None, ("T", 1, 1)),
    ((3, 2, 4, 5), ("T", 1, 2, 1, 1), ("T", 3, 1, 4, 5)),
    ((7,), ("T", 7), ("T", 1)),
    ((), ("T",), ("T",)),
]
RESET = pytest.mark.parametrize("reset", RESETS)
DELAY = pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
SHAPE = pytest.mark.parametrize("shapes", SHAPES, ids=str)
CONSTANT = pytest.mark.parametrize("constant", [False, True], ids=["sequence", "constant"])


def made(
    shapes: tuple[Any, ...], dtype: torch.dtype = torch.float32, constant: bool = False, steps: int = STEPS
) -> dict[str, Tensor]:
    """Random arguments of ``lif`` under their names. Without a shape over time, a parameter is a number."""
    step, *over_time = shapes
    of = [() if shape is None else tuple(steps if n == "T" else n for n in shape) for shape in over_time]
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "current": (torch.rand(step if constant else (steps, *step)) * 1.6 - 0.2).to(dtype),
        "mem": (torch.rand(step) * 2 - 0.2).to(acc),
        "beta": torch.rand(of[0]).to(acc),
        "threshold": (torch.rand(of[1]) * 0.8 + 0.3).to(acc),
    }


def learned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.clone().requires_grad_() for name, t in tensors.items()}


def at(parameter: Tensor, t: int, current: Tensor, constant: bool) -> Tensor:
    return parameter[t] if parameter.dim() == current.dim() + constant else parameter


def snntorch_loop(
    tensors: dict[str, Tensor], constant: bool, spike_grad: Any, reset: str, delay: bool
) -> tuple[Tensor, Tensor]:
    layer = snntorch.Leaky(0.5, spike_grad=spike_grad, reset_mechanism=reset, reset_delay=delay)
    current, mem = tensors["current"], tensors["mem"]
    spk_rec, mem_rec = [], []
    for t in range(STEPS):
        layer.beta = at(tensors["beta"], t, current, constant)
        layer.threshold = at(tensors["threshold"], t, current, constant)
        spk, mem = layer(current if constant else current[t], mem)
        spk_rec.append(spk)
        mem_rec.append(mem)
    return torch.stack(spk_rec), torch.stack(mem_rec)


def single_steps(tensors: dict[str, Tensor], constant: bool = False, **options: Any) -> list[Tensor]:
    """The reference called for one step after the other, in the opmath dtype."""
    current, mem = tensors["current"], tensors["mem"]
    wide = current.to(mem.dtype)
    record = []
    for t in range(STEPS):
        given = {name: at(tensors[name], t, current, constant) for name in ("beta", "threshold")}
        x = (wide if constant else wide[t]).unsqueeze(0)
        spk, mem = snnfast.reference.lif(x, mem, **given, **options, record_mem=False)
        record.append((spk[0], mem))
    return [torch.stack(t) for t in zip(*record, strict=True)]


def loss_of(outputs: Any) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return sum((t.double() * torch.randn(t.shape, generator=generator, dtype=torch.float64)).sum() for t in outputs)  # type: ignore[return-value]


def gradients(outputs: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss_of(outputs), list(tensors.values()))
    return dict(zip(tensors, found, strict=True))


@RESET
@DELAY
@CONSTANT
@SHAPE
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
def test_bits_equal_a_loop_of_snntorch_that_sets_them_before_each_step(
    dtype: torch.dtype, shapes: Any, constant: bool, delay: bool, reset: str, backend: str
) -> None:
    tensors = made(shapes, dtype, constant)
    if shapes[2] is None:  # a float64 threshold of one number is rounded to float32 in snnTorch
        tensors["threshold"] = tensors["threshold"].float().to(dtype)
    spk_expected, mem_expected = snntorch_loop(tensors, constant, None, reset, delay)
    steps = STEPS if constant else None
    spk, mem = lif(**tensors, reset_mechanism=reset, reset_delay=delay, num_steps=steps)
    assert_bits_equal(spk, spk_expected.to(dtype))
    assert_bits_equal(mem, mem_expected)
    assert 0 < spk.count_nonzero() < spk.numel() or spk.numel() < 10


@RESET
@DELAY
@CONSTANT
@SHAPE
def test_every_gradient_equals_that_of_the_loop(
    shapes: Any, constant: bool, delay: bool, reset: str, backend: str
) -> None:
    tensors = made(shapes, torch.float64, constant)
    # Our surrogate keeps float64, where snnTorch's own would round the gradients of spikes to float32.
    spike_grad = SURROGATES["fast_sigmoid"]
    theirs, ours = learned(tensors), learned(tensors)
    expected = gradients(snntorch_loop(theirs, constant, spike_grad, reset, delay), theirs)
    steps = STEPS if constant else None
    options = {"spike_grad": spike_grad, "reset_mechanism": reset, "reset_delay": delay}
    found = gradients(lif(**ours, **options, num_steps=steps), ours)  # type: ignore[arg-type]
    for name, grad in found.items():
        assert_close(grad, expected[name], 1e-12, name)


def test_the_reset_is_decided_by_the_threshold_of_the_step_that_resets(backend: str) -> None:
    current, threshold = torch.tensor([[0.8], [0.0], [0.0]]), torch.tensor([[1.0], [0.5], [0.5]])
    spk, mem = lif(current, beta=1.0, threshold=threshold)
    # 0.8 does not spike under 1.0; the next step finds it above 0.5, and takes 0.5 of it.
    assert spk.flatten().tolist() == [0, 0, 0]
    assert_bits_equal(mem.flatten(), torch.tensor([0.8, 0.8 - 0.5, 0.8 - 0.5]))


@RESET
@CONSTANT
def test_gradients_are_those_of_finite_differences(reset: str, constant: bool, backend: str) -> None:
    """Of the membrane, between the jumps of its spikes, which have no gradient in it with a delayed reset."""
    tensors = learned(made(SHAPES[0], torch.float64, constant))
    steps = STEPS if constant else None

    def membranes(*given: Tensor) -> Tensor:
        return lif(**dict(zip(tensors, given, strict=True)), reset_mechanism=reset, num_steps=steps)[1]  # type: ignore[arg-type]

    mem = membranes(*tensors.values())
    assert (mem > tensors["threshold"]).any()
    assert (mem - tensors["threshold"]).abs().min() > 1e-5
    assert gradcheck(membranes, list(tensors.values()), eps=1e-7, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"graded_spikes_factor": torch.rand(10) + 0.5},
        {"spike_grad": Bump.apply},
        {"spike_grad": Bump.apply, "reset_delay": False},
        {"inhibition": True},
        {"inhibition": True, "reset_delay": False},
        {"state_quant": lambda mem: (mem * 8).round() / 8},
    ],
    ids=lambda o: "-".join(o),
)
@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES], ids=lambda d: str(d)[6:])
@CONSTANT
@pytest.mark.filterwarnings("ignore:snnfast. a layer runs step by step")
def test_every_option_gives_what_it_gives_step_by_step(
    options: dict[str, Any], dtype: torch.dtype, constant: bool
) -> None:
    tensors, steps = made(SHAPES[0], dtype, constant), STEPS if constant else None
    spk, mem = single_steps(tensors, constant, **options)
    weight, bias = torch.rand(4, 10).to(dtype), torch.rand(4).to(dtype)
    expected = {
        (): (spk.to(dtype), mem.to(dtype)),
        ("last",): (spk.to(dtype), mem[-1]),
        ("sum",): (sum(spk, start=torch.zeros_like(spk[0])).to(dtype), mem.to(dtype)),
        ("weight",): (F.linear(spk.to(dtype), weight, bias), mem.to(dtype)),
        ("weight", "sum", "last"): (F.linear(sum(spk).to(dtype), weight, bias), mem[-1]),  # type: ignore[union-attr]
    }
    given = {"last": {"record_mem": False}, "sum": {"reduce": "sum"}, "weight": {"weight": weight, "bias": bias}}
    for backend in ("auto", "reference"):
        for words, results in expected.items():
            asked = {k: v for word in words for k, v in given[word].items()}
            with snnfast.use_backend(backend):
                found = lif(**tensors, **options, **asked, num_steps=steps)
            for a, b in zip(found, results, strict=True):
                assert_bits_equal(a, b, f"{backend} {words}")


@CONSTANT
@pytest.mark.parametrize("steps", [0, 1])
def test_no_step_and_one_step(steps: int, constant: bool, backend: str) -> None:
    tensors = learned(made(SHAPES[0], torch.float32, constant, steps))
    spk, mem = lif(**tensors, num_steps=steps if constant else None)
    assert spk.shape == mem.shape == (steps, 3, 10)
    if steps:
        of_step = {name: t[0] for name, t in tensors.items() if name in ("beta", "threshold")}
        x = tensors["current"] if constant else tensors["current"][0]
        expected = lif(x, tensors["mem"], **of_step, num_steps=1)
        assert_bits_equal(spk, expected[0])
        assert_bits_equal(mem, expected[1])
        for name, grad in gradients((spk, mem), tensors).items():
            assert grad.shape == tensors[name].shape
    else:
        _, last = lif(**tensors, num_steps=steps if constant else None, record_mem=False)
        assert_bits_equal(last, tensors["mem"])


@pytest.mark.parametrize("name", ["beta", "threshold"])
def test_float64_values_widen_as_those_of_a_layer_do(name: str, backend: str) -> None:
    tensors = made(SHAPES[0])
    tensors[name] = tensors[name].double()
    spk, mem = lif(**tensors)
    assert (spk.dtype, mem.dtype) == (torch.float32, torch.float64)
    as_double = lif(**{k: t.double() for k, t in tensors.items()})
    assert_bits_equal(spk, as_double[0].float())
    assert_bits_equal(mem, as_double[1])


def test_values_made_in_inference_mode_train(backend: str) -> None:
    tensors = made(SHAPES[0])
    expected = lif(**tensors, reset_delay=False)
    with torch.inference_mode():
        tensors |= {name: tensors[name].clone() for name in ("beta", "threshold")}
    tensors["current"].requires_grad_()
    spk, mem = lif(**tensors, reset_delay=False)
    (spk.sum() + mem.sum()).backward()
    assert tensors["current"].grad is not None
    assert_bits_equal(mem, expected[1])


# ---- torch.compile


@pytest.mark.needs_extension
@pytest.mark.filterwarnings("ignore:snnfast. a compiled loop runs as it is")
@pytest.mark.parametrize("compiler", ["aot_eager", "snnfast"])
def test_it_compiles_without_a_graph_break(compiler: str) -> None:
    tensors, names = made(SHAPES[0]), ("current", "mem", "beta", "threshold")

    def call(*given: Tensor) -> Any:
        return lif(**dict(zip(names, given, strict=True)))  # type: ignore[arg-type]

    eager, compiled = learned(tensors), learned(tensors)
    expected = call(*eager.values())
    found = torch.compile(call, backend=compiler, fullgraph=True)(*compiled.values())
    for a, b in zip(found, expected, strict=True):
        assert_bits_equal(a, b)
    of_compiled, of_eager = gradients(found, compiled), gradients(expected, eager)
    for name in tensors:
        assert_close(of_compiled[name], of_eager[name], 1e-6, name)


@pytest.mark.needs_extension
@pytest.mark.filterwarnings("ignore:snnfast. a compiled loop runs as it is")
def test_a_compiled_loop_that_sets_them_before_each_step_is_not_merged() -> None:
    lif, over_time = snnfast.Leaky(0.5), made(SHAPES[0])

    def loop(x: Tensor, beta: Tensor, threshold: Tensor) -> Tensor:
        mem, record = torch.zeros(3, 10), []
        for t in range(STEPS):
            lif.beta, lif.threshold = beta[t], threshold[t]
            spk, mem = lif(x[t], mem)
            record.append(torch.stack([spk, mem]))
        return torch.stack(record)

    given = over_time["current"], over_time["beta"], over_time["threshold"]
    expected = loop(*given)
    assert_bits_equal(torch.compile(loop, backend="snnfast")(*given), expected)
    assert "parameters are changed between two steps" in str(snnfast.explain(loop, *given))


# ---- errors


@pytest.mark.parametrize("name", ["beta", "threshold"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.rand(4, 3, 10), ValueError, r"shape \(4, 3, 10\) has values for 4 steps, but there are 6"),
        (torch.rand(1, 3, 10), ValueError, r"shape \(1, 3, 10\) has values for 1 steps, but there are 6"),
        (torch.rand(6, 2, 10), ValueError, r"shape \(2, 10\) does not broadcast to one step of current, \(3, 10\)"),
        (torch.rand(6, 3, 9), ValueError, r"shape \(3, 9\) does not broadcast"),
        (torch.rand(6, 1, 3, 10), ValueError, r"shape \(6, 1, 3, 10\) does not broadcast"),
        (torch.rand(6), ValueError, r"shape \(6,\) does not broadcast"),
        (torch.rand(6, 1, 10, dtype=torch.complex64), TypeError, "expected a real tensor"),
        (torch.rand(6, 1, 10).to_sparse(), TypeError, "expected a dense tensor"),
        (torch.rand(6, 1, 10, device="meta"), ValueError, "is on meta, but current is on cpu"),
    ],
    ids=lambda v: f"{list(v.shape)}{str(v.dtype)[6:]}{v.device}{v.layout}" if isinstance(v, Tensor) else "",
)
@CONSTANT
def test_wrong_values_are_named(
    name: str, value: Tensor, error: type[Exception], message: str, constant: bool, backend: str
) -> None:
    current, steps = (torch.rand(3, 10), 6) if constant else (torch.rand(6, 3, 10), None)
    for empty in (False, True):
        if empty and (not constant or len(value) != 6):
            continue  # the same without a step
        given = value[:0] if empty and value.layout is torch.strided else value
        with pytest.raises(error, match=rf"^{name}:? .*{message}" if not empty else rf"^{name}\b"):
            lif(current, **{"beta": 0.9, name: given}, num_steps=0 if empty else steps)  # type: ignore[arg-type]


def test_rounded_membranes_are_refused(backend: str) -> None:
    with pytest.raises(ValueError, match=r"^membrane_dtype: needs a beta and a threshold that are the same"):
        lif(torch.rand(6, 3, 10), beta=torch.rand(6, 1, 10), membrane_dtype=torch.bfloat16)


def test_other_parameters_and_neurons_take_none(backend: str) -> None:
    x, over_time = torch.rand(6, 3, 10), torch.rand(6, 1, 10)
    for function, other, name in (
        (lif, {"beta": 0.9}, "graded_spikes_factor"),
        (snnfast.functional.synaptic, {"alpha": 0.9}, "beta"),
        (snnfast.functional.rleaky, {"beta": 0.9}, "threshold"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: shape \(6, 1, 10\) does not broadcast to one step"):
            function(x, **other, **{name: over_time})  # type: ignore[operator]
