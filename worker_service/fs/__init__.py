"""Files that survive a crash: atomic writes, locks, moves between filesystems, reserved space."""
