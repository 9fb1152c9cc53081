"""The page about approximations shows the measured figures."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.training import approximations, contenders
from tailorpo_trainer.diffusion.noise import Noise, Purpose


def test_a_share_and_its_error_over_trajectories() -> None:
    """If all steps of a trajectory agree, or all disagree, they are no more information than one step."""
    generator = torch.Generator().manual_seed(0)
    agrees = torch.rand(400, generator=generator) < 0.8
    one = torch.randn(400, 2, generator=generator)
    other = torch.where(agrees[:, None], one, -one)
    single, repeated = approximations.share([one], [other]), approximations.share([one] * 4, [other] * 4)
    share = float(agrees.double().mean())
    assert single["share"] == repeated["share"] == pytest.approx(share)
    assert single["standardError"] == pytest.approx((share * (1 - share) / 399) ** 0.5)
    assert repeated["standardError"] == pytest.approx(single["standardError"])
    assert (single["pairs"], repeated["pairs"]) == (400, 1600)


def test_the_last_step_s_candidates_are_finished_pictures(tiny_pipeline: Path) -> None:
    work = contenders.job(str(tiny_pipeline), samples=2, steps=4, trained=2, choose="late")
    policy, reward = contenders.load(work)
    noise = Noise((0, Purpose.TRAINING, 0), range(2), policy.latent_shape)
    with policy.reference():
        found = approximations.Ranks(policy, reward, ["a cat", "a dog"], noise).sample([2, 3])
    assert torch.equal(found.own[-1], found.finished[-1])
    assert not torch.equal(found.own[0], found.finished[0])
    assert torch.equal(found.own[0], found.small[0])  # no other decoder is named
    assert [scores.shape for scores in found.finished] == [(2, 2), (2, 2)]


def test_both_decoders_are_counted_apart() -> None:
    rows: dict[str, dict[str, int]] = {}
    for decoder in (None, "tiny-animals"):
        found = contenders.ours(
            contenders.job("tiny-animals", samples=1, steps=4, trained=2, choose="early", scoring_decoder=decoder)
        )
        contenders.count(found)
        rows[str(decoder)] = found.rows
        assert (found.flops.get("scoring decode", 0) > 0) == (decoder is not None)
    assert rows["None"]["decode"] == rows["tiny-animals"]["scoring decode"] == 4
    assert rows["tiny-animals"]["decode"] == 0
    each = {"forward": 1.0, "reference": 10.0, "backward": 100.0, "decode": 1e4, "scoring decode": 1e3}
    apart = approximations.work_of(rows["None"], each) - approximations.work_of(rows["tiny-animals"], each)
    assert apart == 4 * (1e4 - 1e3)


def test_figures_become_lines_and_tables() -> None:
    agreement = {"share": 0.9, "standardError": 0.01, "pairs": 480}
    values: dict[str, Any] = {"flopsRatio": 0.5, "stableDiffusionFlopsRatio": 0.4}
    found = {
        "trajectories": 96,
        "goal": 0.35,
        "variants": {
            "exact": values | {"agreement": {"colourfulness": {"ownDecoder": None, "finished": agreement}}},
            "both": values | {"agreement": {"colourfulness": {"ownDecoder": agreement, "finished": agreement}}},
        },
    }
    page = approximations.markdown(found)
    assert "| both | 0.400 | 0.500 |" in page
    assert "| both | `colourfulness` | 0.900 ± 0.010 | 0.900 ± 0.010 | 480 |" in page
    assert "| exact | `colourfulness` | the same | 0.900 ± 0.010 | 480 |" in page
    assert sum("goal" in line for line in approximations.lines(found)) == 2
