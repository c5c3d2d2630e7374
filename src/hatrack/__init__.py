"""One network, a hat for every task, nothing forgotten."""
