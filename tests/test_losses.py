"""Losses and accuracies over time have snnTorch's names, arguments, results and gradients, without its loops."""

import copy
import doctest
import inspect
import itertools
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import snntorch.functional as theirs
import torch
from helpers import assert_bits_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snnfast import losses


@pytest.fixture(autouse=True, scope="module")
def snntorch_may_mix_dtypes() -> Iterator[None]:
    """With torch 2.11, the backward pass of ``mse_loss`` fails where the dtypes differ, as in snnTorch they do."""
    mse_loss = torch.nn.functional.mse_loss

    def promoting(a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        dtype = torch.promote_types(a.dtype, b.dtype)
        return mse_loss(a.to(dtype), b.to(dtype), *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "mse_loss", promoting)
        yield


NAMES = [name for name in losses.__all__ if name != "ce_membrane_loss"]
LOSSES = [name for name in losses.__all__ if name.endswith("_loss")]
MEMBRANE = ("ce_max_membrane_loss", "ce_membrane_loss", "mse_membrane_loss")
CLASSES, PER_CLASS = 4, 3

# Options of every loss but reduction and weight. Two tuples of times: as many as there are spikes.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "ce_rate_loss": [{}],
    "ce_count_loss": [{}, {"population_code": True, "num_classes": CLASSES}],
    "ce_max_membrane_loss": [{}],
    "mse_count_loss": [
        {**rates, **code}
        for rates in ({}, {"correct_rate": 0.75, "incorrect_rate": 0.3})
        for code in ({}, {"population_code": True, "num_classes": CLASSES})
    ],
    "mse_membrane_loss": [
        {"on_target": on, "off_target": off} for on, off in ((1, 0), (0.5, 0.2), (1, -0.5), (-1, 2), (-1, -2), (2, 2))
    ],
    "ce_temporal_loss": [{"inverse": inverse} for inverse in ("negate", "reciprocal")],
    "mse_temporal_loss": [
        *({"on_target": on, "off_target": off} for on, off in ((0, -1), (0, 4), (3, 1), (1.5, 2))),
        {"on_target": 1, "off_target": 3, "tolerance": 2},
        {"on_target": (0, 1), "off_target": (2, -2), "multi_spike": True},
        {"on_target": torch.tensor([0, 1, 2]), "off_target": torch.tensor([3, 4, 5]), "multi_spike": True},
        {"on_target": (1, 2), "off_target": (3, 3), "multi_spike": True, "tolerance": 1.5},
    ],
}
CASES = [(name, options) for name in OPTIONS for options in OPTIONS[name]]


@pytest.fixture(autouse=True)
def one_thread(same_random_numbers: None) -> None:
    """On tensors as small as these, threads only wait for each other."""
    torch.set_num_threads(1)


def case_id(case: Any) -> str:
    return case if isinstance(case, str) else "-".join(f"{k}={v}" for k, v in case.items()) or "defaults"


def record(name: str, T: int, B: int, N: int, dtype: torch.dtype = torch.float32, rate: float = 0.3) -> Tensor:
    """Membranes with ties in time, or spikes."""
    if name in MEMBRANE:
        return ((torch.randn(T, B, N) * 4).round() / 4).to(dtype)
    return (torch.rand(T, B, N) < rate).to(dtype)


def loss_and_grad(fn: Any, rec: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    rec = rec.detach().clone().requires_grad_()
    loss = fn(rec, targets)
    upstream = torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).view_as(loss)
    return loss.detach(), torch.autograd.grad(loss, rec, upstream)[0]


def assert_same(ours: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], eps: float = 2e-6) -> None:
    """The same shapes and dtypes, and the same values to ``eps``."""
    for a, b in zip(ours, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        torch.testing.assert_close(a, b, rtol=eps, atol=eps)


def neurons(options: dict[str, Any]) -> int:
    return CLASSES * PER_CLASS if options.get("population_code") else CLASSES


@pytest.mark.parametrize("name", NAMES)
def test_names_and_arguments_are_those_of_snntorch(name: str) -> None:
    ours, expected = getattr(losses, name), getattr(theirs, name)
    pairs = [(ours, expected)]
    if inspect.isclass(ours):
        pairs.append((ours.__call__, expected.__call__))
        assert ours().__name__ == expected().__name__ == name
    for a, b in pairs:
        a, b = inspect.signature(a).parameters.values(), inspect.signature(b).parameters.values()
        own = [(p.name, p.kind, p.default) for p in a if p.name != "lengths"]  # of ragged batches, which it has not
        assert own == [(p.name, p.kind, p.default) for p in b]


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=case_id)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_losses_and_gradients_equal_snntorch(
    name: str, options: dict[str, Any], dtype: torch.dtype, data: st.DataObject
) -> None:
    T, B = data.draw(st.integers(1, 7), "T"), data.draw(st.integers(1, 5), "B")
    rate = data.draw(st.sampled_from([0.0, 0.1, 0.3, 1.0]), "rate")
    torch.manual_seed(data.draw(st.integers(0, 99), "seed"))
    rec = record(name, T, B, neurons(options), dtype, rate)
    targets = torch.randint(0, CLASSES, (B,))
    weight = torch.rand(CLASSES, dtype=torch.float32 if "population_code" in options else dtype) + 0.5
    # The others have a target or a sum in float32.
    in_float64 = name in ("ce_count_loss", "ce_max_membrane_loss", "ce_temporal_loss") and weight.dtype == torch.float64
    for reduction, weighted in itertools.product(("mean", "sum", "none"), (False, True)):
        ours = getattr(losses, name)(**options, reduction=reduction, weight=weight if weighted else None)
        # snnTorch multiplies losses [B, N] by weights [B]; as a column they are what is meant.
        column = weight[:, None] if name.startswith("mse") else weight
        original = getattr(theirs, name)(**options, reduction=reduction, weight=column if weighted else None)
        expected = loss_and_grad(original, rec, targets)
        assert_same(loss_and_grad(ours, rec, targets), expected, 1e-14 if in_float64 else 2e-6)


@pytest.mark.parametrize(("name", "options"), CASES, ids=case_id)
def test_nothing_given_is_changed_and_views_are_as_good(name: str, options: dict[str, Any]) -> None:
    rec, targets = record(name, 6, 5, neurons(options)), torch.randint(0, CLASSES, (5,))
    weight = torch.rand(CLASSES)
    fn = getattr(losses, name)(**options, weight=weight)
    before = copy.deepcopy((rec, targets, weight, options))
    rng = torch.get_rng_state()
    expected = loss_and_grad(fn, rec, targets)
    strided = torch.stack([rec, rec], -1).permute(2, 1, 0, 3)[..., 1].permute(2, 1, 0)
    assert not strided.is_contiguous()
    assert_same(loss_and_grad(fn, strided, targets), expected)
    assert torch.equal(torch.get_rng_state(), rng)
    assert str(before) == str((rec, targets, weight, options))


@pytest.mark.parametrize("name", LOSSES)
def test_criteria_can_be_copied_and_pickled(name: str) -> None:
    fn = getattr(losses, name)(reduction="none", weight=torch.rand(CLASSES))
    rec, targets = record(name, 6, 5, CLASSES), torch.randint(0, CLASSES, (5,))
    for again in (copy.deepcopy(fn), pickle.loads(pickle.dumps(fn))):
        assert again.__name__ == name
        assert_bits_equal(again(rec, targets), fn(rec, targets))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_ce_membrane_loss_is_the_sum_over_steps_of_pytorchs(dtype: torch.dtype, weighted: bool, reduction: str) -> None:
    weight = torch.rand(CLASSES, dtype=dtype) if weighted else None
    criterion = torch.nn.CrossEntropyLoss(weight, reduction=reduction)
    for T, B in ((1, 1), (6, 5)):
        rec, targets = record("ce_membrane_loss", T, B, CLASSES, dtype), torch.randint(0, CLASSES, (B,))
        ours = loss_and_grad(losses.ce_membrane_loss(reduction, weight), rec, targets)
        expected = loss_and_grad(lambda mem, y: sum(criterion(step, y) for step in mem), rec, targets)
        assert_same(ours, expected)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_ce_rate_loss_of_a_population_is_that_of_its_sums(weighted: bool) -> None:
    weight = torch.rand(CLASSES) if weighted else None
    rec, targets = record("spikes", 6, 5, CLASSES * PER_CLASS), torch.randint(0, CLASSES, (5,))

    def on_sums(spk: Tensor, targets: Tensor) -> Tensor:
        sums = torch.stack([spk[..., c * PER_CLASS : (c + 1) * PER_CLASS].sum(-1) for c in range(CLASSES)], -1)
        return losses.ce_rate_loss(weight=weight)(sums, targets)

    ours = losses.ce_rate_loss(population_code=True, num_classes=CLASSES, weight=weight)
    assert_same(loss_and_grad(ours, rec, targets), loss_and_grad(on_sums, rec, targets))


@pytest.mark.parametrize("name", ["mse_count_loss", "mse_membrane_loss", "mse_temporal_loss"])
def test_a_weight_belongs_to_its_sample_also_in_a_batch_of_as_many_as_classes(name: str) -> None:
    rec, targets = record(name, 6, CLASSES, CLASSES), torch.randint(0, CLASSES, (CLASSES,))
    weight = torch.rand(CLASSES)
    plain = getattr(losses, name)(reduction="none")(rec, targets)
    weighted = getattr(losses, name)(reduction="none", weight=weight)(rec, targets)
    torch.testing.assert_close(weighted, plain * weight[targets].unsqueeze(1))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_mse_membrane_loss_of_targets_over_time_is_that_of_each_step(weighted: bool) -> None:
    weight = torch.rand(CLASSES) if weighted else None
    rec, targets = record("mse_membrane_loss", 6, 5, CLASSES), torch.randint(0, CLASSES, (6, 5))
    for reduction in ("mean", "sum", "none"):
        one_step = losses.mse_membrane_loss(reduction=reduction, weight=weight)
        ours = losses.mse_membrane_loss(time_var_targets=True, reduction=reduction, weight=weight)
        loss, grad = loss_and_grad(ours, rec, targets)
        steps = [loss_and_grad(one_step, rec[t : t + 1], targets[t]) for t in range(6)]
        torch.testing.assert_close(loss, torch.stack([step for step, _ in steps]).mean(0))
        torch.testing.assert_close(grad, torch.cat([step for _, step in steps]) / 6)


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("tolerance", [0, 2])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32], ids=["int64", "float32"])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (1, 4), (2, 3, 4), (1, 3, 4)], ids=str)
def test_targets_can_be_times(shape: tuple[int, ...], dtype: torch.dtype, tolerance: int) -> None:
    rec, targets = record("spikes", 6, 3, 4), torch.randint(-6, 6, shape).to(dtype)
    weights = (None, torch.rand(6)) if dtype == torch.int64 else (None,)
    for reduction, weight in itertools.product(("mean", "sum", "none"), weights):
        options = (True, 0, -1, tolerance, len(shape) == 3, reduction, weight)
        before = targets.clone()
        ours = loss_and_grad(losses.mse_temporal_loss(*options), rec, targets)
        assert torch.equal(targets, before)
        assert_same(ours, loss_and_grad(theirs.mse_temporal_loss(*options), rec, targets.clone()))


def test_a_graded_spike_has_the_time_of_a_spike() -> None:
    rec, targets = record("spikes", 6, 5, CLASSES), torch.randint(0, CLASSES, (5,))
    for name in ("ce_temporal_loss", "mse_temporal_loss"):
        fn = getattr(losses, name)()
        assert_same(loss_and_grad(fn, rec * -3.5, targets), loss_and_grad(fn, rec, targets), 0)
    assert losses.accuracy_temporal(rec * 0.1, targets) == losses.accuracy_temporal(rec, targets)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64], ids=["bool", "uint8", "int64"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=case_id)
def test_integers_and_booleans_are_as_good_as_float32(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    rec, targets = record("spikes", 6, 5, neurons(options)), torch.randint(0, CLASSES, (5,))
    fn = getattr(losses, name)(**options)
    assert_bits_equal(fn(rec.to(dtype), targets), fn(rec, targets))
    assert_bits_equal(fn(rec, targets.to(torch.uint8)), fn(rec, targets))
    assert_bits_equal(losses.l1_rate_sparsity()(rec.to(dtype)), losses.l1_rate_sparsity()(rec))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(("name", "options"), [c for c in CASES if "tolerance" not in c[1]], ids=case_id)
def test_half_precision_equals_snntorch_to_its_rounding(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    rec, targets = record(name, 6, 5, neurons(options), dtype), torch.randint(0, CLASSES, (5,))
    ours, expected = (loss_and_grad(getattr(m, name)(**options), rec, targets) for m in (losses, theirs))
    assert_same(ours, expected, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("shape", [(6, 5, 4), (7,), (2, 3, 4, 5)], ids=str)
def test_l1_rate_sparsity_equals_snntorch(shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.float64, torch.bool):
        spk = (torch.rand(shape) < 0.3).to(dtype)
        assert_bits_equal(losses.l1_rate_sparsity(0.25)(spk), theirs.l1_rate_sparsity(0.25)(spk))
    spk = torch.rand(shape)
    (ours, expected) = (loss_and_grad(lambda s, _, m=m: m.l1_rate_sparsity()(s), spk, spk) for m in (losses, theirs))
    assert_same(ours, expected, 0)


@given(
    T=st.integers(1, 6),
    B=st.integers(1, 6),
    rate=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bool, torch.uint8]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_accuracies_equal_snntorch(T: int, B: int, rate: float, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    spk = (torch.rand(T, B, 6) < rate).to(dtype)  # few steps: many ties
    targets = torch.randint(0, 6, (B,))
    assert losses.accuracy_temporal(spk, targets) == theirs.accuracy_temporal(spk, targets)
    assert losses.accuracy_rate(spk, targets) == theirs.accuracy_rate(spk, targets)
    targets %= 3
    assert losses.accuracy_rate(spk, targets, True, 3) == theirs.accuracy_rate(spk, targets, True, 3)


def test_an_accuracy_is_a_python_float() -> None:
    spk, targets = record("spikes", 6, 5, CLASSES), torch.randint(0, CLASSES, (5,))
    for name in ("accuracy_rate", "accuracy_temporal"):
        assert type(getattr(losses, name)(spk, targets)) is float
    assert np.isnan(losses.accuracy_rate(spk[:, :0], targets[:0]))


def test_a_silent_neuron_counts_as_a_spike_at_the_last_step() -> None:
    spk = torch.zeros(5, 3, 4)
    spk[4, 1, 2] = 1  # no earlier than silence: the first class
    spk[3, 2, 2] = 1
    assert losses.accuracy_temporal(spk, torch.tensor([0, 0, 2])) == 1


COMPILED = [
    ("ce_rate_loss", {}),
    ("ce_rate_loss", {"weight": torch.ones(CLASSES)}),
    ("ce_count_loss", {"population_code": True, "num_classes": CLASSES}),
    ("ce_max_membrane_loss", {}),
    ("ce_membrane_loss", {}),
    ("mse_count_loss", {"correct_rate": 0.8}),
    ("mse_membrane_loss", {"weight": torch.ones(CLASSES)}),
    ("ce_temporal_loss", {}),
    ("mse_temporal_loss", {"on_target": (0, 1), "off_target": (4, 5), "multi_spike": True, "tolerance": 1}),
]


@pytest.mark.parametrize(("name", "options"), COMPILED, ids=case_id)
def test_losses_compile_without_a_graph_break(name: str, options: dict[str, Any]) -> None:
    torch.compiler.reset()
    fn = getattr(losses, name)(**options)
    rec, targets = record(name, 6, 5, neurons(options)), torch.randint(0, CLASSES, (5,))
    compiled = torch.compile(lambda r, y: fn(r, y), fullgraph=True, backend="aot_eager")
    assert_same(loss_and_grad(compiled, rec, targets), loss_and_grad(fn, rec, targets))


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_waits_for_the_device(name: str) -> None:
    """On meta tensors, which have no values to ask for, a loss and its gradient still have their shapes."""
    fn = getattr(losses, name)(reduction="none", weight=torch.ones(CLASSES, device="meta"))
    rec = torch.empty(6, 5, CLASSES, device="meta", requires_grad=True)
    loss = fn(rec, torch.empty(5, dtype=torch.int64, device="meta"))
    loss.sum().backward()
    assert loss.shape[0] == 5
    assert rec.grad is not None


def test_snntorchs_training_loop_takes_our_criteria() -> None:
    import snntorch

    with pytest.warns(DeprecationWarning, match="deprecated"):
        from snntorch import backprop

    def train(m: Any, name: str) -> Tensor:
        torch.manual_seed(1)
        net = torch.nn.Sequential(torch.nn.Linear(8, CLASSES), snntorch.Leaky(beta=0.9, init_hidden=True, output=True))
        batches = [(torch.rand(5, 8), torch.randint(0, CLASSES, (5,))) for _ in range(2)]
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        criterion, penalty = getattr(m, name)(), m.l1_rate_sparsity()
        return backprop.BPTT(
            net, batches, optimizer, criterion, num_steps=4, time_var=False, regularization=penalty
        ).detach()

    for name in ("ce_rate_loss", "ce_max_membrane_loss", "mse_membrane_loss", "mse_temporal_loss"):
        torch.testing.assert_close(train(losses, name), train(theirs, name))


def test_cross_entropy_leaves_out_ignored_targets_as_snntorch_does() -> None:
    targets = torch.tensor([0, -100, 2, 3, -100])
    for name in ("ce_rate_loss", "ce_count_loss", "ce_max_membrane_loss"):
        rec = record(name, 6, 5, CLASSES)
        for options in ({}, {"weight": torch.rand(CLASSES)}):
            ours, expected = (loss_and_grad(getattr(m, name)(**options), rec, targets) for m in (losses, theirs))
            assert_same(ours, expected)


def test_every_public_name_is_documented_with_an_example_that_runs() -> None:
    finder = doctest.DocTestFinder(exclude_empty=False)
    documented = {t.name.rsplit(".", 1)[-1] for t in finder.find(losses) if t.examples}
    assert documented >= set(losses.__all__)
    failed, tried = doctest.testmod(losses)
    assert tried >= len(losses.__all__)
    assert not failed


def test_losses_need_neither_numpy_nor_snntorch() -> None:
    code = (
        "import sys; sys.modules['numpy'] = sys.modules['snntorch'] = None\n"
        "import warnings; warnings.simplefilter('ignore')\n"
        "import torch\nfrom snnfast import losses\n"
        "assert losses.accuracy_rate(torch.ones(2, 1, 3), torch.tensor([0])) == 1.0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
