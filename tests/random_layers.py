"""The spiking layers of a random program, and what else it carries from step to step (see ``tests/loop_fuzz.py``)."""

from dataclasses import dataclass, field

import torch
from random_source import Source, Value

# In float64 always given: without one, snnTorch's spikes are float32, which no layer of float64 takes.
SURROGATES = (
    "surrogate.atan()", "surrogate.atan(alpha=1.5)", "surrogate.fast_sigmoid(slope=4)",
    "surrogate.fast_sigmoid(slope=2)", "surrogate.sigmoid(slope=3)", "surrogate.straight_through_estimator()",
    "surrogate.triangular()", "surrogate.heaviside()", "surrogate.atan(alpha=2.5)", "surrogate.fast_sigmoid(slope=3)",
    "surrogate.sigmoid(slope=2)", "surrogate.triangular(threshold=2)", "lambda z: steep(z)", "steep",
)  # fmt: skip
if torch.torch_version.TorchVersion(torch.__version__) < "2.12":
    # It can't trace how a callable is examined where the batch size varies, whatever the backend.
    SURROGATES = SURROGATES[:-2]
RESETS = ("subtract", "zero", "zero", "none")


@dataclass
class Layer:
    """A spiking layer, one call of it in a step, and the variables of its states."""

    name: str
    neuron: str
    shape: tuple[int, ...]
    explicit: bool
    spk: Value
    mem: Value | None = None
    states: list[str] = field(default_factory=list)
    learned: bool = False
    every_step: bool = True


class Layers:
    """Writes the spiking layers of one program."""

    def __init__(self, s: Source, carries: bool) -> None:
        self.s, self.draw, self.carries = s, s.draw, carries
        self.carried: list[str] = []  # states that the network returns and is given
        self.all: list[Layer] = []
        self.surrogate = self.draw.choice(SURROGATES)
        self.style = self.draw.choice(("explicit", "explicit", "held", "mixed"))

    # ---- constructors

    def _number(self, shape: tuple[int, ...], low: float, high: float, few_bits: tuple[float, ...], each: bool) -> str:
        if each and self.s.some(0.08):
            low, high = (0.5, 0.5) if self.s.exact else (low, high)
            return f"torch.linspace({low}, {high}, {shape[-1]})"
        return repr(self.draw.choice(few_bits) if self.s.exact else round(self.draw.uniform(low, high), 2))

    def _arguments(self, neuron: str, shape: tuple[int, ...]) -> list[str]:
        """Of a constructor."""
        s, draw, lapicque = self.s, self.draw, neuron == "Lapicque"
        args: list[str] = []
        if lapicque:
            args += [f"beta={round(draw.uniform(0.4, 0.8), 2)}", *["learn_beta=True"] * s.some(0.4)]
        else:
            for decay, low in (("alpha", 0.2), ("beta", 0.3))[neuron == "Leaky" :]:
                args.append(f"{decay}={self._number(shape, low, 1 - (0.3 - low), (0.5, 0.5, 1.0), each=True)}")
                args += [f"learn_{decay}=True"] * s.some(0.25)
        if s.some(0.15):
            args.append("reset_delay=False")
        args.append(f"threshold={self._number(shape, 0.3, 1.0, (0.5, 1.0, 0.75), each=not lapicque)}")
        args += ["learn_threshold=True"] * s.some(0.2)
        if neuron == "Leaky" and s.some(0.05):
            args += ["graded_spikes_factor=2.0", *["learn_graded_spikes_factor=True"] * s.some(0.5)]
        if not s.exact or s.some(0.6):
            args.append(f"spike_grad={draw.choice(SURROGATES) if s.some(0.2) else self.surrogate}")
        args += [f'reset_mechanism="{draw.choice(RESETS)}"'] * s.some(0.35)
        args += ["inhibition=True"] * (len(shape) == 1 and bool(s.batch) and s.some(0.06))
        return args

    # ---- one step

    def add(self, v: Value) -> Layer:
        """A layer behind ``v``; sometimes one that is used already."""
        s = self.s
        same = [layer for layer in self.all if layer.shape == v.shape and layer.explicit]
        if same and s.some(0.15):
            return self._again(self.draw.choice(same), v)
        neuron = self.draw.choice(("Leaky",) * 7 + ("Synaptic", "Synaptic", "Leaky" if s.exact else "Lapicque"))
        held = self.style == "held" or (self.style == "mixed" and s.some(0.5))
        output = held and s.some(0.5)
        args = [*self._arguments(neuron, v.shape), *["init_hidden=True"] * held, *["output=True"] * output]
        name = s.module("lif", f"snn.{neuron}({', '.join(args)})")
        number = name.removeprefix("self.lif")
        layer = Layer(name, neuron, v.shape, not held, Value(f"spk{number}", v.shape))
        layer.learned = "learn_threshold=True" in args
        states = [f"{state}{number}" for state in (("syn", "mem") if neuron == "Synaptic" else ("mem",))]
        if not held or output:
            layer.mem, layer.states = Value(states[-1], v.shape), states
        if held:
            s.before += [f"{name}.reset_mem()"] * s.some(0.6)
            call = f"{', '.join([str(layer.spk), *layer.states])} = {name}({v})"
        else:
            names = ", ".join(states)
            begun = self._begin(layer)
            call = f"{layer.spk}, {names} = {name}({v}{f', {names}' if begun else ''})"
        self._call(layer, call)
        self._between_steps(layer)
        self.all.append(layer)
        return layer

    def _call(self, layer: Layer, call: str) -> None:
        """At every step; or twice in one, or at every other one."""
        s = self.s
        if s.some(0.03):
            s.body += ["for _ in range(2):", f"    {call}"]
        elif s.some(0.03) and not (layer.mem and not layer.explicit):
            s.uses_t, layer.every_step = True, False
            s.before.append(f"{layer.spk} = {s.zeros(layer.shape, 'zero')}")
            if layer.mem and not any(
                line.startswith(f"{layer.mem} =") or f", {layer.mem} =" in line for line in s.before
            ):
                s.before.append(f"{layer.mem} = {s.zeros(layer.shape, 'zero')}")
            s.body += ["if t % 2 == 0:", f"    {call}"]
        else:
            s.body.append(call)

    def _begin(self, layer: Layer) -> bool:
        """The states before the first step; whether they are passed."""
        s, names = self.s, ", ".join(layer.states)
        begin = self.draw.choice(("reset_mem",) * 6 + ("init", "zeros", "none", "parameter", "unnamed"))
        if self.carries:
            for state in layer.states:
                place = f"carried[{len(self.carried)}]"
                s.before.append(f"{state} = {place} if carried else {s.zeros(layer.shape, 'zero')}")
                self.carried.append(state)
            return True
        if begin == "unnamed":  # goes on from what the layer holds
            return False
        if begin in ("reset_mem", "init"):
            method = "reset_mem" if begin == "reset_mem" else f"init_{layer.neuron.lower()}"
            s.before.append(f"{names} = {layer.name}.{method}()")
        for state in layer.states:
            if begin == "none":
                s.before.append(f"{state} = None")
            elif begin == "zeros":
                s.before.append(f"{state} = {s.zeros(layer.shape, 'zero')}")
            elif begin == "parameter":
                dims = ", ".join([*[s.batch] * bool(s.batch), *["-1"] * len(layer.shape)])
                s.before.append(f"{state} = {s.parameter('start', *layer.shape)}.expand({dims})")
        return True

    def _between_steps(self, layer: Layer) -> None:
        """What a program may do with the results of a step."""
        s, mem = self.s, layer.mem
        if s.some(0.03) and layer.every_step:
            s.body.append(self.draw.choice((f"{layer.spk} *= 2", f"{layer.spk}[..., 0] = 1", f"{layer.spk}.mul_(0.5)")))
        if s.some(0.02) and not layer.learned:
            s.body.append(f"{layer.name}.threshold = {layer.name}.threshold * 1.25")
        if mem is None or not layer.explicit or not s.some(0.12):
            return
        forms = ["{mem} = {mem} * 0.5", "{mem} = {mem}.clamp(-2, 2)", "{mem} = {mem} + 0.25 * {spk}", "{mem} *= 0.5",
                 "{mem} = {mem}.clone()", "{mem} = {mem} - 0.5 * {spk}", "{mem} = {mem}.detach()",
                 "{mem} = {mem}.relu()",
                 "if t % 2 == 1:\n    {mem} = {mem}.detach()", "if t == 1:\n    {mem} = torch.zeros_like({mem})",
                 "if t % 3 == 2:\n    {mem} = {mem}.detach() * 0.5"]  # fmt: skip
        form = self.draw.choice(forms)
        s.uses_t |= "t " in form
        s.body += form.format(mem=mem, spk=layer.spk).splitlines()

    def _again(self, layer: Layer, v: Value) -> Layer:
        """The same layer once more in a step: with states of its own, or with the same ones."""
        s, spk = self.s, Value(self.s.name("again"), v.shape)
        states, mem = layer.states, layer.mem
        if s.some(0.5):
            states = [f"{spk}_{state}" for state in (("syn", "mem") if layer.neuron == "Synaptic" else ("mem",))]
            mem = Value(states[-1], v.shape)
            s.before += [f"{state} = {s.zeros(v.shape, 'zero')}" for state in states]
        names = ", ".join(states)
        s.body.append(f"{spk}, {names} = {layer.name}({v}, {names})")
        return Layer(layer.name, layer.neuron, v.shape, True, spk, mem, states)


# ---- carried from step to step beside the states


def feedback(s: Source, v: Value) -> tuple[Value, str]:
    """``v`` with the spikes of the layer behind it, one step late; and the variable of them."""
    fed = s.zeros(v.shape, "fed")
    if s.some(0.6):
        layer = s.module("rec", f"nn.Linear({v.shape[-1]}, {v.shape[-1]})")
        return s.let(f"{v} + {layer}({fed})", v.shape), fed
    return s.let(f"{v} - 0.5 * {fed}", v.shape), fed


def memory(s: Source, v: Value) -> Value:
    """``v`` with something of the steps before."""
    n = v.shape[-1]
    kinds = ["delay", "delay", "list", "window", "trace", "trace", "sum", "weights"]
    if not s.exact:
        kinds += ["recurrence", *["cell", "lstm"] * (len(v.shape) == 1)]
    kind = s.draw.choice(kinds)
    if kind in ("list", "window"):
        rec = s.name("late")
        s.before.append(f"{rec} = []")
        s.body.append(f"{rec}.append({v})")
        if kind == "window":
            return s.let(f"{v} + torch.stack({rec}[-2:]).sum(0)", v.shape)
        s.uses_t = True
        return s.let(f"{v} + {rec}[max(t - 2, 0)]", v.shape)
    if kind == "weights":
        fast = s.name("fast")
        s.before.append(f"{fast} = {s.parameter('weight', n)}")
        w = s.let(f"{v} * {fast}", v.shape)
        s.body.append(f"{fast} = 0.5 * {fast} + {v}.reshape(-1, {n})[0]")
        return w
    was = s.zeros(v.shape, "was")
    if kind == "cell":
        cell = s.draw.choice(("RNN", "GRU"))
        s.body.append(f"{was} = {s.module('cell', f'nn.{cell}Cell({n}, {n})')}({v}, {was})")
        return Value(was, v.shape)
    if kind == "lstm":
        other = s.zeros(v.shape, "was")
        s.body.append(f"{was}, {other} = {s.module('cell', f'nn.LSTMCell({n}, {n})')}({v}, ({was}, {other}))")
        return Value(was, v.shape)
    if kind == "trace":
        s.body.append(f"{was} = {0.5 if s.exact else 0.8} * {was} + {v}")
        return s.let(f"{v} + 0.5 * {was}", v.shape) if s.some(0.5) else Value(was, v.shape)
    if kind == "sum":
        s.body.append(f"{was} += {v}")
        return s.let(f"{v} - 0.25 * {was}", v.shape)
    if kind == "recurrence":
        s.body.append(f"{was} = torch.tanh({s.module('rec', f'nn.Linear({n}, {n})')}({was}) + {v})")
        return Value(was, v.shape)
    tap = f"{s.module('tap', f'nn.Linear({n}, {n})')}({was})" if s.some(0.5) else f"0.5 * {was}"
    w = s.let(f"{v} + {tap}", v.shape)
    s.body.append(f"{was} = {v}")
    return w
