"""Stages that change a network. Siblings: none of them imports another; ``pipeline.py`` knows the order."""
