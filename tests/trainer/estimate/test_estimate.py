"""Estimated calls, FLOPs and bytes are those of a real run."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tailorpo_trainer import document, estimate, models
from tailorpo_trainer.errors import ConfigurationError
from tailorpo_trainer.estimate import architectures, counts, network_costs
from tailorpo_trainer.spec import rules
from tailorpo_trainer.spec.job import Model, Spec, TailorPOJob
from tailorpo_trainer.training.session import Session

Make = Callable[..., dict[str, Any]]
Train = Callable[[Spec, Path], Session]

ONCE = {"iterations": 1, "promptsPerIteration": 2, "precision": "fp32"}
SD15 = {"name": "stable-diffusion-v1-5/stable-diffusion-v1-5"}


def total(work: Mapping[counts.Key, float], what: str) -> float:
    return sum(rows for (kind, _), rows in work.items() if kind == what)


@pytest.mark.parametrize("choose", ["spread", "early", "late", "random"])
@pytest.mark.parametrize("method", ["tailorpo", "tailorpo-g", "spo", "d3po", "ddpo"])
def test_counts_are_those_of_a_run(
    document_of: Make, tmp_path: Path, method: str, choose: str, trained_session: Train
) -> None:
    guided = choose in ("spread", "random")
    job = document.parse(
        document_of(
            method={"name": method},
            sampling={
                "steps": 5,
                "trainedSteps": {"count": 2, "choose": choose},
                "guidanceScale": 3.0 if guided else 1.0,
            },
            training={
                "iterations": 3,
                "promptsPerIteration": 2,
                "samplesPerPrompt": 2,
                "samplingBatchSize": 3,
            },
            evaluation={"everyIterations": 2, "images": 3, "rewards": [{"name": "jpeg-compressibility"}]},
        )
    )
    found, _ = estimate.count_work(job.spec, architectures.find(job.spec.model))
    run = found.run
    session = trained_session(job.spec, tmp_path)
    work = session.policy.counters
    assert work.forwards == total(run, "forward")
    assert work.forwards_with_gradient == total(run, "forward backward")
    assert work.decodes == total(run, "decode")
    assert session.reward.queries == run["reward", "training"] + run["reward", "evaluation"]
    assert session.watched is not None
    assert session.watched.queries == run["reward", "watching"]
    assert len(session.policy._embeddings) == run["text", "prompts"]
    assert session.updater.updates == found.updates
    assert session.recorder.totals["images"] == 3 * found.images


@pytest.mark.parametrize(
    ("method", "training"),
    [
        ({"name": "tailorpo"}, {}),
        ({"name": "tailorpo-g"}, {}),
        ({"name": "tailorpo-g", "rewardGuidance": {"gradient": "detached"}}, {}),
        ({"name": "spo", "candidates": 3, "continueFrom": "winner"}, {}),
        ({"name": "d3po"}, {"microBatchSize": 1}),
        ({"name": "ddpo"}, {"updatesPerIteration": 3}),
        ({"name": "tailorpo"}, {"gradientCheckpointing": True}),
    ],
    ids=lambda value: "-".join(str(item) for item in value.values()),
)
def test_flops_are_those_of_a_run(
    document_of: Make, tmp_path: Path, method: Any, training: Any, trained_session: Train
) -> None:
    job = document.parse(document_of(method=method, training=ONCE | training))
    found = json.loads(_json(job))
    with FlopCounterMode(display=False) as flops:
        trained_session(job.spec, tmp_path)
    assert found["flops"]["run"] == flops.get_total_flops()


def _json(job: TailorPOJob) -> str:
    from tailorpo_trainer.estimate import printing

    return printing.as_json(estimate.estimate(job))


def test_prompts_dealt_in_part_are_counted_as_drawn(document_of: Make, tmp_path: Path, trained_session: Train) -> None:
    prompts = {"list": ["a", "b", "c", "d", "e", "a"]}
    job = document.parse(
        document_of(
            prompts=prompts,
            training={"iterations": 2, "promptsPerIteration": 2},
            evaluation={"everyIterations": 0},
        )
    )
    found, _ = estimate.count_work(job.spec, architectures.find(job.spec.model))
    assert len(trained_session(job.spec, tmp_path).policy._embeddings) == found.run["text", "prompts"]
    assert found.evaluations == 0


def test_prompts_of_the_cluster_are_no_error(document_of: Make) -> None:
    run = document.parse(document_of(prompts={"configMapKeyRef": {"name": "prompts"}})).spec
    found, notes = estimate.count_work(run, architectures.find(run.model))
    assert "only the cluster has" in notes[-1]
    assert ("text", "prompts") not in found.run


@pytest.mark.parametrize(("every", "iterations", "times"), [(0, 10, 0), (3, 10, 5), (5, 10, 3), (20, 10, 2), (1, 1, 2)])
def test_evaluations(document_of: Make, every: int, iterations: int, times: int) -> None:
    training = {"iterations": iterations, "promptsPerIteration": 1}
    job = document.parse(document_of(training=training, evaluation={"everyIterations": every, "images": 4}))
    assert counts.evaluations(rules.resolve(job.spec)) == times


def test_memory_on_meta_is_memory_on_the_cpu(document_of: Make) -> None:
    run = rules.resolve(document.parse(document_of()).spec)
    networks = network_costs.Networks(architectures.find(run.model), run, torch.float32, torch.float32)
    policy = models.load_policy(run, torch.device("cpu"))
    x, text = torch.randn(4, *policy.latent_shape), policy.embed(["a", "b", "c", "d"])
    with network_costs._LiveMemory() as alive, network_costs._accelerator_kernels(torch.float32):
        output = policy.unet(x, torch.zeros(4, dtype=torch.int64), encoder_hidden_states=text, return_dict=False)[0]
        torch.autograd.grad(output, policy.parameters, torch.ones_like(output))
    assert networks.denoise(4, "adapter").peak == pytest.approx(alive.peak, rel=0.1)  # some kernels differ
    saved: dict[Any, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = policy.unet(x, torch.zeros(4, dtype=torch.int64), encoder_hidden_states=text, return_dict=False)[0]
    weights = {parameter.untyped_storage()._cdata for parameter in policy.unet.parameters()}
    assert kept.requires_grad
    assert networks.denoise(4, "adapter").peak > 0.8 * sum(size for at, size in saved.items() if at not in weights)


def test_costs_are_linear_in_rows(document_of: Make) -> None:
    run = rules.resolve(document.parse(document_of()).spec)
    networks = network_costs.Networks(architectures.find(run.model), run, torch.float32, torch.float32)
    one, three = networks.denoise(1, "adapter"), networks.denoise(3, "adapter")
    assert (3 * one.forward, 3 * one.backward) == (three.forward, three.backward)
    assert networks.denoise(3).peak < three.peak
    assert networks.denoise(1, adapted=False).forward < one.forward


def test_checkpoint_size(document_of: Make, tmp_path: Path, trained_session: Train) -> None:
    job = document.parse(document_of(optimizer={"learningRate": 1e-2, "emaDecay": 0.9}, training=ONCE))
    trained_session(job.spec, tmp_path)
    files = [file for file in tmp_path.glob("attempt-*/step-*/*") if file.suffix == ".safetensors"]
    assert files
    written = sum(file.stat().st_size for file in files)
    assert estimate.estimate(job).checkpoint_bytes == pytest.approx(written, rel=0.15)


def test_stable_diffusion_needs_no_network(document_of: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """FLOPs of one row of each network, as measured on the real weights (`docs/benchmarks.md`)."""
    job = document.parse(document_of(model=SD15, training={"iterations": 1, "precision": "fp32"}))
    estimate.run(job, as_json=True)
    found = json.loads(capsys.readouterr().out)
    per_row = {(item["what"], item["purpose"]): item["flopsPerRow"] for item in found["work"]}
    assert per_row["forward", "reference"] == pytest.approx(0.803e12, rel=1e-3)
    assert per_row["decode", "scoring"] == pytest.approx(2.515e12, rel=1e-3)
    assert found["schemaVersion"] == 1
    assert found["memoryBytes"][0]["weights"] == pytest.approx(4 * (859.5e6 + 83.7e6 + 123.1e6), rel=1e-3)
    assert found["memoryBytes"][0]["updateCheckpointed"] < found["memoryBytes"][0]["update"]


@pytest.mark.parametrize("name", sorted(architectures.KNOWN))
def test_known_names_have_an_architecture(name: str) -> None:
    known = architectures.find(Model(name=name))
    assert known.scale == 8
    assert known.unet["cross_attention_dim"] == known.text_encoder["hidden_size"]


def test_an_unknown_name_without_network_says_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(Exception, match=r"some/model.*stable-diffusion-v1-5/stable-diffusion-v1-5") as caught:
        architectures.find(Model(name="some/model"))
    assert caught.value.__class__.__name__ == "UnavailableError"


def test_other_pipelines_are_refused(tmp_path: Path) -> None:
    for file in architectures.FILES.values():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="can be estimated"):
        architectures.find(Model(name=str(tmp_path)))


def test_a_cpu_needs_room_for_libraries_and_for_the_loading(document_of: Make) -> None:
    """Stable Diffusion 1.5 at 256 px on a CPU was measured: 6.47 GiB at the most, with files in 16 bits."""
    training = {"precision": "fp32", "promptsPerIteration": 2}
    training |= {"microBatchSize": 1, "samplingBatchSize": 1, "decodeBatchSize": 1}
    sampling = {"steps": 4, "height": 256, "width": 256, "trainedSteps": {"count": 2}}
    values = document_of(model=SD15 | {"variant": "fp16"}, sampling=sampling, training=training)
    [half] = estimate.estimate(document.parse(values)).memory
    assert half.main_memory / 2**30 == pytest.approx(6.47, rel=0.2)
    assert half.loading / 2**30 == pytest.approx(5.7, rel=0.2)
    [whole] = estimate.estimate(document.parse(values | {"spec": values["spec"] | {"model": SD15}})).memory
    assert whole.loading < half.loading
    assert half.peak < half.main_memory


def test_the_files_of_a_folder_tell_their_precision(document_of: Make, tiny_pipeline: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    [whole] = estimate.estimate(document.parse(document_of(training=ONCE))).memory
    StableDiffusionPipeline.from_pretrained(tiny_pipeline).to(dtype=torch.float16).save_pretrained(tmp_path)
    [half] = estimate.estimate(document.parse(document_of(training=ONCE, model={"name": str(tmp_path)}))).memory
    assert half.loading > whole.loading


def test_the_text_is_aligned(document_of: Make, capsys: pytest.CaptureFixture[str]) -> None:
    estimate.run(document.parse(document_of()))
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if line.startswith("  ")]
    assert any(line.startswith("  rollout") for line in lines)
    assert "To lower the peak" in text
    assert "FLOPs of the run" in text


def test_only_part_of_random_iterations_is_drawn(document_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `EXACT_ITERATIONS`, the mean is used for the rest."""
    monkeypatch.setattr(counts, "EXACT_ITERATIONS", 50)
    sampling = {"steps": 6, "trainedSteps": {"count": 1, "choose": "random"}, "guidanceScale": 1.0}
    job = document.parse(document_of(sampling=sampling, training={"iterations": 100_000, "promptsPerIteration": 1}))
    work = estimate.count_work(job.spec, architectures.find(job.spec.model))[0].iteration
    assert work["forward", "training"] == 1
    assert 1 < work["forward", "rollout"] < 6


@pytest.fixture
def document_of(document: Make) -> Make:  # the conftest's `document` shadows the module of that name
    return document
