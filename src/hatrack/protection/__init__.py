"""Protection of what consolidated tasks rely on: which entries are frozen, and how they keep their bits."""
