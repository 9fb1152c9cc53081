"""Run as a program: `tailorpo run` many times in children, for the price of one import. Not a test itself.

Reads lines of JSON from standard input: [FOLDER, ENVIRONMENT, ARGUMENTS...]. For each it forks a child that runs the
command there, and prints the child's process id, then how it ended: its exit code, or minus the signal that killed it.
"""

import json
import os
import sys

import boto3.s3.transfer
import diffusers
import jinja2
import peft
import PIL.Image
import transformers

from tailorpo_trainer import cli
from tailorpo_trainer.training import loop

# What a run imports when it needs it: here once, before the forks.
ONCE = (
    *(boto3.s3.transfer, jinja2, peft, PIL.Image, loop),
    *(diffusers.AutoencoderKL, diffusers.DDIMScheduler, diffusers.StableDiffusionPipeline),
    *(diffusers.UNet2DConditionModel, transformers.CLIPTextModel, transformers.CLIPTokenizer),
)


def main() -> None:
    for line in sys.stdin:
        folder, environment, *arguments = json.loads(line)
        child = os.fork()
        if not child:
            os.chdir(folder)
            os.environ.update(environment)
            log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os._exit(cli.main(arguments))
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
