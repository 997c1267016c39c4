"""Training: the loop, the step, and what surrounds them."""
