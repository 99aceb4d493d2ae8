"""Programs after public code, compiled: each does what its loop does, and this much of it is merged.

``random_programs.py`` draws others.
"""

import re
from typing import Any

import pytest
import torch
from helpers import THOROUGH

pytest.importorskip("snntorch")

import snntorch

from benchmarks import collection

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("nothing_compiled")]
PROGRAMS = collection.programs()
SILENT = {"price": ["lif3"], "autoencoder": ["l4"]}  # their membranes are the output
# snnTorch's SLSTM starts every step from zeros where its input has another size than its states.
LAZY = {"muscles": ["slstm1.lstm_cell.weight_hh"], "hybrid": ["slstm.lstm_cell.weight_hh"]}
QUICK = {"static-image", "recurrent-student", "gestures", "spike-counts", "straight-through", "squashed", "stream",
         "lif-with-soft-reset", "refractory", "alpha-function", "recurrent-gradients", "recurrent-convolution",
         "recurrent-unbatched", "recurrent-by-hand", "delayed", "temporal-efficient"}  # fmt: skip
# What becomes of the layers: elsewhere an unroll, and no call is left to be repeated.
OUTCOMES = {
    "deep-gestures": "unroll", "spike-counts": "unroll", "prints": "unroll", "cell": "unroll", "muscles": "recurrence",
    **dict.fromkeys(("hybrid", "edges", "inhibition", "custom-surrogate", "own-function", "own-function-on-images",
                     "squashed", "masked", "bounded", "leaky-with-feedback"), "unroll recurrence"),
    **dict.fromkeys(("spatio-temporal", "temporal-efficient", "recurrent-by-hand", "recurrent-adaptive"), "recurrence"),
    **dict.fromkeys(("early-exit", "episodes", "loop-outside", "stream"), "steps"),
    **{name: "recurrence" for name, p in PROGRAMS.items() if p.kind == "neurons"},
}  # fmt: skip


@pytest.mark.parametrize(
    "program", [pytest.param(p, id=n, marks=[] if n in QUICK else pytest.mark.thorough) for n, p in PROGRAMS.items()]
)
def test_a_compiled_program_does_what_its_loop_does(program: Any, reports: list[Any]) -> None:
    assert list(collection.differences(program, 4, 3, calls=3 if THOROUGH else 2)) == []
    merged, repeated = (" ".join(line for r in reports for line in getattr(r, of)) for of in ("merged", "repeated"))
    words = [word for word in ("unroll", "recurrence") if f"one {word}" in merged]
    words += ["steps"] * bool(re.search(r"\d steps? of ", repeated))
    assert " ".join(words) == OUTCOMES.get(program.name, "unroll")
    assert not repeated or program.name in OUTCOMES


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_every_layer_spikes_and_every_weight_has_a_gradient(program: Any) -> None:
    net, train = collection.built(program, "snnTorch, loop")
    spikes: dict[str, list[torch.Tensor]] = {}

    def look(name: str, output: Any) -> None:
        spikes.setdefault(name, []).append(output[0] if isinstance(output, tuple) else output)

    for name, layer in net.named_modules():
        if isinstance(layer, snntorch.SpikingNeuron):
            layer.register_forward_hook(lambda module, given, output, name=name: look(name, output))
    with collection.silence():
        collection.loss_of(train(*program.inputs(min(program.T, 8), 4))).backward()
    silent = [name for name, spk in spikes.items() if not 0 < torch.stack(spk).double().mean() < 1]
    lazy = [name for name, p in net.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.any())]
    assert silent == SILENT.get(program.name, [])
    assert lazy == LAZY.get(program.name, [])
