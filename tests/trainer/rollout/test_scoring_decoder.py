"""The scoring decoder: how it is loaded, what it decodes, its rank agreement, and its cost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tailorpo_trainer import document as documents
from tailorpo_trainer import estimate, models, prompts, report, rewards
from tailorpo_trainer.diffusion.noise import Noise, Purpose
from tailorpo_trainer.errors import ConfigurationError, DataError, TailorPOError
from tailorpo_trainer.estimate import architectures
from tailorpo_trainer.evaluation import trained
from tailorpo_trainer.rollout.agreement import Agreement, rank_agreement
from tailorpo_trainer.rollout.scoring import CHECKED, Scorer, samples_to_check
from tailorpo_trainer.rollout.trajectories import sample_branched_trajectories
from tailorpo_trainer.spec.job import API_VERSION, KIND, ScoringDecoder, Spec
from tailorpo_trainer.telemetry import alarms
from tailorpo_trainer.tiny_animals import PIPELINE, SCORING_DECODER
from tailorpo_trainer.training.session import Session

Make = Callable[..., dict[str, Any]]
Train = Callable[[Spec, Path], Session]
PROMPTS = ["a cat", "a dog", "a bee"]


def make_decoder(folder: Path, channels: int = 4, stages: int = 2, scaling: float = 1.0) -> Path:
    """An `AutoencoderTiny` with random weights, for the tests' pipeline by default."""
    from diffusers import AutoencoderTiny

    widths = (4,) * stages
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = AutoencoderTiny(
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            num_encoder_blocks=(0,) * stages,
            num_decoder_blocks=(1,) * stages,
            latent_channels=channels,
            scaling_factor=scaling,
        )
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_decoder(tmp_path_factory.mktemp("decoder"))


def run_of(document: Make, decoder: Path | str | None, **parts: Any) -> Spec:
    """The resolved document with this scoring decoder."""
    values = document(**parts)
    if decoder is not None:
        values["spec"]["model"] = values["spec"]["model"] | {"scoringDecoder": {"name": str(decoder)}}
    return documents.parse(values).spec


def lines(folder: Path, kind: str = "iteration") -> list[dict[str, Any]]:
    written = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in written if line["kind"] == kind]


# --- loading ----------------------------------------------------------------------------------------------------------


def refusal(decoder: Any, kind: type[TailorPOError] = ConfigurationError, **more: Any) -> str:
    with pytest.raises(kind) as caught:
        models.load_decoder(ScoringDecoder(name=str(decoder), **more))
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("spec.model.scoringDecoder.")
    return text.replace(repr(str(decoder)), "NAME")


def test_what_is_no_decoder_is_refused_in_one_sentence(tiny_pipeline: Path, decoder: Path, tmp_path: Path) -> None:
    assert "NAME is no folder here; give 'tiny-animals'" in refusal(tmp_path / "none")
    assert "NAME is no folder here" in refusal("none")
    assert "NAME has no config.json: give an AutoencoderTiny" in refusal(tiny_pipeline)
    assert "NAME is a AutoencoderKL: give an AutoencoderTiny" in refusal(tiny_pipeline / "vae")
    assert "only models on the hub have revisions, and NAME is none: remove" in refusal(decoder, revision="main")
    assert "revisions" in refusal("tiny-animals", revision="main")
    spoilt = tmp_path / "spoilt"
    shutil.copytree(decoder, spoilt)
    (weights,) = spoilt.glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:500])
    assert "NAME cannot be loaded: " in refusal(spoilt, DataError)
    weights.unlink()
    assert "NAME has no diffusion_pytorch_model.safetensors" in refusal(spoilt)
    weights.write_bytes(whole)
    (spoilt / "config.json").write_text("{")
    assert "NAME cannot be read: config.json" in refusal(spoilt, DataError)
    (spoilt / "config.json").write_text("[]")
    assert "NAME is no model of diffusers" in refusal(spoilt)


def test_half_of_the_weights_are_not_taken_for_a_decoder(decoder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(decoder, tmp_path / "half")
    (file,) = (tmp_path / "half").glob("*.safetensors")
    save_file({key: value for key, value in load_file(file).items() if "layers.0" not in key}, file)
    assert "NAME lacks 2 of a decoder's weights, such as decoder.layers.0.bias" in refusal(tmp_path / "half", DataError)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channels": 16}, "decodes latents of 16 channels, the model's have 4: "),
        ({"stages": 4}, "makes pictures 8 times as wide as their latents, the model's own decoder 2 times: "),
    ],
)
def test_a_decoder_of_other_latents_is_refused(
    document: Make, tmp_path: Path, wrong: dict[str, int], message: str
) -> None:
    run = run_of(document, make_decoder(tmp_path, **wrong))
    for load in (models.load_policy, lambda run: architectures.find(run.model)):
        with pytest.raises(ConfigurationError, match=message):
            load(run)


def test_from_s3(s3_server: Any, s3_bucket: str, decoder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    s3_server.upload(decoder, s3_bucket, "decoders/tiny")
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = [
        models.load_decoder(ScoringDecoder(name=name)).decode(latents).sample
        for name in (str(decoder), f"s3://{s3_bucket}/decoders/tiny")
    ]
    assert torch.equal(*found)
    assert "NAME: the bucket" in refusal(f"s3://{s3_bucket}/none")
    s3_server.client().put_object(Bucket=s3_bucket, Key="half/config.json", Body=b"{}")
    assert "NAME is no model of diffusers" in refusal(f"s3://{s3_bucket}/half")


@pytest.mark.parametrize("method", ["d3po", "ddpo"])
def test_methods_that_score_finished_pictures_refuse_it(document: Make, decoder: Path, method: str) -> None:
    with pytest.raises(ConfigurationError, match=r"spec\.model\.scoringDecoder: .*does not belong to method"):
        run_of(document, decoder, method={"name": method})


def test_it_defines_the_experiment(document: Make, decoder: Path) -> None:
    from tailorpo_trainer.checkpoint.identity import experiment_hash

    assert experiment_hash(run_of(document, decoder)) != experiment_hash(run_of(document, None))


# --- what it decodes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", [1.0, 0.18215])
def test_each_decoder_scales_latents_by_its_own_factor(document: Make, tmp_path: Path, scaling: float) -> None:
    policy = models.load_policy(run_of(document, make_decoder(tmp_path, scaling=scaling)))
    latents = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = (policy.scoring_decoder.decode(latents / scaling).sample / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(policy.decode_for_scoring(latents), expected)
    assert policy.counters.as_dict() == {
        "images": 0, "denoiser_forwards": 0, "denoiser_forwards_with_gradient": 0, "decodes": 0, "scoring_decodes": 2
    }  # fmt: skip


def test_estimates_are_ranked_by_it_and_finished_pictures_by_the_model_s_own(document: Make, decoder: Path) -> None:
    run = run_of(document, decoder)
    policy = models.load_policy(run)
    score = Scorer(policy, rewards.load(run.rewards, "cpu"), PROMPTS)
    noise = Noise((0, Purpose.TRAINING, 0), range(3), policy.latent_shape)
    found = sample_branched_trajectories(policy, policy.embed(PROMPTS), noise, score, [2, 3], 2, "winner")
    assert (policy.counters.scoring_decodes, policy.counters.decodes) == (6, 6)
    finished = found[-1].candidates.flatten(0, 1)
    own = rewards.load(run.rewards, "cpu")(policy.decode(finished), [p for p in PROMPTS for _ in range(2)]).total
    assert torch.equal(found[-1].rewards.flatten(), own)
    assert score.agreement == Agreement()


def test_the_push_follows_its_gradient(document: Make, decoder: Path) -> None:
    run = run_of(document, decoder, method={"name": "tailorpo-g", "rewardGuidance": {"fraction": 0.01}})
    policy = models.load_policy(run)
    score = Scorer(policy, rewards.load(run.rewards, "cpu"), PROMPTS)
    latents = torch.randn(3, *policy.latent_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    score.differentiable(latents, 1).sum().backward()
    assert latents.grad is not None
    assert latents.grad.flatten(1).norm(dim=1).min() > 0
    assert policy.counters.decodes == 0
    score.differentiable(latents, 3).sum().backward()
    assert policy.counters.decodes == 3


def test_the_model_s_own_decoder_for_scoring_changes_nothing(
    document: Make, tmp_path: Path, trained_session: Train
) -> None:
    """The weights are bitwise equal, and all pairs have the same order."""
    parts = {
        "model": {"name": "tiny-animals"},
        "training": {"iterations": 2, "promptsPerIteration": 2},
        "evaluation": {"everyIterations": 0},
    }
    runs = [run_of(document, name, **parts) for name in (None, PIPELINE / "vae")]
    plain, ranked = (trained_session(run, tmp_path / str(n)) for n, run in enumerate(runs))
    for one, other in zip(plain.policy.parameters, ranked.policy.parameters, strict=True):
        assert torch.equal(one, other)
    checked, unchecked = lines(tmp_path / "1")
    assert checked["rank_agreement"] == 1
    assert checked["rank_agreement_pairs"] == 2  # of the two trained steps, the last has final pictures
    assert "rank_agreement" not in unchecked
    assert "rank_agreement" not in lines(tmp_path / "0")[0]


def test_what_comes_after_training_needs_no_scoring_decoder(
    document: Make, tmp_path: Path, trained_session: Train
) -> None:
    folder = make_decoder(tmp_path / "decoder")
    trained_session(run_of(document, folder, training={"iterations": 1, "promptsPerIteration": 1}), tmp_path / "run")
    shutil.rmtree(folder)
    assert trained.compare(tmp_path / "run", 2).iteration == 1


# --- rank agreement ---------------------------------------------------------------------------------------------------


def test_rank_agreement_counts_pairs_that_both_tell_apart() -> None:
    one = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
    other = torch.tensor([[1.0, 3.0, 2.0], [0.0, 9.0, 9.0], [1.0, 2.0, 3.0]])
    # First row: two of three pairs. Second: pairs (0, 1) and (1, 2) tie on one side. Third: all tie.
    assert rank_agreement(one, other) == Agreement(2 + 1, 3 + 1)
    assert rank_agreement(one, 2 * one + 1).share == 1
    assert rank_agreement(one, -one).share == 0
    assert rank_agreement(one[2:], other[2:]).share is None
    assert Agreement(1, 2) + Agreement(2, 2) == Agreement(3, 4)
    random = torch.Generator().manual_seed(0)
    chance = rank_agreement(*(torch.randn(4000, 2, generator=random) for _ in range(2))).share
    assert chance is not None
    assert abs(chance - 0.5) < 0.03


def test_a_check_is_small_and_due_with_evaluations(document: Make, decoder: Path) -> None:
    run = run_of(document, decoder, evaluation={"everyIterations": 4})
    assert [samples_to_check(run, n, [1, 2]) > 0 for n in range(9)] == [n % 4 == 0 for n in range(9)]
    assert samples_to_check(run, 0, range(5)) * 5 * 2 == CHECKED
    assert samples_to_check(run_of(document, decoder, evaluation={"everyIterations": 0}), 10, [1]) > 0
    assert samples_to_check(run_of(document, None), 0, [1]) == 0
    wide = run_of(document, decoder, method={"name": "spo", "candidates": 64})
    assert samples_to_check(wide, 0, range(3)) == 1


def test_a_random_decoder_raises_the_alarm(
    document: Make, decoder: Path, tmp_path: Path, trained_session: Train
) -> None:
    run = run_of(
        document,
        decoder,
        sampling={"steps": 4, "trainedSteps": {"count": 2, "choose": "early"}, "guidanceScale": 1.0},
        training={"iterations": 2, "promptsPerIteration": 24, "samplingBatchSize": 20},
        evaluation={"everyIterations": 1, "images": 2},
    )
    trained_session(run, tmp_path)
    assert [line["rank_agreement_pairs"] for line in lines(tmp_path)] == [40, 40]
    (alarm,) = lines(tmp_path, "alarm")
    assert alarm["name"] == "rank-agreement-low"
    assert "of 80 pairs" in alarm["message"]
    assert "remove spec.model.scoringDecoder" in alarm["message"]
    page = report.write(tmp_path).read_text()
    assert "Rank agreement" in page
    assert "decoded by the scoring decoder" in page


def test_the_checks_of_all_processes_are_one(document: Make, decoder: Path) -> None:
    run = run_of(document, decoder)
    policy = models.load_policy(run)
    score = Scorer(policy, rewards.load(run.rewards, "cpu"), PROMPTS, recheck=2)
    score(torch.randn(6, *policy.latent_shape, generator=torch.Generator().manual_seed(0)), 0)
    mine = score.agreement
    assert mine.compared == 2

    class Twins:
        """Another process with the same statistics."""

        def sum(self, tensors: list[torch.Tensor]) -> None:
            for tensor in tensors:
                tensor.mul_(2)

    score.all_reduce(cast(Any, Twins()))
    assert score.agreement == mine + mine


@pytest.mark.parametrize(
    ("checks", "raised"),
    [
        ([(0.5, 40)], False),
        ([(0.5, 40), (0.5, 40)], True),
        ([(0.9, 40), (0.8, 40)], False),
        ([(0.0, 400), (0.9, 60)], False),
        ([(0.9, 400), (0.6, 60)], True),
    ],
)
def test_the_alarm_reads_the_newest_checks(checks: list[tuple[float, int]], raised: bool) -> None:
    written: list[dict[str, Any]] = [{}]
    for share, pairs in checks:
        written += [{"rank_agreement": share, "rank_agreement_pairs": pairs}, {"rank_agreement": None}]
    assert [alarm.name for alarm in alarms.from_checks(written)] == ["rank-agreement-low"] * raised


# --- cost -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "choose"), [("tailorpo", "random"), ("tailorpo-g", "late"), ("spo", "spread")])
def test_counts_are_those_of_a_run(
    document: Make, decoder: Path, tmp_path: Path, method: str, choose: str, trained_session: Train
) -> None:
    run = run_of(
        document,
        decoder,
        method={"name": method},
        sampling={"steps": 5, "trainedSteps": {"count": 2, "choose": choose}, "guidanceScale": 1.0},
        training={"iterations": 5, "promptsPerIteration": 5, "samplingBatchSize": 3},
        evaluation={"everyIterations": 2, "images": 3},
    )
    found, _ = estimate.count_work(run, architectures.find(run.model))
    session = trained_session(run, tmp_path)

    def total(what: str) -> float:
        return sum(rows for (kind, _), rows in found.run.items() if kind == what)

    assert session.policy.counters.decodes == total("decode")
    assert session.policy.counters.scoring_decodes == total("scoring decode") > 0
    assert found.run["decode", "checking"] > 0
    assert session.reward.queries == total("reward")


def test_taesd_on_stable_diffusion() -> None:
    """TAESD needs some 5 % of the VAE decoder's FLOPs, as published; its cost is known offline."""
    model = {"name": "stable-diffusion-v1-5/stable-diffusion-v1-5", "scoringDecoder": {"name": "madebyollin/taesd"}}
    run = documents.parse(
        {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": "test"},
            "spec": {
                "model": model,
                "prompts": {"list": ["a cat"]},
                "rewards": [{"name": "colourfulness"}],
                "method": {"name": "tailorpo"},
                "training": {"precision": "bf16"},
            },
        }
    ).spec
    costs = estimate.row_costs(run)
    assert 0.04 < costs["scoring_decode"] / costs["decode"] < 0.07


def test_an_estimate_tells_both_decoders_apart(document: Make, decoder: Path, capsys: Any) -> None:
    values = document(method={"name": "tailorpo-g"})
    values["spec"]["model"]["scoringDecoder"] = {"name": str(decoder)}
    estimate.run(documents.parse(values))
    shown = capsys.readouterr().out
    assert "pictures decoded by the scoring decoder" in shown
    assert "scoring decoder backwards" in shown
    assert "  checking" in shown


# --- the shipped one --------------------------------------------------------------------------------------------------


def test_the_shipped_one_ranks_as_the_shipped_model_s_decoder_does(document: Make) -> None:
    run = run_of(
        document,
        "tiny-animals",
        model={"name": "tiny-animals"},
        prompts={"builtin": "tiny-animals"},
        sampling={"steps": 10, "trainedSteps": {"count": 5}, "guidanceScale": 3.0},
    )
    policy = models.load_policy(run)
    texts = list(prompts.load(run.prompts, None))
    score = Scorer(policy, rewards.load(run.rewards, "cpu"), texts, recheck=len(texts))
    noise = Noise((0, Purpose.TRAINING, 0), range(len(texts)), policy.latent_shape)
    sample_branched_trajectories(policy, policy.embed(texts), noise, score, [0, 2, 4, 6, 8], 2, "winner")
    assert score.agreement.compared >= 80
    assert score.agreement.share is not None
    assert score.agreement.share > 0.85
    costs = estimate.row_costs(run)
    assert costs["scoring_decode"] < 0.1 * costs["decode"]
    assert sum(path.stat().st_size for path in SCORING_DECODER.iterdir()) < 300_000


def test_the_script_that_makes_it_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import StableDiffusionPipeline

    from tools.tiny_animals import scoring_decoder as script

    models.silence_libraries()
    for name, value in {"STEPS": 30, "BATCH": 8, "SAMPLING_BATCH": 4, "DENOISING_STEPS": 4}.items():
        monkeypatch.setattr(script, name, value)
    pipeline = StableDiffusionPipeline.from_pretrained(PIPELINE)
    latents = script.expected_latents(pipeline, 8, seed=0)
    assert latents.shape == (8 * 4, 16, 8, 8)
    assert torch.equal(latents, script.expected_latents(pipeline, 8, seed=0))
    pictures, made = script.decode(pipeline.vae, latents), script.build()
    before = script.measure(made, latents, pictures)
    script.train(made, latents, pictures)
    assert script.measure(made, latents, pictures) > before + 1
