"""How close a restored picture is to the clean one.

Metrics of one name differ between papers by up to 0.1 in SSIM and 1.3 dB in PSNR, so every number
belongs to a protocol, and reports print its name beside the number:

- `similarity`: PSNR and SSIM of float pictures, and what the SSIM of every protocol is made of;
- `protocols`: one function per protocol of the field's tables, and `PROTOCOLS` with all of them;
- `alignment`: the protocols that align the prediction with the target first (needs OpenCV);
- `perceptual`: LPIPS (needs the lpips package).
"""

from .protocols import PROTOCOLS, Metric, Protocol, measure, require
from .similarity import psnr, ssim

__all__ = ["PROTOCOLS", "Metric", "Protocol", "measure", "psnr", "require", "ssim"]
