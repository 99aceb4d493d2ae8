"""The examples on snnTorch's tutorials: each runs on a tiny setting, without data and without the network."""

import gzip
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

import snnfast

datasets = pytest.importorskip("torchvision.datasets")
snntorch = pytest.importorskip("snntorch")
for package in ("matplotlib", "tqdm", "sklearn"):
    pytest.importorskip(package)

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if "\nif __name__ ==" in path.read_text())

Run = Callable[..., str]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], ModuleType]:
    """Import an example by name; it finds neither a data set nor the network."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SNNFAST_DATA", raising=False)
    for dataset in (datasets.MNIST, datasets.FashionMNIST):
        monkeypatch.setattr(dataset, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(import_module("data"), "_DEBIAN_FASHION", tmp_path / "no package")
    return import_module


@pytest.fixture
def run(example: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run an example; returns what it prints."""
    threads = torch.get_num_threads()

    def run(name: str, *args: str) -> str:
        # Networks this small are faster on one thread.
        assert example(name).main([*args, "--device", "cpu", "--threads", "1"]) == 0
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)


def losses_side_by_side(out: str) -> torch.Tensor:  # [iterations, 2]
    rows = re.findall(r"^ +\d+ +(\d+\.\d{8}) +(\d+\.\d{8})$", out, re.MULTILINE)
    return torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)


# ---- tutorial 5

TUTORIAL5 = ["--batch-size", "32", "--num-steps", "5"]
ROW = re.compile(r"^(minibatch \d+|minibatch 1, untrained|the same, after a step) +(\d.*)$", re.MULTILINE)


@pytest.fixture
def trainers(example: Callable[[str], ModuleType]) -> Callable[[str], object]:
    """A trainer of tutorial 5's network in one of its forms, always from the same weights and with the same images."""
    tutorial5, fused, data, common = map(example, ("tutorial5", "tutorial5_fused", "data", "common"))
    args = common.make_parser("", batch_size=32, num_steps=25, compare=3).parse_args([])
    digits = data.load(None, torch.device("cpu"))
    nets = {
        "loop": lambda: tutorial5.Net(args.num_steps),
        "snntorch": lambda: tutorial5.Net(args.num_steps, snntorch),
        "unrolled": lambda: fused.Net(args.num_steps),
    }
    return lambda name: tutorial5.Trainer(nets[name], digits, args)


def test_tutorial5_has_the_spikes_and_membranes_of_snntorch_to_the_bit(trainers: Callable[[str], object]) -> None:
    ours, theirs = trainers("loop"), trainers("snntorch")
    assert type(ours.net.lif1) is not type(theirs.net.lif1)
    (images, targets), (same_images, _) = next(ours.batches), next(theirs.batches)
    assert torch.equal(images, same_images)
    for a, b in zip(ours.net(images), theirs.net(images), strict=True):
        assert a.count_nonzero() > 0
        assert torch.equal(a, b)
    assert ours.train_on(images, targets) == theirs.train_on(images, targets)


def test_tutorial5_prints_what_snntorch_prints_and_a_loss_that_falls(run: Run) -> None:
    out = run("tutorial5", *TUTORIAL5, "--compare", "4", "--iterations", "2")
    assert "data: scikit-learn's digits" in out
    rows = [cells.split() for _, cells in ROW.findall(out)]
    assert len(rows) == 5
    assert [row[:2] for row in rows] == [row[2:4] for row in rows]
    assert [row[4:] for row in rows[:2]] == [["60.488", "10.16%"], ["47.384", "33.59%"]]
    assert float(rows[1][0]) < float(rows[0][0])
    assert re.search(r"^test accuracy \(rate code\): [01]\.\d{4}$", out, re.MULTILINE)


def test_tutorial5_learns_the_same_with_plain_snntorch(run: Run) -> None:
    ours = run("tutorial5", *TUTORIAL5, "--compare", "1", "--iterations", "3")
    theirs = run("tutorial5", *TUTORIAL5, "--compare", "1", "--iterations", "3", "--snntorch")
    assert "training with snnfast.snntorch" in ours
    assert "training with snntorch" in theirs
    last = re.compile(r"iteration 3 of 3: (loss [\d.]+, accuracy [\d.]+%)")
    assert last.search(ours)[1] == last.search(theirs)[1]


def test_tutorial5_compiled_has_the_losses_of_its_loop_to_rounding(run: Run) -> None:
    args = [*TUTORIAL5, "--compare", "3", "--iterations", "2", "--compile"]
    out = run("tutorial5", *args)
    assert "training with snnfast.compile" in out
    rows = [[float(loss) for loss in cells.split()[:6:2]] for _, cells in ROW.findall(out)]
    assert len(rows) == 4
    for _, theirs, compiled in rows:
        assert compiled == pytest.approx(theirs, abs=2e-3)
    last = re.search(r"iteration 2 of 2: loss ([\d.]+),", out)[1]
    assert float(last) == pytest.approx(rows[2][2], abs=2e-2)  # the second minibatch
    assert re.search(r"^test accuracy \(rate code\): [01]\.\d{4}$", out, re.MULTILINE)


def test_the_unrolled_tutorial5_has_the_losses_of_the_loop_to_rounding(trainers: Callable[[str], object]) -> None:
    loop, unrolled = trainers("loop").first(3), trainers("unrolled").first(3)
    assert [seen.loss for seen in unrolled] == pytest.approx([seen.loss for seen in loop], rel=1e-5)


def test_tutorial5_fused_shows_the_times_of_all(run: Run) -> None:
    out = run("tutorial5_fused", *TUTORIAL5, "--iterations", "2", "--rounds", "2")
    ms = r"[\d.]+ ms"
    assert re.search(
        rf"unrolled {ms}, compiled {ms}, loop {ms}, snntorch {ms}; unrolled is [\d.]+ times as fast as", out
    )
    for _, cells in ROW.findall(out):
        ours, compiled, loop, theirs = (float(cell) for cell in cells.split()[:8:2])
        assert loop == theirs
        assert compiled == pytest.approx(theirs, abs=2e-3)
        assert ours == pytest.approx(theirs, abs=2e-3)


# ---- the other tutorials: loop and unrolled


def test_the_convolutional_network_has_the_losses_of_the_loop(run: Run) -> None:
    args = ["--batch-size", "8", "--num-steps", "10", "--compare", "12", "--iterations", "12"]
    seen = losses_side_by_side(run("convolution", *args, "--double"))
    assert len(seen) == 12
    assert seen.unique().numel() > 2  # the network does spike
    torch.testing.assert_close(seen[:, 0], seen[:, 1], rtol=1e-6, atol=0)


def test_the_convolutional_network_learns(run: Run) -> None:
    args = ["--batch-size", "32", "--num-steps", "8", "--compare", "1", "--iterations", "40"]
    out = run("convolution", *args)
    found = [float(loss) for loss in re.findall(r"^iteration \d+ of 40: loss (\d\.\d+)$", out, re.MULTILINE)]
    assert len(found) == 4
    assert found[-1] < found[0]
    assert float(re.search(r"after 40 iterations: (\d\.\d+)", out)[1]) > 0.5


def test_the_regression_has_the_losses_of_the_loop_and_follows_the_curve(run: Run) -> None:
    out = run("regression", "--iterations", "60", "--compare", "5")
    seen = losses_side_by_side(out)
    torch.testing.assert_close(seen[:, 0], seen[:, 1], rtol=1e-4, atol=0)
    ends = re.findall(r"loss (\S+) in the first and (\S+) in iteration 60; relative error (\S+)$", out, re.MULTILINE)
    assert len(ends) == 2
    for first, last, error in ends:
        assert float(last) < 0.1 * float(first)
        assert float(error) < 0.3


def test_the_regression_learns_decays_and_thresholds_of_each_neuron(example: Callable[[str], ModuleType]) -> None:
    regression = example("regression")
    torch.manual_seed(0)
    ramp, curve = regression.make_curve("linear", 20)
    assert torch.equal(ramp, curve)
    net = regression.Net(16)
    torch.nn.functional.mse_loss(net.unroll(ramp), curve).backward()
    for lif in (net.lif1, net.lif2):
        for parameter in (lif.beta, lif.threshold):
            assert parameter.shape == (16,)
            assert parameter.grad.count_nonzero() > 0


def test_population_coding_has_the_losses_of_the_loop_and_the_better_accuracy(run: Run) -> None:
    out = run("population", "--compare", "8", "--epochs", "8", "--batch-size", "64")
    assert "Fashion-MNIST can't be downloaded" in out
    seen = losses_side_by_side(out)
    assert len(seen) == 2 * 8
    torch.testing.assert_close(seen[:, 0], seen[:, 1], rtol=1e-6, atol=0)
    assert seen[15, 0] < seen[8, 0]
    single, population = (float(a) for a in re.findall(r"^test accuracy .*: (\d\.\d{4}) ", out, re.MULTILINE))
    assert population > single


# ---- data and errors


def write_fashion(folder: Path, suffix: str, write: Callable[[bytes], bytes]) -> None:
    folder.mkdir(parents=True)
    for split, size in (("train", 20), ("t10k", 10)):
        labels = torch.arange(size) % 10
        images = torch.full((size, 28, 28), 255) * (labels[:, None, None] == 3)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">{1 + values.dim()}I", 0x800 + values.dim(), *values.shape)
            content = write(header + values.to(torch.uint8).numpy().tobytes())
            (folder / f"{split}-{kind}-ubyte{suffix}").write_bytes(content)


def test_fashion_mnist_is_found_in_each_place(
    example: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = example("data")
    write_fashion(tmp_path / "debian", ".gz", gzip.compress)
    write_fashion(tmp_path / "shared" / "FashionMNIST" / "raw", "", bytes)
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(data, "_DEBIAN_FASHION", tmp_path / "debian")

    def origin(path: str | None = None) -> str:
        found = data.load_fashion(path, torch.device("cpu"))
        assert found.name == "Fashion-MNIST"
        assert found.train_images.shape == (20, 784)
        assert torch.equal(found.test_images.mean(1), (found.test_labels == 3).float())
        return found.origin

    assert origin() == f"from {tmp_path / 'debian'}"
    assert origin(str(tmp_path / "shared")) == f"from {tmp_path / 'shared'}"
    monkeypatch.setenv("SNNFAST_DATA", str(tmp_path / "other"))
    assert origin() == f"from {tmp_path / 'debian'}"
    assert capsys.readouterr().out == f"no Fashion-MNIST in SNNFAST_DATA ({tmp_path / 'other'}); looking elsewhere\n"
    monkeypatch.setenv("SNNFAST_DATA", str(tmp_path / "shared"))
    assert origin() == f"from {tmp_path / 'shared'}"


def test_a_damaged_archive_is_one_line_and_exit_code_2(
    example: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_fashion(tmp_path / "debian", ".gz", lambda content: gzip.compress(content)[:30])
    monkeypatch.setattr(example("data"), "_DEBIAN_FASHION", tmp_path / "debian")
    assert example("population").main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "ubyte.gz is corrupt: " in line


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("tutorial5", ["--compile", "--snntorch"], "--snntorch: not allowed with argument --compile"),
        ("tutorial5", ["--data-path", "nowhere"], "no such folder: nowhere"),
        ("tutorial5_fused", ["--device", "abacus"], "--device abacus: "),
        ("convolution", ["--batch-size", "2000"], "--batch-size 2000 is more than the 1437 training images"),
        ("population", ["--data-path", "."], "no Fashion-MNIST in ."),
        ("population", ["--data-path", ""], "--data-path: expected a folder"),
        ("regression", ["--iterations", "9" * 23], "--iterations: expected an integer from 1 to 2147483647"),
        ("regression", ["--num-steps", "1"], "--num-steps: expected an integer from 2 to 2147483647, got '1'"),
        ("regression", ["--device", "meta"], "--device meta: "),
        ("convolution", ["--seed", "9" * 23], "--seed: expected an integer from "),
        ("tutorial5", ["--threads", "0"], "--threads: expected an integer from 1 to 1024"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(
    example: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
    name: str,
    args: list[str],
    message: str,
) -> None:
    try:
        code = example(name).main(args)
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def start_with(torch_module: str, name: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run an example for which importing torch, and whatever else is slow, does something else."""
    for module in ("torch", "snntorch"):
        (tmp_path / f"{module}.py").write_text(torch_module)
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    return subprocess.run(
        command,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        # A job in the background of a shell ignores Ctrl-C, and its children would as well.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_example_takes_the_options_of_a_run(
    example: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    if name == "lightning_mnist":
        pytest.importorskip("lightning", reason="lightning is not installed")
    with pytest.raises(SystemExit, match=r"^0$"):
        example(name).main(["--help"])
    out = capsys.readouterr().out
    for option in ("seed", "device", "threads", "backend"):
        assert re.search(rf"^  --{option} ", out, re.MULTILINE)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_example_is_run_by_a_test(name: str) -> None:
    calls = re.compile(rf'\brun\("{name}", |import_module\("{name}"\)\.?main')
    assert any(calls.search(path.read_text()) for path in Path(__file__).parent.glob("test_*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_ctrl_c_during_the_imports_is_one_line(name: str, tmp_path: Path) -> None:
    # As C++ code does that takes the exception for a failed import of its own.
    swallow = "import signal\ntry: signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt: pass\n"
    process = start_with(swallow, name, tmp_path)
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_missing_package_is_one_line(name: str, tmp_path: Path) -> None:
    process = start_with("import no_such_package", name, tmp_path)
    assert process.returncode == 1
    assert process.stderr == "error: no_such_package is not installed: pip install no_such_package\n"


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "mnist"])
def test_ctrl_c_while_it_runs_is_one_line(
    example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    if name == "lightning_mnist":
        pytest.importorskip("lightning", reason="lightning is not installed")

    def ctrl_c(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(example(name), "run", ctrl_c)
    assert example(name).main(["--device", "cpu"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def too_large_for_torch(*_: object) -> None:
    torch.empty(2**60)


def too_large_for_the_kernels(*_: object) -> None:
    snnfast.functional.lif(torch.zeros(1), beta=0.5, num_steps=2**50)


@pytest.mark.parametrize(
    "run", [too_large_for_torch, pytest.param(too_large_for_the_kernels, marks=pytest.mark.needs_extension)]
)
def test_a_lack_of_memory_is_one_line_with_the_options_to_lower(
    example: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    run: Callable[..., None],
) -> None:
    monkeypatch.setattr(example("tutorial5"), "run", run)
    assert example("tutorial5").main(["--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"error: not enough memory( for \d+ bytes)?; lower --batch-size, --num-steps", line)


def test_an_error_that_is_not_about_memory_is_not_taken_for_one(
    example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example("tutorial5"), "run", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        example("tutorial5").main(["--device", "cpu"])


def test_a_full_disk_under_the_output_is_one_line(
    example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert example("regression").main(["--device", "cpu"]) == 2
    # Closing it, as Python does at exit, has not complained again.
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"
