"""What the daemons and the API share while a master runs: context, change feed, leader election."""
