"""Configs: one file per zero-shot setting, with a `get_config(arg)` that returns plain values."""
