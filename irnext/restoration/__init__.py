"""Restoring pictures of any size: in memory (`restore`) and in files (`restore_files`)."""

from .files import restore_files
from .jobs import Report
from .pictures import restore
from .processes import Processes

__all__ = ["Processes", "Report", "restore", "restore_files"]
