"""Growth: when a backbone is widened, and how its layers, tasks and optimizers change."""

from hatrack.growth.policy import Growth

__all__ = ["Growth"]
