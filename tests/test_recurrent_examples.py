"""The examples on recurrent layers: spoken digits as spikes, and a memory task."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_examples import Run, example, losses_side_by_side, run  # noqa: F401 - fixtures

Example = Callable[[str], ModuleType]

PNG = b"\x89PNG"

# ---- spoken digits


@pytest.fixture
def shd(example: Example) -> Iterator[ModuleType]:  # noqa: F811
    threads = torch.get_num_threads()
    yield example("shd")
    torch.set_num_threads(threads)


def test_the_words_are_learned_and_spike_counts_do_not_tell_them(run: Run, tmp_path: Path) -> None:  # noqa: F811
    out = run("shd", "--quick")
    assert "400 recordings to train on and 200 to test on" in out
    counts = float(re.search(r"^linear readout of spike counts: test accuracy (\S+)$", out, re.MULTILINE)[1])
    found = [float(a) for a in re.findall(r"^epoch \d of 5: loss \S+, test accuracy (\S+), \S+ s$", out, re.MULTILINE)]
    assert len(found) == 5
    assert 0.2 < counts < 0.6  # of the two words of a pair
    assert found[-1] > counts  # of twenty words
    assert "saved figures/shd.png" in out
    assert (tmp_path / "figures/shd.png").read_bytes().startswith(PNG)


def test_the_words_are_learned_beside_snntorchs_layers_with_the_same_losses(run: Run) -> None:  # noqa: F811
    out = run("shd", "--samples", "64", "--num-steps", "20", "--hidden", "30", "--epochs", "1", "--compare", "3")
    seen = losses_side_by_side(out)
    assert len(seen) == 3
    assert seen.unique().numel() > 2
    torch.testing.assert_close(seen[:, 0], seen[:, 1], rtol=1e-4, atol=0)
    assert re.search(r"snnfast [\d.]+ ms, snnTorch [\d.]+ ms; snnfast is [\d.]+ times as fast as snnTorch", out)


def test_every_second_word_is_the_one_before_it_backwards(shd: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOISE", "TEMPO", "SHIFT", "LOUDNESS", "WOBBLE"):
        monkeypatch.setattr(shd, name, 0)
    generator = torch.Generator().manual_seed(0)
    forwards, backwards = shd.make_words(generator)[:2]
    device = torch.device("cpu")
    spikes = [shd.speak(word, 100, generator) for word in [forwards] * 50 + [backwards] * 50]
    x = shd.Recordings(spikes, torch.zeros(100)).frames(torch.arange(100), 100, device)
    assert x.shape == (100, 100, shd.CHANNELS)
    assert x.unique().tolist() == [0, 1]
    # Rates [T, 35], of twenty channels together.
    first, second = (part.mean(1).unflatten(1, (35, 20)).mean(2) for part in x.split(50, 1))
    assert (first - second).abs().mean() > 0.5 * first.mean()
    assert (first - second.flip(0)).abs().mean() < 0.1 * first.mean()
    assert (first.sum(0) - second.sum(0)).abs().mean() < 0.02 * first.sum(0).mean()


def write_shd(path: Path, times: list[list[float]], units: list[list[int]], labels: list[int]) -> None:
    """As the data set's authors publish it."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    np = pytest.importorskip("numpy")
    with h5py.File(path, "w") as file:
        for name, rows, dtype in (("times", times, "float16"), ("units", units, "uint16")):
            values = file.create_dataset(f"spikes/{name}", (len(rows),), dtype=h5py.vlen_dtype(np.dtype(dtype)))
            for i, row in enumerate(rows):
                values[i] = np.array(row, dtype=dtype)
        file["labels"] = np.array(labels, dtype="uint16")


def test_real_recordings_are_binned_by_time_and_channel(shd: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "shd_train.h5"
    write_shd(path, [[0.0, 0.7, 0.7, 1.5], [1.39]], [[0, 3, 3, 5], [699]], [7, 19])
    recordings = shd.read(path, 100)
    x = recordings.frames(torch.arange(2), 100, torch.device("cpu"))
    assert recordings.words.tolist() == [7, 19]
    assert x.nonzero().tolist() == [[0, 0, 0], [50, 0, 3], [99, 1, 699]]  # the one after 1.4 s is left out
    assert recordings.counts().nonzero().tolist() == [[0, 0], [0, 3], [1, 699]]


def test_real_recordings_are_trained_on(run: Run, tmp_path: Path) -> None:  # noqa: F811
    for split, size in (("train", 24), ("test", 20)):
        words = [i % 20 for i in range(size)]
        times = [[0.1, 0.5, 0.9] for _ in words]
        write_shd(tmp_path / f"shd_{split}.h5", times, [[20 * word + 1] * 3 for word in words], words)
    out = run("shd", "--data", str(tmp_path), "--batch-size", "8", "--hidden", "20", "--epochs", "1")
    assert "24 recordings to train on and 20 to test on, 3 spikes in each, read in" in out
    assert re.search(r"^epoch 1 of 1: loss \d", out, re.MULTILINE)


def failing(shd: ModuleType, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert shd.main([*args, "--device", "cpu", "--threads", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_recordings_that_are_missing_or_corrupt_are_one_line(
    shd: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("h5py", reason="h5py is not installed")
    data = ["--data", str(tmp_path)]
    assert f"--data: no shd_train.h5 in {tmp_path}" in failing(shd, capsys, *data)
    path = tmp_path / "shd_train.h5"
    path.write_bytes(b"no HDF5")
    assert f"--data: {path} is corrupt: " in failing(shd, capsys, *data)
    write_shd(path, [[0.5]], [[1]], [20])
    assert f"--data: {path} is corrupt: its labels don't fit its spikes" in failing(shd, capsys, *data)
    write_shd(path, [[0.5], [0.6]], [[1], [2]], [3])
    assert f"--data: {path} is corrupt: its labels don't fit its spikes" in failing(shd, capsys, *data)


def test_a_package_that_an_option_needs_is_named(
    shd: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("h5py", "snntorch"):
        monkeypatch.setitem(sys.modules, package, None)
    assert "pip install h5py" in failing(shd, capsys, "--data", str(tmp_path))
    assert "--compare needs snnTorch: pip install snntorch" in failing(shd, capsys, "--samples", "64", "--compare")


def test_too_few_recordings_and_no_place_for_the_figure_are_one_line(
    shd: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--batch-size 64 is more than the 20 training recordings" in failing(shd, capsys, "--samples", "20")
    (tmp_path / "file").touch()
    assert "File exists: 'file'" in failing(shd, capsys, "--output", "file")


def test_options_that_are_given_hold_in_the_quick_mode(shd: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(shd, "run_main", lambda _, args: seen.append(args) or 0)
    for argv in ([], ["--quick"], ["--epochs", "9", "--quick"]):
        shd.main(argv)
    assert [(args.epochs, args.samples) for args in seen] == [(8, None), (5, 400), (9, 400)]


# ---- memory


def test_only_connected_neurons_remember_and_in_their_states(run: Run, tmp_path: Path) -> None:  # noqa: F811
    out = run("memory", "--quick")
    found = re.findall(r"^epoch \d of 3: connected (\S+)%, unconnected (\S+)%; \S+ s$", out, re.MULTILINE)
    assert len(found) == 3
    connected, unconnected = map(float, found[-1])
    assert connected > 90  # chance is 50
    assert connected > unconnected
    kept, wiped = (float(a) for a in re.findall(r"^states \w+ in the delay: (\S+)%$", out, re.MULTILINE))
    assert kept == connected
    assert wiped < 65
    assert (tmp_path / "figures/memory.png").read_bytes().startswith(PNG)


def test_a_trial_shows_two_patterns_and_nothing_between_them(
    example: Example,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = example("memory")
    monkeypatch.setattr(memory, "QUIET", 0.0)
    monkeypatch.setattr(memory, "BUSY", 1.0)
    x, same = memory.make_trials(200, 10, torch.Generator().manual_seed(0))
    assert x.shape == (6 + 10 + 6 + 4, 200, 40)
    first, delay, second, answer = x.unflatten(2, (4, 10)).mean(3).split([6, 10, 6, 4])
    assert not delay.any()
    assert not answer.any()
    for shown in (first, second):
        assert torch.equal(shown, shown[:1].expand_as(shown))
        assert torch.equal(shown.sum(2), torch.ones(6, 200))
    assert torch.equal(first[0].argmax(1) == second[0].argmax(1), same == 1)
    assert same.float().mean() == 0.5
