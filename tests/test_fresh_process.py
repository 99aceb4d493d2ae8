"""What was saved in one process is loaded in another, which has imported nothing yet."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import snntorch
import torch
from torch import nn

import snnfast.snntorch as snn

Run = Callable[..., str]

NEURONS = """
import snntorch

class Labelled(snntorch.Leaky):
    label = "mine"
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs Python code in a process of its own, in a folder of its own; ``arguments`` are its ``sys.argv[1:]``."""

    def run(code: str, *arguments: object) -> str:
        path = f"import sys; sys.path[:0] = [{str(Path(snn.__file__).parents[1])!r}, {str(tmp_path)!r}]\n"
        command = [sys.executable, "-c", path + code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.mark.parametrize(
    "statement",
    [
        "import snnfast._convert",
        "import snnfast._snntorch_layers",
        "import snnfast.snntorch",
        "import snnfast; snnfast.snntorch.Leaky",
        "from snnfast import snntorch",
        "import snnfast.snntorch.functional.probe",
        "from snnfast.snntorch.functional import quant",
        "import snnfast.snntorch.spikegen as spikegen",
        "from snnfast._convert import Report",
    ],
)
def test_every_module_can_be_the_first_to_be_imported(statement: str, run: Run) -> None:
    assert run(f"{statement}\nprint('fine')") == "fine"


def test_asking_for_snnfast_snntorch_is_what_imports_snntorch(run: Run) -> None:
    code = (
        "import snnfast\nbefore = 'snntorch' in sys.modules\nsnnfast.snntorch\nprint(before, 'snntorch' in sys.modules)"
    )
    assert run(code) == "False True"
    code = "import snnfast\nsys.modules['snntorch'] = None\ntry: snnfast.snntorch\nexcept ImportError as e: print(e)"
    assert 'pip install "snntorch>=1.0.0"' in run(code)
    assert run("import snnfast\nprint(hasattr(snnfast, 'nothing'))") == "False"


def test_a_model_with_a_converted_subclass_is_loaded_whole(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "neurons.py").write_text(NEURONS)
    monkeypatch.syspath_prepend(tmp_path)
    from neurons import Labelled

    net = nn.Sequential(nn.Linear(3, 4), Labelled(0.9, init_hidden=True), snntorch.Leaky(0.8, init_hidden=True))
    report = snn.convert(net)
    x = torch.rand(2, 3) * 3
    torch.save(net, tmp_path / "net.pt")
    torch.save((x, net(x), net[2].mem), tmp_path / "expected.pt")
    (tmp_path / "report.pickle").write_bytes(pickle.dumps(report))
    code = """
import torch
net = torch.load("net.pt", weights_only=False)
x, spk, mem = torch.load("expected.pt")
assert torch.equal(net(x), spk) and torch.equal(net[2].mem, mem)
print(type(net[1]).__mro__[1].__name__, net[1].label, type(net[2]).__module__)
"""
    assert run(code) == "Labelled mine snnfast.snntorch"
    code = "import pickle; print(pickle.load(open('report.pickle', 'rb')))"
    assert run(code) == "swapped 2: 1, 2"
    del sys.modules["neurons"]


def test_a_model_is_handed_to_a_worker_that_was_spawned(tmp_path: Path, run: Run) -> None:
    (tmp_path / "neurons.py").write_text(NEURONS)
    (tmp_path / "work.py").write_text("""
import multiprocessing, sys
import torch

def work(net, queue):
    queue.put(float(net(torch.ones(2, 3)).sum()))

if __name__ == "__main__":
    import neurons, snnfast.snntorch as snn
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), neurons.Labelled(0.9, threshold=-9.0, init_hidden=True))
    snn.convert(net)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=work, args=(net, queue))
    process.start()
    process.join()
    print(process.exitcode, queue.get(timeout=60) if process.exitcode == 0 else None)
""")
    assert run("import runpy; runpy.run_path('work.py', run_name='__main__')") == "0 8.0"
