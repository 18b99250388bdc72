"""A procedural digital chest phantom: pure functions of a seed."""
