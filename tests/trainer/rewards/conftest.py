"""Fixtures of the rewards' tests: pictures, items of `spec.rewards`, a tiny CLIP model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

PROMPTS = ["a red fox", "a blue whale", "a green frog on a white ground", "a bee"]


@dataclass(frozen=True)
class Spec:
    """The fields of `spec.rewards[n]` that configure a reward."""

    name: str
    weight: float = 1.0
    model: str | None = None
    endpoints: list[str] | None = None
    timeout_seconds: float | None = None
    retries: int | None = None
    batch_size: int | None = None
    parameters: Mapping[str, str] | None = None


@pytest.fixture(scope="session")
def spec() -> type[Spec]:
    return Spec


@pytest.fixture(scope="session")
def pictures() -> Callable[..., Tensor]:
    """Smooth random pictures, [n, 3, height, width] in [0, 1]."""

    def make(n: int = 4, height: int = 24, width: int = 24, seed: int = 0) -> Tensor:
        coarse = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
        return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")

    return make


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    return PROMPTS


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel with random weights for 32x32 pictures, and a byte-level BPE tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel()
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    words.train_from_iterator(PROMPTS, trainer)
    # transformers takes id 2 for "the highest id", so the end token has another id.
    words.add_special_tokens(["<end>"])
    end = words.token_to_id("<end>")
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A <end>", special_tokens=[("<s>", words.token_to_id("<s>")), ("<end>", end)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<end>", pad_token="<pad>", model_max_length=16
    )
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vocabulary = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": end, "pad_token_id": 0}
    config = CLIPConfig(
        text_config={**tower, **vocabulary, "max_position_embeddings": 16},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    with torch.no_grad():  # CLIP's initial weights are so small that all pictures look alike
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder
