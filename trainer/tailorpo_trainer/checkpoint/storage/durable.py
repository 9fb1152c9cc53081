"""Files and folders that survive a power cut: the system calls that the folder store uses."""

import errno
import os
from contextlib import suppress
from pathlib import Path

# Errors of link() on file systems without hard links (SMB, exFAT, several FUSE ones).
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}


def fill(path: Path, data: bytes | memoryview) -> None:
    """Create a new file, which is on the disk when this returns. On an error no file is left behind."""
    # Not mkstemp, whose mode 0600 would allow only the writer to read the file.
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


def link_if_absent(temporary: Path, path: Path, data: bytes | memoryview) -> bool:
    """Give a written file its final name, unless that exists. Returns whether it did."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # Still only one writer succeeds. A crash now may leave a partial object, but readers check each manifest.
        try:
            fill(path, data)
        except FileExistsError:
            return False
    return True


def make_folder(folder: Path) -> None:
    """Create a folder and its parents so that they survive a power cut."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.is_dir()]
    for parent in reversed(missing):
        # This raises if a file has that name, but not if another process created the folder.
        parent.mkdir(exist_ok=True)
        sync(parent.parent)


def sync(folder: Path) -> None:
    """Write a folder's list of names to the disk, where the file system supports it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # for example a parent folder that may be traversed but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # some FUSE and SMB mounts
            raise
    finally:
        os.close(descriptor)
