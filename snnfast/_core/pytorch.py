"""Private PyTorch APIs that tell in which modes a call runs, or how ``torch.compile`` treats a function."""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.utils._device import DeviceContext
from torch.utils.checkpoint import CheckpointFunction

__all__ = [
    "becomes_node",
    "constant_while_tracing",
    "covered_recorder",
    "current_graph_task_id",
    "current_recorder",
    "function_modes_see",
    "hooks_of_saved_tensors",
    "in_reentrant_checkpoint",
    "is_eager_forced",
    "is_forward_mode",
    "is_transformed",
    "is_transformed_tensor",
    "not_compiled_alone",
    "outside_of_vmap",
    "saved_tensors_are_hooked",
    "transforms_are_active",
    "unhooked",
    "unrecorded",
    "untraced",
]

_CHECKPOINTED = CheckpointFunction.forward.__code__

Function = TypeVar("Function", bound=Callable[..., Any])


def constant_while_tracing(function: Function) -> Function:
    """Let ``torch.compile`` call a function while it traces, and make a constant of the result.

    ``torch.compiler.assume_constant_result`` does the same, but imports the compiler, which few programs need.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


transforms_are_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Whether a transform of ``torch.func`` runs. ``torch.compile`` does not trace it."""

current_graph_task_id: Callable[[], int] = torch._C._current_graph_task_id
"""The number of the backward pass that runs in this thread; -1 outside of one."""


def is_forward_mode() -> bool:
    """Whether forward-mode differentiation runs."""
    return getattr(forward_ad, "_current_level", -1) >= 0


@constant_while_tracing
def _transforms() -> bool:
    return transforms_are_active()


def is_transformed() -> bool:
    """Whether forward mode or a transform of ``torch.func`` sees the calls, for which kernels have no rules."""
    return is_forward_mode() or _transforms()


is_transformed_tensor: Callable[[Any], bool] = torch._C._functorch.is_functorch_wrapped_tensor
"""Whether a tensor is one inside of a transform of ``torch.func``, which has no memory of its own."""


hooks_of_saved_tensors: Callable[[], Any] = functools.partial(torch._C._autograd._top_saved_tensors_default_hooks, True)
"""The hooks that get the tensors that are saved for a backward pass now, as those of a checkpoint do; or ``None``."""


def saved_tensors_are_hooked() -> bool:
    """Whether hooks get the tensors that are saved now."""
    return hooks_of_saved_tensors() is not None


@contextmanager
def unhooked() -> Iterator[None]:
    """A block in which the hooks of saved tensors that are on now get nothing."""
    hooks = []
    while (pair := hooks_of_saved_tensors()) is not None:
        torch._C._autograd._pop_saved_tensors_default_hooks()
        hooks.append(pair)
    try:
        yield
    finally:
        for pair in reversed(hooks):
            torch._C._autograd._push_saved_tensors_default_hooks(*pair)


def is_eager_forced() -> bool:
    """Whether ``torch.compiler.set_stance("force_eager")`` holds."""
    return bool(torch._dynamo.eval_frame._stance.stance == "force_eager")


def in_reentrant_checkpoint() -> bool:
    """Whether a reentrant checkpoint runs its function for the first time: without gradients, and without hooks."""
    frame = None if torch.is_grad_enabled() else sys._getframe()
    while frame is not None and frame.f_code is not _CHECKPOINTED:
        frame = frame.f_back
    return frame is not None


@contextmanager
def compiling() -> Iterator[None]:
    """A block in which another compiler traces calls, as ``torch.compiler.is_compiling`` tells them."""
    before, torch.compiler._is_compiling_flag = torch.compiler._is_compiling_flag, True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


def function_modes_see() -> bool:
    """Whether a ``TorchFunctionMode`` of the program sees calls. That of a default device sees constructors alone."""
    modes: Any = (torch._C._get_function_stack_at(n) for n in range(torch._C._len_torch_function_stack()))
    return any(not isinstance(mode, DeviceContext) for mode in modes)


def current_recorder() -> Any:
    """The recorder that takes the calls of PyTorch's functions now, or ``None``: see ``snnfast.compiler.record``."""
    count = torch._C._len_torch_function_stack()
    mode: Any = torch._C._get_function_stack_at(count - 1) if count else None
    return mode if getattr(mode, "records", False) else None


def covered_recorder() -> Any:
    """A recorder to which another mode passes the calls of PyTorch's functions on, or ``None``."""
    below = range(torch._C._len_torch_function_stack() - 1)
    modes: Any = (torch._C._get_function_stack_at(number) for number in below)
    return next((mode for mode in modes if getattr(mode, "records", False)), None)


@contextmanager
def unrecorded(flushed: bool = False) -> Iterator[None]:
    """A block of calls that are no part of the program, and are made at once where others are recorded.

    ``flushed``: those that were recorded run before, so that the block can take their results.
    """
    recorder = current_recorder()
    if recorder is None:
        yield
        return
    if flushed:
        recorder.flush()
    recorder.records = False
    try:
        yield
    finally:
        recorder.records = True


def becomes_node() -> bool:
    """Whether a call becomes a node of a graph: ``torch.compile`` traces it, or it is recorded."""
    return is_dynamo_compiling() or current_recorder() is not None


def outside_of_vmap() -> AbstractContextManager[None]:
    """In an op's rule for ``vmap``: a block of what is outside of that ``vmap``, as another transform or autograd."""
    from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

    return retrieve_current_functorch_interpreter().lower()


def untraced(function: Any) -> None:
    """Let ``torch.compile`` run a function, and all that it calls, as Python between two graphs.

    ``torch.compiler.disable`` does the same, but imports the compiler, and wraps the function, which others may have
    imported by its name. The attribute ends a graph at its call. It does not keep the compiler from the frames of the
    call itself: :func:`not_compiled_alone` does.
    """
    function._torchdynamo_disable = True
    not_compiled_alone(function)


def not_compiled_alone(function: Function) -> Function:
    """Keep ``torch.compile`` from the frames of a function that PyTorch calls, such as a backward pass.

    If a compiled function calls ``loss.backward()``, the compiler would make a graph of each backward pass in Python. A
    call that it traces still becomes a part of the graph.
    """
    frames = torch._C._dynamo.eval_frame
    skip = frames._FrameAction.SKIP
    frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))
    return function
