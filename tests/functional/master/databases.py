"""The mark `on_both`, for tests of the storage: a module sets `pytestmark = on_both`, or a test has `@on_both`.

All other tests run on SQLite alone. Together the marked tests execute each statement of the master on PostgreSQL.
"""

import pytest

on_both = pytest.mark.databases("sqlite", "postgresql")
on_sqlite = pytest.mark.databases("sqlite")
on_postgresql = pytest.mark.databases("postgresql")
