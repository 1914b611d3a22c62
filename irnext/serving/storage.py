"""Where the server keeps what was uploaded and what became of it: bounded in size and in time."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

AGE = 3600.0  # seconds that a file is kept
LEAST = 2**18  # bytes that a file counts as, at least: to look at many takes long
PERIOD = 60.0  # seconds between two looks for old files


class Storage:
    """A temporary folder, there inside a `with` block, whose oldest files go when there is too much of them.

    Attributes:
        folder: the folder; only its owner can look into it.
    """

    def __init__(self, most: int, age: float = AGE):
        """Hold at most `most` bytes, each file for `age` seconds."""
        self.most, self.age = most, age
        self._coming = 0
        self._lock, self._end = threading.Lock(), threading.Event()

    def __enter__(self) -> Storage:
        self._temporary = tempfile.TemporaryDirectory(prefix="irnext-serve-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name).resolve()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._watcher.join()
        self._temporary.cleanup()

    def new_folder(self) -> Path:
        """An empty folder inside, of a name that nobody guesses."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    @contextlib.contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Have `make_room` count bytes that come; BlockingIOError where they and others take half of all."""
        with self._lock:
            if self._coming and self._coming + size > self.most // 2:
                raise BlockingIOError("too many files are being uploaded: try again later")
            self._coming += size
        try:
            yield
        finally:
            with self._lock:
                self._coming -= size

    def make_room(self) -> None:
        """Delete what is too old, then the oldest files until what comes fits."""
        with self._lock:
            files, folders = self._scan()
            left = sum(max(LEAST, entry.st_size) for _, entry in files) + self._coming
            oldest = time.time() - self.age
            for path, entry in sorted(files, key=lambda file: file[1].st_mtime):
                if left <= self.most and entry.st_mtime >= oldest:
                    break
                path.unlink(missing_ok=True)
                left -= max(LEAST, entry.st_size)
                with contextlib.suppress(OSError):  # it is not empty
                    path.parent.rmdir()
            for folder, changed in folders:
                if changed < oldest:
                    with contextlib.suppress(OSError):  # it is not empty
                        folder.rmdir()

    def _scan(self) -> tuple[list[tuple[Path, os.stat_result]], list[tuple[Path, float]]]:
        """All files with their size and time, and all folders with the time of their last change."""
        files, folders = [], []
        for path in self.folder.rglob("*"):
            try:
                entry = path.stat()
            except FileNotFoundError:  # just moved to its place
                continue
            if path.is_dir():
                folders.append((path, entry.st_mtime))
            else:
                files.append((path, entry))
        return files, folders

    def _watch(self) -> None:
        while not self._end.wait(PERIOD):
            self.make_room()
