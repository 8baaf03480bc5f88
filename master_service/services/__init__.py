"""What the master does for its callers: VMs, accounts, images, console tickets, notifications, the master itself."""
