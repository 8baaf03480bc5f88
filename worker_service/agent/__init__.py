"""Software in guests: the seed that brings the agent in, the agent itself, and what it reports."""
