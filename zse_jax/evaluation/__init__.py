"""Evaluation of trained retrievers on unseen classes."""
