"""Evaluation of trained systems on unseen classes."""
