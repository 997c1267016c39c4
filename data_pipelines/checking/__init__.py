"""The checks of `python -m data_pipelines.check`, and its contact sheet."""
