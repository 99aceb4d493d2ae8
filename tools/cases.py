"""A plugin of pytest for machines where tests take long: ``-p tools.cases --share 4`` runs a fourth of the cases.

Of each test it takes a fourth of its cases, and at least one: always the same, and without a pattern in their order.
"""

import math
import random
from collections import defaultdict

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", type=int, default=1, help="run one of so many cases of each test")


@pytest.hookimpl(trylast=True)  # after the options that leave out tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    cases = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    kept = set()
    for test, found in cases.items():
        kept.update(random.Random(test).sample(found, math.ceil(len(found) / config.getoption("--share"))))
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]
