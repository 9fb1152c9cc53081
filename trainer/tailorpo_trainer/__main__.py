"""`python -m tailorpo_trainer JOB.yaml`: what torchrun starts, the same as `tailorpo run JOB.yaml`."""

import os
import sys
from pathlib import Path

from tailorpo_trainer.cli import main
from tailorpo_trainer.training.launch import REPORTS

if __name__ == "__main__":
    if (folder := os.environ.get(REPORTS)) and (rank := os.environ.get("RANK")):
        from tailorpo_trainer.telemetry import termination

        # At the end the launcher writes the pod's termination message, from those of all ranks. Until then the pod's
        # first process keeps it current, in case all processes are killed at once, the launcher too.
        pod = termination.targets() if os.environ.get("LOCAL_RANK") == "0" else []
        paths = [Path(folder) / f"{rank}.json", *pod]
        os.environ[termination.VARIABLE] = os.pathsep.join(map(str, paths))
    sys.exit(main(["run", *sys.argv[1:]]))
