"""The revisions of the database form one chain. Two that were written in parallel must be put in order."""

from alembic.script import ScriptDirectory

from master_service.db.engine import config


def test_revisions_are_one_chain_numbered_from_one():
    scripts = list(ScriptDirectory.from_config(config()).walk_revisions())[::-1]
    numbers = [f"{number:04}" for number in range(1, len(scripts) + 1)]
    assert [script.revision for script in scripts] == numbers
    assert [script.down_revision for script in scripts] == [None, *numbers[:-1]]
