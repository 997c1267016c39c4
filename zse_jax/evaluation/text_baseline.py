"""The text baseline: class names as queries in place of sketches.

For systems with a text encoder: each sketch of the test set is replaced by the name of its class;
gallery, protocol and metrics do not change. Enabled by `config.evaluation.queries="text"`.
"""

import jax
import numpy as np

from data_pipelines.loading import Items
from zse_jax.retrieval.runner import Encoded
from zse_jax.retrievers.base import Encoder, TextQueries


def class_queries(retriever: Encoder, sketches: Items) -> Encoded:
    """Queries with the labels of `sketches`, and the features of their class names.

    Raises:
      ValueError: the retriever cannot encode text, or subtracts the mean of sketches.
    """
    if not isinstance(retriever, TextQueries):
        raise ValueError(
            f"{type(retriever).__name__} cannot encode text: it ranks by sketches "
            "(--config.evaluation.queries=sketch)."
        )
    if retriever.means is not None:
        raise ValueError(
            "config.evaluation.queries='text': the embeddings of this checkpoint have the mean of "
            "sketches subtracted (config.model.centred), which texts do not have. Use a "
            "checkpoint that is not centred."
        )
    names = retriever.encode_classes(sketches.class_names)
    features = jax.tree.map(lambda leaf: np.asarray(leaf)[sketches.labels], names)
    return Encoded(features, sketches.labels)
