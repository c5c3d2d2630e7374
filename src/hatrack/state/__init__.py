"""State of networks: its movement in runs, copies to be run, and operations that are undone after an error."""
