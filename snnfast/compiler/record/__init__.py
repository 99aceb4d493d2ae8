"""The loop is recorded as it runs: no tracing of bytecode, no guards, one graph for any number of steps.

Inside of a recorded call, each function of PyTorch is written down instead of run, and returns tensors without memory
(:class:`Later`). At the end stands a list of calls. It is folded into calls before, in, between and behind loops
(:mod:`runs`), which has a form without the number of steps (:mod:`form`). The form finds its plan: the graph that the
compiler makes of it, for any number of steps (:mod:`plans`). What has no plan, or needs a value in the middle, runs
call by call.
"""
