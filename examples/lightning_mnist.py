"""MNIST under Lightning's ``Trainer``: a network of snnfast is a module like any other.

The network and the loss are those of ``mnist.py``.
"""

import argparse
from collections.abc import Sequence

import lightning
import torch
from data import load
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import snnfast
from snnfast.losses import accuracy_rate, ce_membrane_loss

BETA, LR, BATCH_SIZE, NUM_STEPS = 0.95, 5e-4, 128, 25


class Classifier(lightning.LightningModule):  # type: ignore[misc, unused-ignore]  # where it is not installed
    def __init__(self) -> None:
        super().__init__()
        self.loss_fn = ce_membrane_loss()
        self.net = snnfast.MultiStep(
            nn.Linear(784, 1000),
            snnfast.Leaky(beta=BETA),
            nn.Linear(1000, 10),
            snnfast.Leaky(beta=BETA),
        )

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        images, labels = batch
        _, mem_rec = self.net(images, num_steps=NUM_STEPS)
        loss: Tensor = self.loss_fn(mem_rec, labels)
        return loss

    def test_step(self, batch: list[Tensor], index: int) -> None:
        images, labels = batch
        spk_rec, _ = self.net(images, num_steps=NUM_STEPS)
        self.log("accuracy", accuracy_rate(spk_rec, labels), batch_size=len(images))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=LR)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train on MNIST under Lightning's Trainer.")
    parser.add_argument("--data-path", help="folder that holds MNIST/raw (default: SNNFAST_DATA, or a download)")
    parser.add_argument("--epochs", type=int, help="default: 1, or 40 over scikit-learn's digits")
    parser.add_argument("--accelerator", default="auto", help="Lightning's: cpu, gpu, auto (default: auto)")
    parser.add_argument("--precision", default="32-true", help="Lightning's: 32-true, bf16-mixed (default: 32-true)")
    args = parser.parse_args(argv)

    data = load(args.data_path, "cpu")  # the Trainer moves each minibatch
    print(data, flush=True)
    lightning.seed_everything(0, verbose=False)
    trainer = lightning.Trainer(
        max_epochs=args.epochs or data.epochs,
        accelerator=args.accelerator,
        devices=1,
        precision=args.precision,
        logger=False,
        enable_checkpointing=False,
    )
    train, test = TensorDataset(data.train_images, data.train_labels), TensorDataset(data.test_images, data.test_labels)
    model = Classifier()
    trainer.fit(model, DataLoader(train, BATCH_SIZE, shuffle=True))
    (found,) = trainer.test(model, DataLoader(test, BATCH_SIZE), verbose=False)
    print(f"test accuracy: {found['accuracy']:.4f}")


if __name__ == "__main__":
    main()
