"""`python -m tailorpo_trainer JOB.yaml`: what torchrun starts, the same as `tailorpo run JOB.yaml`."""

import sys

from tailorpo_trainer.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
