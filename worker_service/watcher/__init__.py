"""The engine in the minion: it observes all VMs on each tick, publishes events and restarts orphaned helpers."""
