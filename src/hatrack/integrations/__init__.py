"""Trainers and tools of other packages, around a network of tasks: one module for each, imported where it is needed."""
