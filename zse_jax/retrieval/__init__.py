"""Ranking a gallery: encode each image once, score the pairs, measure the ranking.

Knows retrieval systems only through `zse_jax.retrievers.base.Encoder`.
"""
