"""The graph of ATen calls, and questions about one call of it.

``aten.py`` makes the graph. ``nodes.py`` tells of one call its schema, results and site, ``memory.py`` which calls
share memory and which change it, ``context.py`` the modes that a call runs under, ``dependence.py`` cycles and orders.
"""
