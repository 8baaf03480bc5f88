"""The base of all other folders of the worker: settings, errors, failpoints, facts about the host."""
