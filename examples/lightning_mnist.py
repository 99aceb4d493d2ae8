"""MNIST under Lightning's ``Trainer``: a network of snnfast is a module like any other.

The network and the loss are those of ``mnist.py``.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Sequence

from startup import importing

with importing(__name__):
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        import lightning
    from common import (
        add_data_path,
        add_length,
        count_iterations,
        describe,
        integer,
        make_parser,
        minibatches,
        run_main,
    )
    from data import CLASSES, SIDE, load
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, TensorDataset

    import snnfast
    from snnfast.losses import accuracy_rate, ce_membrane_loss

BETA, LR = 0.95, 5e-4


class Classifier(lightning.LightningModule):  # type: ignore[misc, unused-ignore]  # where it is not installed
    def __init__(self, hidden: int, num_steps: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.num_steps, self.loss_fn = num_steps, ce_membrane_loss()
        self.net = snnfast.MultiStep(
            nn.Linear(SIDE * SIDE, hidden),
            snnfast.Leaky(beta=BETA),
            nn.Linear(hidden, CLASSES),
            snnfast.Leaky(beta=BETA),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [B, 784] to [T, B, classes] each
        spk_rec, mem_rec = self.net(x, num_steps=self.num_steps)
        return spk_rec, mem_rec

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        images, labels = batch
        loss: Tensor = self.loss_fn(self(images)[1], labels)
        return loss

    def test_step(self, batch: list[Tensor], index: int) -> None:
        images, labels = batch
        self.log("accuracy", accuracy_rate(self(images)[0], labels), batch_size=len(images))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=LR)


def run(args: argparse.Namespace, device: torch.device) -> None:
    data = load(args.data_path, torch.device("cpu"))  # the Trainer moves each minibatch
    print(describe(data), flush=True)
    lightning.seed_everything(args.seed, verbose=False)
    model = Classifier(args.hidden, args.num_steps)
    iterations = count_iterations(args, data)
    trainer = lightning.Trainer(
        max_steps=iterations,
        max_epochs=-1,
        accelerator=device.type,
        devices=[device.index] if device.type == "cuda" and device.index is not None else 1,
        precision=args.precision,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
    )
    start = time.perf_counter()
    trainer.fit(model, minibatches(data, args.batch_size))
    seconds = time.perf_counter() - start
    print(f"{trainer.global_step} iterations in {seconds:.1f} s, {1e3 * seconds / iterations:.2f} ms each", flush=True)
    (found,) = trainer.test(
        model, DataLoader(TensorDataset(data.test_images, data.test_labels), args.batch_size), verbose=False
    )
    print(f"test accuracy (rate code): {found['accuracy']:.4f}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("Train on MNIST under Lightning's Trainer.", batch_size=128, num_steps=25)
    add_data_path(parser)
    add_length(parser)
    add = parser.add_argument
    add("--hidden", type=integer(), default=1000, help="neurons in the hidden layer (default: %(default)s)")
    add("--precision", choices=("32-true", "bf16-mixed"), default="32-true", help="Lightning's (default: %(default)s)")
    return run_main(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
