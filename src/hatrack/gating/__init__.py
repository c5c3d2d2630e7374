"""Gates of units: attached to a backbone from outside, tested for leaks, and taken off again without a trace."""
