"""Numbers of ``reference.lif`` that test_parity.py does not compare with snnTorch's."""

import math

import snntorch
import torch
from callables import function
from helpers import Case, assert_all_bits_equal, assert_all_close, assert_bits_equal, expected, inputs

import snnfast
from snnfast import reference


def test_a_callable_that_returns_another_dtype() -> None:
    case = Case(dtype=torch.float64)
    tensors = inputs(case)
    found = reference.lif(**tensors, **{**case.options, "spike_grad": snntorch.surrogate.fast_sigmoid()})
    assert_all_bits_equal(found, expected(tensors, case).values())


# A step whose derivative is its own value, as in snnTorch's tutorial 5.
SpikeItself = function(lambda distance: (distance > 0).float(), lambda grad, distance: grad * (distance > 0))


def test_the_neuron_of_tutorial_5_spikes_one_step_later(backend: str) -> None:
    """Membranes are the same, and so are gradients where a loss sees the same spikes of either."""
    x, weights = (torch.rand(12, 4, 7) * 1.2 - 0.1).requires_grad_(), torch.randn(2, 12, 4, 7)
    start = (torch.rand(4, 7) * 2).requires_grad_()
    mem, record = start, []
    for step in x:
        spk = SpikeItself.apply(mem - 1)
        mem = 0.8 * mem + step - spk.detach()
        record.append((spk, mem))
    theirs, mem_rec = (torch.stack(t) for t in zip(*record, strict=True))
    ours, found = snnfast.functional.lif(x, start, beta=0.8, spike_grad=snnfast.surrogate.heaviside())
    assert_bits_equal(found, mem_rec)
    assert_bits_equal(ours[:-1], theirs[1:])
    assert 0.1 < ours.mean() < 0.9
    pairs = ((ours[:-1], found), (theirs[1:], mem_rec))
    losses = ((spk * weights[0, 1:]).sum() + (mem * weights[1]).sum() for spk, mem in pairs)
    assert_all_close(*(torch.autograd.grad(loss, [x, start], retain_graph=True) for loss in losses), relative=1e-5)


def test_tensors_of_inference_mode_where_others_learn(backend: str) -> None:
    with torch.inference_mode():
        mem, betas = torch.rand(3, 4), (torch.rand(4), torch.rand(5, 1, 4))  # the second for every step
    for beta in betas:
        grads = []
        for start, decay in ((mem, beta), (mem.clone(), beta.clone())):
            x = torch.linspace(0, 1, 60).view(5, 3, 4).requires_grad_()
            snnfast.functional.lif(x, start, beta=decay)[1].sum().backward()
            grads.append(x.grad)
        assert torch.equal(*grads)


def test_a_beta_outside_of_its_range_has_no_gradient(device: torch.device) -> None:
    beta = torch.tensor([1.5, -0.5, math.nan, 0.5], requires_grad=True)
    mem = torch.full((1, 4), math.inf, device=device)
    _, mem = snnfast.functional.lif(torch.ones(1, 1, 4, device=device), mem, beta=beta.to(device))
    mem.sum().backward()
    assert beta.grad is not None
    assert_bits_equal(beta.grad[:3], torch.zeros(3))
    assert not beta.grad[3].isfinite()
