"""The shipped model: stock classes load it, an independent judge recognises its pictures, and training improves it."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from tailorpo_trainer import document, models, tiny_animals
from tailorpo_trainer.evaluation.measurement import sample_pictures
from tailorpo_trainer.tiny_animals import ANIMALS, JUDGE, PIPELINE, ROOT, SCORER, SCORING_DECODER

DEMO = Path(__file__).parents[3] / "examples" / "demo.yaml"


def test_what_ships_is_small_and_holds_no_pickle() -> None:
    files = [
        path for folder in (PIPELINE, SCORER, JUDGE, SCORING_DECODER) for path in folder.rglob("*") if path.is_file()
    ]
    assert sum(path.stat().st_size for path in files) <= 12e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}
    assert (ROOT / "README.md").is_file()


def test_stock_diffusers_loads_and_draws() -> None:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(PIPELINE)
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline).__module__.startswith("diffusers.")
    drawn = pipeline("a photo of a fox", num_inference_steps=4, guidance_scale=3.0, eta=1.0).images[0]
    assert drawn.size == (64, 64)


def test_the_judge_names_what_is_drawn() -> None:
    """At least nine of ten, with 20 steps and eta 1; the model card has a larger measurement."""
    from transformers import AutoModelForImageClassification

    run = document.read(DEMO).spec
    policy = models.load_policy(run)
    prompts = [f"a photo of {'an' if name[0] in 'aeiou' else 'a'} {name}" for name in ANIMALS]
    _, pictures = sample_pictures(policy, prompts, len(ANIMALS), seed=0, batch=len(ANIMALS))
    judge = AutoModelForImageClassification.from_pretrained(JUDGE).eval()
    config = json.loads((JUDGE / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    with torch.no_grad():
        named = judge((pictures - mean) / std).logits.argmax(1)
    right = [judge.config.id2label[int(index)] == name for index, name in zip(named, ANIMALS, strict=True)]
    assert sum(right) >= 0.9 * len(ANIMALS)


def test_the_scorer_tells_the_animals_apart() -> None:
    from tailorpo_trainer import rewards
    from tailorpo_trainer.spec.job import Reward

    run = document.read(DEMO).spec
    policy = models.load_policy(run)
    prompts = [f"a photo of a {name}" for name in ("fox", "frog", "zebra", "pig")]
    _, pictures = sample_pictures(policy, prompts, 8, seed=1, batch=8)
    score = rewards.load([Reward(name="clip-score")], "cpu")
    table = torch.stack([score(pictures, [prompt] * 8).total for prompt in prompts], dim=1)
    assert torch.equal(table.argmax(1), torch.arange(8) % 4)


def test_importing_it_loads_nothing() -> None:
    assert set(tiny_animals.__all__) <= set(vars(tiny_animals))
    assert 16 <= len(ANIMALS) <= 45
    assert len(set(ANIMALS)) == len(ANIMALS)


def test_a_rebuild_without_its_font_names_the_debian_package(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.tiny_animals.make", "--stage", "pictures"]
    folders = ["--font", str(tmp_path / "missing.ttf"), "--output", str(tmp_path), "--work", str(tmp_path)]
    made = subprocess.run([*command, *folders], cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert made.returncode != 0
    assert "fonts-noto-color-emoji" in made.stderr
    assert "Traceback" not in made.stderr


def test_its_cost_is_counted() -> None:
    from tailorpo_trainer import estimate

    costs = estimate.row_costs(document.read(DEMO).spec)
    assert 0.8 < costs["denoiser_backward"] / costs["denoiser_forward"] < 1.5
    assert costs["decode"] > 1e8
