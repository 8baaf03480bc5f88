"""The processes that do pending steps: launcher, fork server, the loop over steps, limits on parallel jobs."""
