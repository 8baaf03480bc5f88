"""Rules and values of graphical consoles: tickets, addresses, and what a view-only client may send."""
