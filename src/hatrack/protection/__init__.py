"""Protection of what consolidated tasks rely on: which entries are frozen, and how they are restored."""
