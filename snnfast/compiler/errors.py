"""Why something is not merged. Each message is a reason in words for the user."""


class RefusedError(Exception):
    """Nothing of a graph can be merged."""


class UnmergedError(Exception):
    """A series of calls stays one by one. A rule raises it where ``torch.vmap`` would not be right either."""


class TrialError(Exception):
    """PyTorch does not take the arguments of a call. The message is its own, one line."""
