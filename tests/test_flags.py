"""Flags and numbers come from sweeps, command lines and YAML, and are taken as snnTorch takes them."""

from typing import Any

import numpy as np
import pytest
import snntorch
import torch
from helpers import assert_all_bits_equal

import snnfast
import snnfast.snntorch as snn
from snnfast import surrogate

FLAGS = (
    "surrogate_disable", "init_hidden", "inhibition", "learn_beta", "learn_threshold", "output",
    "learn_graded_spikes_factor", "reset_delay",
)  # fmt: skip


@pytest.mark.parametrize("value", [True, False, 1, 0, np.True_, np.False_, np.int64(1), np.uint8(0)], ids=repr)
@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("library", [snnfast, snn], ids=["snnfast", "snnfast.snntorch"])
@pytest.mark.filterwarnings("ignore:Inhibition")
def test_a_flag_may_be_a_bool_of_numpy_or_0_or_1(library: Any, flag: str, value: Any) -> None:
    ours = library.Leaky(0.9, graded_spikes_factor=1.5, **{flag: value})
    theirs = snntorch.Leaky(0.9, graded_spikes_factor=1.5, **{flag: value})
    if not flag.startswith("learn"):
        assert getattr(ours, flag) is bool(value)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for step in torch.rand(4, 2, 3) * 2:
        found, expected = ours(step), theirs(step)
        assert type(found) is type(expected)
        assert_all_bits_equal(torch.atleast_1d(*found), torch.atleast_1d(*expected))


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag != "reset_delay"])
def test_none_is_false_for_a_flag_whose_default_is_false(flag: str) -> None:
    layer = snnfast.Leaky(0.9, **{flag: None})
    assert repr(layer) == repr(snnfast.Leaky(0.9))
    assert not list(layer.parameters())
    assert getattr(layer, flag, False) is False


@pytest.mark.parametrize("value", [1, 0, np.True_, np.False_], ids=repr)
def test_flags_of_calls_are_taken_in_the_same_ways(value: Any, backend: str) -> None:
    x = torch.rand(5, 2, 3) * 2
    layer, net = snnfast.Leaky(0.9), snnfast.MultiStep(snnfast.Leaky(0.9))
    for a, b in (
        (layer.unroll(x, record_mem=value), layer.unroll(x, record_mem=bool(value))),
        (net(x, record_mem=value), net(x, record_mem=bool(value))),
        *(
            (snnfast.functional.lif(x, beta=0.9, **{flag: value}),
             snnfast.functional.lif(x, beta=0.9, **{flag: bool(value)}))
            for flag in ("reset_delay", "record_mem", "inhibition")
        ),
    ):  # fmt: skip
        assert_all_bits_equal(a, b)


def test_a_message_never_reads_expected_a_bool_got_bool() -> None:
    with pytest.raises(TypeError, match=r"^learn_beta: expected True or False, got ndarray$"):
        snnfast.Leaky(0.9, learn_beta=np.array([True]))  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [2, np.float32(2), np.int64(2), np.float64(2)], ids=repr)
def test_the_numbers_of_a_surrogate_may_be_numpys(number: Any) -> None:
    assert surrogate.fast_sigmoid(number) == surrogate.fast_sigmoid(2.0)
