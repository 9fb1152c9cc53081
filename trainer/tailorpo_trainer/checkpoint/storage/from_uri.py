"""Open the store for a folder or URI given by a user."""

from pathlib import Path

from tailorpo_trainer import s3
from tailorpo_trainer.checkpoint.storage.base import Store
from tailorpo_trainer.errors import ConfigurationError


def open_store(uri: str | Path, settings: s3.Settings = s3.STANDARD) -> Store:
    """The store at a folder, `file://` or `s3://` URI; nothing is created before the first write.

    Raises `ConfigurationError` for a scheme that this version cannot write to.
    """
    scheme, separator, rest = str(uri).partition("://")
    if f"{scheme}{separator}" == s3.SCHEME:
        from tailorpo_trainer.checkpoint.storage.s3 import S3Store

        return S3Store(str(uri), settings)
    from tailorpo_trainer.checkpoint.storage.folder import FolderStore

    if not separator:
        return FolderStore(Path(uri))
    if scheme == "file" and rest.startswith("/"):
        return FolderStore(Path(rest))
    raise ConfigurationError(f"{uri}: checkpoints cannot be kept at {scheme}://; give a folder or s3://bucket/prefix")
