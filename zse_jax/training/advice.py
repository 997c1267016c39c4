"""Warnings of a run, with advice: memory that will not suffice, collapsed embeddings, chance level.

Each function returns one sentence, or "" if there is nothing to warn of. The thresholds are ours.
"""

import jax
import numpy as np
from jaxtyping import Float, Int

from zse_jax.retrieval import metrics
from zse_jax.retrieval.storage import free_host_memory

COLLAPSED = 0.01
"""Cosine similarities that all lie within a range of this size are nearly equal."""

QUERIES = 200
"""Number of queries from which the metric of a random ranking is computed."""


def free_memory() -> int:
    """Bytes that each device can still allocate; CPU devices share the memory of the host."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return free_host_memory() // (jax.local_device_count() if device.platform == "cpu" else 1)


def memory(what: str, needed: int, free: int) -> str:
    """Warns if `what` needs more bytes on each device than are free."""
    if needed <= free:
        return ""
    return (
        f"{what} need {needed / 1e9:.2f} GB on each device, but {free / 1e9:.2f} GB are free: "
        "choose a smaller --config.train.batch_size, --config.train.remat=blocks, "
        "--config.compute_dtype=bfloat16, or more devices with --config.mesh.fsdp."
    )


def collapse(similarities: Float[np.ndarray, "q g"]) -> str:
    """Warns if the cosine similarities between sketches and photos of several classes are equal."""
    low, high = float(similarities.min()), float(similarities.max())
    if similarities.size < 2 or high - low >= COLLAPSED:
        return ""
    return (
        f"The embeddings have collapsed: all {similarities.size} similarities between sketches and "
        f"photos lie between {low:.4f} and {high:.4f}. Start a new run with a smaller "
        "--config.optimizer.learning_rate, a warm-up (--config.optimizer.warmup_steps) or other "
        "loss weights."
    )


def chance_level(
    select: str, queries: Int[np.ndarray, " q"], gallery: Int[np.ndarray, " g"]
) -> float | None:
    """The expected value of a metric for a random ranking; None if it is not defined here.

    Args:
      select: ranking/convention/metric, or ranking/scope/Acc@k for fine-grained retrieval, where
        each query has one relevant photo, within its class ("class") or among all.
      queries, gallery: class of each sketch and photo; about `QUERIES` of the sketches are used.
    """
    _, scope, name = select.rsplit("/", 2)
    queries = queries[:: max(1, len(queries) // QUERIES)]
    queries = queries[np.isin(queries, gallery)]
    if not len(queries):
        return None
    if name in metrics.ACCURACY:
        k = int(name.partition("@")[2])
        sizes = [
            np.sum(gallery == label) if scope == "class" else len(gallery) for label in queries
        ]
        return float(np.mean([min(1.0, k / size) for size in sizes]))
    # Equal similarities: the metrics are the expected ones over all orders.
    equal = np.zeros((len(queries), len(gallery)), np.float32)
    convention = next((known for known in metrics.CONVENTIONS if known == scope), None)
    if convention is None:
        return None
    return metrics.rank_metrics(equal, queries, gallery, convention)[name]


def at_chance(select: str, value: float, chance: float | None) -> str:
    """Warns if the validation metric is not clearly better than that of a random ranking.

    A fifth above chance is required where chance is small, and less where it is near 1.
    """
    if chance is None or value >= chance + 0.2 * chance * (1 - chance):
        return ""
    return (
        f"The validation is at chance: {select} is {100 * value:.1f}, and a random ranking has "
        f"{100 * chance:.1f}. Check the data (python -m data_pipelines.check), start from "
        "pretrained weights (--config.init_from), or change --config.optimizer.learning_rate."
    )
