"""Everything that runs on a hypervisor host, whichever door it is reached by."""

__version__ = "0.2.0"
