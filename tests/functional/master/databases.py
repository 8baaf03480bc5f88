"""Where storage is the subject, a module says `pytestmark = on_both`, or one of its tests is marked `@on_both`.

All others run on SQLite alone. Together those on both execute each statement of the master's on PostgreSQL, too.
"""

import pytest

on_both = pytest.mark.databases("sqlite", "postgresql")
on_sqlite = pytest.mark.databases("sqlite")
on_postgresql = pytest.mark.databases("postgresql")
