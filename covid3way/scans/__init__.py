"""Scans in, results out: the only code that knows file formats."""
