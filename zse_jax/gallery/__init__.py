"""A user's own photos: an index of them that grows, and search in it with a sketch."""
