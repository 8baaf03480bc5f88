"""Everything that runs beside the Salt master: what users want, how it reaches the workers, what was seen of it."""

__version__ = "0.2.0"
