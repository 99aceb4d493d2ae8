"""The cross-entropy of all time steps at once is PyTorch's, whichever order of the classes it is computed in."""

import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import assert_bits_equal
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from snnfast import losses
from snnfast._losses import cross_entropy_over_time

CLASSES = [1, 2, 10, 15, 16, 17, 40]  # on both sides of the number from which the order changes
FEW = 10
OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.1, "reduction": "none"},
    {"ignore_index": 0},
    {"ignore_index": 0, "label_smoothing": 0.1, "reduction": "sum"},
]


@pytest.fixture(autouse=True)
def one_thread(same_random_numbers: None) -> None:
    """On tensors as small as these, threads only wait for each other."""
    torch.set_num_threads(1)


def at_each_step(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """All rows in one batch, as PyTorch wants them."""
    loss = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), **options)
    return loss.view(len(logits), -1) if loss.dim() else loss


def problem(T: int, B: int, classes: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return (4 * torch.randn(T, B, classes)).to(dtype), torch.randint(0, classes, (B,))


def loss_and_grad(fn: Any, logits: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    loss = fn(logits, labels, **options)
    upstream = torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).view_as(loss)
    return loss.detach(), torch.autograd.grad(loss, logits, upstream)[0]


def assert_same(ours: Any, expected: Any, eps: float) -> None:
    for a, b in zip(ours, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        torch.testing.assert_close(a, b, rtol=eps, atol=eps, equal_nan=True)


def id_of(options: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in options.items()) or "defaults"


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("options", OPTIONS, ids=id_of)
@pytest.mark.parametrize("classes", CLASSES)
def test_loss_and_gradient_are_pytorchs(classes: int, options: dict[str, Any], weighted: bool) -> None:
    for T, B in ((1, 1), (6, 5), (3, 70)):
        for dtype, eps in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
            logits, labels = problem(T, B, classes, dtype)
            given = {**options, "weight": torch.rand(classes, dtype=dtype) + 0.5 if weighted else None}
            assert_same(
                loss_and_grad(cross_entropy_over_time, logits, labels, **given),
                loss_and_grad(at_each_step, logits, labels, **given),
                eps,
            )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("classes", [FEW, 40])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_as_near_to_the_truth_as_pytorchs(dtype: torch.dtype, classes: int, reduction: str) -> None:
    logits, labels = problem(6, 5, classes, dtype)
    true = loss_and_grad(at_each_step, logits.double(), labels, reduction=reduction)
    ours = loss_and_grad(cross_entropy_over_time, logits, labels, reduction=reduction)
    assert all(t.dtype == dtype for t in ours)
    assert_same([t.double() for t in ours], true, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("classes", [FEW, 40])
def test_a_batch_may_be_empty(classes: int) -> None:
    logits, labels = problem(4, 0, classes)
    for reduction in ("mean", "sum", "none"):
        ours, expected = (
            loss_and_grad(fn, logits, labels, reduction=reduction) for fn in (cross_entropy_over_time, at_each_step)
        )
        assert_same(ours, expected, 1e-12)


def test_without_a_label_that_counts_the_mean_is_nan() -> None:
    logits, _ = problem(4, 3, FEW)
    assert cross_entropy_over_time(logits, torch.full((3,), -100)).isnan()


def test_logits_may_lie_in_any_order() -> None:
    logits, labels = problem(6, 5, FEW)
    expected = loss_and_grad(cross_entropy_over_time, logits, labels)
    for order in ((2, 1, 0), (1, 0, 2), (0, 2, 1)):
        strided = logits.permute(order).contiguous().permute([order.index(i) for i in range(3)])
        assert not strided.is_contiguous()
        assert_same(loss_and_grad(cross_entropy_over_time, strided, labels), expected, 1e-14)


@pytest.mark.parametrize("classes", [FEW, 40])
@pytest.mark.parametrize("label", [-1, 40])
def test_a_label_without_a_class_is_pytorchs_error(classes: int, label: int) -> None:
    logits, _ = problem(6, 5, classes)
    with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
        cross_entropy_over_time(logits, torch.full((5,), label))


@pytest.mark.parametrize("classes", [3, 16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives_are_right(reduction: str, classes: int) -> None:
    logits, labels = problem(2, 3, classes)

    def loss(logits: Tensor) -> Tensor:
        return cross_entropy_over_time(logits, labels, reduction=reduction)

    assert torch.autograd.gradgradcheck(loss, logits.requires_grad_())


@pytest.mark.parametrize("classes", [3, 16])
def test_transforms_of_torch_func_give_what_they_give_of_pytorchs(classes: int) -> None:
    logits, labels = problem(2, 3, classes)
    many = torch.randn(4, *logits.shape, dtype=logits.dtype)
    found = []
    for fn in (cross_entropy_over_time, at_each_step):

        def loss(logits: Tensor, fn: Any = fn) -> Tensor:
            return fn(logits, labels)  # type: ignore[no-any-return]

        found.append(
            (
                torch.func.vmap(torch.func.grad(loss))(many),
                torch.func.hessian(loss)(logits),
                *torch.func.jvp(loss, (logits,), (many[0],)),
            )
        )
    assert_same(*found, 1e-12)


@pytest.mark.parametrize("classes", [FEW, 40])
def test_compiles_in_one_graph_for_any_batch(classes: int) -> None:
    torch.compiler.reset()
    compiled = torch.compile(cross_entropy_over_time, fullgraph=True, dynamic=True, backend="aot_eager")
    for B in (3, 7):
        logits, labels = problem(6, B, classes)
        expected = loss_and_grad(cross_entropy_over_time, logits, labels, reduction="none")
        assert_same(loss_and_grad(compiled, logits, labels, reduction="none"), expected, 1e-12)


def test_bits_depend_neither_on_the_threads_nor_on_the_run() -> None:
    logits, labels = problem(64, 257, FEW, torch.float32)
    found = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        found.append(loss_and_grad(cross_entropy_over_time, logits, labels))
    for loss, grad in found[1:]:
        assert_bits_equal(loss, found[0][0])
        assert_bits_equal(grad, found[0][1])


class Softmaxes(TorchDispatchMode):
    """Records the lengths of the dimensions behind that of the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.behind: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._log_softmax.default:
            logits, dim, *_ = args
            self.behind.append(logits.shape[dim % logits.dim() + 1 :])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("classes", "behind"), [(10, (5,)), (15, (5,)), (16, ()), (40, ())])
def test_few_classes_leave_the_vectors_to_the_samples(classes: int, behind: tuple[int, ...]) -> None:
    with Softmaxes() as seen:
        cross_entropy_over_time(*problem(6, 5, classes))
    assert seen.behind == [behind]


def test_on_other_devices_the_order_stays() -> None:
    logits, labels = problem(6, 5, FEW)
    with Softmaxes() as seen:
        loss = cross_entropy_over_time(logits.to("meta"), labels.to("meta"), reduction="none")
    assert seen.behind == [()]
    assert loss.shape == (6, 5)


def test_a_loss_is_pickled_under_its_public_name() -> None:
    for name in ("ce_rate_loss", "ce_membrane_loss"):
        loss = getattr(losses, name)()
        assert type(loss).__module__ == "snnfast.losses"
        assert type(pickle.loads(pickle.dumps(loss))) is type(loss)
