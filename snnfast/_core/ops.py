"""Load the compiled kernels and name their ops.

Each neuron has two ops, ``<name>_forward`` and ``<name>_backward``, for all time steps or for one.
``csrc/op/neuron_ops.cpp`` describes their schemas and results. All neurons share ``spikes_linear``, the product of
spikes as bits with the weights of a linear layer, and ``spikes_linear_weight``, the gradient of these weights.
``_images/conv2d.py`` names the ops of convolutions.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from snnfast._core import library
from snnfast._core.library import Library

extension: Library | None = None
"""The compiled kernels, or ``None`` where the package was installed without a compiler."""

missing: str | None = None
"""Why ``extension`` is ``None``, in words for the user."""

NAMESPACE = "snnfast"

spikes_linear: Any = None
"""``(bits, weight, bias, graded, steps)`` to ``[steps, R, O]``; ``None`` where a namespace has it not."""

spikes_linear_weight: Any = None
"""``(bits, grad, graded)`` to the gradient of the weight ``[O, N]``."""

rows_like: Any = None
"""``(like, rows)`` to memory for ``[rows, *]`` like ``[*]``; ``None`` where a namespace has it not."""

spikes_as_bits: Any = None
"""``[T, R, N]`` to its spikes as bits ``[(T + 7) // 8, R, N]``, their number, and their height.

The height is NaN where the values are no spikes: others than 0 differ, or are not finite. ``None``: a namespace has it
not.
"""

norm_ops: Any = None
"""The ops ``norm_statistics``, ``<neuron>_norm_forward`` and ``<neuron>_norm_backward``, of ``NORM_RESETS``."""

NORM_RESETS = {"leaky": ("subtract",), "ifnode": ("subtract", "zero")}
"""The neurons that have kernels with a batch normalisation before them, and with which resets on CUDA."""

# Numbers of the kernels are places in these lists. They are compared with those of the extension.
RESET_MECHANISMS = ("subtract", "zero", "none")
TIMES = ("sequence", "constant", "step")  # what time is in the shapes of a call: [T, *], [*] at T steps, [*]
SEQUENCE, CONSTANT, STEP = range(len(TIMES))
# Forward saves this for backward, beside inputs and outputs. T steps take (T + plus) // per rows.
SAVED_MODES = (("nothing", 0, 0, 0), ("checkpoints", -1, 16, 0), ("spikes", 7, 8, 1))
SAVE_NOTHING, SAVE_CHECKPOINTS, SAVE_SPIKES = range(len(SAVED_MODES))

# The options of an op are fields of one number, since each argument costs as much as the checks of a tensor. Their
# names, places and bits; the last three are backward's, the three before them forward's.
OPTION_FIELDS = (
    ("time", 0, 2), ("reset", 2, 2), ("reset_delay", 4, 1), ("reduce", 5, 1), ("saved", 6, 3),
    ("last", 9, 1), ("record", 10, 8), ("bits", 18, 1), ("clamp_closed", 9, 1), ("surrogate", 10, 8), ("needs", 18, 24),
)  # fmt: skip
(
    TIME_AT, RESET_AT, RESET_DELAY_AT, REDUCE_AT, SAVED_AT, LAST_AT, RECORD_AT, BITS_AT, CLAMP_CLOSED_AT, SURROGATE_AT,
    NEEDS_AT,
) = (at for _, at, _ in OPTION_FIELDS)  # fmt: skip


ReferenceStep = Callable[[Tensor, list[Tensor], tuple[Tensor, ...], Tensor, str], list[Tensor]]
"""``(x, states, parameters, reset, mechanism)`` to the states after a step, without the spike and immediate reset."""

WholeStep = Callable[[Tensor, list[Tensor], tuple[Tensor, ...], Any, str], tuple[Tensor, list[Tensor]]]
"""``(x, states, parameters, spike_grad, mechanism)`` to the spikes and the states after a step."""

NEURONS: dict[str, "Neuron"] = {}
"""All neurons by name. A file of ``snnfast.neurons`` adds its own."""


class Neuron:
    """The spec of a neuron: what all code that is written once for every neuron knows of it.

    A new spec enters itself in ``NEURONS``.

    Args:
        name: The neuron's name in the names of its ops.
        states: Names in snnTorch's order; the last is the membrane. A first one called ``spk`` is the last spike, which
            comes back to the neuron.
        parameters: Names in the order of the ops; the last two are the threshold and the height of a spike.
        recorded_membrane_suffices: Whether, with a delayed reset, the recorded membrane is all that backward needs.
        may_vary: Parameters that may have values for every time step.
        membrane_of_states: Reset mechanisms with which snnTorch computes the membrane from the other states that the
            step returns. See :func:`snnfast.use_state_gradients`.

    Attributes:
        step: One time step in PyTorch operators, exactly as in snnTorch: the definition of the neuron.
        whole_step: In its place, a step with the spike and the reset, of a neuron that has another rule for these.
        has_spike_feedback: Whether the first state is the last spike. It is never recorded, as the spikes are; and a
            step returns it but once.
        pre_reset_membrane: The bit that asks for the membrane that decided each spike, before an immediate reset.
    """

    step: ReferenceStep
    whole_step: WholeStep | None = None
    forward: Any
    backward: Any
    forward_into: Any  # the same two, with a list of tensors to write to as the last argument; only if fed back
    backward_into: Any

    def __init__(
        self,
        name: str,
        states: tuple[str, ...],
        parameters: tuple[str, ...],
        *,
        recorded_membrane_suffices: bool = False,
        may_vary: tuple[str, ...] = (),
        membrane_of_states: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.states = states
        self.parameters = parameters
        self.recorded_membrane_suffices = recorded_membrane_suffices
        self.may_vary = may_vary
        self.membrane_of_states = membrane_of_states
        self.has_spike_feedback = states[0] == "spk"
        self.every_state = (1 << len(states)) - 1 - self.has_spike_feedback  # as bits: what to record
        self.membrane = 1 << len(states) - 1
        self.pre_reset_membrane = 1 << len(states)
        self.no_states: tuple[None, ...] = (None,) * len(states)
        self.no_others: tuple[None, ...] = (None,) * (len(states) + len(parameters))  # than the current
        NEURONS[name] = self

    def reference_step(self, step: ReferenceStep) -> ReferenceStep:
        """Decorate the function that is ``step``."""
        self.step = step
        return step

    def whole_reference_step(self, step: WholeStep) -> WholeStep:
        """Decorate the function that is ``whole_step``."""
        self.whole_step = step
        return step

    def use(self, namespace: str) -> None:
        """Call the ops of a namespace from now on."""
        ops = getattr(torch.ops, namespace)
        for variant in ("", "_into") if self.has_spike_feedback else ("",):
            for direction in ("forward", "backward"):
                setattr(self, direction + variant, getattr(ops, f"{self.name}_{direction}{variant}").default)


# All others of the product's namespace.
OPS = (
    "average_pooling", "average_pooling_backward", "batch_norm_backward", "batch_norm_forward", "draw_spikes",
    "event_conv2d", "event_conv2d_weight", "max_pooling", "max_pooling_backward", "norm_statistics", "program_backward",
    "program_between_backward", "program_between_forward", "program_forward", "rows_like", "share_of_events",
    "spikes_as_bits", "spikes_linear", "spikes_linear_weight", "table_conv2d", "winograd_conv2d",
)  # fmt: skip


def names_of_ops() -> list[str]:
    """The names of all ops that the compiled kernels have."""
    names = list(OPS) + [f"{name}_norm_{kind}" for name in NORM_RESETS for kind in ("forward", "backward")]
    for neuron in NEURONS.values():
        variants = ("", "_into") if neuron.has_spike_feedback else ("",)
        names += [f"{neuron.name}_{kind}{variant}" for kind in ("forward", "backward") for variant in variants]
    return names


def check_ops(path: Path) -> None:
    """Raise ``ImportError`` where the library that was loaded from ``path`` lacks an op that Python calls."""
    lacking = [name for name in names_of_ops() if not hasattr(getattr(torch.ops, NAMESPACE), name)]
    if lacking:
        raise ImportError(
            f"{path} is older than the Python files of snnfast: it has no op {', '.join(lacking)}; {library.REBUILD}"
        )


def _load() -> None:
    global extension, missing
    if library.PATH.exists():
        extension = Library(library.PATH)
    elif sys.platform not in ("linux", "darwin", "win32"):
        missing = f"snnfast has kernels for Linux, macOS and Windows, and this is {sys.platform}"
    else:
        missing = (
            "snnfast was installed without its compiled kernels (an isolated build that saw no torch, no C++ "
            "compiler, or a failed build); SNNFAST_REQUIRE_EXT=1 pip install --no-build-isolation tells why"
        )


def check_names(attribute: str, names: Sequence[Any]) -> None:
    """Raise ``ImportError`` where the extension counts something else by the numbers that Python uses."""
    if extension is None:
        return
    found = getattr(extension, attribute, None)
    if found != list(names):
        raise ImportError(
            f"the kernels of snnfast were built from other sources than these: its {attribute} are {found}, "
            f"not {list(names)}; {library.REBUILD}"
        )


_load()
check_names("resets", RESET_MECHANISMS)
check_names("times", TIMES)
check_names("saved_modes", SAVED_MODES)
check_names("option_fields", OPTION_FIELDS)


def clamp_is_closed() -> bool:
    """Whether the gradient of ``clamp(x, 0, 1)`` passes at exactly 0 and 1: up to torch 2.13 it does, later not."""
    with torch.inference_mode(False), torch.enable_grad(), _disable_current_modes():
        one = torch.ones(1, device="cpu", dtype=torch.float32, requires_grad=True)
        clamped: Any = one.clamp(0, 1).grad_fn
        # Not by a backward pass: the first one starts PyTorch's threads, and with them CUDA, before the user may have
        # forked or chosen a device.
        return bool(clamped(torch.ones(1, device="cpu", dtype=torch.float32)).item() == 1)


CLAMP_CLOSED = clamp_is_closed()


def opmath_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a current of ``dtype`` is computed in where nothing else widens it."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unpack(options: int, name: str) -> int:
    """One of the options in the one number of an op."""
    at, bits = next((at, bits) for field, at, bits in OPTION_FIELDS if field == name)
    return options >> at & (1 << bits) - 1


def has_cpu_kernels(device: torch.device) -> bool:
    """Whether the kernels of a device are those of the CPU, and not those of CUDA, nor these as the CPU emulates them.

    They alone can save the spikes as bits. They normalise a batch with the bits of their batch normalisation.
    """
    return device.type == "cpu" and spikes_linear is not None


def has_norm(device: torch.device) -> bool:
    """Whether a device has the kernels of ``norm_ops``."""
    return device.type == "cuda" or (device.type == "cpu" and norm_ops is not None)


def use(namespace: str) -> None:
    """Call the ops of a namespace from now on: the product's, or one that a test library registered beside it."""
    global norm_ops, spikes_linear, spikes_linear_weight, rows_like, spikes_as_bits
    ops = norm_ops = getattr(torch.ops, namespace)
    has_linear = hasattr(ops, "spikes_linear")  # the emulated kernels have none
    spikes_linear = ops.spikes_linear.default if has_linear else None
    spikes_linear_weight = ops.spikes_linear_weight.default if has_linear else None
    rows_like = ops.rows_like.default if has_linear else None
    spikes_as_bits = ops.spikes_as_bits.default if has_linear else None
    for neuron in NEURONS.values():
        neuron.use(namespace)
