"""Networks of Norse, as its users write them."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from . import events, program


def of_membranes(net: Any, x: Tensor, y: Tensor) -> tuple[Any, ...]:
    voltages = net(x)
    return F.nll_loss(F.log_softmax(voltages.max(0)[0], 1), y), voltages


@program(events(14, 14), of_membranes, T=32)
class NorseCells(nn.Module):
    """Norse's cells, which make their first states in the loop; the largest voltage decides."""

    def __init__(self) -> None:
        super().__init__()
        import norse.torch as norse  # which takes seconds

        self.fc1, self.fc2 = nn.Linear(196, 100), nn.Linear(100, 10)
        self.lif, self.out = norse.LIFCell(norse.LIFParameters(alpha=100.0, v_th=torch.tensor(0.3))), norse.LICell()

    def forward(self, x: Tensor) -> Tensor:
        of_lif = of_out = None
        voltages = []
        for step in range(x.shape[0]):
            z, of_lif = self.lif(10 * self.fc1(x[step].flatten(1)), of_lif)
            v, of_out = self.out(self.fc2(z), of_out)
            voltages.append(v)
        return torch.stack(voltages)
