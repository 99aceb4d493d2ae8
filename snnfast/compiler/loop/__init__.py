"""The rolled form of a graph: loops, and their statements once for all steps.

``roll.py`` finds it, by the order and the effects of all calls (``facts.py``) and the steps of neuron layers
(``layers.py``). ``loop.py`` is the form itself.
"""
