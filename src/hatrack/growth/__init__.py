"""Growth: when a backbone is widened, how its layers change, and what becomes of tasks and optimizers."""

from hatrack.growth.policy import Growth

__all__ = ["Growth"]
