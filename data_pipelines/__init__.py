"""Input pipelines: files on disk -> device-ready batches. Independent of `zse_jax`."""
