"""Addresses of pods: who holds which, durably, and who gets the next. Knows neither kernel nor cluster."""
