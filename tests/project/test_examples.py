"""The examples: each trains, on a small setting and without a download. ``test_mnist_example.py`` has the demo."""

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import skip_unless_required

pytestmark = pytest.mark.thorough

EXAMPLES = Path(__file__).parents[2] / "examples"
Run = Callable[..., str]

ACCURACY = r"test accuracy.*: (\S+)$"
DIGITS = {"NUM_STEPS": 5}
SMALL_CONVOLUTION = {"BATCH_SIZE": 32, "NUM_STEPS": 8}
SMALL_EVENTS = {"SIDE": 12, "NUM_STEPS": 8}

# Name, arguments, constants; what is printed last, and between which bounds it is when the example works.
TRAINED = [
    ("tutorial5", ["--epochs", "4"], DIGITS, {ACCURACY: (0.7, 1)}),
    ("convolution", ["--iterations", "40"], SMALL_CONVOLUTION, {ACCURACY: (0.4, 1)}),  # chance is one in ten
    ("regression", ["--iterations", "100"], {}, {r"largest distance from the curve: (\S+)$": (0, 0.3)}),
    ("population", ["--epochs", "8"], {"BATCH_SIZE": 64},
     {r"test accuracy: (\S+) with one": (0.3, 0.9), r"(\S+) with fifty": (0.8, 1)}),
    ("events", ["--iterations", "100"], SMALL_EVENTS, {ACCURACY: (0.5, 1)}),  # chance is one in eight
    ("stream", ["--chunks", "40"], {"NUM_STEPS": 20, "HIDDEN": 60, "MEASURED": 120},
     {r"inference: (\S+)%": (50, 100), r"difference from all steps at once: (\S+)$": (0, 1e-4)}),
    ("shd", ["--samples", "400", "--epochs", "5"], {"NUM_STEPS": 50, "HIDDEN": 64}, {r"accuracy (\S+),": (0.5, 1)}),
    ("memory", ["--delay", "15", "--epochs", "3"], {"HIDDEN": 50},
     {r"kept in .* accuracy (\S+)$": (0.9, 1), r"wiped in .* accuracy (\S+)$": (0, 0.65)}),  # chance is a half
    ("adaptive", ["--iterations", "60"], {"PAUSE": 30}, {r"accuracy after a pause.*: (\S+)$": (0.9, 1)}),
    ("lightning_mnist", ["--epochs", "4", "--accelerator", "cpu"], DIGITS, {ACCURACY: (0.7, 1)}),
    ("spikformer", ["--epochs", "4"], {"DIM": 32}, {ACCURACY: (0.4, 1)}),
    ("sew_resnet", ["--epochs", "2"], {"DIM": 8}, {ACCURACY: (0.4, 1)}),
    ("scaling", ["--neurons", "1e6"], {"SIZE": 4096, "WIDTH": 64, "REPEATS": 1},
     {r"(\S+) bytes held$": (4, 4.3)}),  # the current, and a membrane every 16 steps
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # Lightning's
@pytest.mark.parametrize(("name", "args", "constants", "bounds"), TRAINED, ids=[name for name, *_ in TRAINED])
def test_an_example_trains(
    run_example: Run, name: str, args: list[str], constants: dict[str, int], bounds: dict[str, tuple[float, float]]
) -> None:
    if name == "lightning_mnist":
        pytest.importorskip("lightning", reason="lightning is not installed")
    out = run_example(name, *args, **constants)
    for printed, (low, high) in bounds.items():
        found = re.findall(printed, out, re.MULTILINE)
        assert found, out
        assert low <= float(found[-1]) <= high, out


@pytest.mark.parametrize(("name", "width"), [("spikformer", 16), ("sew_resnet", 4)])
def test_spikingjellys_nodes_give_the_same_losses(run_example: Run, name: str, width: int) -> None:
    pytest.importorskip("spikingjelly", reason="SpikingJelly 2.0.0 is not installed")
    outs = [run_example(name, "--double", "--epochs", "1", *more, DIM=width) for more in ([], ["--spikingjelly"])]
    losses = [re.findall(r"last loss (\S+),", out) for out in outs]
    assert losses[0]
    assert losses[0] == losses[1]


def test_every_example_is_run_by_a_test() -> None:
    elsewhere = {"data", "mnist", "mnist_distributed", "cuda_graph"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {name for name, *_ in TRAINED} | elsewhere


@pytest.mark.parametrize(
    ("name", "args", "constants", "first", "second", "rtol"),
    [
        ("tutorial5", ["--epochs", "1"], DIGITS, [], ["--snntorch"], 0),
        ("tutorial5", ["--epochs", "1"], DIGITS, ["--compile"], ["--snntorch"], 1e-4),
        ("convolution", ["--iterations", "10", "--double"], SMALL_CONVOLUTION, [], ["--loop"], 1e-6),
        ("regression", ["--iterations", "3"], {}, [], ["--loop"], 1e-4),
        ("events", ["--iterations", "3"], SMALL_EVENTS, [], ["--loop"], 1e-4),
    ],
    ids=["tutorial5", "tutorial5-compile", "convolution", "regression", "events"],
)
def test_two_ways_to_compute_an_example_have_the_same_losses(
    run_example: Run, name: str, args: list[str], constants: dict[str, int], first: list[str], second: list[str],
    rtol: float,
) -> None:  # fmt: skip
    losses = [
        [float(loss) for loss in re.findall(r"^iteration \d+: loss (\S+),", out, re.MULTILINE)]
        for out in (run_example(name, *args, *way, **constants) for way in (first, second))
    ]
    assert len(set(losses[0])) > 1
    assert losses[0] == pytest.approx(losses[1], rel=rtol, abs=0)


def test_real_recordings_are_binned_by_time_and_channel(run_example: Run, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    rows = [([0.0, 0.7, 0.7, 1.5], [0, 3, 3, 5]), ([1.39], [699])]  # times in seconds, channels
    for split in ("train", "test"):
        with h5py.File(tmp_path / f"shd_{split}.h5", "w") as file:  # as the data set's authors publish it
            times = file.create_dataset("spikes/times", (2,), dtype=h5py.vlen_dtype(np.dtype("float16")))
            units = file.create_dataset("spikes/units", (2,), dtype=h5py.vlen_dtype(np.dtype("uint16")))
            for i, (when, which) in enumerate(rows):
                times[i], units[i] = np.array(when, "float16"), np.array(which, "uint16")
            file["labels"] = np.array([7, 19], "uint16")
    x, words = import_module("shd").read(tmp_path / "shd_train.h5").batch(torch.arange(2), "cpu")
    assert words.tolist() == [7, 19]
    assert x.nonzero().tolist() == [[0, 0, 0], [50, 0, 3], [99, 1, 699]]  # the one after 1.4 s is left out
    out = run_example("shd", "--data", str(tmp_path), "--epochs", "60", HIDDEN=20)
    losses = [float(loss) for loss in re.findall(r"loss (\S+),", out)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.gpu
def test_replays_of_a_cuda_graph_train_as_eager_steps(run_example: Run) -> None:
    if torch.cuda.device_count() == 0:
        skip_unless_required("torch sees no CUDA device", "SNNFAST_REQUIRE_GPU")
    outs = [run_example("cuda_graph", "--epochs", "1", *eager) for eager in ([], ["--eager"])]
    graph, eager = (float(re.search(r"last loss (\S+),", out)[1]) for out in outs)
    assert graph == pytest.approx(eager, rel=1e-3)
