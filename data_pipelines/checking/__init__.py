"""What the data checker (`python -m data_pipelines.check`) looks at, and how it shows it."""
