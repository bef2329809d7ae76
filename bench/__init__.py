"""Measurements, run by `make bench`: tables of median times and ratios. They state, and never fail."""
