"""Write files so that a failure never costs the user what was there before."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from onnxopt.errors import OutputError


def writable(path: str | os.PathLike[str], force: bool) -> Path:
    """``path``, once it is sure that a file can be put there; checked before any work is done.

    Raises ``OutputError`` if it is a directory, exists without ``force``, or its directory is missing
    or not writable.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"{target} is a directory; give a file name")
    if target.exists() and not force:
        raise OutputError(f"{target} exists; give --force (or force=True) to replace it")
    if not target.parent.is_dir():
        raise OutputError(f"{target.parent} is not a directory; create it first")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{target.parent} is not writable")
    return target


@contextmanager
def replace_file(target: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``target`` when the block ends well, and vanishes if it does not.

    Raises ``OutputError`` if the disk is full or the file cannot be written.
    """
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=target.parent, prefix=f".{target.name}.", suffix=".tmp", delete=False
        ) as file:
            temporary = Path(file.name)
            yield cast(BinaryIO, file)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            mode = target.stat().st_mode
        else:
            mask = os.umask(0)
            os.umask(mask)
            mode = 0o666 & ~mask
        temporary.chmod(mode)
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
