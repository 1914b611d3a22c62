"""The demonstration: `irnext demo`.

It needs no network and no data set. A photograph that no training has seen is degraded in five ways and
restored by the weights that come with the package; then those of haze are fine-tuned for a minute to
sandstorms, which they do not know, on other photographs from scikit-image's wheel.
"""

from .running import DemoResult, run

__all__ = ["DemoResult", "run"]
