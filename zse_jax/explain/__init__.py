"""Explanations: why a photo was found, and figures and reports of results."""
