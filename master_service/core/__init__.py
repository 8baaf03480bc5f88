"""Settings, errors, the clock and logging, for all other folders of the master."""
