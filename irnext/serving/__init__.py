"""A page in the browser that restores pictures: `irnext serve`."""

from .server import Limits, serve

__all__ = ["Limits", "serve"]
