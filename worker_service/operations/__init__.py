"""The verbs of `vmachines`, with validation, admission, status reports and the planner of the state module."""
