"""Files and folders that survive a power cut: the system calls below the folder store."""

import errno
import os
from contextlib import suppress
from pathlib import Path

# What file systems without hard links (SMB, exFAT, several FUSE ones) say to link().
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}


def fill(path: Path, data: bytes | memoryview) -> None:
    """Create a file that nobody else has, on the disk when this returns; none is left behind on an error."""
    # Not mkstemp, whose mode 0600 would lock out everybody but the writer.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def claim(temporary: Path, path: Path, data: bytes | memoryview) -> bool:
    """Give a written file its name unless the name is taken; whether that worked."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # Still only one can win. A crash now may leave a torn object, but readers check each manifest.
        try:
            fill(path, data)
        except FileExistsError:
            return False
    return True


def make(folder: Path) -> None:
    """Create a folder and its parents so that they survive a power cut."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.is_dir()]
    for parent in reversed(missing):
        # A file in the way raises here; another process that made the same folder does not.
        parent.mkdir(exist_ok=True)
        sync(parent.parent)


def sync(folder: Path) -> None:
    """Put a folder's list of names on the disk, where the file system has such a thing."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # such as the folder above ours: we may pass through it but not read it
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # some FUSE and SMB mounts
            raise
    finally:
        os.close(descriptor)
