"""The only imports from inside of the compiler that its tests have, but for those of a single module or pass."""

import sys
from typing import Any

from snnfast.compiler import emit, rules, stages, verify  # noqa: F401
from snnfast.compiler.backend import merge  # noqa: F401
from snnfast.compiler.calls import is_step  # noqa: F401
from snnfast.compiler.choice import RECORDING, Choice
from snnfast.compiler.failures import Attempt  # noqa: F401
from snnfast.compiler.lower.kernels import bernoulli  # noqa: F401
from snnfast.compiler.recording.ahead import Reading  # noqa: F401
from snnfast.compiler.recording.calls import Recorded
from snnfast.compiler.recording.form import Form  # noqa: F401
from snnfast.compiler.recording.functions import hook  # noqa: F401
from snnfast.compiler.recording.kinds import Kinds  # noqa: F401
from snnfast.compiler.recording.later import OPERATORS  # noqa: F401
from snnfast.compiler.recording.recorder import Recorder  # noqa: F401
from snnfast.compiler.recording.replay import Replays  # noqa: F401
from snnfast.compiler.tracing import tracing  # noqa: F401
from snnfast.compiler.verify import verified  # noqa: F401

BACKEND: Any = sys.modules["snnfast.compiler.backend"]  # the package has a function of that name


class ByRecording(Choice):
    """A function that is recorded."""

    def __init__(self, function: Any, name: str = "a function") -> None:
        super().__init__(function, name, RECORDING, {}, {})

    @property
    def plans(self) -> list[Any]:
        assert isinstance(self._recorded, Recorded)
        return self._recorded.plans


LONG = "snnfast.compiler.failures.LONG"
