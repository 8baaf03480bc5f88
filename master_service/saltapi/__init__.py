"""The only way to Salt: the client of salt-api, and the checks of what comes back."""
