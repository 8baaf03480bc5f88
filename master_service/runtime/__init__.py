"""Shared by the daemons and the API of a running master: context, change feed, leader election."""
