"""Checkpoints: writing, reading, and sharing trained systems."""
