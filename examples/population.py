"""Population coding on MNIST: one output neuron for each class, or fifty of them, and a single time step.

A neuron spikes once at most in one step, so that a class with one neuron is either right or silent. Fifty neurons vote.
Network and numbers are those of snnTorch's tutorial on population coding, which has Fashion-MNIST.
"""

import argparse
from collections.abc import Sequence

import torch
from data import Digits, load
from torch import nn

import snnfast
from snnfast.losses import accuracy_rate, mse_count_loss

BETA, LR, BATCH_SIZE, NUM_STEPS, CLASSES = 0.9, 2e-3, 128, 1, 10


def train(data: Digits, per_class: int, epochs: int) -> float:
    """The test accuracy of a network with ``per_class`` output neurons for each class."""
    population = per_class > 1
    torch.manual_seed(0)
    net = snnfast.MultiStep(
        nn.Linear(784, 128),
        snnfast.Leaky(beta=BETA, spike_grad=snnfast.surrogate.fast_sigmoid()),
        nn.Linear(128, per_class * CLASSES),
        snnfast.Leaky(beta=BETA, spike_grad=snnfast.surrogate.fast_sigmoid()),
    ).to(data.train_images.device)
    loss_fn = mse_count_loss(correct_rate=1, incorrect_rate=0, population_code=population, num_classes=CLASSES)
    optimizer = torch.optim.Adam(net.parameters(), lr=LR, betas=(0.9, 0.999))
    for epoch in range(1, epochs + 1):
        for images, labels in data.batches(BATCH_SIZE):
            spk_rec, _ = net(images, num_steps=NUM_STEPS)
            loss = loss_fn(spk_rec, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"neurons for each class: {per_class}, epoch {epoch}, last loss {loss.item():.4f}", flush=True)

    with torch.no_grad():
        spk_rec, _ = net(data.test_images, num_steps=NUM_STEPS)
    return accuracy_rate(spk_rec, data.test_labels, population, CLASSES)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Population coding on MNIST.")
    parser.add_argument("--data-path", help="folder that holds MNIST/raw (default: SNNFAST_DATA, or a download)")
    parser.add_argument("--epochs", type=int, help="default: 1, or 40 over scikit-learn's digits")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)

    data = load(args.data_path, args.device)
    print(data, flush=True)
    single, fifty = (train(data, per_class, args.epochs or data.epochs) for per_class in (1, 50))
    print(f"test accuracy: {single:.4f} with one neuron for each class, {fifty:.4f} with fifty")


if __name__ == "__main__":
    main()
