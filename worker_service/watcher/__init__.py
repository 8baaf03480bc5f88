"""The daemon in the minion: it looks at everything on each tick, publishes events and restarts orphaned helpers."""
