"""snnTorch's tutorial 5 with one line changed: the import.

    python examples/tutorial5.py              # the changed import: the numbers of snnTorch, bit for bit
    python examples/tutorial5.py --snntorch   # snnTorch itself
    python examples/tutorial5.py --compile    # snnTorch and one added line: net = snnfast.compile(net)

All three start from the same weights and see the same images. Compiled, all time steps of a layer run in one kernel,
and the losses agree until the order of floating-point sums decides about a spike.
"""

import argparse
import time
from collections.abc import Sequence
from statistics import median
from types import ModuleType

import snntorch
import torch
from data import load
from torch import Tensor, nn

import snnfast  # for --compile

# The only line that differs from a script for snnTorch, which has `import snntorch as snn`.
import snnfast.snntorch as snn

BETA, LR, BATCH_SIZE, NUM_STEPS = 0.95, 5e-4, 128, 25


class Net(nn.Module):
    def __init__(self, snn: ModuleType = snn) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 1000)
        self.lif1 = snn.Leaky(beta=BETA)
        self.fc2 = nn.Linear(1000, 10)
        self.lif2 = snn.Leaky(beta=BETA)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [B, 784] to spikes and membranes, both [T, B, 10]
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec, mem2_rec = [], []
        for _ in range(NUM_STEPS):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec), torch.stack(mem2_rec)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="snnTorch's tutorial 5 with snnfast.")
    parser.add_argument("--data-path", help="folder that holds MNIST/raw (default: SNNFAST_DATA, or a download)")
    parser.add_argument("--epochs", type=int, help="default: 1, or 40 over scikit-learn's digits")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    library = parser.add_mutually_exclusive_group()
    library.add_argument("--snntorch", action="store_true", help="snnTorch itself, to compare")
    library.add_argument("--compile", action="store_true", help="snnTorch's network, compiled by snnfast")
    args = parser.parse_args(argv)

    data = load(args.data_path, args.device)
    print(data, flush=True)
    torch.manual_seed(0)
    net = Net(snntorch if args.snntorch or args.compile else snn).to(args.device)
    if args.compile:
        net = snnfast.compile(net)
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(net.parameters(), lr=LR, betas=(0.9, 0.999))
    seconds: list[float] = []
    for _ in range(args.epochs or data.epochs):
        for images, labels in data.batches(BATCH_SIZE):
            start = time.perf_counter()
            spk_rec, mem_rec = net(images)
            loss = torch.zeros((), device=args.device)
            for mem in mem_rec:
                loss = loss + loss_fn(mem, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            value = loss.item()
            seconds.append(time.perf_counter() - start)
            if len(seconds) <= 3 or len(seconds) % 50 == 0:
                print(f"iteration {len(seconds)}: loss {value:.4f}, {1e3 * median(seconds):.1f} ms each", flush=True)

    with torch.no_grad():
        spk_rec = torch.cat([net(images)[0] for images in data.test_images.split(BATCH_SIZE)], 1)
    accuracy = (spk_rec.sum(0).argmax(1) == data.test_labels).float().mean()
    print(f"test accuracy: {accuracy:.4f}")


if __name__ == "__main__":
    main()
