"""Networks of tasks: a backbone, the masks of its tasks, and the protection of what these rely on."""
