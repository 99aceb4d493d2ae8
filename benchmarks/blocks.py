"""The passages of README and the docs that hold figures, each written from a stored result."""

from collections.abc import Callable
from textwrap import fill

from .peers.ours import LOOPED, NUMBERS, OURS, SWAPPED, WITH_LOSS
from .peers.snntorch_loop import COMPILED, HOISTED, LOOP, NETWORK
from .peers.spikingjelly import PREFIX as JELLY
from .registry import NEURONS, PAIR, TUTORIAL5
from .runner import COPY
from .stored import Missing, Stored, digits, ms, percent, table, times

STEP = TUTORIAL5.name
LAYER = "lif [25, 128, 1000] float32, forward + backward"
LARGE = "lif [100, 128, 1024] float32, forward + backward"
CONVOLUTION = "conv [25, 32, 1, 28, 28] float32, beta=0.5, surrogate=fast_sigmoid, forward + backward"
DEEP = "events [25, 128, 784] float32, 784-1000-1000-10, trained on MNIST, forward + backward"
CALLS = "loop [25, {}] float32, forward + backward"


def inference(case: str) -> str:
    return case.removesuffix(" + backward")


# What a reader is told of an implementation.
WORDS = {
    LOOP: "snnTorch",
    JELLY: "SpikingJelly",
    NETWORK: "snnTorch, `torch.compile`",
    COMPILED: "snnTorch, `torch.compile`",
    f"{JELLY}, compiled": "SpikingJelly, `torch.compile`",
    HOISTED: "snnTorch, `Linear` hoisted",
    SWAPPED: "snnfast, import changed",
    LOOPED: "`snnfast.compile(net)`",
    WITH_LOSS: "`snnfast.compile`, loss inside",
    OURS: "`snnfast.MultiStep`",
}


def machine(of: Stored) -> str:
    header = of.header
    versions = header["versions"].split(";")[0]  # what follows are CPU instructions that were not in use
    peers = ", ".join(f"{name} {version}" for name, version in header["peers"].items() if version != "not installed")
    return fill(
        f"Measured on {of.day}, on {header['machine']}: {versions}; {peers}; "
        f"commit {header['commit']}; environment: {header['environment']}.",
        width=120,
    )


def link(of: Stored) -> str:
    return f"All measurements, with plots: [{of.title}](results/{of.name}.md)."


def time_plot(of: Stored) -> str:
    return f"![Time of one call, of each implementation](results/{of.name}/time.svg)"


def share_plot(of: Stored) -> str:
    return f"![Share of copy_ that a layer reaches, in per cent](results/{of.name}/share.svg)"


def memory_plot(of: Stored) -> str:
    return f"![Bytes that networks hold for the backward pass](results/{of.name}/memory.svg)"


def headline(of: Stored) -> str:
    before, after = (of.seconds(STEP, peer) for peer in (LOOP, LOOPED))
    return (
        f"**{times(before / after)} times as fast by one added line:** a training step of snnTorch's tutorial 5 takes "
        f"{ms(after)} ms instead of {ms(before)} ms."
    )


def training_steps(of: Stored) -> list[tuple[str, str, float]]:
    """What the figure of README shows, the longest first: each peer, its name and its seconds."""
    shown = [(of.seconds(STEP, peer), peer) for peer in (LOOP, JELLY, NETWORK, LOOPED, OURS)]
    return [(peer, WORDS[peer].replace("`", ""), seconds) for seconds, peer in sorted(shown, reverse=True)]


def figure(of: Stored) -> str:
    steps = "; ".join(f"{name} {ms(seconds)} ms" for _, name, seconds in training_steps(of))
    return (
        '<p align="center">\n'
        f'<img src="docs/figures/tutorial5.svg" width="400" alt="Training step of tutorial 5: {steps}">\n'
        '<img src="docs/figures/raster.svg" width="400" alt="Spikes of a network that was trained on MNIST">\n'
        "</p>"
    )


def speed(of: Stored) -> str:
    """The table of README: snnTorch and ours."""
    lines = []
    for what, case in (
        ("training step of tutorial 5, batch 128: forward, backward, Adam", STEP),
        ("training step of 12C5-MP2-64C5-MP2-10, batch 32", CONVOLUTION),
        ("inference with it", inference(CONVOLUTION)),
        ("one layer over all time steps, [25, 128, 1000], forward + backward", LAYER),
        ("the same layer, one call per time step", CALLS.format("128, 1000")),
        ("the same at [1, 10]", CALLS.format("1, 10")),
    ):
        theirs, ours = of.seconds(case, LOOP), of.seconds(case, OURS)
        lines.append([what, f"{ms(theirs)} ms", f"{ms(ours)} ms", times(theirs / ours)])
    theirs, ours = (of.mean("epoch", "seconds", peer=peer) for peer in (LOOP, OURS))
    lines.insert(1, ["an epoch on MNIST", f"{digits(theirs)} s", f"{digits(ours)} s", times(theirs / ours)])
    accuracies = (f"{of.mean('epoch', 'accuracy', peer=peer):.4f}" for peer in (LOOP, OURS))
    lines.insert(2, ["test accuracy after it", *accuracies, ""])
    return table(["", "snnTorch", "snnfast", "ratio"], lines)


def parity(of: Stored) -> str:
    rows = of.part("parity")
    words = {name: f"`{model.name}`" for name, model in NEURONS.items()} | {"connected": "connected `RLeaky`"}
    found = ", ".join(f"{row['different']} of {row['values']} ({words[row['neuron']]})" for row in rows)
    return (
        f"`python -m benchmarks parity` compares {rows[0]['configurations']} random configurations of each neuron with "
        f"snnTorch's loop.\nSpikes and states that differ in any bit: {found}."
    )


def floors(of: Stored) -> str:
    lines = []
    for name in [row.case for row in of.rows if row.peer == COPY]:
        case, row = of.cases[name], of.row(name, OURS)
        if case.suite not in ("lif", "inference") or case.dtype != "float32" or case.options.changed() or case.constant:
            continue
        assert row.bandwidth is not None
        assert row.share_of_copy is not None
        shape = f"{[case.T, case.B, *case.shape]}" + ("" if case.backward else ", forward only")
        both = [ms(of.seconds(name, peer)) for peer in (OURS, COPY)]
        lines.append([shape, *both, f"{row.bandwidth / 1e9:.1f}", percent(row.share_of_copy)])
    if not lines:
        raise Missing(f"{of.name} has no layers beside {COPY}")
    return table(["shape", "snnfast, ms", "`copy_`, ms", "GB/s", "share of `copy_`"], lines)


def layers(of: Stored) -> str:
    """One layer over all time steps by everybody."""
    return _by_everybody(of, (LAYER, LARGE))


def networks(of: Stored) -> str:
    return _by_everybody(of, (STEP, CONVOLUTION, inference(CONVOLUTION)))


def _by_everybody(of: Stored, cases: tuple[str, ...]) -> str:
    head = [""]
    for name in cases:
        if name not in of.cases:
            raise Missing(f"{of.name} has no case {name}")
        case = of.cases[name]
        what = {"tutorial5": "tutorial 5", "conv": "convolutions"}.get(case.suite, f"{[case.T, case.B, *case.shape]}")
        head += [what + (", ms" if case.backward else ", inference, ms"), "/ ours"]
    peers = dict.fromkeys(row.peer for row in of.rows if row.case in cases and row.peer != COPY)
    lines = []
    for peer in peers:
        cells = []
        for case in cases:
            if of.has(case, peer):
                seconds = of.seconds(case, peer)
                cells += [ms(seconds), times(seconds / of.seconds(case, OURS))]
            else:
                cells += ["", ""]
        if any(cells):
            lines.append([_word(peer, of.cases[cases[0]].kind), *cells])
    return table(head, lines)


def _word(peer: str, kind: str) -> str:
    return peer if peer == OURS and kind == "layer" else WORDS.get(peer, peer)


def levels(of: Stored) -> str:
    """What each way from snnTorch gains, on the training step of tutorial 5."""
    lines = []
    for level, what, peer in (
        ("snnTorch", "", LOOP),
        ("1, 2", "the import, or one call on the model", SWAPPED),
        ("3", "one added line, `net = snnfast.compile(net)`", LOOPED),
        ("3, with the loss", "a function that holds network and loss, compiled", WITH_LOSS),
        ("4", "the loop over time, by hand", OURS),
    ):
        seconds = of.seconds(STEP, peer)
        lines.append([level, what, ms(seconds), times(of.seconds(STEP, LOOP) / seconds)])
    return table(["level", "what changes", "ms", "snnTorch / this"], lines)


def calls(of: Stored) -> str:
    """One call per time step."""
    lines = []
    for what, shape in (("[128, 1000]", "128, 1000"), ("[1, 10]", "1, 10")):
        case = CALLS.format(shape)
        theirs, ours = of.seconds(case, LOOP), of.seconds(case, OURS)
        lines.append([what, ms(theirs), ms(ours), times(theirs / ours)])
    return table(["25 calls, forward + backward", "snnTorch, ms", "snnfast, ms", "ratio"], lines)


def events(of: Stored) -> str:
    lines = []
    for what, case in (
        ("`Leaky` on a constant current and `Linear` to 10, forward + backward", PAIR.name),
        ("training step of tutorial 5", STEP),
        ("training step of 784-1000-1000-10", DEEP),
        ("inference with it", inference(DEEP)),
    ):
        numbers, bits = of.seconds(case, NUMBERS), of.seconds(case, OURS)
        rates = ", ".join(percent(rate) for rate in of.row(case, OURS).rates)
        lines.append([what, rates, ms(numbers), ms(bits), times(numbers / bits)])
    return table(["", "spikes", "as numbers, ms", "as bits, ms", "ratio"], lines)


def products(of: Stored) -> str:
    rows = {(row["rate"], row["direction"]): row for row in of.part("products")}
    rates = dict.fromkeys(rate for rate, _ in rows)
    directions = dict.fromkeys(direction for _, direction in rows)
    lines = []
    for rate in rates:
        cells = [percent(rate)]
        for direction in directions:
            row = rows[rate, direction]
            cells += [ms(row["dense"]), ms(row["bits"]), f"{row['dense'] / row['bits']:.2f}"]
        lines.append(cells)
    head = [cell for direction in directions for cell in (f"{direction}: dense, ms", "bits, ms", "ratio")]
    return table(["neurons that spike", *head], lines)


def held(of: Stored) -> str:
    rows = of.part("held")
    found = {(row["network"], row["peer"]): row for row in rows}
    peers = list(dict.fromkeys(row["peer"] for row in rows))
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        cells = [found.get((network, peer)) for peer in peers]
        lines.append([network, *("" if row is None else f"{row['held']:.2f} / {row['saved']:.2f}" for row in cells)])
    words = {OURS: OURS, NUMBERS: NUMBERS}
    return table(["network", *(words.get(peer, WORDS.get(peer, peer)) for peer in peers)], lines)


def options(of: Stored) -> str:
    """What options of a layer cost in time and memory."""
    lines = []
    for what, changed in (
        ("default of the benchmarks: `record_mem=False`", ""),
        ("`record_mem=True`", ", record_mem=True"),
        ("constant current, `num_steps=25`", ", constant current"),
        ("`membrane_dtype=torch.bfloat16`", ", membrane_dtype=bfloat16"),
        ("straight-through surrogate", ", surrogate=straight_through_estimator"),
        ("`learn_beta=True`", ", learn_beta=True"),
    ):
        row = of.row(f"lif [25, 128, 1000] float32{changed}, forward + backward", OURS)
        lines.append([what, ms(of.seconds(row.case, OURS)), f"{row.saved:.2f}"])
    for dtype in ("float64", "float16", "bfloat16"):
        row = of.row(f"lif [25, 128, 1000] {dtype}, forward + backward", OURS)
        lines.append([f"{dtype}", ms(of.seconds(row.case, OURS)), f"{row.saved:.2f}"])
    return table(["[25, 128, 1000]", "forward + backward, ms", "saved bytes per neuron-step"], lines)


def rounding(of: Stored) -> str:
    lines = [
        [f"`{row['surrogate']}`", percent(row["root mean square"], 2), percent(row["largest"], 2)]
        for row in of.part("rounding")
    ]
    return table(["surrogate", "error, root mean square", "largest error / largest gradient"], lines)


BLOCKS: dict[str, Callable[[Stored], str]] = {
    function.__name__: function
    for function in (
        machine, link, time_plot, share_plot, memory_plot, headline, figure, speed, parity, floors, layers, networks,
        levels, calls, options, events, products, held, rounding,
    )
}  # fmt: skip
