"""The parts that a loop is distributed over: each is one call for all steps, or one call for each step.

``distribute.py`` chooses a part for each statement. ``index.py`` has tensors that are read row by row, ``call.py``
calls that wait for none of their own results, ``repeat.py`` those that do, ``unroll.py`` neuron layers, ``program.py``
elementwise calls that wait for one another, ``between.py`` the products between their steps.

Of a program, ``program_of.py`` finds where a step begins, ``first_step.py`` takes in a first step that differs, and
``integers.py`` has states that are whole numbers. ``rules.py`` has the operators whose calls of all steps are one call.
"""
