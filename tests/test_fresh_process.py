"""What was saved in one process is loaded in another, which has imported nothing of ours yet."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import snntorch
import torch
from fresh import ROOT, fresh
from torch import nn

import snnfast.snntorch as snn

NEURONS = """
import snntorch

class Labelled(snntorch.Leaky):
    label = "mine"
"""


def test_a_model_with_a_converted_subclass_is_loaded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert fresh(code, tmp_path) == "Labelled mine snnfast.snntorch"
    code = "import pickle; print(pickle.load(open('report.pickle', 'rb')))"
    assert fresh(code, tmp_path) == "swapped 2: 1, 2"
    del sys.modules["neurons"]


@pytest.mark.thorough
def test_a_model_is_handed_to_a_worker_that_was_spawned(tmp_path: Path) -> None:
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
    command = [sys.executable, "work.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
    assert done.stdout.strip() == "0 8.0", done.stderr
