"""Growth: when a backbone is widened, and how its layers, tasks and optimizers change."""
