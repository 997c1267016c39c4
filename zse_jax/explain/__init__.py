"""Showing why a photo was found, and how training went."""
