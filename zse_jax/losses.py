"""Training losses as pure functions of arrays."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def euclidean_triplet(
    anchor: Float[Array, "b d"],
    positive: Float[Array, "b d"],
    negative: Float[Array, "b d"],
    *,
    margin: float = 1.0,
    eps: float = 1e-6,
) -> Float[Array, ""]:
    """mean(max(0, |a - p| - |a - n| + margin)) with Euclidean distances, in float32.

    As `torch.nn.TripletMarginLoss`, which adds `eps` to each difference before the norm; that also
    keeps the gradient finite where two vectors are equal. Source: ZSE, CVPR 2023, equation of the
    triplet term.
    """
    anchor, positive, negative = (x.astype(jnp.float32) for x in (anchor, positive, negative))

    def distance(other):
        return jnp.sqrt(jnp.square(anchor - other + eps).sum(axis=-1))

    return jnp.maximum(distance(positive) - distance(negative) + margin, 0).mean()


def relation_mse(
    score: Float[Array, "b"], target: Float[Array, "b"], *, clamp: float = 0.01
) -> Float[Array, ""]:
    """Mean squared error of relation scores against targets clamped to [clamp, 1 - clamp].

    `target` is 1 where sketch and photo are of one class, else 0. Source: ZSE, CVPR 2023, relation
    loss; the clamp to 0.01 and 0.99 is the published code's.
    """
    return jnp.square(score - jnp.clip(target, clamp, 1 - clamp)).mean()
