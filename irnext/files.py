"""Files that appear whole or not at all, in folders that are known to take them."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file that takes its place at `path`, whole and on disk, when the block ends well.

    Otherwise `path` stays as it was. Raises FileNotFoundError if its folder does not exist, and
    OSError, naming `path`, where it cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    # Short, so that whatever name the target may have, this one may be had too.
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, os.fspath(temporary)):
            raise  # another file's, from inside the block
        raise _renamed(error, path) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def output_folder(folder: str | os.PathLike) -> Iterator[None]:
    """Make `folder` where it is missing and try a file in it, before the work that fills it.

    Of the folders made, those that are still empty when the block ends are removed. Raises OSError
    with the name of the folder, or of the file that stands where a folder is needed.
    """
    folder = Path(folder)
    for parent in (*reversed(folder.parents), folder):
        if parent.exists() and not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "this is a file, not a folder", str(parent))
    made: list[Path] = []
    try:
        for parent in (*reversed(folder.parents), folder):
            if not parent.exists():
                parent.mkdir(exist_ok=True)
                made.append(parent)
        _try_to_write(folder)
        yield
    finally:
        for parent in reversed(made):
            with contextlib.suppress(OSError):  # it holds results
                parent.rmdir()


def _try_to_write(folder: Path) -> None:
    probe = folder / f".{secrets.token_hex(8)}.probe"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _renamed(error, folder) from None


def _renamed(error: OSError, path: Path) -> OSError:
    """The same error about the path that the caller named."""
    return OSError(error.errno, error.strerror, str(path))
