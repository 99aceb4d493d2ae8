"""The history of a compiled network or function, for its user."""

from collections import Counter
from dataclasses import dataclass, field

REPLAYED, RECORDED, ONE_BY_ONE, AS_IT_IS = "replayed", "recorded", "recorded in vain", "as it is"


@dataclass
class Status:
    """The history of the calls of a compiled network or function, as :func:`status` tells it. ``print`` it.

    A call is ``"replayed"`` if its graph ran without your code; ``"recorded"`` if your code ran, and a graph made most
    of its calls; ``"recorded in vain"`` if there was no such graph; and ``"as it is"`` if nothing was changed.

    Attributes:
        name: The class of the network, or the name of the function.
        is_compiled: ``False`` for a copy of a compiled network, for example.
        training: What became of the last call with gradients; ``None``: there was none.
        inference: Of the last one without.
        why: Why calls ran as they are: the warnings that were shown, also those that came once for other networks.
        calls: How many calls there were of each kind. Where it is settled that calls run as they are, nobody counts.
        seconds: The time that these calls took, their graphs not included. Backward passes are not in it.
        graphs: How many graphs were made. Networks of one function share them.
        making: Seconds that it took to make them.
        saved: Seconds that calls without gradients have saved, where such calls were timed as they are, too; else
            ``None``. With gradients, what is gained is in the backward pass, too, which nobody can time here.
    """

    name: str
    is_compiled: bool = True
    training: str | None = None
    inference: str | None = None
    why: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    graphs: int = 0
    making: float = 0.0
    saved: float | None = None

    def __str__(self) -> str:
        if not self.is_compiled:
            return f"{self.name} is not compiled. Copies of a compiled network are not, either: call snnfast.compile"
        lines = [f"{self.name} is compiled"]
        for mode, way in (("with", self.training), ("without", self.inference)):
            lines.append(f"  the last call {mode} gradients: {way or 'there was none'}")
        lines += [f"  {way}: {n} calls, {self.seconds[way]:.2f} s" for way, n in self.calls.items()]
        lines.append(f"  graphs: {self.graphs}, made in {self.making:.2f} s")
        if self.saved is not None:
            lines.append(f"  saved in calls without gradients: {self.saved:.2f} s")
        lines += [f"  {reason}" for reason in self.why]
        return "\n".join(lines)

    def add(self, way: str, grad: bool, seconds: float, as_it_is: float | None = None) -> None:
        """Enter a call.

        Args:
            way: What became of it.
            grad: Whether it had gradients.
            seconds: The time that it took.
            as_it_is: The time that it would have taken as it is, if that is known.
        """
        self.calls[way] += 1
        self.seconds[way] = self.seconds.get(way, 0.0) + seconds
        self.settle(way, grad)
        if as_it_is is not None:
            self.saved = (self.saved or 0.0) + as_it_is - seconds

    def settle(self, way: str, grad: bool) -> None:
        """Enter what becomes of calls, with gradients or without, from now on."""
        if grad:
            self.training = way
        else:
            self.inference = way
