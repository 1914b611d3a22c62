"""Degradations and data sets."""
