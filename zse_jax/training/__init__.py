"""Training: the loop, the step, initialisation, the optimizer and logging."""
