"""The probability that a photo shows what was drawn, from the similarity of their embeddings.

Platt scaling ("Probabilistic outputs for support vector machines", 1999): a logistic function of
the similarity with two numbers, which `zse_jax.evaluation.calibration` fits on classes that the
network has not seen, and which are part of a model's record.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

LIKELY = 0.5
"""Probability from which a photo counts as a match."""


class Calibration(NamedTuple):
    """The two numbers of a model: of the log odds `slope * similarity + intercept`."""

    slope: float
    intercept: float

    def probability(self, similarity: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The probability of a match, 0 to 1, for similarities of embeddings (cosines)."""
        odds = self.slope * np.asarray(similarity, np.float64) + self.intercept
        return 1 / (1 + np.exp(-np.clip(odds, -500, 500)))


def of_record(record: Mapping[str, Any] | None) -> Calibration | None:
    """The calibration in a model's record; None if it has none, or one that is no numbers."""
    found: Any = (record or {}).get("calibration")
    try:
        made = Calibration(float(found["slope"]), float(found["intercept"]))
    except (TypeError, KeyError, ValueError):
        return None
    return made if all(map(math.isfinite, made)) else None
