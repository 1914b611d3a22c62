"""Degradations of clean pictures."""
