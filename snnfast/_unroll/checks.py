"""Check the arguments of users: the options of a layer once, the options and tensors of a call at each call."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.compiler import is_compiling

from snnfast import surrogate
from snnfast._core.ops import (
    CONSTANT,
    RESET_AT,
    RESET_DELAY_AT,
    RESET_MECHANISMS,
    SEQUENCE,
    SURROGATE_AT,
    Neuron,
    opmath_dtype,
)
from snnfast._core.settings import check_flag
from snnfast._unroll.call import Options, Request, StateQuant, UnrollCall, make_request
from snnfast.surrogate.base import number
from snnfast.surrogate.examine import SpikeGrad, how_to_make, recognise

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_NUMBERS = (*_DTYPES, torch.int64)  # of a parameter: what a kernel reads as a number
_STRIDED = torch.strided
_MOST_STEPS = 2**63 - 1
_DEFAULT_SPIKE_GRAD = surrogate.atan()


def check_options(
    spike_grad: object, reset_mechanism: object, reset_delay: object, inhibition: object, state_quant: object
) -> Options:
    """Return the options in one form, or raise ``TypeError`` or ``ValueError``, naming the option that is wrong."""
    spike_grad, reset_delay = check_spike_grad(spike_grad), check_flag("reset_delay", reset_delay)
    reset = RESET_MECHANISMS.index(check_reset_mechanism(reset_mechanism))
    inhibition, state_quant = check_flag("inhibition", inhibition), check_state_quant(state_quant)
    kernel = spike_grad if surrogate.known_to_kernels(spike_grad) else surrogate.DISABLED
    return Options(
        spike_grad,
        reset,
        reset_delay,
        inhibition,
        state_quant,
        kernel is spike_grad and not inhibition and state_quant is None,
        reset << RESET_AT | reset_delay << RESET_DELAY_AT,
        (kernel.kernel_id << SURROGATE_AT, *kernel.parameters()),
    )


def check_request(
    neuron: Neuron, current: Tensor, num_steps: object, record_mem: object, reduce: object, last: bool = False
) -> Request:
    """Check the options of a call of all time steps. ``current`` is checked already.

    ``last``: return all states after the last step in any case.
    """
    if num_steps is not None:
        time, steps = CONSTANT, check_num_steps(num_steps)
    elif current.dim() > 0:
        time, steps = SEQUENCE, current.shape[0]
    else:
        raise ValueError("current: expected [T, *] with time first, got a tensor with no dimensions; or give num_steps")
    record = record_mem if isinstance(record_mem, bool) else check_flag("record_mem", record_mem)
    reduces = reduce is not None and check_reduce(reduce) is not None
    return make_request(time, steps, neuron.every_state if record else 0, last or not record, reduces)


def prepare(call: UnrollCall) -> UnrollCall:
    """A call with its tensors as the kernels take them.

    A wrong tensor is an error that names it. Kernels convert states and parameters themselves, unless one of them
    makes the opmath dtype float64. Then all tensors are returned as float64.
    """
    if call.varies:
        return _prepare_each_step(call)
    current = call.current
    step = current.shape[1:] if call.request.time == SEQUENCE else current.shape  # step_shape, without a call
    dtype, device = current.dtype, current.device
    opmath = opmath_dtype(dtype)
    # Autograd can't save a tensor of torch.inference_mode.
    saves = torch.is_grad_enabled() and not is_compiling()
    fit = not call.options.inhibition
    for t in call.states:
        if t is None:
            continue
        if not (
            isinstance(t, Tensor)
            and not t.is_nested  # which has no shape
            and (t.dtype is opmath or t.dtype is dtype)
            and t.shape == step
            and t.device == device
            and t.layout is _STRIDED
            and not (saves and t.is_inference())
        ):
            fit = False
            break
    for t in call.parameters:
        if not isinstance(t, Tensor) or t.dtype not in _NUMBERS or (saves and t.is_inference()):
            fit = False  # snnTorch takes a number that was assigned
            break
        if t.dim() or not t.is_cpu:
            fit = fit and t.device == device
            if t.dim():
                widens = t.dtype == torch.float64 and opmath != torch.float64
                dense = t.layout is _STRIDED and not t.is_nested
                fit = fit and dense and not widens and _broadcasts(t.shape, step)
    return call if fit else _convert(call, step)


def _convert(call: UnrollCall, step_shape: torch.Size) -> UnrollCall:
    neuron, current = call.neuron, call.current
    if call.options.inhibition and len(step_shape) != 2:
        raise ValueError(f"inhibition: needs steps of shape [B, N], got {_show(step_shape)}")
    opmath = opmath_dtype(current.dtype)
    for value in call.states + call.parameters:
        # PyTorch's promotion: a parameter with dimensions (and a state) widens the arithmetic, a scalar does not.
        is_state = any(value is state for state in call.states)
        if isinstance(value, Tensor) and value.dtype == torch.float64 and (value.dim() > 0 or is_state):
            opmath = torch.float64
    states = tuple(
        None if state is None else out_of_inference(_check_state(name, state, current, step_shape).to(opmath))
        for name, state in zip(neuron.states, call.states, strict=True)
    )
    parameters = tuple(
        check_parameter(name, value, current, step_shape, opmath)
        for name, value in zip(neuron.parameters, call.parameters, strict=True)
    )
    current = current.to(opmath) if opmath == torch.float64 else current
    return call._replace(current=current, states=states, parameters=parameters)


def varies(neuron: Neuron, request: Request, current: Tensor, parameters: tuple[Any, ...]) -> bool:
    """Whether a parameter has values for every step: as many dimensions as a current ``[T, *]``."""
    return any(_varies(p, request, current) for p in parameters[: len(neuron.may_vary)])


def _varies(parameter: object, request: Request, current: Tensor) -> bool:
    return isinstance(parameter, Tensor) and parameter.dim() == current.dim() + (request.time == CONSTANT)


def _prepare_each_step(call: UnrollCall) -> UnrollCall:
    """Prepare a call with parameters that vary: the values of one step are checked as those of a layer are."""
    given, steps = list(call.parameters), call.request.steps
    varying = {i: name for i, name in enumerate(call.neuron.may_vary) if _varies(given[i], call.request, call.current)}
    for i, name in varying.items():
        check_dense(name, given[i])
        if len(given[i]) != steps:
            shape = tuple(given[i].shape)
            raise ValueError(f"{name}: shape {shape} has values for {shape[0]} steps, but there are {steps}")
        given[i] = out_of_inference(given[i])
    # The sum over no steps has the shape of a step as well.
    first = tuple((p[0] if steps else p.sum(0)) if i in varying else p for i, p in enumerate(given))
    prepared = prepare(call._replace(parameters=first, varies=False))
    if steps == 0:
        return prepared._replace(lengths=None)
    whole = tuple(given[i] if i in varying else p for i, p in enumerate(prepared.parameters))
    return prepared._replace(parameters=whole, varies=True)


def check_current(name: str, current: object) -> None:
    if not isinstance(current, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(current).__name__}")
    if current.dtype not in _DTYPES:
        remedy = "" if current.is_complex() else "; convert it, for example with .float()"
        raise TypeError(f"{name}: expected float32, float64, float16 or bfloat16, got {_name(current.dtype)}{remedy}")
    check_dense(name, current)


def check_dense(name: str, tensor: Tensor) -> None:
    if tensor.is_nested:
        raise TypeError(
            f"{name}: expected a dense tensor, got a nested one; pad it with torch.nested.to_padded_tensor, or call "
            "once per sample"
        )
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got layout {tensor.layout}")


def check_spike_grad(spike_grad: object) -> SpikeGrad:
    if spike_grad is None:
        return _DEFAULT_SPIKE_GRAD
    if not callable(spike_grad):
        raise TypeError(f"spike_grad: expected a callable of (mem - threshold), got {type(spike_grad).__name__}")
    if (remedy := how_to_make(spike_grad)) is not None:
        raise TypeError(f"spike_grad: expected a callable of (mem - threshold), got what makes one; pass {remedy}")
    return recognise(spike_grad)  # type: ignore[no-any-return]


def check_state_quant(state_quant: object) -> StateQuant | None:
    if state_quant is None or state_quant is False:
        return None
    if not callable(state_quant):
        raise TypeError(f"state_quant: expected a callable of the membrane or False, got {type(state_quant).__name__}")
    return state_quant


def check_reset_mechanism(reset_mechanism: object) -> str:
    if not isinstance(reset_mechanism, str):
        raise TypeError(f"reset_mechanism: expected a string, got {type(reset_mechanism).__name__}")
    if reset_mechanism == "subtract_beta":
        raise ValueError(
            "reset_mechanism: 'subtract_beta' is proposed for snnTorch, but not in version 1.0.0, whose 'subtract', "
            "'zero' and 'none' there are here; docs/snntorch.md has it as a neuron of your own, which runs fused"
        )
    if reset_mechanism not in RESET_MECHANISMS:
        raise ValueError(f"reset_mechanism: expected 'subtract', 'zero' or 'none', got {reset_mechanism!r}")
    return reset_mechanism


def check_reduce(reduce: object) -> str | None:
    if reduce is not None and not isinstance(reduce, str):
        raise TypeError(f"reduce: expected a string or None, got {type(reduce).__name__}")
    if reduce not in (None, "sum"):
        raise ValueError(f"reduce: expected 'sum' or None, got {reduce!r}")
    return reduce


def check_num_steps(num_steps: Any) -> int:
    if isinstance(num_steps, bool):
        raise TypeError("num_steps: expected an int, got bool")
    try:
        # torch.compile makes a constant of what goes through operator.index.
        symbol = isinstance(num_steps, int | torch.SymInt)
        steps: int = num_steps if symbol else operator.index(num_steps)
    except TypeError:
        raise TypeError(f"num_steps: expected an int, got {type(num_steps).__name__}") from None
    if not 0 <= steps <= _MOST_STEPS:
        raise ValueError(f"num_steps: expected 0 to 2**63 - 1, got {steps}")
    return steps


def _check_state(name: str, state: object, current: Tensor, step_shape: torch.Size) -> Tensor:
    if not isinstance(state, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor or None, got {type(state).__name__}")
    if state.dtype not in _DTYPES:
        raise TypeError(f"{name}: expected float32, float64, float16 or bfloat16, got {_name(state.dtype)}")
    check_dense(name, state)
    if state.device != current.device:
        raise ValueError(f"{name} is on {state.device}, but current is on {current.device}")
    if state.shape != step_shape:
        raise ValueError(
            f"{name}: expected the shape of one step of current, {_show(step_shape)}, got {_show(state.shape)}"
        )
    return state


def check_parameter(name: str, value: object, current: Tensor, step_shape: torch.Size, opmath: torch.dtype) -> Tensor:
    if isinstance(value, Tensor):
        if value.is_complex():
            raise TypeError(f"{name}: expected a real tensor, got {_name(value.dtype)}")
        check_dense(name, value)
        if value.device != current.device and not (value.dim() == 0 and value.device.type == "cpu"):
            raise ValueError(f"{name} is on {value.device}, but current is on {current.device}")
        if value.dim() > 0 and not _broadcasts(value.shape, step_shape):
            raise ValueError(
                f"{name}: shape {_show(value.shape)} does not broadcast to one step of current, {_show(step_shape)}"
            )
        return out_of_inference(value.to(opmath))
    # Whatever the default device is: a number on the CPU goes with any current.
    return torch.tensor(_number(name, value), dtype=opmath, device="cpu")


def check_parameter_value(name: str, value: object) -> Tensor:
    """A parameter of a layer as the tensor that snnTorch makes of it: float32 of a Python float, int64 of an int."""
    if isinstance(value, Tensor):
        if value.is_complex():
            raise TypeError(f"{name}: expected a real tensor, got {_name(value.dtype)}")
        check_dense(name, value)
        # A fake tensor has no values to look at, and neither has a meta tensor.
        if not value.is_meta and not isinstance(value, FakeTensor) and value.isnan().any():
            raise ValueError(f"{name}: expected numbers, got a tensor with NaN")
        return value
    if isinstance(value, list | tuple) or hasattr(value, "__array__"):
        try:
            made = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise TypeError(f"{name}: expected numbers or a torch.Tensor: {error}") from None
        return check_parameter_value(name, made)
    found = _number(name, value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name}: expected an int of 64 bits, as its tensor has, got a larger one; use a float")
    return torch.as_tensor(value if isinstance(value, int | float) else found)


def out_of_inference(t: Tensor) -> Tensor:
    """A tensor of ``torch.inference_mode`` as one that autograd may save."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling() and t.is_inference():
        return t.clone()
    return t


def check_weight(name: str, t: object, current: Tensor, cast: bool = False) -> Tensor:
    """A weight or a bias beside a current, in its dtype. ``cast``: in any floating dtype, as under autocast."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor or None, got {type(t).__name__}")
    check_dense(name, t)
    if t.dtype != current.dtype and not (cast and t.is_floating_point()):
        raise TypeError(f"{name}: expected {current.dtype}, as current, got {t.dtype}")
    if t.device != current.device:
        raise ValueError(f"{name} is on {t.device}, but current is on {current.device}")
    return t


def _number(name: str, value: object) -> float:
    return number(name, value, "a number or a torch.Tensor")


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    if len(shape) > len(to):
        return False
    return all(n in (1, m) for n, m in zip(reversed(shape), reversed(to), strict=False))


def _show(shape: Sequence[int]) -> str:
    return str(tuple(shape))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
