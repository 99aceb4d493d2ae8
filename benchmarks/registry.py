"""What is measured: a case is a workload with its shape and options; a suite is a list of cases."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from math import prod
from typing import Any

import torch

DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}


@dataclass(frozen=True)
class Model:
    """A model of a neuron, under the name that snntorch and snnfast both give to its class."""

    name: str
    decays: tuple[str, ...] = ("beta",)
    states: tuple[str, ...] = ("mem",)
    fixed: Mapping[str, Any] = field(default_factory=dict)  # other arguments
    connected: bool = False  # by a linear layer of the size of a step

    @property
    def fed_back(self) -> bool:
        """Whether the last spike is a state, and so is returned as one."""
        return self.states[0] == "spk"


NEURONS = {
    "leaky": Model("Leaky"),
    "synaptic": Model("Synaptic", ("alpha", "beta"), ("syn", "mem")),
    "lapicque": Model("Lapicque"),
    "alpha": Model("Alpha", (), ("syn_exc", "syn_inh", "mem"), {"alpha": 0.95, "beta": 0.9}),
    "rleaky": Model("RLeaky", states=("spk", "mem"), fixed={"V": 0.5, "all_to_all": False}),
    "rsynaptic": Model("RSynaptic", ("alpha", "beta"), ("spk", "syn", "mem"), fixed={"V": 0.5, "all_to_all": False}),
    "connected": Model("RLeaky", states=("spk", "mem"), connected=True),
}
SNNTORCH = tuple(NEURONS)
NODE = "LIFNode"  # of SpikingJelly, over all steps, with its default surrogate
NEURONS[NODE] = Model(NODE, (), ("v",), {"tau": 2.0, "detach_reset": True, "step_mode": "m"})

NETWORKS = ("tutorial5", "deep", "convolution")
POOLED = "pooled"  # batch normalisation, neurons and pooling
SEQUENCE = "sequence"  # as deep, of so many steps that no loop of them is compiled
SCALING = "scaling"  # the network of jaxpike's memory_scaling.py, on ones, for time and peak memory
SCALED = (128, 128)  # its neurons


@dataclass(frozen=True)
class Options:
    """The options of a layer of neurons, in snnTorch's words."""

    alpha: float = 0.9
    beta: float = 0.95
    reset_mechanism: str = "subtract"
    reset_delay: bool = True
    record_mem: bool = False
    learn_beta: bool = False
    surrogate: str = "atan"

    def changed(self) -> dict[str, Any]:
        default = asdict(Options())
        return {name: value for name, value in asdict(self).items() if value != default[name]}


@dataclass(frozen=True)
class Case:
    """One workload: ``kind`` names what computes it, in :mod:`benchmarks.workloads` or :mod:`benchmarks.runner`."""

    suite: str
    # layer, loop, recurrent, pair, product, norm, collection, sequence, scaling, public, or a network
    kind: str
    T: int
    B: int
    shape: tuple[int, ...]  # of one sample
    dtype: str = "float32"
    neuron: str = "leaky"  # of NEURONS
    options: Options = field(default_factory=Options)
    backward: bool = True
    constant: bool = False  # the same current at every step
    hidden: tuple[int, ...] = ()  # of deep and sequence: the sizes of its hidden layers
    trained: bool = False  # of deep: images of MNIST and weights that have learned from it, which training then leaves
    rate: float | None = None  # of product: share of the neuron-steps with a spike
    variant: str = ""  # what tells cases of a kind apart
    quick: bool = False  # part of the five-minute run
    peers: bool = True  # all peers in the five-minute run, or snnfast alone
    stored: bool = False  # part of `store`, as the quick ones are
    gate: bool = False  # part of `check`

    @property
    def neuron_steps(self) -> int:
        """The neuron-steps of one layer; :func:`networks.neuron_steps` knows those of a network as well."""
        return self.T * self.B * prod(self.shape)

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def name(self) -> str:
        """What ``--case`` filters and ``--base`` matches."""
        parts = [f"{self.suite} [{', '.join(map(str, (self.T, self.B, *self.shape)))}] {self.dtype}"]
        if self.neuron != "leaky":
            parts.append(self.neuron)
        if self.variant:
            parts.append(self.variant)
        if self.hidden:
            parts.append("-".join(map(str, widths(self))))
        if self.trained:
            parts.append("trained on MNIST")
        if self.rate is not None:
            parts.append(f"{self.rate:.0%} spikes")
        if self.constant:
            parts.append("constant current")
        parts += [f"{name}={value}" for name, value in self.options.changed().items()]
        if self.kind != "product":
            parts.append("forward + backward" if self.backward else "forward")
        return ", ".join(parts)

    @property
    def ideal_bytes(self) -> float | None:
        """What a layer reads and writes at least per neuron-step, tensors of one step left out; None for networks.

        Forward: the current is read, the spikes (and each recorded state) are written. Backward: the gradient of the
        spikes is read, the current (or the recorded membrane) is read again, the gradient of the current is written.
        """
        if self.kind == "norm":  # x twice and y; x and the gradient of y twice, and that of x
            return 8 * self.itemsize
        if self.kind != "layer":
            return None
        current = 1 / self.T if self.constant else 1
        record = self.options.record_mem
        model = NEURONS[self.neuron]
        elements = current + 1 + record * (len(model.states) - model.fed_back)
        if self.backward:
            elements += 1 + (1 if record else current) + current
        return elements * self.itemsize


CLASSES, HIDDEN = 10, 1000


def widths(case: Case) -> tuple[int, ...]:
    """The widths of a fully connected network: its input, its hidden layers and its classes."""
    return (*case.shape, *(case.hidden or (HIDDEN,)), CLASSES)


TUTORIAL5 = Case("tutorial5", "tutorial5", 25, 128, (784,), quick=True, gate=True)
# The hidden layer of tutorial 5, and the Linear that its spikes go to.
PAIR = Case("events", "pair", 25, 128, (HIDDEN,), constant=True, quick=True, gate=True)
# Saves less than the current.
STRAIGHT_THROUGH = {"surrogate": "straight_through_estimator"}
RATES = (0.01, 0.04, 0.1, 0.2, 0.5, 1.0)
DIRECTIONS = FORWARD, WEIGHT_GRADIENT = "forward", "weight gradient"


def case_named(name: str) -> Case | None:
    """The case of this name, as results and bars have it; those of the suite `collection` are not among them."""
    return _by_name().get(name)


@cache
def _by_name() -> dict[str, Case]:
    return {case.name: case for device in ("cuda", "cpu") for cases in suites(device).values() for case in cases}


def suites(device: str) -> dict[str, list[Case]]:
    """All cases of each suite on a kind of device, in the order in which they run. :mod:`collection` adds a suite."""
    big = device == "cuda"
    return {
        "lif": _lif(big),
        "loop": [
            Case("loop", "loop", 25, 128, (1000,), quick=True, gate=True),
            Case("loop", "loop", 25, 1, (10,), quick=True),
            Case("loop", "recurrent", 25, 32, (100,), variant="recurrent", quick=True),
            Case("loop", "recurrent", 25, 128, (1000,), variant="recurrent"),
        ],
        "neurons": [
            *(
                Case("neurons", "layer", 25, 128, (1000,), neuron=n, quick=True, gate=True)
                for n in SNNTORCH
                if n not in ("leaky", "connected")
            ),
            *(
                Case("neurons", "layer", T, B, (n,), neuron="connected", quick=True, peers=False)
                for T, B, n in ((100, 64, 256), (25, 128, 1000))
            ),
            Case("neurons", "layer", 100, 128, (8192,), neuron="synaptic", quick=True, peers=False),
        ],
        "tutorial5": [TUTORIAL5],
        "events": [
            PAIR,
            *(
                Case("events", "deep", 25, 128, (784,), hidden=(HIDDEN,) * 2, trained=True, backward=b, stored=True)
                for b in (True, False)
            ),
        ],
        "products": [
            Case("products", "product", 25, 128, (1024,), rate=rate, variant=direction, stored=True)
            for rate in RATES
            for direction in DIRECTIONS
        ],
        "norm": [
            *(
                Case("norm", "norm", T, B, shape, stored=True)
                for T, B, shape in ((25, 32, (64, 8, 8)), (10, 16, (64, 32, 32)), (25, 32, (12, 24, 24)))
            ),
            *(
                Case("norm", POOLED, T, B, shape, variant="with neurons and pooling")
                for T, B, shape in ((4, 32, (64, 32, 32)), (10, 32, (16, 24, 24)))
            ),
        ],
        "conv": [
            _convolution(50, 128),
            *(_convolution(T, 32) for T in (10, 25)),
            _convolution(25, 32, backward=False),
        ],
        "long": [Case("long", "layer", 1000, 1, (100,), quick=True)],
        "memory": [
            Case("memory", "deep", 25, 128, (784,), hidden=(HIDDEN,) * 4, stored=True),
            Case("memory", SEQUENCE, 2048, 64, (512,), hidden=(512,) * 3, stored=True),
            *(Case("memory", SCALING, T, 8, (64,), variant="64-128-128") for T in (100, 500, 1000, 2500, 5000)),
        ],
        "inference": [
            Case("inference", "layer", 100, 128, (1024,), backward=False, quick=True),
        ],
        "spikingjelly": [
            Case("spikingjelly", "layer", T, B, shape, neuron=NODE)
            for T, B, shape in ((4, 32, (64, 32, 32)), (25, 128, (1000,)))
        ],
    }


def _convolution(T: int, B: int, backward: bool = True) -> Case:
    options = Options(beta=0.5, surrogate="fast_sigmoid")
    stored = (T, B) == (25, 32)
    return Case("conv", "convolution", T, B, (1, 28, 28), options=options, backward=backward, stored=stored)


def _lif(big: bool) -> list[Case]:
    def layer(T: int, B: int, n: int, *, quick: bool = False, peers: bool = False, **options: Any) -> Case:
        known = {key: options.pop(key) for key in ("dtype", "constant", "gate", "stored") if key in options}
        return Case("lif", "layer", T, B, (n,), options=Options(**options), quick=quick, peers=peers, **known)

    cases = [layer(T, 128, n, quick=True, peers=True, gate=True) for T, n in ((25, 1000), (100, 1024))]
    cases.append(layer(500, 16, 16384, stored=True))
    # Over T and N, products of more neuron-steps than fit are left out when they run.
    cases += [
        layer(T, 1, N, quick=(T, N) in QUICK_GRID)
        for N in (10, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 16_000_000)
        for T in (1, 4, 25, 100, 1000, 4096)
        if (2**32 if big else 2**29) >= T * N
    ]
    cases += [layer(25, 128, 1000, quick=True, dtype=dtype) for dtype in ("float64", "float16", "bfloat16")]
    for options in (
        {"reset_mechanism": "zero"},
        {"reset_mechanism": "none"},
        {"reset_delay": False},
        {"reset_mechanism": "zero", "reset_delay": False},
        {"record_mem": True},
        {"learn_beta": True},
        {"constant": True},
        STRAIGHT_THROUGH,
    ):
        cases.append(layer(25, 128, 1000, quick=True, **options))
    return cases


QUICK_GRID = {(25, 10_000), (25, 100_000), (25, 1_000_000), (100, 100_000), (1000, 10_000), (4096, 10_000)}
