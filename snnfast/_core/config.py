"""The versions and choices of this installation, for bug reports."""

import platform
from collections.abc import Mapping

import torch

from snnfast._core import backend, ops, products, settings
from snnfast._version import __version__

__all__ = ["config", "show_config"]


def config() -> Mapping[str, str]:
    """Versions, build facts and availability of each backend, as text by name.

    ``"fused on cuda"`` is about the current CUDA device. Each CUDA device also has an entry of its own. The function
    initialises CUDA on these devices, to find out whether the kernels run there.

    Example::

        >>> import snnfast
        >>> snnfast.config()["backend"]
        'auto'
    """
    facts = {
        "snnfast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "backend": backend.current_backend(),
        "events": "yes" if settings.events.value else "no: spikes go to linear layers as numbers",
    }
    build = ops.extension
    if build is not None:
        facts["compiler"] = build.compiler
        facts["built for torch"] = build.torch_target
        facts["CPU instructions"] = f"{build.isa()} in use; available: {', '.join(build.isa_available())}"
        facts["CUDA compiler"] = build.cuda_compiler or "none"
        facts["CUDA architectures"] = build.cuda_architectures or "none"
    facts["large float32 products"] = "by oneDNN" if products.has_wider() else "PyTorch's"
    for name in ("cpu", "cuda"):
        reason = backend.unavailable(torch.device(name))
        if reason is None and name == "cuda" and not torch.cuda.is_available():
            reason = "the kernels are built in, but torch sees no CUDA device"
        facts[f"fused on {name}"] = f"no: {reason}" if reason else "yes"
    for index in range(torch.cuda.device_count()):
        reason = backend.unavailable(torch.device("cuda", index))
        card = torch.cuda.get_device_name(index)
        facts[f"fused on cuda:{index}"] = f"{card}: no: {reason}" if reason else f"{card}: yes"
    facts["threads"] = str(torch.get_num_threads())
    return facts


def show_config() -> None:
    """Print :func:`config`, one fact per line.

    ``python -m snnfast`` does so, too, compares the kernels with the reference, and times them.
    """
    facts = config()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
