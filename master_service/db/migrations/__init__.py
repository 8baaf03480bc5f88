"""Alembic revisions of the master's database. A new one: `python -m master_service revision "what changes"`."""
