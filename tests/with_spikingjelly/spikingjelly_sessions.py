"""Random sessions with SpikingJelly's nodes: calls, and what is assigned, set or reset between them.

``python tests/with_spikingjelly/spikingjelly_sessions.py --cases 1000`` draws that many, and runs each with
SpikingJelly's own nodes and with snnfast's, ``--compiled`` also under ``snnfast.compile``. Spikes and membranes of
every call are compared bit for bit, gradients up to rounding. ``--first N --cases 1`` repeats number N.
"""

import copy
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest has it
import fuzzing
from fuzzing import Found

import snnfast
from snnfast.spikingjelly import convert, functional, neuron, surrogate

with warnings.catch_warnings(action="ignore"):
    from spikingjelly.activation_based import functional as their_functional
    from spikingjelly.activation_based import layer as their_layer
    from spikingjelly.activation_based import neuron as their_neuron
    from spikingjelly.activation_based import surrogate as their_surrogate

SURROGATES = ("Sigmoid", "ATan", "PiecewiseQuadratic", "PiecewiseExp", "SoftSign", "SuperSpike", "Erf")
THRESHOLDS, RESETS, TAUS = (1.0, 0.5, 0.75, 1.3), (0.0, None, -0.25, 0.1, 0.5), (2.0, 4.0, 1.5, 3.0, 1.1, 100.0)
LATE = ("v_threshold", "v_reset", "detach_reset", "decay_input", "tau", "surrogate_function")
NEURONS = 5


class Scale(nn.Module):
    """A weight for each neuron: all steps at once give the bits of each step alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.75, 1.75, NEURONS))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Net(nn.Module):
    """Nodes behind one another, which take one step or all."""

    def __init__(self, nodes: list[nn.Module], recurs: bool, resets: Callable[[nn.Module], None] | None) -> None:
        super().__init__()
        self.nodes = nn.ModuleList(nodes)  # by these names in all networks
        inner: list[nn.Module] = [their_layer.ElementWiseRecurrentContainer(n, torch.add) for n in nodes[:recurs]]
        self.layers = nn.Sequential(*(m for node in [*inner, *nodes[recurs:]] for m in (Scale(), node)))
        self.resets, self.all_steps, self.anneals = resets, False, False

    def forward(self, x: Tensor) -> Any:
        if self.resets is not None:
            self.resets(self)
        if self.all_steps:
            return self.layers(x)
        found, last = [], self.nodes[-1]
        for t, step in enumerate(x):
            if self.anneals:
                last.v_threshold = 0.5 + 0.25 * t
            found.append(self.layers(step))
        return torch.stack(found)


class Action(NamedTuple):
    name: str
    node: int
    value: Any


class Session:
    """A session by its number."""

    def __init__(self, number: int) -> None:
        self.number, self.draw = number, random.Random(number)
        draw = self.draw
        self.dtype = draw.choice([torch.float32, torch.float64])
        self.kinds = [draw.choice(("IFNode", "LIFNode", "ParametricLIFNode")) for _ in range(draw.randint(1, 2))]
        self.options = [self._options(kind) for kind in self.kinds]
        self.surrogates = [(draw.choice(SURROGATES), draw.choice((1.0, 2.0, 3.5))) for _ in self.kinds]
        self.recurs = draw.random() < 0.25
        self.converts, self.their_surrogates = draw.random() < 0.3, draw.random() < 0.3
        self.their_functions = draw.random() < 0.3  # on snnfast's nodes
        self.resets_inside, self.anneals = draw.random() < 0.3, draw.random() < 0.15
        self.calls = [self._call() for _ in range(draw.randint(2, 4))]

    def _options(self, kind: str) -> dict[str, Any]:
        draw = self.draw
        made: dict[str, Any] = {"v_threshold": draw.choice(THRESHOLDS), "v_reset": draw.choice(RESETS)}
        made |= {"detach_reset": draw.random() < 0.5, "store_v_seq": draw.random() < 0.3}
        if kind != "IFNode":
            made |= {"tau" if kind == "LIFNode" else "init_tau": draw.choice(TAUS), "decay_input": draw.random() < 0.5}
        return made

    def _call(self) -> tuple[list[Action], dict[str, Any]]:
        draw = self.draw
        actions = [self._action() for _ in range(draw.choice((0, 1, 1, 2, 3)))]
        batch = 2 if self.recurs else draw.choice((2, 2, 2, 3))  # at another one, SpikingJelly's container raises
        how: dict[str, Any] = {"shape": (draw.randint(1, 5), batch, NEURONS), "grad": draw.random() < 0.8}
        # What is assigned between the forward and the backward pass is too late for either.
        late = self._action() if draw.random() < 0.4 else None
        how["late"] = late if late is not None and late.name in (*LATE, "alpha") else None
        how["reads"] = draw.choice(("spikes", "membranes", "both", "both"))  # the loss
        return actions, how

    def _action(self) -> Action:
        draw = self.draw
        i = draw.randrange(len(self.kinds))
        values: dict[str, Any] = {
            "v_threshold": draw.choice(THRESHOLDS), "v_reset": draw.choice(RESETS), "detach_reset": draw.random() < 0.5,
            "alpha": draw.choice((0.5, 1.0, 1.5, 2.0, 4.0)), "store_v_seq": draw.random() < 0.5,
            "surrogate_function": (draw.choice(SURROGATES), draw.choice((1.0, 2.0, 3.5))),
            "set_reset_value": draw.choice((0.0, 0.4, -0.3, "tensor")), "v": draw.choice((0.0, 0.3, -0.5)),
            "step_mode": draw.choice("sm"), "reset_net": None, "detach_net": None, "deepcopy": None,
        }  # fmt: skip
        if self.kinds[i] != "IFNode":
            values["decay_input"] = draw.random() < 0.5
            values |= {"tau": draw.choice(TAUS)} if self.kinds[i] == "LIFNode" else {"w": draw.choice((-1.0, 0.5))}
        if self.recurs:
            del values["detach_net"]  # at which SpikingJelly's container raises
        name = draw.choice(list(values))
        return Action(name, i, values[name])

    def __str__(self) -> str:
        settings = {k: v for k, v in vars(self).items() if k not in ("draw", "calls")}
        return "\n".join([str(settings), *(f"{actions}, then a call {how}" for actions, how in self.calls)])

    # ---- the networks

    def _made(self, neurons: Any, surrogates: Any) -> list[nn.Module]:
        functions = [getattr(surrogates, kind)(alpha) for kind, alpha in self.surrogates]
        settings = zip(self.kinds, functions, self.options, strict=True)
        return [getattr(neurons, kind)(surrogate_function=f, **options) for kind, f, options in settings]

    def theirs(self) -> "Run":
        resets = their_functional.reset_net if self.resets_inside else None
        net = Net(self._made(their_neuron, their_surrogate), self.recurs, resets)
        return Run(self, net.to(self.dtype), their_functional, their_surrogate)

    def ours(self, compiled: bool) -> "Run":
        functions = their_functional if self.their_functions else functional
        surrogates = their_surrogate if self.their_surrogates or self.converts else surrogate
        nodes = self._made(their_neuron if self.converts else neuron, surrogates)
        net = Net(nodes, self.recurs, functions.reset_net if self.resets_inside else None).to(self.dtype)
        if self.converts:
            assert convert(net) == {}
        return Run(self, net, functions, surrogates, compiled)


class Run:
    """A session with one of the networks."""

    def __init__(self, session: Session, net: Net, functions: Any, surrogates: Any, compiled: bool = False) -> None:
        self.session, self.net, self.functions, self.surrogates = session, net, functions, surrogates
        self.compiled, net.anneals = compiled, session.anneals
        self._compile()

    def _compile(self) -> None:
        if self.compiled:
            snnfast.compile(self.net)

    def results(self) -> Iterator[list[tuple[str, Any]]]:
        random_numbers = torch.Generator().manual_seed(self.session.number)
        for actions, how in self.session.calls:
            for action in actions:
                self._do(action)
            yield self._call(how, random_numbers)

    def _do(self, action: Action) -> None:
        name, number, value = action
        node: Any = self.net.nodes[number]
        if name in ("reset_net", "detach_net"):
            getattr(self.functions, name)(self.net)
        elif name == "step_mode":
            self.functions.set_step_mode(self.net, value)
            self.net.all_steps = value == "m"
        elif name == "deepcopy":
            self.functions.reset_net(self.net)
            self.net = copy.deepcopy(self.net)
            self._compile()
        elif name == "alpha":
            node.surrogate_function.alpha = value
        elif name == "surrogate_function":
            node.surrogate_function = getattr(self.surrogates, value[0])(value[1])
        elif name == "set_reset_value":
            begin = torch.linspace(-0.5, 0.5, 2 * NEURONS, dtype=self.session.dtype).view(2, NEURONS)
            node.set_reset_value("v", begin if value == "tensor" else value)
        elif name == "w":
            with torch.no_grad():
                node.w.fill_(value)
        else:
            setattr(node, name, value)

    def _call(self, how: dict[str, Any], random_numbers: torch.Generator) -> list[tuple[str, Any]]:
        x = torch.randint(-4, 9, how["shape"], generator=random_numbers) / 4  # membranes at the threshold, too
        weights = [torch.randn(how["shape"], generator=random_numbers).to(self.session.dtype) for _ in range(2)]
        x = x.to(self.session.dtype).requires_grad_(how["grad"])
        with torch.set_grad_enabled(how["grad"]):
            spk = self.net(x)
            found = [("spikes", spk)]
            for i, node in enumerate(self.net.nodes):
                found += [(f"{i}.v", node.v), (f"{i}.v_seq", node.v_seq)]
            found = [(name, t.detach().clone() if isinstance(t, Tensor) else t) for name, t in found]
            loss: Any = (spk * weights[0]).sum() if how["reads"] != "membranes" else 0
            if how["reads"] != "spikes":
                loss = loss + sum((node.v * weights[1][0]).sum() for node in self.net.nodes)
        if how["late"] is not None:
            self._do(how["late"])
        if how["grad"]:
            wanted = {"x": x, **dict(self.net.named_parameters())}
            grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, retain_graph=True)
            found += [(f"grad of {n}", g) for n, g in zip(wanted, grads, strict=True)]
        return found


def difference(session: Session, compiled: bool) -> str | None:
    """What differs first; ``None``: nothing."""
    theirs, ours = session.theirs(), session.ours(compiled)
    for number, (wanted, found) in enumerate(zip(theirs.results(), ours.results(), strict=True)):
        for (name, a), (_, b) in zip(found, wanted, strict=True):
            if not is_same(a, b, exact=not name.startswith("grad")):
                return f"call {number}: {name}: {a} instead of {b}"
    return None


def is_same(a: Any, b: Any, exact: bool) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if exact or a.shape != b.shape or a.dtype != b.dtype:
            return a.dtype == b.dtype and torch.equal(a, b)
        bound = {4: 1e-5, 8: 1e-10}[b.element_size()]
        return torch.allclose(a, b, rtol=bound, atol=bound * max(1.0, float(b.abs().max())))
    # Where the loss does not depend on a tensor, no gradient and zeros are the same answer.
    nothing = all(t is None or not torch.as_tensor(t).any() for t in (a, b))
    return nothing or a == b


def outcome(number: int, compiled: bool = False) -> Found:
    session = Session(number)
    try:
        differs = difference(session, compiled)
    except Exception as error:
        differs = f"{type(error).__name__}: {error}"
    if compiled and number % 20 == 19:
        torch._dynamo.reset()
    return Found("equal") if differs is None else Found("differs", f"{differs}\n{session}")


def main() -> int:
    parser = fuzzing.parser(__doc__, 1000)
    parser.add_argument("--compiled", action="store_true", help="under snnfast.compile")
    args = parser.parse_args()
    return fuzzing.run(partial(outcome, compiled=args.compiled), args, partial(warnings.simplefilter, "ignore"))


if __name__ == "__main__":
    sys.exit(main())
