"""Four nodes for the tests of this folder, or one clear reason why there are none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.multinode.nodes import Node, NoNodes, cluster


@pytest.fixture(scope="session")
def four_nodes() -> Iterator[list[Node]]:
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(cluster(4))
        except NoNodes as reason:
            pytest.skip(f"no network namespaces here: {reason}")
        yield made


@pytest.fixture
def nodes(four_nodes: list[Node]) -> Iterator[list[Node]]:
    """Four nodes on which nothing runs, before and after, with their cables in."""
    yield four_nodes
    for node in four_nodes:
        node.kill()
        node.mend()
