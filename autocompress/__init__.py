"""Joint compression search for PyTorch models, measured on the exported file.

This module imports nothing heavy: ``import autocompress`` must stay instant.
"""

__version__ = "0.1.0"
