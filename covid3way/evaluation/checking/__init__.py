"""What is measured of a cohort before anyone trains on it, and what is wrong."""
