"""Where the bytes of an image are: in a file, or in a zip archive that is never unpacked."""

import functools
import io
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, Protocol

# What zipfile raises for archives that are damaged, one way or another (NotImplementedError is a RuntimeError)
BROKEN_ARCHIVE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, RuntimeError)


class Source(Protocol):
    """An encoded image; its str names it in messages."""

    def open(self) -> IO[bytes]: ...

    def stamp(self) -> tuple[str, int, int]:
        """Name, size, and time or checksum: what changes if the image does."""
        ...


class File(NamedTuple):
    """An image file, or with ``member`` one inside a zip archive."""

    path: Path
    member: str | None = None

    def open(self) -> IO[bytes]:
        if self.member is None:
            return open(self.path, "rb")
        try:
            return io.BytesIO(open_archive(self.path).read(self.member))
        except BROKEN_ARCHIVE as error:
            raise OSError(f"{self} can't be read from its archive ({error})") from error

    def stamp(self) -> tuple[str, int, int]:
        if self.member is None:
            found = self.path.stat()
            return (str(self.path.resolve()), found.st_size, found.st_mtime_ns)
        info = open_archive(self.path).getinfo(self.member)
        return (self.member, info.file_size, info.CRC)

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}:{self.member}"


@functools.lru_cache(maxsize=2)
def open_archive(path: Path) -> zipfile.ZipFile:
    """A zip archive to read members of, from several threads if need be.

    Raises ValueError for a broken one, and for members that point outside.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (*BROKEN_ARCHIVE, OSError, ValueError) as error:
        raise ValueError(f"{path} must be a whole zip archive ({error}); remove it to have it fetched again") from error
    for name in archive.namelist():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise ValueError(f"{path} must hold files of its own folder alone, got the member {name}")
    return archive
