"""Other people's weights: one file per publisher, each with `load(model, arrays)`."""
