"""The standard embedding space (paper, Section III-B): pure functions."""
