"""Checkpoints: writing, reading and publishing trained models."""
