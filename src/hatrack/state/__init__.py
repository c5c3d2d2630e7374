"""State of networks: what runs move, copies that may be run without a trace, and operations that happen or do not."""
