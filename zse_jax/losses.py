"""Training losses as pure functions of arrays."""

import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Num


def euclidean_triplet(
    anchor: Float[Array, "b d"],
    positive: Float[Array, "b d"],
    negative: Float[Array, "b d"],
    *,
    margin: float = 1.0,
    eps: float = 1e-6,
) -> Float[Array, ""]:
    """mean(max(0, |a - p| - |a - n| + margin)) with Euclidean distances, in float32.

    Like `torch.nn.TripletMarginLoss`, it adds `eps` to each difference before the norm, which also
    keeps the gradient finite where two vectors are equal. (optax adds it to the squared distance.)
    Source: ZSE, CVPR 2023, equation of the triplet term.
    """
    anchor, positive, negative = (x.astype(jnp.float32) for x in (anchor, positive, negative))

    def distance(other):
        return jnp.sqrt(jnp.square(anchor - other + eps).sum(axis=-1))

    return jnp.maximum(distance(positive) - distance(negative) + margin, 0).mean()


def relation_mse(
    score: Float[Array, "b"], target: Float[Array, "b"], *, clamp: float = 0.01
) -> Float[Array, ""]:
    """Mean squared error of relation scores against targets clamped to [clamp, 1 - clamp].

    `target` is 1 where sketch and photo belong to the same class, else 0. Source: ZSE, CVPR 2023,
    relation loss; the clamp to 0.01 and 0.99 is from the published code.
    """
    return jnp.square(score - jnp.clip(target, clamp, 1 - clamp)).mean()


def cosine_distance(a: Float[Array, "*b d"], b: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """1 - cos(a, b) in float32, in [0, 2]; 1 if either vector is zero."""
    return 1 - (unit(a) * unit(b)).sum(axis=-1)


def unit(x: Float[Array, "*b d"], eps: float = 1e-8) -> Float[Array, "*b d"]:
    """L2-normalised vectors in float32; vectors shorter than `eps` are divided by `eps`."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), eps**2))


def cosine_triplet(
    anchor: Float[Array, "b d"],
    positive: Float[Array, "b d"],
    negative: Float[Array, "b d"],
    *,
    margin: float = 0.3,
) -> Float[Array, ""]:
    """mean(max(0, d(a, p) - d(a, n) + margin)) with d = 1 - cosine.

    Source: CLIP-AT, CVPR 2023, equation 2. Its margin is 0.3 (section 6), and 0.2 in its published
    code.
    """
    difference = cosine_distance(anchor, positive) - cosine_distance(anchor, negative)
    return jnp.maximum(difference + margin, 0).mean()


def mean_similarity(features: Float[Array, "b d"], target: float) -> Float[Array, ""]:
    """|mean(F Fᵀ) - target| of the L2-normalised rows F, over all B² pairs of a batch.

    The mean lies in [0, 1], because it is the squared length of the mean feature: 1 if all features
    are equal, about 1/B if they are spread evenly. Source: MCC (IJCAI 2024), for the sketches and
    for the photos of a batch, each with a weight and a target. The official code multiplies each
    term by its weight twice; here, a weight applies once. The targets are unpublished: a
    re-implementation uses 0.1 for sketches and 0 for photos, with weights 4 and 8.

    Args:
      features: of one modality, normalised here.
      target: the similarity that the mean is drawn to.
    """
    return jnp.abs(jnp.square(unit(features).mean(axis=0)).sum() - target)


def text_classification(
    embeddings: Float[Array, "b d"],
    texts: Float[Array, "c d"],
    labels: Int[Array, "b"],
    *,
    scale: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """mean(-log softmax(scale · cos(embedding, texts))[label]).

    `texts` are the text features of the C classes, `scale` is CLIP's exp(logit_scale). Source:
    CLIP-AT, CVPR 2023, classification term, which is missing from the published code.
    """
    logits = scale * jnp.matmul(unit(embeddings), unit(texts).T, precision="float32")
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def relative_distance_divergence(
    delta: Float[Array, "c k"], labels: Int[Array, "c"]
) -> Float[Array, ""]:
    """L_delta: makes the relative distances of all classes follow the same distribution.

    With P_i = softmax(delta_i): the mean of KL(P_i || P_j) over ordered pairs of rows (i, j) of
    different classes; 0 if there is only one class. Source: CLIP-AT, CVPR 2023, the regulariser of
    its fine-grained model. The k-th triplet of one class is compared with the k-th of another, so
    every class has the same number K of triplets.

    Args:
      delta: d(sketch, its photo) - d(sketch, another photo) of K triplets of each row's class.
      labels: class of each row; a class drawn twice is not compared with itself.
    """
    log_p = jax.nn.log_softmax(delta.astype(jnp.float32), axis=1)
    divergence = optax.losses.kl_divergence_with_log_targets(log_p[None], log_p[:, None])
    differ = labels[:, None] != labels[None]
    return jnp.where(differ, divergence, 0).sum() / jnp.maximum(differ.sum(), 1)


def shuffle_patches(
    images: Num[Array, "b h w c"], order: Int[Array, "b n"]
) -> Num[Array, "b h w c"]:
    """Cuts each image into a square grid of n patches and rearranges them.

    Position i (row by row) of the result contains patch `order[:, i]`. Source: CLIP-AT, CVPR 2023,
    patch shuffling (n = 4).

    Raises:
      ValueError: n is not a square number, or the image does not divide into n patches.
    """
    b, height, width, channels = images.shape
    grid = math.isqrt(order.shape[1])
    if grid**2 != order.shape[1] or height % grid or width % grid:
        raise ValueError(
            f"Images of {height}x{width} do not divide into a square of {order.shape[1]} patches."
        )
    patch = (height // grid, width // grid)
    cut = images.reshape(b, grid, patch[0], grid, patch[1], channels).swapaxes(2, 3)
    cut = cut.reshape(b, grid**2, *patch, channels)
    cut = jnp.take_along_axis(cut, order[:, :, None, None, None], axis=1)
    return cut.reshape(b, grid, grid, *patch, channels).swapaxes(2, 3).reshape(images.shape)


def euclidean_distances(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """|a_i - b_j| of unit vectors, in [0.001, 2].

    At the lower bound, the gradient is exactly 0: it is finite for equal vectors, but if all
    vectors coincide, a loss of these distances does not move them apart.
    """
    squared = 2 - 2 * jnp.matmul(a, b.T, precision="float32")
    return jnp.sqrt(jnp.maximum(squared, 1e-6))


def domain_balanced_quadruplet(
    sketches: Float[Array, "s d"],
    photos: Float[Array, "p d"],
    sketch_labels: Int[Array, "s"],
    photo_labels: Int[Array, "p"],
    *,
    margin: float = 0.3,
    cross_margin: float = 0.15,
) -> Float[Array, ""]:
    """Hardest positives and negatives from both domains, with equal weight for all four relations.

    d is the Euclidean distance of the L2-normalised embeddings. For an anchor a, p_Y is the
    farthest member of its class in domain Y, and n_Y the nearest member of another class in Y:

        [margin + d(a, p_S) - d(a, n_S)]+ + [margin + d(a, p_P) - d(a, n_P)]+
        + [cross_margin + d(a, p_O) - d(p_O, n_O)]+

    S and P are sketches and photos, O is the domain that does not contain a. The last term is that
    of the quadruplet loss (Chen et al., CVPR 2017), whose negative pair p_O, n_O excludes the
    anchor. The mean over sketch anchors and the mean over photo anchors have equal weight. Source:
    EfficientCNN (Tursun et al., Pattern Recognition 126, 2022), which states the four relations and
    their balance; mining, distance and the last term are our reading.

    If all embeddings coincide, the loss is 2 · margin + cross_margin, and its gradient exactly 0.

    Args:
      sketches, photos: embeddings, normalised here; every class has members in both domains.
      sketch_labels, photo_labels: classes; at least two different ones.
    """
    sketches, photos = unit(sketches), unit(photos)
    of_sketches, of_photos, across = (
        (euclidean_distances(one, other), labels[:, None] == other_labels[None])
        for one, labels, other, other_labels in (
            (sketches, sketch_labels, sketches, sketch_labels),
            (photos, photo_labels, photos, photo_labels),
            (sketches, sketch_labels, photos, photo_labels),
        )
    )

    def hardest(distance, same):
        """Indices of, and distances to, each anchor's farthest positive and nearest negative."""
        positive = jnp.where(same, distance, -jnp.inf).argmax(axis=1)
        negative = jnp.where(same, jnp.inf, distance).argmin(axis=1)
        row = jnp.arange(len(distance))
        return positive, negative, distance[row, positive], distance[row, negative]

    def anchor_mean(own, across, other):
        _, _, far, near = hardest(*own)
        positive, negative, far_across, near_across = hardest(*across)
        return (
            jax.nn.relu(margin + far - near)
            + jax.nn.relu(margin + far_across - near_across)
            + jax.nn.relu(cross_margin + far_across - other[0][positive, negative])
        ).mean()

    from_photos = across[0].T, across[1].T
    return 0.5 * (
        anchor_mean(of_sketches, across, of_photos)
        + anchor_mean(of_photos, from_photos, of_sketches)
    )


def supervised_contrastive(
    sketches: Float[Array, "s d"],
    photos: Float[Array, "p d"],
    sketch_labels: Int[Array, "s"],
    photo_labels: Int[Array, "p"],
    *,
    temperature: float = 0.1,
) -> Float[Array, ""]:
    """Every sketch finds the photos of its class among all photos of the batch, and vice versa.

    With z = cos(sketch, photo) / temperature, the mean over sketches, and over the photos of each
    one's class, of -log softmax(z)[photo] over all photos; averaged with the same for photos.
    Anchors without a positive count 0. Source: Khosla et al., "Supervised contrastive learning",
    NeurIPS 2020, equation 2 (L_out), across the two modalities; not part of the paper of
    EfficientCNN.

    Args:
      sketches, photos: embeddings, normalised here.
      sketch_labels, photo_labels: classes.
      temperature: above 0.
    """
    similarity = jnp.matmul(unit(sketches), unit(photos).T, precision="float32") / temperature
    same = (sketch_labels[:, None] == photo_labels[None]).astype(jnp.float32)

    def one_way(similarity: Float[Array, "a b"], same: Float[Array, "a b"]) -> Float[Array, ""]:
        positives = same.sum(axis=1)
        log_p = jax.nn.log_softmax(similarity, axis=1)
        losses = -(same * log_p).sum(axis=1) / jnp.maximum(positives, 1)
        return losses.sum() / jnp.maximum((positives > 0).sum(), 1)

    return 0.5 * (one_way(similarity, same) + one_way(similarity.T, same.T))


def semantic_classification(
    logits: Float[Array, "b c"], labels: Int[Array, "b"], *, smoothing: float = 0.0
) -> Float[Array, ""]:
    """mean(-Σ_k q_k log softmax(logits)_k), q = (1 - smoothing) onehot(label) + smoothing / C.

    Source: EfficientCNN (2022), semantic classification loss; sketches and photos share the head.
    Label smoothing is our option (Szegedy et al., CVPR 2016).
    """
    targets = optax.losses.smooth_labels(jax.nn.one_hot(labels, logits.shape[1]), smoothing)
    return optax.losses.softmax_cross_entropy(logits.astype(jnp.float32), targets).mean()


def knowledge_preservation(
    logits: Float[Array, "b n"], knowledge: Float[Array, "b n"]
) -> Float[Array, ""]:
    """mean(KL(t || softmax(logits))), t the teacher's distribution for each image's class.

    0 if the student's ImageNet head predicts for every image what the teacher predicts on average
    for the photos of its class. The gradient is that of the cross-entropy. Source: EfficientCNN
    (2022), semantic knowledge preservation loss; our reading.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return optax.losses.kl_divergence(log_p, knowledge.astype(jnp.float32)).mean()
