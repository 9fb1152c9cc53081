"""The real Helm, from its Go module, without the settings of this machine's user."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.cluster import build

HELM = build.Programs(
    what="Helm",
    module=Path(__file__).parent / "go",
    names=("helm",),
    source="helm.sh/helm/v4",
    stamped="helm.sh/helm/v4/internal/version.version",
    duration="2 to 5 minutes",
)


class HelmError(AssertionError):
    """Helm failed; the text is its standard error."""


class Helm:
    """Helm for one kubeconfig and namespace; all that it keeps on disk is in `folder`."""

    def __init__(self, folder: Path, kubeconfig: Path | None = None, namespace: str = "default") -> None:
        """kubeconfig: None for what needs no cluster, such as `lint` and `template`."""
        self.namespace = namespace
        self._command = [str(build.binaries(HELM) / "helm"), f"--namespace={namespace}"]
        others = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))}
        places = {f"HELM_{kind}_HOME": str(folder / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        self._environment = others | places | {"KUBECONFIG": str(kubeconfig or os.devnull)}

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        """Its standard output; raises HelmError if it fails."""
        done = subprocess.run(
            [*self._command, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env=self._environment,
        )
        if done.returncode:
            raise HelmError(f"helm {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """Its output with `--output=json`, parsed."""
        return json.loads(self(*arguments, "--output=json"))

    def template(self, release: str, chart: Path, *arguments: str, values: Sequence[object] = ()) -> str:
        """What the chart renders to. values: files of values, the last wins."""
        files = [f"--values={each}" for each in values]
        return self("template", release, str(chart), *files, *arguments)
