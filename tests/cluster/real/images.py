"""Container images as archives that containerd imports: no registry, and next to nothing in them."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.cluster.real import environment
from tests.cluster.real.programs import Installed

PAUSE = "localhost/tailorpo/pause:tests"
TRAINER = "localhost/tailorpo/trainer:tests"
USER = 65532

TYPE = "application/vnd.oci.image"
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
HOLD, COMMAND = "pause", f"{environment.HOME}/bin/tailorpo".lstrip("/")
PROGRAMS = (HOLD, COMMAND)
FILES = {
    "etc/passwd": f"root:x:0:0::/root:/bin/sh\nnonroot:x:{USER}:{USER}::/home/nonroot:/bin/sh\n",
    "etc/group": f"root:x:0:\nnonroot:x:{USER}:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}


def write(folder: Path, programs: Installed, machine: str) -> list[Path]:
    """The images of the pause container and of the trainer; `machine` as `os.uname` says it."""
    pause, trainer = folder / "pause.tar", folder / "trainer.tar"
    architecture = MACHINES.get(machine, machine)
    held = _layer({HOLD: (programs / "pause").read_bytes()}, {}, ())
    _image(pause, PAUSE, held, {"Entrypoint": [f"/{HOLD}"]}, architecture)
    # Its /usr, Python and sources are this machine's own, mounted by the container runtime: see `runtime_spec`.
    files = FILES | {COMMAND: environment.COMMAND}
    base = _layer({name: text.encode() for name, text in files.items()}, environment.links(), ("tmp", "home/nonroot"))
    settings = [f"{name}={value}" for name, value in environment.variables().items()]
    _image(trainer, TRAINER, base, {"Env": settings, "User": f"{USER}:{USER}"}, architecture)
    return [pause, trainer]


def runtime_spec(default: Mapping[str, Any]) -> dict[str, Any]:
    """What containerd makes every container from: its own default, with this machine's environment mounted.

    Security is left open here, as containerd itself does it, since the kubelet says for each container what holds.
    """
    spec = json.loads(json.dumps(default))
    for section, names in {"process": ("capabilities", "rlimits", "apparmorProfile"), "linux": ("seccomp",)}.items():
        for name in names:
            spec[section].pop(name, None)
    spec["mounts"] += [
        {"destination": str(place), "source": str(own), "type": "bind", "options": ["rbind", "ro", "nosuid", "nodev"]}
        for place, own in environment.mounts().items()
    ]
    return dict(spec)


def _layer(files: Mapping[str, bytes], links: Mapping[str, str], writable: Sequence[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            file = tarfile.TarInfo(name)
            file.size, file.mode = len(content), 0o755 if name in PROGRAMS else 0o644
            archive.addfile(file, io.BytesIO(content))
        for name, target in links.items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
        for name in writable:
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
            archive.addfile(folder)
    return buffer.getvalue()


def _image(path: Path, name: str, layer: bytes, config: Mapping[str, Any], architecture: str) -> None:
    """An OCI image layout of one layer, as an archive."""
    blobs = dict[str, bytes]()

    def blob(content: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": f"{TYPE}.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    def document(content: Mapping[str, Any], kind: str) -> dict[str, Any]:
        return blob(json.dumps(content).encode(), kind)

    packed = blob(layer, "layer.v1.tar")
    platform = {"architecture": architecture, "os": "linux"}
    rootfs = {"type": "layers", "diff_ids": [packed["digest"]]}
    configuration = document({**platform, "config": config, "rootfs": rootfs}, "config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": f"{TYPE}.manifest.v1+json", "config": configuration}
    listed = document({**manifest, "layers": [packed]}, "manifest.v1+json")
    listed |= {"annotations": {"io.containerd.image.name": name}, "platform": platform}
    index = {"schemaVersion": 2, "manifests": [listed]}
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index).encode(), **blobs}
    with tarfile.open(path, "w") as archive:
        for file, content in files.items():
            entry = tarfile.TarInfo(file)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
