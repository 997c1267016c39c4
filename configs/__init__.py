"""What to run: one file per zero-shot setting, each with a `get_config(arg)` of plain values."""
