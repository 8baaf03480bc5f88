"""What every other folder of the worker needs: settings, errors, failpoints, facts about the host."""
