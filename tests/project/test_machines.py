"""What `make test-machines` chooses of the tests."""

from types import SimpleNamespace

from tools import cases


class Item:
    def __init__(self, nodeid: str) -> None:
        self.nodeid = nodeid


def chosen(share: int) -> tuple[list[str], list[str]]:
    """Names of the cases that run, and of those that do not."""
    items = [Item(f"a.py::test_{name}[{case}]") for name in "xy" for case in range(7)] + [Item("a.py::test_z")]
    left_out: list[Item] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
    cases.pytest_collection_modifyitems(SimpleNamespace(getoption=lambda name: share, hook=hook), items)
    return [item.nodeid for item in items], [item.nodeid for item in left_out]


def test_a_share_of_the_cases_has_some_of_each_test_and_is_always_the_same() -> None:
    run, left_out = chosen(3)
    assert [sum(f"test_{name}" in case for case in run) for name in "xyz"] == [3, 3, 1]
    assert run == sorted(run)
    assert len(run) + len(left_out) == len({*run, *left_out}) == 15
    assert chosen(3) == (run, left_out)
    assert chosen(1)[1] == []
