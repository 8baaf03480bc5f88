"""The decisions about VMs as pure functions of values; the time is an argument."""
