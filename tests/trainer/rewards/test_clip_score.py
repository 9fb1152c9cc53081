"""CLIP score: equal to the stock model's, and differentiable."""

import json
import shutil

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from tailorpo_trainer.errors import ConfigurationError
from tailorpo_trainer.rewards.clip_score import ClipScore, Preprocessing
from tailorpo_trainer.rewards.pixels import to_pillow


@pytest.fixture(scope="module")
def score(clip_folder):
    return ClipScore(model=str(clip_folder))


@pytest.fixture
def copy(clip_folder, tmp_path):
    return shutil.copytree(clip_folder, tmp_path / "clip")


@pytest.mark.parametrize(
    ("height", "width"), [(32, 32), (64, 64), (24, 24), (33, 50), (71, 40)], ids=lambda size: str(size)
)
@pytest.mark.parametrize(
    "config",
    [
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 31, "width": 28}},
        {"size": {"height": 32, "width": 24}, "do_center_crop": False, "resample": 2},
        {"do_resize": False, "crop_size": {"height": 49, "width": 45}},
    ],
    ids=["openai", "larger", "square", "padded"],
)
def test_preprocessing_agrees_with_the_stock_processor(pictures, config, height, width):
    # Smooth pictures, and hard edges between black and white, where bicubic interpolation overshoots.
    images = torch.cat([pictures(2, height, width), pictures(2, height, width, seed=1).round()])
    images = (images * 255).round() / 255
    stock = CLIPImageProcessorPil(**config)
    expected = np.stack(stock(to_pillow(images), return_tensors="np")["pixel_values"])
    actual = Preprocessing.read(json.loads(stock.to_json_string()))(images).numpy()
    # The stock processor rounds to 8 bits after each of two passes: a difference of about one level.
    np.testing.assert_allclose(actual, expected, atol=1.2 / 255 / 0.26)
    assert abs((actual - expected).mean()) < 0.2 / 255 / 0.26


def test_is_the_stock_model_s_cosine(score, clip_folder, pictures, prompts):
    images = (pictures(4, 32, 32) * 255).round() / 255
    model, tokenizer = CLIPModel.from_pretrained(clip_folder), AutoTokenizer.from_pretrained(clip_folder)
    pixels = CLIPImageProcessorPil.from_pretrained(clip_folder)(to_pillow(images), return_tensors="pt")
    with torch.no_grad():
        stock = model(**tokenizer(prompts, padding=True, return_tensors="pt"), **pixels)
    expected = 100 * (stock.image_embeds * stock.text_embeds).sum(-1)
    actual = score(images, prompts)
    assert actual.dtype == torch.float32
    assert expected.std() > 1  # otherwise the test would not detect exchanged rows
    torch.testing.assert_close(actual, expected, atol=0.01, rtol=0)


def test_follows_the_batch(score, pictures, prompts):
    order = [2, 0, 3, 1]
    images = pictures()
    permuted = score(images[order], [prompts[n] for n in order])
    torch.testing.assert_close(permuted, score(images, prompts)[order], atol=1e-4, rtol=0)


def test_a_prompt_means_the_same_in_any_company(clip_folder, pictures):
    image, prompt = pictures(1), "a bee"
    alone = ClipScore(model=str(clip_folder))(image, [prompt])
    among = ClipScore(model=str(clip_folder))(image.expand(3, -1, -1, -1), ["a long green frog", prompt, ""])
    torch.testing.assert_close(among[1:2], alone, atol=1e-3, rtol=0)


def test_prompts_longer_than_the_window_are_cut(score, pictures):
    assert score(pictures(1), ["a frog on a fox on a whale " * 20]).isfinite().all()


def test_embeds_a_prompt_once(clip_folder, pictures, prompts, monkeypatch):
    score = ClipScore(model=str(clip_folder))
    seen = []
    original = score._clip.get_text_features

    def spy(**given):
        seen.append(len(given["input_ids"]))
        return original(**given)

    monkeypatch.setattr(score._clip, "get_text_features", spy)
    first = score(pictures(), prompts)
    assert torch.equal(first, score(pictures(), prompts))
    score(pictures(3), [prompts[0], "new", "new"])
    assert seen == [4, 1]


def test_forgets_rather_than_growing_without_end(clip_folder, pictures, prompts, monkeypatch):
    monkeypatch.setattr("tailorpo_trainer.rewards.clip_score.CACHED_PROMPTS", 4)
    score = ClipScore(model=str(clip_folder))
    before = score(pictures(), prompts)
    score(pictures(2), [prompts[0], "another"])
    assert len(score._texts) == 2
    torch.testing.assert_close(score(pictures(), prompts), before, atol=1e-3, rtol=0)


def test_gradient_points_uphill(score, pictures, prompts):
    images = pictures().requires_grad_()
    value = score(images, prompts)
    (gradient,) = torch.autograd.grad(value.sum(), images)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    step = 1e-3 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    rise = score(images.detach() + step, prompts) - score(images.detach() - step, prompts)
    torch.testing.assert_close(rise / 2e-3, gradient.flatten(1).norm(dim=1), rtol=0.05, atol=0)


def test_scoring_in_inference_mode_first_leaves_gradients_possible(clip_folder, pictures, prompts):
    score = ClipScore(model=str(clip_folder))
    with torch.inference_mode():
        score(pictures(), prompts)
    images = pictures().requires_grad_()
    score(images, prompts).sum().backward()
    assert images.grad is not None


def test_the_model_is_frozen(score):
    assert not any(weight.requires_grad for weight in score._clip.parameters())
    assert not score._clip.training


@pytest.mark.parametrize("model", ["/no/such/folder", "./clip", "https://example.com/clip", "-", "a/b/c"])
def test_neither_folder_nor_hub_id(model):
    with pytest.raises(ConfigurationError, match="no folder here and no hub id") as caught:
        ClipScore(model=model)
    assert repr(model) in str(caught.value)


def test_hub_id_without_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigurationError, match="'someone/some-clip' cannot be loaded from the hub"):
        ClipScore(model="someone/some-clip")


def test_empty_folder(tmp_path):
    with pytest.raises(ConfigurationError, match=r"cannot be loaded from this folder.*config.json"):
        ClipScore(model=str(tmp_path))


@pytest.mark.parametrize("file", ["model.safetensors", "preprocessor_config.json", "tokenizer.json"])
def test_incomplete_folder(copy, file):
    (copy / file).unlink()
    with pytest.raises(ConfigurationError, match=r"^model: .*cannot be loaded from this folder"):
        ClipScore(model=str(copy))


def test_damaged_weights(copy):
    (copy / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        ClipScore(model=str(copy))


def test_pickled_weights_are_not_read(copy):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match=r"model\.safetensors"):
        ClipScore(model=str(copy))


def test_weights_that_would_stay_random(copy):
    weights = load_file(copy / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigurationError, match=r"lacks 1 of .*visual_projection.weight"):
        ClipScore(model=str(copy))


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_another_kind_of_model(copy):
    edit(copy, lambda config: config.update(model_type="siglip"))
    with pytest.raises(ConfigurationError, match="of type 'siglip'"):
        ClipScore(model=str(copy))


@pytest.mark.parametrize("end", [5, 1])
def test_an_end_token_that_the_text_model_would_miss(copy, end):
    edit(copy, lambda config: config["text_config"].update(eos_token_id=end))
    with pytest.raises(ConfigurationError, match="end token"):
        ClipScore(model=str(copy))


def test_the_shipped_scorer_is_the_default(pictures, prompts):
    tiny_animals = pytest.importorskip("tailorpo_trainer.tiny_animals")
    if not (tiny_animals.SCORER / "model.safetensors").is_file():
        pytest.skip("the tiny scorer is not made yet")
    assert ClipScore()(pictures(), prompts).isfinite().all()
