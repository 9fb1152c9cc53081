"""JPEG sizes: DDPO's two rewards."""

import io

import pytest
import torch
from PIL import Image

from tailorpo_trainer.rewards.jpeg import JpegCompressibility, JpegIncompressibility


def test_is_the_file_that_pillow_writes(pictures, prompts, tmp_path):
    images = pictures()
    levels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for picture, score in zip(levels, JpegIncompressibility()(images, prompts), strict=True):
        Image.fromarray(picture).save(tmp_path / "x.jpg", quality=95)
        assert score.item() == pytest.approx((tmp_path / "x.jpg").stat().st_size / 1000)


def test_noise_is_larger_than_a_flat_picture():
    flat = torch.full((1, 3, 64, 64), 0.4)
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    small, large = JpegIncompressibility()(torch.cat([flat, noise]), ["", ""])
    assert 0 < small < large / 5


def test_the_two_are_each_others_negative(pictures, prompts):
    assert torch.equal(JpegCompressibility()(pictures(), prompts), -JpegIncompressibility()(pictures(), prompts))


def test_values_outside_the_range_are_clipped_not_wrapped():
    images = torch.tensor([1.2, -0.3]).view(2, 1, 1, 1).expand(2, 3, 16, 16)
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "white").save(file, format="JPEG", quality=95)
    assert JpegIncompressibility()(images, ["", ""])[0].item() == pytest.approx(file.tell() / 1000)
    assert torch.equal(JpegIncompressibility()(images, ["", ""]), JpegIncompressibility()(images.clamp(0, 1), ["", ""]))
