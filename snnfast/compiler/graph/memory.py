"""The memory of tensors: which nodes share it, and which calls change it."""

from collections import defaultdict

from torch.fx import Graph, Node

from snnfast.compiler.graph.nodes import changed, has_effect, is_opaque, name_of, storage_of, tensors_of


def memory_of(node: Node) -> list[int]:
    """The memory of the tensors that a node returns, by numbers. A rewrite may have given it another one."""
    return node.meta.get("storage") or [storage_of(t) for t in tensors_of(node)]


def replace(node: Node, made: Node) -> None:
    """Let a new call take the place of another one, whose views share memory with it from now on."""
    made.meta["storage"] = memory_of(node)
    take_place(node, made)


def take_place(node: Node, other: Node) -> None:
    """Let a call that does all that another one does take its place, effects included.

    Rewrites remove calls with this and :func:`erase_unread` alone: a call that nobody reads may write to a buffer.
    """
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def erase_unread(node: Node) -> bool:
    """Remove a call that nobody reads, unless it has an effect. Returns whether it did."""
    if node.users or has_effect(node):
        return False
    node.graph.erase_node(node)
    return True


def takes_data(node: Node) -> bool:
    """Whether a call is ``x.data``, which shares the memory of ``x`` but not the count of its changes."""
    return name_of(node.target) == "_get_data_attr"


class Memory:
    """The alias analysis of a graph, by fake tensors.

    Attributes:
        storage: The memory of each node, by numbers.
        sharing: The nodes that have a memory.
        writes: The calls that change it.
        given: Memory that comes from outside.
        untracked: Memory that somebody reaches through ``.data``.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.storage: dict[Node, list[int]] = {}
        self.sharing: dict[int, list[Node]] = defaultdict(list)
        self.writes: dict[int, list[Node]] = defaultdict(list)
        self.given: set[int] = set()
        self.untracked: set[int] = set()
        for node in graph.nodes:
            self.storage[node] = found = self._storage_of(node)
            for s in found:
                self.sharing[s].append(node)
            if node.op in ("placeholder", "get_attr"):
                self.given.update(found)
            if takes_data(node):
                self.untracked.update(found)
            for a in changed(node):
                for s in self.storage[a]:
                    self.writes[s].append(node)

    def _storage_of(self, node: Node) -> list[int]:
        found = memory_of(node)
        if is_opaque(node):  # it may return what it is given
            found += [s for a in node.all_input_nodes for s in self.storage[a]]
        return list(dict.fromkeys(found))

    def is_written(self, node: Node) -> bool:
        return any(s in self.writes for s in self.storage.get(node, ()))

    def is_written_untracked(self, node: Node) -> bool:
        """Whether autograd may not notice that a tensor is changed after it was saved for the backward pass."""
        found = self.untracked.intersection(self.storage.get(node, ()))
        return any(not takes_data(write) for s in found for write in self.writes[s])

    def order(self) -> dict[Node, list[Node]]:
        """The nodes that must run before a node, so that reads and changes of a memory keep their order."""
        before: dict[Node, list[Node]] = defaultdict(list)
        last: dict[int, Node] = {}
        reads: dict[int, list[Node]] = defaultdict(list)
        for node in self.graph.nodes:
            read = {s for a in node.all_input_nodes for s in self.storage[a] if s in self.writes}
            written = {s for a in changed(node) for s in self.storage[a]}
            for s in read | written:
                if s in last:
                    before[node].append(last[s])
                if s in written:
                    before[node] += [n for n in reads[s] if n is not node]
                    last[s], reads[s] = node, []
                else:
                    reads[s].append(node)
        return before
