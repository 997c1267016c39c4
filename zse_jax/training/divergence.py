"""Detects a diverging loss."""

import collections
import statistics

HISTORY = 100
"""Number of previous losses in the median."""


class SpikeGuard:
    """Detects a loss that is larger than `factor` times the median of the previous losses."""

    def __init__(self, factor: float):
        """`factor`: above 1; 0 disables the check."""
        if factor and factor <= 1:
            raise ValueError(
                f"config.train.spike={factor} must be above 1: the run stops at a loss larger than "
                "this many times its median; 0 disables the check."
            )
        self._factor = factor
        self._losses: collections.deque[float] = collections.deque(maxlen=HISTORY)

    def is_spike(self, loss: float) -> bool:
        """Whether `loss` is a spike; records it otherwise. The first 20 losses never are."""
        enough = self._factor and len(self._losses) >= 20
        if enough and loss > self._factor * statistics.median(self._losses):
            return True
        self._losses.append(loss)
        return False
