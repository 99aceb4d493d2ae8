"""Each step of a neuron layer has all its results in the graph, also those that nobody reads.

::

    step = step(leaky, x, ...)        step = step(leaky, x, ...)
    spk = step[0]                     spk = step[0]
                                      mem = step[1]

The last step of a loop then has the results of the others.
"""

import operator

from torch.fx import Graph

from snnfast.compiler.calls import is_step, value


def run(graph: Graph) -> None:
    for node in list(graph.nodes):
        if not is_step(node.target):
            continue
        read = {user.args[1] for user in node.users if user.target is operator.getitem}
        for number, found in enumerate(value(node)):
            if number not in read:
                with graph.inserting_after(node):
                    made = graph.call_function(operator.getitem, (node, number))
                made.meta = {**node.meta, "example_value": found}
