"""The agent inside a guest: the script, the seed image that carries it, and its reports."""
