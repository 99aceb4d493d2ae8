"""The new graph: a Linear in its unroll, sums, the memory order of images, kernels."""

import pytest
import torch
from compiler.forms import after_merging, steps, tensor
from torch import Tensor, nn

import snnfast
from snnfast.compiler.emit.kernels import use_kernels

lif, fc, conv, norm = snnfast.Leaky(beta=0.5), nn.Linear(2, 3), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)


def test_a_linear_that_alone_reads_the_spikes_is_a_part_of_the_unroll() -> None:
    def loop(x: Tensor, mem: Tensor) -> Tensor:
        rec = torch.zeros(2, 1, 3)
        for t in range(2):
            spk, mem = lif(x[t], mem)
            rec[t] = fc(spk)
        return rec

    after_merging("emit", loop, tensor(2, 1, 2), tensor(1, 2)).expect("""\
unroll_steps = unroll_steps('leaky', x, [x_1, x_2, x_3, x_4], 16, 0, 2.0, 0.0, 'auto', None, 0, False, W, b, 1)
getitem = unroll_steps[2]
getitem_1 = unroll_steps[0]
detach = detach(getitem)
return [getitem_1, detach]""")


def test_a_sum_that_grows_is_one_call_or_a_part_of_the_unroll() -> None:
    def loop(x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        count = loss = 0
        for t in range(2):
            spk, mem = lif(x[t], mem)
            count, loss = count + spk, loss + x[t].exp()
        return count, loss

    after_merging("emit", loop, tensor(2, 1, 2), tensor(1, 2)).expect("""\
unroll_steps = unroll_steps('leaky', x, [x_1, x_2, x_3, x_4], 16, 0, 2.0, 0.0, 'auto', None, 0, True)
getitem = unroll_steps[2]
getitem_1 = unroll_steps[0]
exp = exp(x)
sum = sum(exp, [0])
detach = detach(getitem)
detach_1 = detach(getitem_1)
detach_2 = detach(sum)
return [detach, detach_1, detach_2]""")


def images(xs: list[Tensor], mem: Tensor) -> Tensor:
    for x in xs:
        _, mem = lif(norm(conv(torch.bernoulli(x))), mem)
    return mem


@pytest.mark.needs_extension  # without kernels, the batch normalisation and the neurons stay apart
def test_a_convolution_is_given_channels_last_order_and_calls_have_their_kernels() -> None:
    after_merging("kernels", images, steps(2, 16, 6, 6), tensor(2, 16, 4, 4)).expect("""\
stack = stack([x, x_8])
bernoulli = bernoulli(stack)
flatten = flatten(bernoulli, 0, 1)
to_channels_last = to_channels_last(flatten)
conv2d = conv2d(to_channels_last, W, b)
movedim = movedim(conv2d, -3, -1)
unflatten = unflatten(movedim, 0, [2, -1])
movedim_1 = movedim(unflatten, -1, -3)
add_ = add_(x_1, 2)
normed_unroll_steps = normed_unroll_steps(movedim_1, [b_1, b_2, x_2, x_3, 0.1, 1e-05], 'leaky', [x_4, x_5, x_6, x_7], 16, 0, 2.0, 0.0, 'auto', None, 0, False)
getitem = normed_unroll_steps[2]
in_usual_order = in_usual_order(getitem)
return [in_usual_order]""")  # noqa: E501


def test_arguments_may_have_the_names_that_pytorch_gives_them() -> None:
    graph = torch.fx.Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("weight")
    graph.output(graph.call_function(nn.functional.linear, (), {"weight": weight, "input": x}))
    use_kernels(graph)
    given = torch.rand(2, 3), torch.rand(4, 3)
    found = torch.fx.GraphModule({}, graph)(*given)
    torch.testing.assert_close(found, nn.functional.linear(*given))
