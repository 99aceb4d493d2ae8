"""The only imports from inside of the compiler that its tests have, but for those of a single module or pass."""

from typing import Any

from snnfast.compiler import merge, stages, verify  # noqa: F401
from snnfast.compiler.choice import Choice
from snnfast.compiler.emit import emitter  # noqa: F401
from snnfast.compiler.emit.any_steps import AnySteps  # noqa: F401
from snnfast.compiler.emit.kernels import bernoulli  # noqa: F401
from snnfast.compiler.graph.nodes import is_step  # noqa: F401
from snnfast.compiler.parts import rules  # noqa: F401
from snnfast.compiler.record.ahead import Reading  # noqa: F401
from snnfast.compiler.record.form import Form  # noqa: F401
from snnfast.compiler.record.functions import hook  # noqa: F401
from snnfast.compiler.record.kinds import Kinds  # noqa: F401
from snnfast.compiler.record.later import OPERATORS  # noqa: F401
from snnfast.compiler.record.recorded import Recorded  # noqa: F401
from snnfast.compiler.record.recorder import Recorder  # noqa: F401
from snnfast.compiler.record.replay import Replays  # noqa: F401
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
