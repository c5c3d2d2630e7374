"""Storage: checkpoints, checked JSON, files that are written as a whole, and locks."""
