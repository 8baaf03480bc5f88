"""What every other folder of the master needs: settings, errors, clock, logging."""
