"""`python -m tailorpo_trainer JOB.yaml`: what torchrun starts, the same as `tailorpo run JOB.yaml`."""

import os
import sys
from pathlib import Path

from tailorpo_trainer.cli import main

if __name__ == "__main__":
    if (folder := os.environ.get("TAILORPO_REPORTS")) and (rank := os.environ.get("RANK")):
        # The pod's own message is the launcher's to write, from those of all ranks.
        os.environ["TAILORPO_TERMINATION_LOG"] = str(Path(folder) / f"{rank}.json")
    sys.exit(main(["run", *sys.argv[1:]]))
