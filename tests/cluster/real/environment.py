"""What of this machine a container needs to run the project: the system, the Python that runs now, the sources."""

import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.cluster.real.programs import SYSTEM_PATH

# Where a container has the virtual environment and the sources: they may lie in /tmp here, where pods have a volume.
HOME = "/opt/tailorpo"
SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # beside /usr; links into it on most machines
# Where libraries are found that lie elsewhere, and what some links in /usr lead through.
SETTINGS = ("/etc/ld.so.cache", "/etc/alternatives")
PACKAGES = ("tailorpo_trainer", "tailorpo_operator")

COMMAND = f"""\
#!{HOME}/environment/bin/python
import sys
from tailorpo_trainer.cli import main

sys.exit(main())
"""


def links() -> dict[str, str]:
    """Links in the root folder that an image needs, and where they lead."""
    found = (Path("/", name) for name in SYSTEM)
    return {path.name: str(path.readlink()) for path in found if path.is_symlink()}


def mounts() -> dict[Path, Path]:
    """By their place in a container, the files and folders of this machine that have to be seen there, read-only."""
    system = [Path("/usr"), *(Path("/", name) for name in SYSTEM), *map(Path, SETTINGS)]
    present = [path for path in system if path.exists() and not path.is_symlink()]
    here = {path: path for path in _outermost([*present, *_python()])}
    return here | {Path(HOME, "environment"): Path(sys.prefix)} | _sources()


def variables() -> dict[str, str]:
    """What makes a command find the environment's programs and the project."""
    return {
        "PATH": f"{HOME}/bin:{HOME}/environment/bin:{SYSTEM_PATH}",
        "PYTHONPATH": ":".join(map(str, _sources())),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _sources() -> dict[Path, Path]:
    """The folders from which this process imports the project, unless they are the environment's own."""
    found = (importlib.util.find_spec(name) for name in PACKAGES)
    folders = [Path(spec.origin).parents[1] for spec in found if spec is not None and spec.origin is not None]
    return {Path(HOME, folder.name): folder for folder in folders if not folder.is_relative_to(sys.prefix)}


def _python() -> Iterator[Path]:
    """The Python below the virtual environment: every folder on the way there, for it may be a link."""
    yield Path(sys.base_prefix)
    yield Path(sys.base_prefix).resolve()
    program = Path(sys.executable)
    while program.is_symlink():
        program = program.parent / program.readlink()
        if not program.is_relative_to(sys.prefix):
            yield program.parent.parent
    yield program.resolve().parent.parent


def _outermost(paths: Iterable[Path]) -> Iterator[Path]:
    kept = list[Path]()
    for path in sorted(set(paths)):  # a folder comes before what is in it
        if not any(path.is_relative_to(each) for each in kept):
            kept.append(path)
            yield path
