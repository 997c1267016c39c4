"""The retrieval systems: one file each, behind the interfaces of `base`; `registry` lists them."""

from zse_jax.retrievers.base import Retriever as Retriever
from zse_jax.retrievers.registry import create as create
