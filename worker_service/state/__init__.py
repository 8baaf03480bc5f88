"""The worker's state: records, their transitions and statuses, the store of records, and the shared context."""
