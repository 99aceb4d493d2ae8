"""The only imports from inside of the compiler that its tests have, but for those of a single module or pass."""

from typing import Any

from snnfast.compiler import emit, merge, rules, stages, verify  # noqa: F401
from snnfast.compiler.any_steps import AnySteps  # noqa: F401
from snnfast.compiler.calls import is_step  # noqa: F401
from snnfast.compiler.choice import Choice
from snnfast.compiler.lower.kernels import bernoulli  # noqa: F401
from snnfast.compiler.recording.ahead import Reading  # noqa: F401
from snnfast.compiler.recording.calls import Recorded  # noqa: F401
from snnfast.compiler.recording.form import Form  # noqa: F401
from snnfast.compiler.recording.functions import hook  # noqa: F401
from snnfast.compiler.recording.kinds import Kinds  # noqa: F401
from snnfast.compiler.recording.later import OPERATORS  # noqa: F401
from snnfast.compiler.recording.recorder import Recorder  # noqa: F401
from snnfast.compiler.recording.replay import Replays  # noqa: F401
from snnfast.compiler.verify import verified  # noqa: F401


class ByRecording(Choice):
    """A function that is recorded."""

    def __init__(self, function: Any, name: str = "a function") -> None:
        super().__init__(function, name, {})

    def _trial_of(self, shapes: Any) -> None:
        """No call is made as it is because that took less time."""

    @property
    def plans(self) -> list[Any]:
        return self._recorded.plans
