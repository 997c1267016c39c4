"""A user's own photos: an index, search by sketch, and a page to draw on."""
