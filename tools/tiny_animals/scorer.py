"""The scorer: a small `transformers.CLIPModel`, whose text encoder the pipeline shares.

There are few captions, so each picture is compared with all of them: with those that name a ground, and with those that
name none. The text encoder is frozen early, and the image encoder continues with fixed caption embeddings, so that the
denoiser can be trained on final text embeddings.
"""

from __future__ import annotations

import string
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from tailorpo_trainer.tiny_animals import ANIMALS, GROUNDS, SIZE
from tools.tiny_animals.emoji import PREFIXES, PictureSet, all_captions
from tools.tiny_animals.loop import Loop, degrade, learning_rate, optimizer_step, to_tensor

LENGTH = 16  # tokens
TEXT_WIDTH, TEXT_LAYERS = 64, 2
IMAGE_WIDTH, IMAGE_LAYERS, PATCH = 96, 4, 8
EMBEDDING = 64
STEPS, TEXT_STEPS, BATCH, RATE = 3_400, 500, 48, 1e-3


def learn_merges(words: Counter[str]) -> list[tuple[str, str]]:
    """Byte-pair merges until every word is one token; ties alphabetically, for stable numbers."""
    split = {word: [*word[:-1], f"{word[-1]}</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in split.items():
            for pair in pairwise(symbols):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for symbols in split.values():
            for i in range(len(symbols) - 1, 0, -1):
                if tuple(symbols[i - 1 : i + 1]) == best:
                    symbols[i - 1 : i + 1] = ["".join(best)]


def build_tokenizer() -> CLIPTokenizer:
    """Byte-pair encoding of the captions' words; other words become several tokens, and no ASCII text is unknown."""
    merges = learn_merges(Counter(word for text in all_captions() for word in text.split()))
    alphabet = string.ascii_lowercase + string.digits + string.punctuation
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The untrained scorer."""
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 2 * TEXT_WIDTH,
            "num_hidden_layers": TEXT_LAYERS,
            "num_attention_heads": 4,
            "max_position_embeddings": LENGTH,
            "projection_dim": EMBEDDING,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": IMAGE_WIDTH,
            "intermediate_size": 5 * IMAGE_WIDTH // 2,
            "num_hidden_layers": IMAGE_LAYERS,
            "num_attention_heads": 4,
            "image_size": SIZE,
            "patch_size": PATCH,
            "projection_dim": EMBEDDING,
        },
        projection_dim=EMBEDDING,
    )
    return CLIPModel(config)


def image_processor() -> CLIPImageProcessor:
    """Resizes to 64x64, and maps values to -1..1."""
    half = [0.5, 0.5, 0.5]
    sides = {"height": SIZE, "width": SIZE}
    return CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=sides, image_mean=half, image_std=half)


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids (N, 16), padded as in Stable Diffusion's pipeline."""
    out = tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return out.input_ids


def embed_captions(model: CLIPModel, ids: Tensor) -> Tensor:
    """Normalised caption embeddings, (N, 64)."""
    return F.normalize(model.text_projection(model.text_model(input_ids=ids).pooler_output), dim=-1)


def embed_images(model: CLIPModel, images: Tensor) -> Tensor:
    """Normalised image embeddings, (N, 64), of images (N, 3, 64, 64) in -1..1."""
    return F.normalize(model.visual_projection(model.vision_model(pixel_values=images).pooler_output), dim=-1)


def matching_loss(scores: Tensor, animals: Tensor, grounds: Tensor) -> Tensor:
    """Cross-entropies of scores (N, animals, grounds + 1): over captions with a ground, and over those without."""
    named = F.cross_entropy(scores[:, :, :-1].flatten(1), animals * len(GROUNDS) + grounds)
    return named + F.cross_entropy(scores[:, :, -1], animals)


def train(work: Path, pictures: PictureSet, until: int = STEPS) -> CLIPModel:
    """The trained scorer, from the last checkpoint in `work` if there is one."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build(tokenizer)
    shape = (len(PREFIXES), len(ANIMALS) * (len(GROUNDS) + 1), LENGTH)
    ids = token_ids(tokenizer, all_captions()[:-1]).reshape(shape)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    loop = Loop("scorer", work, STEPS, {"model": model, "optimizer": optimizer}, seed=20)
    frozen: Tensor | None = None
    animals, grounds = torch.from_numpy(pictures.animals), torch.from_numpy(pictures.grounds)
    for step, generator in loop:
        chosen = torch.randint(len(animals), (BATCH,), generator=generator).sort().values
        images = degrade(to_tensor(pictures.pixels[chosen.numpy()]), generator)
        prefix = int(torch.randint(len(PREFIXES), (), generator=generator))
        if step >= TEXT_STEPS and frozen is None:
            with torch.no_grad():
                frozen = embed_captions(model, ids.flatten(0, 1)).reshape(*shape[:2], EMBEDDING)
            for parameter in [*model.text_model.parameters(), *model.text_projection.parameters()]:
                parameter.grad = None
                parameter.requires_grad_(False)
        texts = embed_captions(model, ids[prefix]) if frozen is None else frozen[prefix]
        scores = model.logit_scale.exp().clamp(max=50) * embed_images(model, images) @ texts.T
        scores = scores.reshape(BATCH, len(ANIMALS), len(GROUNDS) + 1)
        loss = matching_loss(scores, animals[chosen], grounds[chosen])
        loop.losses.append(optimizer_step(loss, optimizer, parameters, learning_rate(step, STEPS, RATE)))
    return model.eval()


def text_tower(model: CLIPModel) -> CLIPTextModel:
    """The scorer's text encoder as that of the pipeline."""
    tower = CLIPTextModel(model.config.text_config)
    tower.load_state_dict({k.removeprefix("text_model."): v for k, v in model.text_model.state_dict().items()})
    return tower.eval()


@torch.no_grad()
def caption_states(tower: CLIPTextModel, tokenizer: CLIPTokenizer) -> Tensor:
    """Last hidden states of `all_captions()`, (N, 16, 64): the denoiser's text embeddings."""
    ids = token_ids(tokenizer, all_captions())
    return torch.cat([tower(input_ids=batch).last_hidden_state for batch in ids.split(128)])


@torch.no_grad()
def measure(model: CLIPModel, held_out: PictureSet) -> dict[str, float]:
    """Shares of held-out pictures whose animal has the best score, one of the five best; whose ground has the best."""
    tokenizer = build_tokenizer()
    texts = embed_captions(model, token_ids(tokenizer, all_captions()[:-1]))
    texts = texts.reshape(len(PREFIXES), len(ANIMALS), len(GROUNDS) + 1, EMBEDDING)[1]
    images = torch.cat([embed_images(model, to_tensor(batch)) for batch in np.array_split(held_out.pixels, 20)])
    animals, grounds = torch.from_numpy(held_out.animals), torch.from_numpy(held_out.grounds)
    best = (images @ texts[:, -1].T).topk(5).indices == animals[:, None]
    named = torch.einsum("nd,ngd->ng", images, texts[animals][:, :-1]).argmax(1)
    return {
        "top1": best[:, 0].float().mean().item(),
        "top5": best.any(1).float().mean().item(),
        "ground": (named == grounds).float().mean().item(),
    }
