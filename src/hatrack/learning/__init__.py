"""Learning of tasks in a row: a learner that hides gates, and a learner of streams without announced switches."""
