"""Each program of the registry, compiled, does what its loop does, and ``explain`` says what becomes of it.

``random_programs.py`` draws others.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import snntorch
import torch
from programs import COLLECTED, LAZY, OLD, OTHERWISE, PROGRAMS, SILENT, ByHand, Entry

from benchmarks import collection

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("nothing_compiled")]
CPU, EMULATED, CUDA = (("cpu",), ("emulated", pytest.mark.emulated, pytest.mark.thorough), ("cuda", pytest.mark.gpu))


def cases() -> Iterator[Any]:
    for i, program in enumerate(PROGRAMS.values()):
        hand = program.net is ByHand
        # Dtypes in turns: what the kernels compute in each is in test_program.py.
        ways = [(("float32", "float64")[(i + j) % 2], True) for j in range(2)] if hand else [("float64", True)]
        ways += [("float64", False)] * (not hand)
        for j, (dtype, grad) in enumerate(ways):
            for device, *marks in (CPU, EMULATED, CUDA)[: 3 if hand else 1]:
                marks += [pytest.mark.needs_extension, *[pytest.mark.thorough] * (j > 0)]
                name = f"{program.name}-{dtype}-{device}" if hand else f"{program.name}-{grad}"
                yield pytest.param(program, dtype, grad, device, id=name, marks=marks)
    for program in COLLECTED.values():
        marks = [] if program.quick else [pytest.mark.thorough]
        yield pytest.param(program, "", True, "cpu", id=program.name, marks=[pytest.mark.needs_extension, *marks])


@pytest.mark.parametrize(("program", "dtype", "grad", "device"), list(cases()), indirect=["device"])
def test_a_compiled_program_does_what_its_loop_does_and_explain_says_how(
    program: Entry, dtype: str, grad: bool, device: torch.device, reports: list[Any]
) -> None:
    found, said = program.compare(dtype, grad, device, reports)
    assert found is None
    if OLD and program.name in PROGRAMS:
        words = [
            {word for word in ("unroll", "recurrence", "refused") if word in " ".join(s)} for s in (said, program.says)
        ]
        assert words[0] == words[1] or program.name in OTHERWISE
    elif grad:
        assert said == program.says


@pytest.mark.parametrize("program", collection.programs().values(), ids=collection.programs())
def test_every_layer_of_public_code_spikes_and_every_weight_has_a_gradient(program: Any) -> None:
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
