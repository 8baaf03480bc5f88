"""What a worker knows of its VMs: records, their transitions, their store, and the context that all code shares."""
