"""Check and normalise the arguments that ``functional.lif`` and ``reference.lif`` share."""

import math
import numbers
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from snnfast import surrogate
from snnfast._ops import RESET_MECHANISMS, arithmetic_dtype
from snnfast._spike_grad import SpikeGrad, recognise

StateQuant = Callable[[Tensor], Tensor]

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_NUMBERS = (*_DTYPES, torch.int64)  # of a parameter: what a kernel reads as a number
_MOST_STEPS = 2**63 - 1
_DEFAULT_SPIKE_GRAD = surrogate.atan()


class LIFArguments(NamedTuple):
    """Arguments of one call, checked. ``*`` is any shape, the same for all; ``acc`` is the dtype of the arithmetic."""

    current: Tensor  # [T, *] or, with num_steps, [*]; the caller's dtype
    mem: Tensor | None  # [*] acc
    beta: Tensor  # broadcastable to [*], acc
    threshold: Tensor  # broadcastable to [*], acc
    graded_spikes_factor: Tensor  # broadcastable to [*], acc
    spike_grad: SpikeGrad
    reset_mechanism: str
    reset_delay: bool
    num_steps: int | None  # None: time is the leading dimension of current
    record_mem: bool
    acc: torch.dtype
    inhibition: bool = False
    state_quant: StateQuant | None = None
    reduce: str | None = None
    membrane_dtype: torch.dtype | None = None

    @property
    def counts_spikes(self) -> bool:
        """Whether the spikes are to be summed over time."""
        return self.reduce == "sum"

    @property
    def step_shape(self) -> torch.Size:
        return self.current.shape if self.num_steps is not None else self.current.shape[1:]

    @property
    def mem_dtype(self) -> torch.dtype:
        """Of the membrane that is returned: a record is rounded to the current's dtype, the last one is state."""
        return self.current.dtype if self.record_mem and self.acc != torch.float64 else self.acc


def check_arguments(
    current: Tensor,
    mem: Tensor | None,
    beta: float | Tensor,
    threshold: float | Tensor,
    graded_spikes_factor: float | Tensor,
    spike_grad: SpikeGrad | None,
    reset_mechanism: str,
    reset_delay: bool,
    num_steps: int | None,
    record_mem: bool,
    inhibition: bool = False,
    state_quant: StateQuant | bool | None = None,
    reduce: str | None = None,
    membrane_dtype: torch.dtype | None = None,
) -> LIFArguments:
    """Raise ``TypeError`` or ``ValueError`` naming the argument that is wrong; else return them in one form."""
    check_current("current", current)
    if num_steps is not None:
        num_steps = check_num_steps(num_steps)
    elif current.dim() == 0:
        raise ValueError("current: expected [T, *] with time first, got a tensor with no dimensions; or give num_steps")
    step_shape = current.shape if num_steps is not None else current.shape[1:]

    acc = arithmetic_dtype(current.dtype)
    for value in (mem, beta, threshold, graded_spikes_factor):
        # PyTorch's promotion: a parameter with dimensions (and the membrane) widens the arithmetic, a scalar does not.
        if isinstance(value, Tensor) and value.dtype == torch.float64 and (value.dim() > 0 or value is mem):
            acc = torch.float64

    if mem is not None:
        mem = out_of_inference(_check_mem(mem, current, step_shape).to(acc))
    inhibition = check_flag("inhibition", inhibition)
    if inhibition and len(step_shape) != 2:
        raise ValueError(f"inhibition: needs steps of shape [B, N], got {_show(step_shape)}")
    spike_grad = check_spike_grad(spike_grad)
    args = LIFArguments(
        current,
        mem,
        _check_parameter("beta", beta, current, step_shape, acc),
        _check_parameter("threshold", threshold, current, step_shape, acc),
        _check_parameter("graded_spikes_factor", graded_spikes_factor, current, step_shape, acc),
        spike_grad,
        check_reset_mechanism(reset_mechanism),
        check_flag("reset_delay", reset_delay),
        num_steps,
        check_flag("record_mem", record_mem),
        acc,
        inhibition,
        check_state_quant(state_quant),
        check_reduce(reduce),
        check_membrane_dtype(membrane_dtype),
    )
    if args.membrane_dtype is not None:
        _check_rounding(args)
    return args


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
    if reset_mechanism not in RESET_MECHANISMS:
        raise ValueError(f"reset_mechanism: expected 'subtract', 'zero' or 'none', got {reset_mechanism!r}")
    return reset_mechanism


def check_reduce(reduce: object) -> str | None:
    if reduce is not None and not isinstance(reduce, str):
        raise TypeError(f"reduce: expected a string or None, got {type(reduce).__name__}")
    if reduce not in (None, "sum"):
        raise ValueError(f"reduce: expected 'sum' or None, got {reduce!r}")
    return reduce


def check_membrane_dtype(dtype: object) -> torch.dtype | None:
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"membrane_dtype: expected a torch.dtype or None, got {type(dtype).__name__}")
    if dtype not in (None, torch.bfloat16):
        raise ValueError(f"membrane_dtype: expected torch.bfloat16 or None, got {dtype}")
    return dtype


def _check_rounding(args: LIFArguments) -> None:
    """Where the kernels could not work from a rounded membrane, asking for one is an error."""
    if not args.reset_delay:
        raise ValueError("membrane_dtype: needs reset_delay=True; an immediate reset takes the exact membrane")
    if args.inhibition or args.state_quant is not None or not surrogate.known_to_kernels(args.spike_grad):
        raise ValueError(
            "membrane_dtype: needs a spike_grad of snnfast.surrogate and neither inhibition nor state_quant"
        )


def check_flag(name: str, value: object, *, optional: bool = False) -> bool:
    """True and False, also as numpy has them or as 1 and 0; if the flag is ``optional``, ``None`` is False."""
    if isinstance(value, bool):
        return value
    if optional and value is None:
        return False
    if isinstance(value, numbers.Integral):  # of Python or of numpy
        if value not in (0, 1):
            raise ValueError(f"{name}: expected True or False, got {value}")
        return bool(value)
    # numpy's own bool, told without importing numpy.
    if getattr(getattr(value, "dtype", None), "kind", None) == "b" and getattr(value, "shape", None) == ():
        return bool(value)
    raise TypeError(f"{name}: expected True or False, got {type(value).__name__}")


def check_num_steps(num_steps: object) -> int:
    if isinstance(num_steps, bool):
        raise TypeError("num_steps: expected an int, got bool")
    try:
        steps = operator.index(num_steps)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"num_steps: expected an int, got {type(num_steps).__name__}") from None
    if not 0 <= steps <= _MOST_STEPS:
        raise ValueError(f"num_steps: expected 0 to 2**63 - 1, got {steps}")
    return steps


def _check_mem(mem: object, current: Tensor, step_shape: torch.Size) -> Tensor:
    if not isinstance(mem, Tensor):
        raise TypeError(f"mem: expected a torch.Tensor or None, got {type(mem).__name__}")
    if mem.dtype not in _DTYPES:
        raise TypeError(f"mem: expected float32, float64, float16 or bfloat16, got {_name(mem.dtype)}")
    check_dense("mem", mem)
    if mem.device != current.device:
        raise ValueError(f"mem is on {mem.device}, but current is on {current.device}")
    if mem.shape != step_shape:
        raise ValueError(f"mem: expected the shape of one step of current, {_show(step_shape)}, got {_show(mem.shape)}")
    return mem


def _check_parameter(name: str, value: object, current: Tensor, step_shape: torch.Size, acc: torch.dtype) -> Tensor:
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
        return out_of_inference(value.to(acc))
    return torch.tensor(check_number(name, value), dtype=acc)


def check_parameter_value(name: str, value: object) -> Tensor:
    """A parameter of a layer as the tensor that snnTorch makes of it: a Python float becomes float32, an int int64."""
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
    number = check_number(name, value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name}: expected an int of 64 bits, as its tensor has, got a larger one; use a float")
    return torch.as_tensor(value if isinstance(value, int | float) else number)


def fits(x: Tensor, has_time: bool, mem: Tensor | None, beta: Tensor, threshold: Tensor, graded: Tensor) -> bool:
    """Whether the kernels can work in the dtype of ``x``: :func:`check_arguments` converts the rest, or refuses it.

    ``x``: ``[T, *]`` if it ``has_time``, else ``[*]``. ``mem`` may have the dtype of ``x`` or of the arithmetic, and a
    parameter any dtype that does not widen it.
    """
    dtype, device = x.dtype, x.device
    if dtype not in _DTYPES or x.layout != torch.strided or x.is_nested:
        return False
    acc = arithmetic_dtype(dtype)
    step_shape = x.shape[1:] if has_time else x.shape
    if mem is not None and (
        mem.dtype not in (acc, dtype) or mem.device != device or mem.shape != step_shape or mem.layout != torch.strided
    ):
        return False
    for p in (beta, threshold, graded):
        if not isinstance(p, Tensor) or (p.dtype != acc and p.dtype not in _NUMBERS):
            return False  # snnTorch takes a number that was assigned
        if p.dim() > 0:
            if p.device != device or p.layout != torch.strided or not _broadcasts(p.shape, step_shape):
                return False
            if p.dtype == torch.float64 and acc != torch.float64:  # widens the arithmetic
                return False
        elif not p.is_cpu and p.device != device:
            return False
    return True


def out_of_inference(t: Tensor) -> Tensor:
    """A tensor of ``torch.inference_mode`` as one that autograd may save."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling() and t.is_inference():
        return t.clone()
    return t


def check_number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number or a torch.Tensor, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name}: expected a number that a float can hold, got a larger one") from None
    if math.isnan(number):
        raise ValueError(f"{name}: expected a number, got NaN")
    return number


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    if len(shape) > len(to):
        return False
    return all(n in (1, m) for n, m in zip(reversed(shape), reversed(to), strict=False))


def _show(shape: Sequence[int]) -> str:
    return str(tuple(shape))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
