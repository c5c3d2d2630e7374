"""Support: names, modes, environment, compilers and progress."""
