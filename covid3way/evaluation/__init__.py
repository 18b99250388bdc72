"""Predictions against references (Section III-E)."""
