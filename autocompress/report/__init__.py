"""Candidates -> table -> figures -> one HTML file that works offline, and the front for the terminal."""
