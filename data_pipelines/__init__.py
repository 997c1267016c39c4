"""Files on disk -> device-ready batches. Knows nothing of the networks that they train."""
