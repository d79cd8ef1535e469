"""Exported files: how they are encoded, run and timed. Nothing here needs torch to open a file."""
