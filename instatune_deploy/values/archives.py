"""Zip archives that come from elsewhere, looked at before anything in them is read."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from instatune_deploy.errors import ArtifactError

#: How archives are compressed here; others have decoders, with errors of their own, that nothing needs.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1
#: What the standard library raises for archives that are damaged.
_DAMAGED = (OSError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OverflowError)


def check_archive(archive: zipfile.ZipFile, path: Path | str, *, most_bytes: int) -> None:
    """Make sure that an archive holds plain files below itself, each once, and no more than `most_bytes` in all.

    Sizes are those that it says: `zipfile` reads no more of a file than that.

    Raises:
        ArtifactError: it does not; names the first entry that is wrong.
    """
    seen: set[str] = set()
    total = 0
    for info in archive.infolist():
        if not info.filename:
            raise ArtifactError(f"{path} is refused: an entry has no name")
        inner = PurePosixPath(info.filename)
        if inner.is_absolute() or ".." in inner.parts or "\\" in info.filename or ":" in info.filename:
            raise ArtifactError(f"{path} is refused: {info.filename!r:.100} leads out of it")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or info.is_dir():
            raise ArtifactError(f"{path} is refused: {info.filename!r:.100} is a link or a directory, not a plain file")
        if info.filename in seen:
            raise ArtifactError(f"{path} is refused: it holds {info.filename!r:.100} twice")
        if info.compress_type not in _COMPRESSIONS or info.flag_bits & _ENCRYPTED:
            raise ArtifactError(
                f"{path} is refused: {info.filename!r:.100} is encrypted, or compressed in an unusual way"
            )
        seen.add(info.filename)
        total += info.file_size
        if total > most_bytes:
            raise ArtifactError(f"{path} is refused: it unpacks to more than {most_bytes / 1e9:.2g} GB")


def read_archive(path: Path, *, most_bytes: int) -> dict[str, bytes]:
    """Every file in a zip, by name; nothing is unpacked to disk.

    Raises:
        FileNotFoundError: there is none.
        ArtifactError: it is no zip, damaged, or holds what `check_archive` refuses.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_archive(archive, path, most_bytes=most_bytes)
            return {name: archive.read(name) for name in archive.namelist()}
    except FileNotFoundError:
        raise
    except _DAMAGED as error:
        raise ArtifactError(f"{path} is damaged or not a zip file: {' '.join(str(error).split()):.200}") from None
