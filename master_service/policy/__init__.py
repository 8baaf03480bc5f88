"""Rules as pure functions: permissions, quotas, validation, audit entries, incidents, notification formats."""
