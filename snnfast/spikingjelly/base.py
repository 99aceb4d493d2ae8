"""The step mode of SpikingJelly's modules."""

from torch import nn

__all__ = ["StepModule"]


def check_step_mode(step_mode: object, supported: tuple[str, ...] = ("s", "m")) -> str:
    """Return a step mode, or raise ``ValueError``."""
    if not isinstance(step_mode, str) or step_mode not in supported:
        raise ValueError(f"step_mode: expected {' or '.join(map(repr, supported))}, got {step_mode!r}")
    return step_mode


class StepModule(nn.Module):
    """A module that takes one step ``[B, *]`` in the step mode ``"s"``, and all steps ``[T, B, *]`` in ``"m"``."""

    supported: tuple[str, ...] = ("s", "m")
    _step_mode = "s"

    @property
    def step_mode(self) -> str:
        """``"s"`` or ``"m"``."""
        return self._step_mode

    @step_mode.setter
    def step_mode(self, step_mode: str) -> None:
        self._step_mode = check_step_mode(step_mode, self.supported)

    def supported_step_mode(self) -> tuple[str, ...]:
        """The step modes that can be set."""
        return self.supported
