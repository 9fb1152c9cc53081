"""Rebuild `tiny-animals` from one font: `python -m tools.tiny_animals.make`.

Stages, in order: pictures, autoencoder, scorer, judge, denoiser, export, measure. Each keeps checkpoints in
the work folder, from which a killed run resumes. All seeds are fixed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from transformers import ResNetForImageClassification
from transformers.utils import logging

from tailorpo_trainer.tiny_animals import ANIMALS, ROOT
from tools.tiny_animals import autoencoder, denoiser, judge, scorer
from tools.tiny_animals.emoji import FONT, FontMissingError, PictureSet, contact_sheet, load_or_draw

TRAINING, HELD_OUT = 72_000, 2_400
GUIDANCES = (3.0, 5.0, 1.5)
GUIDANCE = 3.0  # of the grids and the per-animal table
SAMPLES = 10  # for each animal, guidance and kind of prompt
STAGES = ("pictures", "autoencoder", "scorer", "judge", "denoiser", "export", "measure")


class Maker:
    """One rebuild: `work` holds checkpoints, `output` receives the model."""

    def __init__(self, font: Path, work: Path, output: Path) -> None:
        self.font, self.work, self.output = font, work, output
        work.mkdir(parents=True, exist_ok=True)

    def pictures(self) -> PictureSet:
        """Training pictures."""
        return load_or_draw(self.work / "train.npy", TRAINING, seed=0, font=self.font)

    def held_out(self) -> PictureSet:
        """Pictures that are not used in training."""
        return load_or_draw(self.work / "held-out.npy", HELD_OUT, seed=1, font=self.font)

    def autoencoder(self) -> None:
        model = autoencoder.train(self.work, self.pictures())
        self.report("autoencoder", autoencoder.measure(model, self.held_out()))

    def scorer(self) -> None:
        self.report("scorer", scorer.measure(scorer.train(self.work, self.pictures()), self.held_out()))

    def judge(self) -> None:
        self.report("judge", judge.measure(judge.train(self.work, self.pictures()), self.held_out()))

    def denoiser(self) -> None:
        """Needs the autoencoder's encoder (closed form) and the scorer's text tower."""
        latents = self.work / "latents.npy"
        pictures = self.pictures()
        if not latents.is_file():
            components = autoencoder.principal_components(pictures.pixels[: autoencoder.COMPONENTS_FROM])
            np.save(latents, autoencoder.encode_closed_form(pictures.pixels, *components))
        tokenizer = scorer.build_tokenizer()
        tower = scorer.text_tower(self.restored("scorer", scorer.build(tokenizer)))
        states = scorer.caption_states(tower, tokenizer)
        denoiser.train(self.work, pictures, np.load(latents, mmap_mode="r"), states)

    def restored(self, name: str, module: torch.nn.Module, key: str = "model") -> torch.nn.Module:
        """`module` with the weights of the stage's checkpoint."""
        module.load_state_dict(torch.load(self.work / f"{name}.pt", weights_only=True)[key])
        return module.eval()

    def export(self) -> None:
        """Write the three folders beside the old ones, then exchange them, so that readers find one or the other."""
        fresh, old = self.output / ".fresh", self.output / ".old"
        for folder in (fresh, old):
            shutil.rmtree(folder, ignore_errors=True)
        tokenizer = scorer.build_tokenizer()
        clip = self.restored("scorer", scorer.build(tokenizer))
        classifier = self.restored("judge", judge.build())
        unet = self.restored("denoiser", denoiser.build(), key="average")
        vae = self.restored("autoencoder", autoencoder.build())
        denoiser.save_pipeline(denoiser.pipeline(unet, vae, scorer.text_tower(clip), tokenizer), fresh / "pipeline")
        component: Any
        for component in (clip, tokenizer, scorer.image_processor()):
            component.save_pretrained(fresh / "scorer")
        for component in (classifier, judge.image_processor()):
            component.save_pretrained(fresh / "judge")
        for path in fresh.rglob("*.safetensors"):
            path.chmod(0o644)  # some libraries write files for the owner only
        old.mkdir()
        for folder in sorted(fresh.iterdir()):
            if (self.output / folder.name).exists():
                (self.output / folder.name).rename(old / folder.name)
            folder.rename(self.output / folder.name)
        shutil.rmtree(old)
        fresh.rmdir()

    def measure(self) -> None:
        """Measure with the judge what the exported pipeline draws, and draw the grids."""
        pipe = DiffusionPipeline.from_pretrained(self.output / "pipeline")
        classifier = ResNetForImageClassification.from_pretrained(self.output / "judge").eval()
        truth = np.repeat(np.arange(len(ANIMALS)), SAMPLES)
        for guidance in GUIDANCES:
            for grounds in (False, True):
                prompts = [p for animal in ANIMALS for p in denoiser.prompts_for(animal, SAMPLES, grounds)]
                right = judge.name(classifier, denoiser.sample(pipe, prompts, guidance, seed=int(grounds))) == truth
                kind = "ground named" if grounds else "no ground"
                self.report(f"samples, guidance {guidance:g}, {kind}", {"named_right": float(right.mean())})
                if guidance == GUIDANCE:
                    each = right.reshape(-1, SAMPLES).sum(1).tolist()
                    self.report(f"of {SAMPLES}, {kind}", dict(zip(ANIMALS, each, strict=True)))
        self.grids(pipe)

    def grids(self, pipe: DiffusionPipeline) -> None:
        """`grid.png`: every animal. `grid-diversity.png`: a few prompts, many seeds."""
        columns, half = 5, len(ANIMALS) // 2
        drawn = denoiser.sample(pipe, [f"a {animal}" for animal in ANIMALS for _ in range(columns)], GUIDANCE, seed=2)
        left, right = (
            contact_sheet(drawn[half_of.start * columns : half_of.stop * columns], columns, list(ANIMALS[half_of]))
            for half_of in (slice(0, half), slice(half, 2 * half))
        )
        grid = Image.new("RGB", (left.width + 8 + right.width, left.height), "white")
        grid.paste(left, (0, 0))
        grid.paste(right, (left.width + 8, 0))
        save_picture(grid, self.output / "grid.png")
        prompts = ["a cat", "a butterfly", "a frog", "a fish on a blue background", "a fox on a white background"]
        drawn = denoiser.sample(pipe, [prompt for prompt in prompts for _ in range(12)], GUIDANCE, seed=3)
        save_picture(contact_sheet(drawn, 12, prompts), self.output / "grid-diversity.png")

    def report(self, name: str, numbers: dict[str, float]) -> None:
        """Print figures, and store them in the work folder for the model card."""
        print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in numbers.items()), flush=True)
        path = self.work / "measured.json"
        previous = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(previous | {name: numbers}, indent=1))


def save_picture(picture: Image.Image, path: Path, limit: int = 290_000) -> None:
    """Write a PNG of at most `limit` bytes; if full colour is larger, with the largest palette that fits."""
    picture.save(path, optimize=True)
    for colours in (256, 192, 128, 96, 64):
        if path.stat().st_size <= limit:
            return
        palette = picture.quantize(colours, method=Image.Quantize.MEDIANCUT, kmeans=2)
        picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def main() -> None:
    """Run the named stage, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", type=Path, default=FONT, help="Noto Color Emoji (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT, help="where the model goes (default: this package)")
    parser.add_argument(
        "--work", type=Path, default=Path("build/tiny-animals"), help="checkpoints (default: %(default)s)"
    )
    parser.add_argument("--stage", choices=STAGES, help="only this stage (default: all, in order)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: %(default)s)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    maker = Maker(arguments.font, arguments.work, arguments.output)
    for stage in (arguments.stage,) if arguments.stage else STAGES:
        began = time.monotonic()
        try:
            getattr(maker, stage)()
        except FontMissingError as error:
            sys.exit(str(error))
        print(f"stage {stage}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
