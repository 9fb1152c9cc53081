"""A tiny Stable Diffusion pipeline with random weights, and documents that train it in a second."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from tailorpo_trainer.spec.job import Spec
    from tailorpo_trainer.training.session import Session


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The same arithmetic on every machine (threads decide how sums are split), and the fastest for tiny models."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run in a pod themselves: its termination message and its port are not theirs."""
    monkeypatch.setenv("TAILORPO_TERMINATION_LOG", "")
    monkeypatch.delenv("TAILORPO_METRICS_PORT", raising=False)


@pytest.fixture(autouse=True)
def _nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that cannot be written are tried again at once."""
    monkeypatch.setattr("tailorpo_trainer.files.FIRST_PAUSE", 0.0)


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionPipeline folder of about 100k random weights, for 16 x 16 pictures."""
    return make_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def document(tiny_pipeline: Path) -> Callable[..., dict[str, Any]]:
    """A document on the tiny pipeline, as plain values; keyword arguments replace whole parts of `spec`."""

    def make(**parts: Any) -> dict[str, Any]:
        spec: dict[str, Any] = {
            "model": {"name": str(tiny_pipeline)},
            "lora": {"rank": 2, "alpha": 2},
            "prompts": {"list": ["a cat", "a dog", "a bee"]},
            "rewards": [{"name": "colourfulness"}],
            "method": {"name": "tailorpo"},
            "sampling": {"steps": 4, "trainedSteps": {"count": 2}, "guidanceScale": 3.0},
            "optimizer": {"learningRate": 1e-2},
            "training": {"iterations": 3, "promptsPerIteration": 3},
            "evaluation": {"everyIterations": 2, "images": 4},
            "checkpoint": {"everyIterations": 1, "keep": 10},
        }
        return {
            "apiVersion": "tailorpo.dev/v1alpha1",
            "kind": "TailorPOJob",
            "metadata": {"name": "test"},
            "spec": spec | parts,
        }

    return make


@pytest.fixture(scope="session")
def trained_session() -> Callable[["Spec", Path], "Session"]:
    """Trains a resolved document to its end in a folder, and returns the session."""
    from tailorpo_trainer.distributed.signals import Stop
    from tailorpo_trainer.distributed.world import World
    from tailorpo_trainer.results import locations
    from tailorpo_trainer.spec.job import API_VERSION, KIND, TailorPOJob
    from tailorpo_trainer.telemetry.termination import TerminationReporter
    from tailorpo_trainer.training import loop
    from tailorpo_trainer.training.setup import initial_progress, open_session

    def make(run: "Spec", folder: Path) -> "Session":
        job = TailorPOJob.model_validate(
            {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "test"}, "spec": run}
        )
        with Stop().listening() as stop:
            reporter = TerminationReporter(initial_progress(job))
            session = open_session(
                job, locations.choose(job, folder), world=World(stop), reporter=reporter, display="quiet"
            )
            loop.train(session)
            session.wait_for_checkpoints()
            session.recorder.display.close()
        return session

    return make


def make_pipeline(folder: Path, prediction_type: str = "epsilon") -> Path:
    """Write a pipeline with random weights, the same each time."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
        )
        tokenizer = make_tokenizer()
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=16,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def make_tokenizer() -> Any:
    """A CLIP tokenizer that knows letters only."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    return CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=16)
