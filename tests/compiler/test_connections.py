"""The product of the last spikes of connected neurons becomes a part of their step."""

from compiler.forms import after, steps, tensor
from torch import Tensor

import snnfast


def test_a_step_takes_the_weights_and_the_spikes_before() -> None:
    lif = snnfast.RLeaky(beta=0.9, linear_features=2)

    def loop(xs: list[Tensor], spk: Tensor, mem: Tensor) -> Tensor:
        for x in xs:
            spk, mem = lif(x, spk, mem)
        return spk

    after("dead", loop, steps(1, 2), tensor(1, 2), tensor(1, 2)).expect("""\
step = step[rleaky](x_1, x, x_2, [W, b, None])
getitem = step[0]
getitem_1 = step[1]
step_1 = step[rleaky](x_6, getitem, getitem_1, [W, b, None])
getitem_2 = step_1[0]
getitem_3 = step_1[1]
return [getitem_2, getitem_3]""")
