"""Operations for callers: VMs, accounts, images, console tickets, notifications, and the master as a whole."""
