"""Calls whose results nobody reads are removed.

::

    neg = neg(x)                      exp = exp(x)
    exp = exp(x)                      output exp
    output exp

A dead call stays where a call of its site is needed at another step: so the last step of a loop is like the others, and
each step of a neuron layer has all its results.
"""

from collections.abc import Callable

from torch.fx import Graph, Node

from snnfast.compiler.graph.nodes import has_effect, is_step, site_of


def run(graph: Graph) -> None:
    kept = _of_last_steps(graph)
    remove_unused(graph, lambda node: node in kept or has_effect(node))


def remove_unused(graph: Graph, needed: Callable[[Node], bool]) -> None:
    """Remove calls whose results nobody reads. ``Graph.eliminate_dead_code`` would go into the bodies of functions."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output") and not needed(node):
            graph.erase_node(node)


def _of_last_steps(graph: Graph) -> set[Node]:
    """Dead calls of the last steps, which compute what a next step would read."""
    needed: set[Node] = {n for n in graph.nodes if has_effect(n)}
    for node in reversed(graph.nodes):
        if node.op == "output" or node in needed:
            needed |= {node, *node.all_input_nodes}
    dead = [n for n in graph.nodes if n.op == "call_function" and n not in needed and not is_step(n.target)]
    sites = {site_of(n).of_any_module for n in needed} if dead else set()
    found: set[Node] = set()
    for node in dead:
        alike = site_of(node).of_any_module in sites
        found |= {node} if alike and all(a in needed or a in found for a in node.all_input_nodes) else set()
    return found
