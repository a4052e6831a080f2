"""Many videos into the cache: which they are, what they need, and the work on them."""
