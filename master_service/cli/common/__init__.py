"""Shared by all commands: the client of the master, its token, common options, and all output."""
