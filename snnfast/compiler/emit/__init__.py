"""The new graph: the calls of all steps.

``emitter.py`` has the results of all steps and of single steps, ``writer.py`` runs each new call on fake tensors, and
``results.py`` lets results share memory as those of the loop do. ``linear.py``, ``norm.py`` and ``sums.py`` make calls
one with a neuron layer; ``channels_last.py`` and ``kernels.py`` choose the order of images and faster kernels.
``any_steps.py`` is the graph for any number of steps.
"""
