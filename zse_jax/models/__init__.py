"""The Flax modules that the retrieval systems are built from."""
