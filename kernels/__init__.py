"""Triton kernels of irnext, imported as `irnext.kernels`."""
