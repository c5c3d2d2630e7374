"""Learning task after task: a learner for those who do not want to see gates, and streams without announced tasks."""
