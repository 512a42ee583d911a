"""Write files so that a failure never costs the user what was there before."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from onnxopt.errors import OutputError

DATA_SUFFIX = ".data"
"""What the data file beside a model is called: the name of the model and this."""


def writable(path: str | os.PathLike[str], force: bool) -> Path:
    """``path``, once it is sure that a file can be put there; checked before any work is done.

    Raises ``OutputError`` if it is a directory or device, exists without ``force``, or its directory is
    missing or not writable.
    """
    target = Path(path)
    try:
        exists = target.exists()
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise OutputError(f"cannot write {target}: {error.strerror}") from error
    if target.is_dir():
        raise OutputError(f"{target} is a directory; give a file name")
    if exists and not target.is_file():
        raise OutputError(f"{target} is not a regular file; give another output")
    if exists and not force:
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
            dir=target.parent, prefix=_prefix(target, os.getpid()), suffix=".tmp", delete=False
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


def remove_leftovers(target: Path, process: int) -> None:
    """Remove what ``process``, which was killed, had begun to write in place of ``target`` or its data file."""
    prefixes = tuple(_prefix(target.with_name(target.name + end), process) for end in ("", DATA_SUFFIX))
    for entry in os.scandir(target.parent):
        if entry.name.startswith(prefixes) and entry.name.endswith(".tmp"):
            Path(entry.path).unlink(missing_ok=True)


def _prefix(target: Path, process: int) -> str:
    return f".{target.name}.{process}-"
