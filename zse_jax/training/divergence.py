"""Detects a loss that has left its usual range."""

import collections
import statistics

HISTORY = 100
"""Steps whose losses say what is usual."""


class SpikeGuard:
    """Tells a loss that has left its usual range: larger than `factor` times its median."""

    def __init__(self, factor: float):
        """`factor`: above 1; 0: every loss is usual."""
        if factor and factor <= 1:
            raise ValueError(
                f"config.train.spike={factor} must be above 1: the run stops at a loss larger than "
                "that many times its median; 0 never stops."
            )
        self._factor = factor
        self._losses: collections.deque[float] = collections.deque(maxlen=HISTORY)

    def is_spike(self, loss: float) -> bool:
        """Whether `loss` is one; remembers it otherwise. The first 20 losses never are."""
        enough = self._factor and len(self._losses) >= 20
        if enough and loss > self._factor * statistics.median(self._losses):
            return True
        self._losses.append(loss)
        return False
