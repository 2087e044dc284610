"""Ways to run work: one file per provider."""
