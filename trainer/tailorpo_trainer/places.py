"""Whether a name in a document is a path of this machine, or may be an id on the hub. No torch.

An id, `owner/name`, looks like a path. A path that is not there is said at once, and not asked for on the hub.
"""

import difflib
from pathlib import Path

WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx", ".zip", ".tar", ".gz")


def local_path(name: str) -> Path | None:
    """The local file or folder of this name, or None."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):  # the name is too long for a file, or the home of an unknown user
        return None


def missing_path(name: str, what: str = "folder") -> str | None:
    """Why a name is a path that is not there, and no id on the hub, as a predicate; None if it may be an id.

    what: kind of place that was looked for.
    """
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        return f"is no {what} here"
    if name.lower().endswith(WEIGHTS):
        return "is no file here"
    folder = local_path(name.partition("/")[0]) if "/" in name else None
    if folder is None or not folder.is_dir():
        return None
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    close = difflib.get_close_matches(name.partition("/")[2], names, n=1)
    hint = f", did you mean {folder}/{close[0]}?" if close else ""
    return f"is not in the folder {folder} that is here{hint}"
