"""The place of the Triton kernels, imported as `irnext.kernels`; this release has none yet."""
