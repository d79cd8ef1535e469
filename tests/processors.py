"""What the integer kernels of this processor can do."""

from __future__ import annotations

from autocompress.deploy.saturation import saturates
from autocompress.plan import Precision


def exact(precision: Precision) -> Precision:
    """The precision that a search takes here instead of one whose sums may saturate."""
    return precision.without_saturation() if saturates() else precision


EIGHT_BITS = exact(Precision.W8A8)
EIGHT_BITS_DYNAMIC = exact(Precision.W8A8_DYNAMIC)
