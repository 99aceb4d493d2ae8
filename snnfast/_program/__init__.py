"""Elementwise recurrences as programs: a step function is traced to instructions, which the kernels run for all steps.

``trace`` records a step and its derivative, ``code`` makes of them what the kernels read, ``run`` is the call. ``seen``
knows what a step reads beside its arguments, and whether it has changed: ``settled`` which code never changes,
``places`` where the numbers are.
"""
