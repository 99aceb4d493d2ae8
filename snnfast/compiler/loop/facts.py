"""Facts of the calls of a graph before it is rolled up: what each changes, and what must run before it."""

from collections.abc import Collection
from dataclasses import dataclass

from torch.fx import Graph, Node

from snnfast.compiler.graph.memory import Memory
from snnfast.compiler.graph.nodes import has_effect


@dataclass(frozen=True)
class Facts:
    """A graph of calls, and facts of them.

    Attributes:
        nodes: In the order in which they run.
        order: The number of each of them.
        before: The nodes that must run before a node, beside its arguments.
        written: Nodes whose memory is changed in place.
        written_untracked: Nodes whose memory is changed in place so that autograd may not notice it.
        effects: Calls that change something.
    """

    graph: Graph
    nodes: list[Node]
    order: dict[Node, int]
    before: dict[Node, list[Node]]
    written: set[Node]
    written_untracked: set[Node]
    effects: set[Node]

    def drop(self, nodes: Collection[Node]) -> None:
        """Remove calls that nobody reads, given in the order of the graph."""
        for node in reversed(list(nodes)):
            self.graph.erase_node(node)
        gone = set(nodes)
        self.nodes[:] = [n for n in self.nodes if n not in gone]
        for node, before in self.before.items():
            self.before[node] = [n for n in before if n not in gone]


def facts_of(graph: Graph) -> Facts:
    memory, nodes = Memory(graph), list(graph.nodes)
    return Facts(
        graph,
        nodes,
        {node: i for i, node in enumerate(nodes)},
        memory.order(),
        {node for node in nodes if memory.is_written(node)},
        {node for node in nodes if memory.is_written_untracked(node)},
        {node for node in nodes if has_effect(node)},
    )
