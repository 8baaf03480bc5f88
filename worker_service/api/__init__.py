"""The worker's HTTP interface: it calls the execution modules and serves the worker's page and consoles."""
