"""The parts that a loop is distributed over: each is one call for all steps, or one call for each step.

``index.py`` has tensors that are read row by row, ``call.py`` calls that wait for none of their own results,
``unroll.py`` neuron layers, ``program.py`` elementwise calls that wait for one another.
"""
