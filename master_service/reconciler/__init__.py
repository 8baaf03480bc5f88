"""The daemons that make the observed state match the desired one: pusher, poller and event listener."""
