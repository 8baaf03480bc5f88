"""Everything that runs on a hypervisor host, for all interfaces."""

__version__ = "0.2.0"
