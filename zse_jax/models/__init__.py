"""Flax modules from which the retrieval systems are built."""
