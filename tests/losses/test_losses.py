"""Losses and accuracies over time have snnTorch's names, arguments, results and gradients, without its loops.

With lengths, they are the mean of those of each sample alone.
"""

import copy
import functools
import inspect
import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import snntorch.functional as theirs
import torch
from helpers import assert_bits_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from snnfast import losses
from snnfast.losses.base import cross_entropy_over_time


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


def assert_same(ours: Any, expected: Any, eps: float = 2e-6) -> None:
    """The same shapes and dtypes, and the same values to ``eps``."""
    for a, b in zip(ours, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        torch.testing.assert_close(a, b, rtol=eps, atol=eps, equal_nan=True)


def neurons(options: dict[str, Any]) -> int:
    return CLASSES * PER_CLASS if options.get("population_code") else CLASSES


@pytest.mark.parametrize("name", NAMES)
def test_names_and_arguments(name: str) -> None:
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
def test_losses_and_gradients(name: str, options: dict[str, Any], dtype: torch.dtype, data: st.DataObject) -> None:
    T, B = data.draw(st.integers(1, 7), "T"), data.draw(st.integers(1, 5), "B")
    rate = data.draw(st.sampled_from([0.0, 0.1, 0.3, 1.0]), "rate")
    torch.manual_seed(data.draw(st.integers(0, 99), "seed"))
    rec = record(name, T, B, neurons(options), dtype, rate)
    targets = torch.randint(0, CLASSES, (B,))
    if name in ("ce_rate_loss", "ce_count_loss", "ce_max_membrane_loss") and data.draw(st.booleans(), "ignores"):
        targets[::2] = -100
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
def test_nothing_given_is_changed(name: str, options: dict[str, Any]) -> None:
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
        assert type(again) is type(fn)
        assert type(again).__module__ == "snnfast.losses"
        assert_bits_equal(again(rec, targets), fn(rec, targets))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ce_membrane_loss_is_the_sum_of_pytorchs(reduction: str) -> None:
    for dtype, weighted in itertools.product((torch.float32, torch.float64), (False, True)):
        weight = torch.rand(CLASSES, dtype=dtype) if weighted else None
        criterion = torch.nn.CrossEntropyLoss(weight, reduction=reduction)
        for T, B in ((1, 1), (6, 5)):
            rec, targets = record("ce_membrane_loss", T, B, CLASSES, dtype), torch.randint(0, CLASSES, (B,))
            ours = loss_and_grad(losses.ce_membrane_loss(reduction, weight), rec, targets)
            expected = loss_and_grad(lambda mem, y, of=criterion: sum(of(step, y) for step in mem), rec, targets)
            assert_same(ours, expected)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_ce_rate_loss_of_a_population(weighted: bool) -> None:
    weight = torch.rand(CLASSES) if weighted else None
    rec, targets = record("spikes", 6, 5, CLASSES * PER_CLASS), torch.randint(0, CLASSES, (5,))

    def on_sums(spk: Tensor, targets: Tensor) -> Tensor:
        sums = torch.stack([spk[..., c * PER_CLASS : (c + 1) * PER_CLASS].sum(-1) for c in range(CLASSES)], -1)
        return losses.ce_rate_loss(weight=weight)(sums, targets)

    ours = losses.ce_rate_loss(population_code=True, num_classes=CLASSES, weight=weight)
    assert_same(loss_and_grad(ours, rec, targets), loss_and_grad(on_sums, rec, targets))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_targets_over_time(weighted: bool) -> None:
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
@pytest.mark.parametrize("shape", [(4,), (3, 4), (1, 4), (2, 3, 4), (1, 3, 4)], ids=str)
def test_targets_can_be_times(shape: tuple[int, ...]) -> None:
    for dtype, tolerance in itertools.product((torch.int64, torch.float32), (0, 2)):
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


@pytest.mark.parametrize(("name", "options"), CASES, ids=case_id)
def test_integers_and_booleans(name: str, options: dict[str, Any]) -> None:
    rec, targets = record("spikes", 6, 5, neurons(options)), torch.randint(0, CLASSES, (5,))
    fn = getattr(losses, name)(**options)
    assert_bits_equal(fn(rec, targets.to(torch.uint8)), fn(rec, targets))
    for dtype in (torch.bool, torch.uint8, torch.int64):
        assert_bits_equal(fn(rec.to(dtype), targets), fn(rec, targets))
        assert_bits_equal(losses.l1_rate_sparsity()(rec.to(dtype)), losses.l1_rate_sparsity()(rec))


@pytest.mark.parametrize(("name", "options"), [c for c in CASES if "tolerance" not in c[1]], ids=case_id)
def test_half_precision(name: str, options: dict[str, Any]) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        rec, targets = record(name, 6, 5, neurons(options), dtype), torch.randint(0, CLASSES, (5,))
        ours, expected = (loss_and_grad(getattr(m, name)(**options), rec, targets) for m in (losses, theirs))
        assert_same(ours, expected, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("shape", [(6, 5, 4), (7,), (2, 3, 4, 5)], ids=str)
def test_l1_rate_sparsity(shape: tuple[int, ...]) -> None:
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
def test_accuracies(T: int, B: int, rate: float, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    spk = (torch.rand(T, B, 6) < rate).to(dtype)  # few steps: many ties
    targets = torch.randint(0, 6, (B,))
    assert type(losses.accuracy_rate(spk, targets)) is type(losses.accuracy_temporal(spk, targets)) is float
    assert np.isnan(losses.accuracy_rate(spk[:, :0], targets[:0]))
    assert losses.accuracy_temporal(spk, targets) == theirs.accuracy_temporal(spk, targets)
    assert losses.accuracy_rate(spk, targets) == theirs.accuracy_rate(spk, targets)
    targets %= 3
    assert losses.accuracy_rate(spk, targets, True, 3) == theirs.accuracy_rate(spk, targets, True, 3)


COMPILED = [*((name, each[-1]) for name, each in OPTIONS.items()), ("ce_membrane_loss", {})]


@pytest.mark.parametrize(("name", "options"), COMPILED, ids=case_id)
def test_losses_compile(name: str, options: dict[str, Any]) -> None:
    rec, targets = record(name, 6, 5, neurons(options)), torch.randint(0, CLASSES, (5,))
    for weight in (None, torch.rand(CLASSES)):
        torch.compiler.reset()
        fn = getattr(losses, name)(**options, weight=weight)
        compiled = torch.compile(lambda r, y, fn=fn: fn(r, y), fullgraph=True, backend="aot_eager")
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


# ---- ragged batches


STEPS, LENGTHS = 9, torch.tensor([4, 9, 1, 7, 9])
TARGETS = torch.tensor([0, 3, 1, 2, 3])
RAGGED = [*CASES, ("ce_membrane_loss", {}), ("ce_rate_loss", {"population_code": True, "num_classes": CLASSES})]


def spoiled(rec: Tensor, lengths: Tensor, value: float = float("nan")) -> Tensor:
    return rec.masked_fill((torch.arange(len(rec)).view(-1, 1) >= lengths).unsqueeze(2), value)


def each_alone(loss: Any, rec: Tensor, targets: Tensor, lengths: Tensor) -> list[Any]:
    return [loss(rec[:n, b : b + 1], targets[b : b + 1]) for b, n in enumerate(lengths.tolist())]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("name", "options"), RAGGED, ids=case_id)
def test_lengths(name: str, options: dict[str, Any], reduction: str) -> None:
    loss = getattr(losses, name)(**options, reduction=reduction)
    for dtype in (torch.float32, torch.float64):
        rec = record(name, STEPS, len(LENGTHS), neurons(options), dtype).requires_grad_()
        one_by_one = each_alone(loss, rec, TARGETS, LENGTHS)
        dim = 1 if one_by_one[0].dim() == 3 else 0
        wanted = torch.cat(one_by_one, dim) if reduction == "none" else torch.stack(one_by_one)
        if reduction != "none":
            wanted = wanted.mean(0) if reduction == "mean" else wanted.sum(0)
        found = loss(spoiled(rec, LENGTHS), TARGETS, lengths=LENGTHS)
        dense = loss(rec, TARGETS)
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype) == (dense.shape, dense.dtype)
        torch.testing.assert_close(found, wanted, rtol=2e-6, atol=2e-6)
        upstream = torch.linspace(1, 2, found.numel(), dtype=found.dtype).view_as(found)
        a, b = (torch.autograd.grad(t, rec, upstream)[0] for t in (found, wanted))
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)
        assert not spoiled(a, LENGTHS, 0).ne(a).any()
        whole = torch.full((5,), STEPS)  # is no ragged batch
        assert torch.equal(loss(rec, TARGETS, lengths=whole), dense)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("name", "options"), RAGGED, ids=case_id)
def test_lengths_and_weights(name: str, options: dict[str, Any], reduction: str) -> None:
    weight = torch.rand(CLASSES) + 0.5
    rec = record(name, STEPS, len(LENGTHS), neurons(options))
    plain = getattr(losses, name)(**options, reduction="none")(rec, TARGETS, lengths=LENGTHS)
    found = getattr(losses, name)(**options, reduction=reduction, weight=weight)(rec, TARGETS, lengths=LENGTHS)
    of_samples = weight[TARGETS]
    weighted = plain * (of_samples if plain.dim() == 1 else of_samples.unsqueeze(1))
    if reduction == "mean":
        by_pytorch = name in ("ce_membrane_loss", "ce_temporal_loss")
        weighted = weighted.sum() / of_samples.sum() if by_pytorch else weighted.mean()
    torch.testing.assert_close(found, weighted)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_lengths_of_accuracies_and_the_penalty(data: st.DataObject) -> None:
    samples = data.draw(st.integers(1, 5))
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, STEPS), min_size=samples, max_size=samples)))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    spk, targets = record("ce_rate_loss", STEPS, samples, 12), torch.randint(CLASSES, (samples,))
    beyond = spoiled(spk, lengths, 1.0)
    code = {"population_code": True, "num_classes": CLASSES}
    for accuracy, options in ((losses.accuracy_rate, {}), (losses.accuracy_rate, code), (losses.accuracy_temporal, {})):
        one_by_one = each_alone(functools.partial(accuracy, **options), spk, targets, lengths)
        assert accuracy(beyond, targets, **options, lengths=lengths) == pytest.approx(sum(one_by_one) / samples)
    for shaped in (beyond, beyond.view(STEPS, samples, 3, 4), beyond[..., 0]):
        wanted = sum(shaped[:n, b].sum() for b, n in enumerate(lengths.tolist()))
        torch.testing.assert_close(losses.l1_rate_sparsity(0.5)(shaped, lengths=lengths), 0.5 * torch.as_tensor(wanted))


def test_lengths_of_targets_over_time() -> None:
    mem, targets = record("mse_membrane_loss", STEPS, 5, CLASSES), torch.randint(CLASSES, (STEPS, 5))
    loss = losses.mse_membrane_loss(time_var_targets=True)
    one_by_one = [loss(mem[:n, b : b + 1], targets[:n, b : b + 1]) for b, n in enumerate(LENGTHS.tolist())]
    padded = targets.masked_fill(torch.arange(STEPS).view(-1, 1) >= LENGTHS, -100)
    torch.testing.assert_close(loss(mem, padded, lengths=LENGTHS), torch.stack(one_by_one).mean(0))
    ignored = TARGETS.index_fill(0, torch.tensor([1, 3]), -100)
    kept = torch.tensor([0, 2, 4])
    for name in (name for name in losses.__all__ if name.startswith("ce_")):
        loss = getattr(losses, name)()
        rec = record(name, STEPS, 5, CLASSES)
        wanted = loss(rec[:, kept], ignored[kept], lengths=LENGTHS[kept])
        torch.testing.assert_close(loss(rec, ignored, lengths=LENGTHS), wanted)


def test_bad_lengths() -> None:
    rec = torch.rand(STEPS, 5, CLASSES)
    for wrong, error in (
        ([1], TypeError), (LENGTHS.double(), TypeError), (LENGTHS[:2], ValueError), (LENGTHS + 1, ValueError),
        (LENGTHS - 1, ValueError),
    ):  # fmt: skip
        for name in losses.__all__:
            function = getattr(losses, name)
            given = (rec,) if name == "l1_rate_sparsity" else (rec, TARGETS)
            with pytest.raises(error, match=r"^lengths\b"):
                (function() if isinstance(function, type) else function)(*given, lengths=wrong)
    with pytest.raises(ValueError, match=r"^lengths: needs spk_out"):
        losses.l1_rate_sparsity()(rec[:, 0, 0], lengths=LENGTHS)


# ---- the cross-entropy of all time steps at once is PyTorch's, whichever order of the classes it is computed in


CE_OPTIONS: list[dict[str, Any]] = [
    {}, {"reduction": "sum"}, {"reduction": "none"}, {"label_smoothing": 0.1},
    {"label_smoothing": 0.1, "reduction": "none"}, {"ignore_index": 0},
    {"ignore_index": 0, "label_smoothing": 0.1, "reduction": "sum"},
]  # fmt: skip


def at_each_step(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """All rows in one batch, as PyTorch wants them."""
    loss = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), **options)
    return loss.view(len(logits), -1) if loss.dim() else loss


def problem(T: int, B: int, classes: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return (4 * torch.randn(T, B, classes)).to(dtype), torch.randint(0, classes, (B,))


def ce_and_grad(fn: Any, logits: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    return loss_and_grad(lambda logits, labels: fn(logits, labels, **options), logits, labels)


@pytest.mark.parametrize("options", CE_OPTIONS, ids=case_id)
@pytest.mark.parametrize("classes", [1, 2, 10, 15, 16, 17, 40])  # on both sides of the number where the order changes
def test_ce_is_pytorchs(classes: int, options: dict[str, Any]) -> None:
    for T, B, weighted in ((1, 1, True), (6, 5, False), (6, 5, True), (3, 70, False), (4, 0, False)):
        for dtype, eps in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
            logits, labels = problem(T, B, classes, dtype)
            given = {**options, "weight": torch.rand(classes, dtype=dtype) + 0.5 if weighted else None}
            expected = ce_and_grad(at_each_step, logits, labels, **given)
            assert_same(ce_and_grad(cross_entropy_over_time, logits, labels, **given), expected, eps)
    no_label = torch.full((3,), -100)
    assert cross_entropy_over_time(problem(4, 3, classes)[0], no_label).isnan()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("classes", [10, 40])
def test_ce_of_half_precision_is_near_the_truth(classes: int, reduction: str) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        logits, labels = problem(6, 5, classes, dtype)
        true = ce_and_grad(at_each_step, logits.double(), labels, reduction=reduction)
        ours = ce_and_grad(cross_entropy_over_time, logits, labels, reduction=reduction)
        assert all(t.dtype == dtype for t in ours)
        assert_same([t.double() for t in ours], true, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("classes", [3, 16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_ce_second_derivatives(reduction: str, classes: int) -> None:
    logits, labels = problem(2, 3, classes)

    def loss(logits: Tensor) -> Tensor:
        return cross_entropy_over_time(logits, labels, reduction=reduction)

    assert torch.autograd.gradgradcheck(loss, logits.requires_grad_())


# ---- losses and accuracies over time name the argument that is wrong


def call(name: str, rec: Any = None, targets: Any = None, **options: Any) -> Any:
    rec = torch.zeros(6, 5, CLASSES) if rec is None else rec
    targets = torch.zeros(5, dtype=torch.int64) if targets is None else targets
    return getattr(losses, name)(**options)(rec, targets)


timed = functools.partial(call, "mse_temporal_loss", target_is_time=True)
WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: losses.ce_count_loss(reduction="median"), ValueError, "reduction: "),
    (lambda: losses.ce_count_loss(weight=[1.0, 2.0]), TypeError, "weight: "),
    (lambda: losses.ce_count_loss(population_code="yes"), TypeError, "population_code: "),
    (lambda: losses.ce_count_loss(population_code=True), ValueError, "num_classes: "),
    (lambda: losses.ce_count_loss(population_code=True, num_classes=2.0), TypeError, "num_classes: "),
    (lambda: losses.accuracy_rate(torch.zeros(2, 3, 4), torch.zeros(3), True), ValueError, "num_classes: "),
    (lambda: losses.mse_count_loss(correct_rate="high"), TypeError, "correct_rate: "),
    (lambda: losses.mse_count_loss(incorrect_rate=float("nan")), ValueError, "incorrect_rate: "),
    (lambda: losses.mse_membrane_loss(on_target=None), TypeError, "on_target: "),
    (lambda: losses.mse_temporal_loss(on_target=(1, 2)), TypeError, "on_target: "),
    (lambda: losses.mse_temporal_loss(multi_spike=True), TypeError, "on_target: "),
    (lambda: losses.mse_temporal_loss(on_target=(1, 2), off_target=(3,), multi_spike=True), ValueError, "off_target: "),
    (lambda: losses.mse_temporal_loss(tolerance="little"), TypeError, "tolerance: "),
    (lambda: losses.ce_temporal_loss("invert"), ValueError, "inverse: "),
    (lambda: losses.l1_rate_sparsity(torch.zeros(3)), TypeError, "Lambda: "),
    (lambda: losses.l1_rate_sparsity()([1.0]), TypeError, "spk_out: "),
    (lambda: call("ce_count_loss", population_code=True, num_classes=3), ValueError, "num_classes: "),
    (lambda: call("ce_rate_loss", population_code=True, num_classes=3), ValueError, "num_classes: "),
    (lambda: call("ce_rate_loss", np.zeros((6, 5, 4))), TypeError, "spk_out: "),
    (lambda: call("ce_rate_loss", torch.zeros(6, 5, 4, dtype=torch.complex64)), TypeError, "spk_out: "),
    (lambda: call("ce_rate_loss", torch.zeros(6, 4)), ValueError, "spk_out: "),
    (lambda: call("ce_max_membrane_loss", torch.zeros(0, 5, 4)), ValueError, "spk_out: "),
    (lambda: call("ce_temporal_loss", torch.zeros(6, 4)), ValueError, "spk_rec: "),
    (lambda: call("ce_rate_loss", targets=[0] * 5), TypeError, "targets: "),
    (lambda: call("ce_rate_loss", targets=torch.zeros(5)), TypeError, "targets: "),
    (lambda: call("mse_count_loss", targets=torch.zeros(5, 1)), ValueError, "targets: "),
    (lambda: call("mse_count_loss", targets=torch.zeros(4)), ValueError, "targets: "),
    (lambda: call("ce_rate_loss", targets=torch.zeros(5, dtype=torch.long, device="meta")), ValueError, "targets is "),
    (lambda: call("mse_membrane_loss", time_var_targets=True), ValueError, "targets: "),
    (lambda: timed(), ValueError, "targets: "),
    (lambda: timed(multi_spike=True), ValueError, "targets: "),
    (lambda: call("ce_count_loss", weight=torch.ones(3)), ValueError, "weight: "),
    (lambda: call("mse_count_loss", weight=torch.ones(())), ValueError, "weight: "),
    (lambda: call("mse_count_loss", targets=torch.full((5,), 3), weight=torch.ones(3)), ValueError, "weight: "),
    (lambda: timed(None, torch.full((4,), 5), weight=torch.ones(4)), ValueError, "weight: "),
    (lambda: call("ce_count_loss", weight=torch.ones(CLASSES, device="meta")), ValueError, "weight is "),
    (lambda: timed(None, torch.zeros(4), weight=torch.ones(6)), TypeError, "targets: "),
    (lambda: losses.accuracy_temporal(torch.zeros(6, 5, 4), torch.zeros(4)), ValueError, "targets: "),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG, ids=[f"{i}-{w[2][:-2]}" for i, w in enumerate(WRONG)])
def test_a_wrong_argument_is_named(wrong: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        wrong()


@pytest.mark.parametrize("label", [CLASSES, -1, 10**6, -(10**6)])
@pytest.mark.parametrize("name", LOSSES)
def test_a_label_without_a_class(name: str, label: int) -> None:
    also = ", or -100 for a sample that does not count" if name.startswith("ce") else ""
    message = rf"^targets: expected 0 to {CLASSES - 1}, the numbers of classes{also}, got {label}$"
    targets = torch.tensor([0, 1, -100 if also else 3, label, 2])
    weights, lengths = ({}, {"weight": torch.ones(CLASSES)}), ({}, {"lengths": torch.tensor([6, 6, 3, 2, 1])})
    for options, more in itertools.product(weights, lengths):
        with pytest.raises(ValueError, match=message):
            getattr(losses, name)(**options)(torch.zeros(6, 5, CLASSES), targets, **more)
    if "population_code" in getattr(losses, name).__init__.__code__.co_varnames:
        with pytest.raises(ValueError, match=message):
            call(name, torch.zeros(6, 5, 2 * CLASSES), targets, population_code=True, num_classes=CLASSES)
    if not also:
        with pytest.raises(ValueError, match=r"got -100$"):
            call(name, targets=torch.tensor([0, 1, -100, 2, 3]))


def test_a_label_of_a_step_without_a_class() -> None:
    targets = torch.zeros(6, 5, dtype=torch.int64)
    targets[4, 2] = CLASSES
    with pytest.raises(ValueError, match=r"^targets: expected 0 to 3, the numbers of classes, got 4"):
        call("mse_membrane_loss", targets=targets, time_var_targets=True)


@pytest.mark.parametrize("name", ["accuracy_rate", "accuracy_temporal"])
def test_an_accuracy_of_a_label_without_a_class(name: str) -> None:
    assert getattr(losses, name)(torch.zeros(6, 4, CLASSES), torch.tensor([0, CLASSES, -1, -100])) == 0.25
