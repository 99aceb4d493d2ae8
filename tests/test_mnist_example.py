"""The MNIST example: what it leaves behind, how it fails, and what an interruption keeps. Never uses the network."""

import os
import re
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.client import BadStatusLine
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

datasets = pytest.importorskip("torchvision.datasets")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

SCRIPT = Path(__file__).parent.parent / "examples" / "mnist.py"
SMALL = ["--device", "cpu", "--no-timing", "--hidden", "30", "--num-steps", "5", "--batch-size", "16"]

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run the example inside this process (importing torch anew takes seconds), offline and in an empty folder."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SNNFAST_DATA", raising=False)
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    main = import_module("mnist").main

    def run(*args: str) -> int:
        try:
            return main(args)
        except SystemExit as exit_:
            return exit_.code

    return run


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Error downloading it:\nTried a mirror, got:\nno route to it"), "no route to it"),
        (TimeoutError(), "TimeoutError"),
        (BadStatusLine("<html>"), "<html>"),
    ],
    ids=["no network", "timeout", "no answer of HTTP"],
)
def test_the_small_set_takes_the_place_of_a_download_that_fails(
    run: Run, error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: object) -> None:
        raise error

    monkeypatch.setattr(datasets.MNIST, "download", fail)
    assert run(*SMALL, "--epochs", "1") == 0
    assert f"MNIST can't be downloaded ({reason}); going on with the small digits set" in capsys.readouterr().out


def write_idx(path: Path, values: torch.Tensor) -> None:
    header = struct.pack(f">{1 + values.dim()}I", 0x800 + values.dim(), *values.shape)
    path.write_bytes(header + values.to(torch.uint8).numpy().tobytes())


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A folder laid out as torchvision stores MNIST, with a few images: a bright bar whose place tells the class."""
    raw = tmp_path / "dataset" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, size in (("train", 160), ("t10k", 40)):
        labels = torch.arange(size) % 10
        images = torch.zeros(size, 28, 28)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[2 * label : 2 * label + 3] = 255
        write_idx(raw / f"{split}-images-idx3-ubyte", images)
        write_idx(raw / f"{split}-labels-idx1-ubyte", labels)
    return tmp_path / "dataset"


def test_training_on_a_folder_prints_the_accuracy_and_saves_weights_and_figures(
    run: Run, mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--data-path", str(mnist), *SMALL, "--epochs", "2", "--output", "out/here") == 0
    out = capsys.readouterr().out
    assert re.findall(r"^test accuracy \((\w+) code\): [01]\.\d{4} \(\d+ of 40\);", out, re.MULTILINE) == [
        "rate",
        "latency",
    ]
    for name in ("training.png", "raster.png"):
        assert f"saved {Path('out/here') / name}" in out
        assert (tmp_path / "out/here" / name).read_bytes().startswith(b"\x89PNG")
    weights = torch.load(tmp_path / "out/here/model.pt")
    assert weights["0.weight"].shape == (30, 784)
    assert weights["2.weight"].shape == (10, 30)


def test_both_codes_read_the_same_output_spikes(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    spk_rec = torch.zeros(5, 4, 10)
    spk_rec[2:, :, 7] = 1  # most spikes
    spk_rec[1, :3, 4] = 1  # the first spike
    import_module("mnist").decode(spk_rec, torch.tensor([7, 4, 4, 7]))
    out = capsys.readouterr().out
    assert "test accuracy (rate code): 0.5000 (2 of 4)" in out
    assert "test accuracy (latency code): 0.7500 (3 of 4)" in out


def test_the_latency_code_can_be_trained(run: Run, mnist: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--data-path", str(mnist), *SMALL, "--epochs", "20", "--code", "latency") == 0
    (accuracy,) = re.findall(r"^test accuracy \(latency code\): (\S+)", capsys.readouterr().out, re.MULTILINE)
    assert float(accuracy) > 0.9


def test_the_timing_shows_the_same_first_loss_for_every_implementation(
    run: Run, mnist: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(import_module("timing"), "_SECONDS", 0.0)
    args = [arg for arg in SMALL if arg != "--no-timing"]
    assert run("--data-path", str(mnist), *args, "--epochs", "1") == 0
    rows = re.findall(r"^(snn[^,]+, .+?) +[\d.]+ +[\d.]+x +([\d.]+)$", capsys.readouterr().out, re.MULTILINE)
    names = {"snnfast, reference loop"}
    if find_spec("snntorch") is not None:
        names |= {"snnTorch, snnfast.compile", "snnTorch, tutorial 5"}
    assert names <= dict(rows).keys()
    assert len({loss for _, loss in rows}) == 1


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    run: Run, mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNNFAST_DATA", str(mnist))  # in place of --data-path

    def train(name: str, seed: int) -> torch.Tensor:
        assert run(*SMALL, "--epochs", "1", "--limit", "48", "--seed", str(seed), "--output", name) == 0
        return torch.load(tmp_path / name / "model.pt")["0.weight"]

    first, again, other = train("a", 1), train("b", 1), train("c", 2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_offline_without_a_folder_it_trains_on_the_bundled_digits_and_says_so(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    assert run(*SMALL, "--epochs", "1", "--limit", "64") == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^MNIST can't be downloaded", out, re.MULTILINE)) == 1
    assert "data: scikit-learn's digits" in out
    assert "test accuracy" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data-path", "nowhere"], "no such folder: nowhere"),
        (["--data-path", ""], "--data-path: expected a folder"),
        (["--device", "abacus"], "--device abacus: "),
        (["--device", "meta"], "--device meta: "),
        (["--device", ""], "--device : "),
        (["--output", "taken"], "--output taken: nothing can be saved there: "),
        (["--output", "taken/inside"], "--output taken/inside: nothing can be saved there: "),
        (["--output", "full"], "full/model.pt"),
        (["--output", ""], "--output: expected a folder"),
        (["--seed", "9" * 23], "--seed: expected an integer from "),
        (["--threads", "9" * 11], "--threads: expected an integer from 1 to 1024"),
        (["--hidden", "1" + "0" * 10], "--hidden: expected an integer from 1 to 2147483647"),
        (["--num-steps", "9" * 26], "--num-steps: expected an integer from 1 to 2147483647"),
        (["--batch-size", "0"], "--batch-size: expected an integer from 1 "),
        (["--batch-size", "2000000000", *SMALL[:3]], "--batch-size 2000000000 is more than the 1437 training images"),
        (["--epochs", "0"], "--epochs: expected an integer from 1 "),
        (["--limit", "1.5"], "--limit: expected an integer from 1 "),
        (["--lr", "nan"], "--lr: expected a positive number"),
        (["--lr", "inf"], "--lr: expected a positive number"),
        (["--lr", "-1"], "--lr: expected a positive number"),
        (["--beta", "nan"], "--beta: expected a number from 0 to 1"),
        (["--abacus"], "--abacus"),
    ],
    ids=lambda value: "=".join(value)[:30] if isinstance(value, list) else "",
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    (tmp_path / "full" / "model.pt").mkdir(parents=True)
    assert run(*args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize("damage", ["truncated images", "empty labels", "labels out of range", "file missing"])
def test_a_damaged_dataset_is_one_line_and_exit_code_2(
    run: Run, mnist: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    raw = mnist / "MNIST" / "raw"
    images, labels = raw / "train-images-idx3-ubyte", raw / "train-labels-idx1-ubyte"
    if damage == "truncated images":
        images.write_bytes(images.read_bytes()[:1000])
    elif damage == "empty labels":
        labels.write_bytes(b"")
    elif damage == "labels out of range":
        write_idx(labels, torch.full((160,), 200))
    else:
        images.unlink()
    assert run("--data-path", str(mnist)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert str(mnist) in line
    assert ("corrupt" in line) == (damage != "file missing")


def test_help_mentions_every_option(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    listed = re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.MULTILINE)
    shared = {"--data-path", "--seed", "--device", "--threads", "--backend"}
    assert set(listed) == shared | set(re.findall(r'"(--[a-z-]+)"', SCRIPT.read_text()))


def test_ctrl_c_keeps_what_was_learned(mnist: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--data-path", str(mnist), *SMALL, "--epochs", "1000000"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # A job in the background of a shell ignores Ctrl-C, and its children would as well.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("epoch 3/"):
                    break
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "test accuracy" in rest
    assert (tmp_path / "figures" / "training.png").exists()
    assert torch.load(tmp_path / "figures" / "model.pt")["0.weight"].shape == (30, 784)


# ---- what an earlier run has left stays until there is something better


@pytest.fixture
def earlier(run: Run, mnist: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with the model and the figures of an earlier run, which the next run would replace."""
    monkeypatch.setenv("SNNFAST_DATA", str(mnist))
    assert run(*SMALL, "--epochs", "1") == 0
    capsys.readouterr()
    return Path("figures")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def full_disk() -> Iterator[Callable[[], None]]:
    """From its call on no file can grow beyond 20 kB, as on a disk that fills up in the middle of one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def after(step: str, then: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let something happen when a function of the example has done its work."""
    function = getattr(import_module("mnist"), step)

    def both(*args: object) -> object:
        result = function(*args)
        then()
        return result

    monkeypatch.setattr(import_module("mnist"), step, both)


def test_a_folder_without_room_for_the_model_is_an_error_before_training(
    run: Run, earlier: Path, full_disk: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(earlier)
    full_disk()
    assert run(*SMALL, "--seed", "1") == 2
    out, err = capsys.readouterr()
    assert "epoch" not in out
    (line,) = err.splitlines()
    assert line.startswith("error: --output figures: nothing can be saved there: [Errno 27] File too large: 'figures/")
    assert contents(earlier) == before


@pytest.mark.parametrize("cause", ["disk", "PyTorch"])
def test_a_save_that_fails_leaves_the_earlier_model_and_still_tells_the_accuracy(
    run: Run,
    earlier: Path,
    full_disk: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cause: str,
) -> None:
    def break_pytorch() -> None:
        def save(*args: object) -> None:
            raise RuntimeError("unexpected pos 64 vs 0")

        monkeypatch.setattr(torch, "save", save)

    before = contents(earlier)
    after("fit", full_disk if cause == "disk" else break_pytorch, monkeypatch)
    assert run(*SMALL, "--seed", "1", "--epochs", "1") == 2
    out, err = capsys.readouterr()
    assert "test accuracy (rate code): " in out
    assert "saved" not in out
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    reason = "[Errno 27] File too large: 'figures/model.pt'" if cause == "disk" else "unexpected pos 64 vs 0"
    assert f"the weights can't be saved and are lost: {reason}; " in line
    assert "Traceback" not in err
    assert contents(earlier) == before


def test_a_figure_that_cannot_be_saved_leaves_the_earlier_one_and_the_new_model(
    run: Run,
    earlier: Path,
    full_disk: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(earlier)
    after("decode", full_disk, monkeypatch)
    assert run(*SMALL, "--seed", "1", "--epochs", "1") == 2
    out, err = capsys.readouterr()
    assert re.findall("^saved (.+)$", out, re.MULTILINE) == ["figures/model.pt"]
    assert err.endswith("error: [Errno 27] File too large: 'figures/training.png'\n")
    now = contents(earlier)
    assert now.pop("model.pt") != before.pop("model.pt")
    assert now == before


@pytest.mark.parametrize("moment", ["in the middle of the save", "before anything was learned"])
def test_ctrl_c_leaves_the_earlier_model(
    run: Run, earlier: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], moment: str
) -> None:
    def ctrl_c(*_: object) -> None:
        raise KeyboardInterrupt

    before = contents(earlier)
    if moment == "in the middle of the save":
        after("fit", lambda: monkeypatch.setattr(os, "fsync", ctrl_c), monkeypatch)
    else:
        monkeypatch.setattr(import_module("mnist"), "make_trainer", lambda *_: ctrl_c)
    assert run(*SMALL, "--seed", "1", "--epochs", "1") == 130
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == "interrupted"
    assert "saved" not in out
    assert contents(earlier) == before


def test_a_process_killed_while_it_writes_leaves_the_earlier_file(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"earlier")
    code = (
        "import os, signal; from pathlib import Path; from files import write_whole;"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL); write_whole(Path('model.pt'), b'new')"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(SCRIPT.parent)})
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "model.pt").read_bytes() == b"earlier"


def test_a_model_that_is_a_link_stays_one(run: Run, earlier: Path, tmp_path: Path) -> None:
    model = earlier / "model.pt"
    model.rename(tmp_path / "elsewhere.pt")
    model.symlink_to(tmp_path / "elsewhere.pt")
    before = model.read_bytes()
    assert run(*SMALL, "--seed", "1", "--epochs", "1") == 0
    assert model.is_symlink()
    assert (tmp_path / "elsewhere.pt").read_bytes() == model.read_bytes() != before
