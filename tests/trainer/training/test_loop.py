"""Whole runs on a random tiny model: what they leave, and that they resume bit for bit."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from tailorpo_trainer import checkpoint, methods, models, prompts
from tailorpo_trainer.checkpoint import background
from tailorpo_trainer.document import parse
from tailorpo_trainer.errors import ConfigurationError, ExitCode, NotFiniteError, ResourceError, RewardError
from tailorpo_trainer.rewards import weighted_sum
from tailorpo_trainer.training import loss_scaling
from tailorpo_trainer.training.loop import run

Make = Callable[..., dict[str, Any]]
METHODS = ["tailorpo", "tailorpo-g", "spo", "d3po", "ddpo"]


def weights(folder: Path) -> dict[str, Tensor]:
    """The newest checkpoint's adapter."""
    found = checkpoint.latest(checkpoint.open_store(folder))
    assert found is not None
    return found.tensors("adapter")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [
        line
        for text in (folder / "metrics.jsonl").read_text().splitlines()
        if (line := json.loads(text))["kind"] == kind
    ]


def test_a_run_leaves_what_it_promises(document: Make, tmp_path: Path) -> None:
    run(parse(document()), tmp_path, display="quiet")
    names = {
        "job.yaml",
        "prompts.json",
        "environment.json",
        "metrics.jsonl",
        "progress.json",
        "samples",
        "adapter",
        "report.html",
        "run.json",
    }
    assert names <= {path.name for path in tmp_path.iterdir()}
    assert [line["iteration"] for line in lines(tmp_path, "iteration")] == [1, 2, 3]
    assert [line["iteration"] for line in lines(tmp_path, "evaluation")] == [0, 2, 3]
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert (progress["phase"], progress["step"], progress["of"]) == ("Succeeded", 3, 3)
    assert len(list((tmp_path / "samples" / "iteration-000003").glob("*.png"))) == 4


@pytest.mark.parametrize("name", METHODS)
def test_images_are_the_trajectories_that_were_drawn_for_training(document: Make, tmp_path: Path, name: str) -> None:
    for folder, batch in (("whole", 64), ("parts", 2)):
        training = {"iterations": 2, "promptsPerIteration": 3, "samplesPerPrompt": 2, "samplingBatchSize": batch}
        run(parse(document(method={"name": name}, training=training)), tmp_path / folder, display="quiet")
        found = lines(tmp_path / folder, "iteration")
        each = 12 if name == "d3po" else 6  # its pairs are of two trajectories
        assert [line["totals"]["images"] for line in found] == [each, 2 * each]
        first = found[0]
        assert first["images_per_second"] == pytest.approx(each / first["totals"]["seconds"], rel=1e-2)
        # Policy and reference are equal up to rounding, which is no preference.
        assert (first["logit"], first["logit_abs"], first.get("implicit_accuracy")) == (0, 0, None)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_depends_on_its_seed_alone(document: Make, tmp_path: Path, name: str) -> None:
    parts = {"method": {"name": name} | ({"threshold": 0.0} if name == "spo" else {})}
    for folder, seed in (("one", 0), ("two", 0), ("other", 1)):
        training = {"iterations": 2, "promptsPerIteration": 2, "seed": seed}
        run(parse(document(**parts, training=training)), tmp_path / folder, display="quiet")
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    assert not same(weights(tmp_path / "one"), weights(tmp_path / "other"))


def test_the_adapter_loads_in_diffusers_and_paints_what_the_policy_paints(
    document: Make, tiny_pipeline: Path, tmp_path: Path
) -> None:
    """Also with alpha other than rank, whose scale must travel with the weights."""
    from diffusers import StableDiffusionPipeline

    job = parse(document(lora={"rank": 2, "alpha": 6}, optimizer={"learningRate": 0.05}))
    run(job, tmp_path, display="quiet")
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    x, step = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(501)
    text = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        base = pipeline.unet(x, step, text).sample
        pipeline.load_lora_weights(tmp_path / "adapter")
        adapted = pipeline.unet(x, step, text).sample
        policy = models.load_policy(job.spec)
        for name, value in policy.adapter().items():
            value.copy_(weights(tmp_path)[name])
        expected = policy.unet(x, step, text).sample
    torch.testing.assert_close(adapted, expected)
    assert float((adapted - base).abs().max()) > 1e-3


def test_a_longer_run_goes_on_from_a_shorter_one(document: Make, tmp_path: Path) -> None:
    def training(iterations: int) -> dict[str, Any]:
        return {"iterations": iterations, "promptsPerIteration": 2}

    run(parse(document(training=training(4))), tmp_path / "whole", display="quiet")
    for iterations in (1, 3, 4):
        run(parse(document(training=training(iterations))), tmp_path / "parts", display="quiet")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    whole, parts = (lines(tmp_path / folder, "iteration") for folder in ("whole", "parts"))
    assert [line["loss"] for line in whole] == [line["loss"] for line in parts]
    assert [line["totals"]["denoiser_forwards"] for line in whole] == [
        line["totals"]["denoiser_forwards"] for line in parts
    ]


def test_a_finished_run_says_so_and_changes_nothing(
    document: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        run(parse(document()), tmp_path, display="plain")
    assert "complete" in capsys.readouterr().err
    assert not (tmp_path / "attempt-0002").exists()


def test_fresh_begins_from_nothing_and_deletes_nothing(document: Make, tmp_path: Path) -> None:
    run(parse(document()), tmp_path, display="quiet")
    before = weights(tmp_path)
    run(parse(document()), tmp_path, fresh=True, display="quiet")
    assert same(weights(tmp_path), before)
    assert {path.name for path in tmp_path.glob("attempt-*")} == {"attempt-0001", "attempt-0002"}
    assert len(lines(tmp_path, "iteration")) == 3


def test_another_experiment_s_folder_is_refused(document: Make, tmp_path: Path) -> None:
    run(parse(document()), tmp_path, display="quiet")
    with pytest.raises(ConfigurationError, match=r"spec.optimizer.learningRate"):
        run(parse(document(optimizer={"learningRate": 0.5})), tmp_path, display="quiet")


@pytest.mark.parametrize("parts", [
    {"training": {"iterations": 3, "promptsPerIteration": 2, "updatesPerIteration": 2}},
    {"optimizer": {"learningRate": 1e-2, "schedule": "cosine", "warmupUpdates": 2, "emaDecay": 0.5}},
    {"sampling": {"steps": 4, "trainedSteps": {"count": 2, "choose": "random"}, "guidanceScale": 1.0}},
    # The prompt has too few rewards for statistics of its own in the first iteration, and enough in the others.
    {"method": {"name": "ddpo"}, "prompts": {"list": ["a cat"]},
     "training": {"iterations": 3, "promptsPerIteration": 1, "samplesPerPrompt": 9}},
    {"training": {"iterations": 3, "promptsPerIteration": 2, "precision": "fp16"}},
], ids=["two-updates", "schedule-and-average", "random-steps", "ddpo", "fp16"])  # fmt: skip
def test_every_state_is_in_the_checkpoint(document: Make, tmp_path: Path, parts: dict[str, Any]) -> None:
    run(parse(document(**parts)), tmp_path / "whole", display="quiet")
    shorter = json.loads(json.dumps(document(**parts)))
    for iterations in (1, 3):
        # Only the schedule knows how long a run will be; stopping early is not the same as a shorter run.
        stop_after(parse(shorter), tmp_path / "parts", iterations)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_gradients_that_vanish_raise_an_alarm_and_with_a_scale_do_not(
    document: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large model's losses are means over many more elements, so its gradients are this small."""
    whole = methods.SPO.loss

    def smaller(*arguments: Any) -> methods.Loss:
        found = whole(*arguments)
        return replace(found, losses=found.losses * 1e-6)

    monkeypatch.setattr(methods.SPO, "loss", smaller)
    zeros, raised = {}, {}
    for folder, precision, scale in (("exact", "fp32", None), ("scaled", "fp16", None), ("unscaled", "fp16", 1.0)):
        with monkeypatch.context() as patch:
            if scale is not None:
                patch.setattr(loss_scaling, "INITIAL_SCALE", scale)
            options = {"iterations": 3, "promptsPerIteration": 3, "precision": precision}
            parts = {"method": {"name": "spo", "threshold": 0.0}, "evaluation": {"everyIterations": 0}}
            run(parse(document(**parts, training=options)), tmp_path / folder, display="quiet")
        zeros[folder] = [line["gradient_zeros"] for line in lines(tmp_path / folder, "iteration")]
        raised[folder] = [line["name"] for line in lines(tmp_path / folder, "alarm")]
    assert max(zeros["exact"]) == 0
    assert max(zeros["scaled"]) < 0.05
    assert min(zeros["unscaled"]) > 0.5
    assert raised == {"exact": [], "scaled": [], "unscaled": ["gradient-vanished"]}


def stop_after(job: Any, folder: Path, iterations: int) -> None:
    """Run until an iteration's checkpoint, then stop as SIGTERM would."""
    from tailorpo_trainer.errors import StoppedError
    from tailorpo_trainer.training import session

    whole = session.Session.checkpoint

    def stopping(self: session.Session) -> None:
        whole(self)
        if self.iteration == iterations < self.iterations:
            self.world.stop.requested = "SIGTERM"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.Session, "checkpoint", stopping)
        try:
            run(job, folder, display="quiet")
        except StoppedError:
            assert iterations < job.spec.training.iterations


def command(tmp_path: Path, values: dict[str, Any], folder: str, *options: str) -> list[str]:
    path = tmp_path / "job.json"  # JSON is YAML
    path.write_text(json.dumps(values))
    return [sys.executable, "-m", "tailorpo_trainer", str(path), "--output", str(tmp_path / folder), "--json", *options]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def until(process: subprocess.Popen[str], iteration: int) -> None:
    """Read the process' lines until it has finished an iteration."""
    assert process.stdout is not None
    for text in process.stdout:
        line = json.loads(text)
        if line["kind"] == "iteration" and line["iteration"] >= iteration:
            return
    raise AssertionError(process.communicate())


KILLED = """
import os, signal, sys, threading
from tailorpo_trainer import cli
from tailorpo_trainer.telemetry import display

last, delay, *arguments = sys.argv[1:]
shown = display.Json.iteration

def iteration(self, line):
    shown(self, line)
    if line["iteration"] == int(last):
        threading.Timer(float(delay), os.kill, [os.getpid(), signal.SIGKILL]).start()
    if line["iteration"] == int(last) + 3:
        threading.Event().wait()  # it never ends before it is killed

display.Json.iteration = iteration
cli.main(["run", *arguments])
"""
"""Runs a job and kills its process so many seconds after an iteration."""


def test_sigkill_at_three_places_loses_nothing(document: Make, tmp_path: Path) -> None:
    values = document(
        training={"iterations": 12, "promptsPerIteration": 2},
        evaluation={"everyIterations": 0},
        checkpoint={"everyIterations": 2, "keep": 2},
    )
    run(parse(values), tmp_path / "whole", display="quiet")
    for iteration, delay in ((1, 0.0), (4, 0.05), (7, 0.1)):
        ended = subprocess.run(
            [sys.executable, "-c", KILLED, str(iteration), str(delay), *command(tmp_path, values, "killed")[3:]],
            capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    last = subprocess.run(
        command(tmp_path, values, "killed"),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert "going on after iteration" in last.stdout
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    whole, killed = (lines(tmp_path / folder, "iteration") for folder in ("whole", "killed"))
    assert [line["loss"] for line in whole] == [line["loss"] for line in killed]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_a_checkpoint_and_75(document: Make, tmp_path: Path, number: signal.Signals) -> None:
    values = document(training={"iterations": 500, "promptsPerIteration": 2}, checkpoint={"everyIterations": 1000})
    process = start(command(tmp_path, values, "stopped"))
    until(process, 2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == ExitCode.STOPPED
    assert f"stopped by {number.name}" in errors
    assert "Traceback" not in errors
    found = checkpoint.latest(checkpoint.open_store(tmp_path / "stopped"))
    assert found is not None
    assert found.step >= 2
    assert json.loads((tmp_path / "stopped" / "progress.json").read_text())["phase"] == "Stopped"


class Failing:
    """A reward that fails at its nth call."""

    name, unit, differentiable, calls = "failing", "1", False, 0

    def __init__(self, at: int, how: str) -> None:
        self.at, self.how = at, how

    def __call__(self, images: Tensor, prompts: Any) -> Tensor:
        self.calls += 1
        scores = images.mean((1, 2, 3))
        if self.calls < self.at:
            return scores
        if self.how == "raise":
            raise KeyError("weights")
        return scores * float("nan") if self.how == "nan" else scores[1:]


@pytest.mark.parametrize(
    ("how", "error", "code"), [("nan", NotFiniteError, 76), ("raise", RewardError, 70), ("count", RewardError, 70)]
)
def test_a_failing_reward_ends_after_a_checkpoint_with_prompt_and_step(
    document: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, error: type[Exception], code: int
) -> None:
    plugin = SimpleNamespace(name="failing", value="test", load=lambda: lambda *_: Failing(6, how))
    monkeypatch.setattr(weighted_sum, "find", lambda name: plugin)
    values = document(
        rewards=[{"name": "failing"}], evaluation={"everyIterations": 0}, checkpoint={"everyIterations": 100}
    )
    with pytest.raises(error) as caught:
        run(parse(values), tmp_path, display="quiet")
    assert caught.value.exit_code == code  # type: ignore[attr-defined]
    assert "failing" in str(caught.value)
    assert "step" in str(caught.value)
    found = checkpoint.latest(checkpoint.open_store(tmp_path))
    assert found is not None
    assert found.step == 2


class Dicing:
    """A reward that draws from every generator that code of others may use."""

    name, unit, differentiable = "dicing", "1", False

    def __call__(self, images: Tensor, prompts: Any) -> Tensor:
        drawn = torch.rand(len(images)) + float(numpy.random.rand()) + random.random()
        return images.mean((1, 2, 3)) + drawn


def test_a_reward_that_draws_random_numbers_resumes_exactly(
    document: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = SimpleNamespace(name="dicing", value="test", load=lambda: lambda *_: Dicing())
    monkeypatch.setattr(weighted_sum, "find", lambda name: plugin)
    values = document(rewards=[{"name": "dicing"}])
    run(parse(values), tmp_path / "whole", display="quiet")
    for iterations in (1, 2, 3):
        stop_after(parse(values), tmp_path / "parts", iterations)
        torch.rand(iterations)
        random.random()
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    measured = [[line["reward"] for line in lines(tmp_path / name, "evaluation")] for name in ("whole", "parts")]
    assert measured[0] == measured[1]


def test_where_data_and_noise_are_can_be_read(document: Make, tmp_path: Path) -> None:
    run(parse(document()), tmp_path, display="quiet")
    found = checkpoint.latest(checkpoint.open_store(tmp_path))
    assert found is not None
    digest = prompts.digest(["a cat", "a dog", "a bee"])
    assert found.state["data"] == {"prompts_drawn": 9, "packs_used_up": 3, "prompts_sha256": digest}
    assert found.state["noise"] == {"seed": 0, "next_iteration": 3}


def test_a_full_disk_ends_with_one_sentence_and_what_was_saved_stays(
    document: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses to let files grow (RLIMIT_FSIZE), from the second checkpoint on."""
    monkeypatch.setattr(background, "TRIES", 2)
    monkeypatch.setattr(background, "FIRST_PAUSE", 0.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    whole = background.BackgroundWriter.submit

    def submit(self: background.BackgroundWriter, snapshot: Any) -> None:
        if snapshot.step == 2:
            while not checkpoint.checkpoints(self.attempt.store):
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, hard))
        whole(self, snapshot)

    monkeypatch.setattr(background.BackgroundWriter, "submit", submit)
    values = document(evaluation={"everyIterations": 0}, checkpoint={"everyIterations": 1, "maxFailures": 1})
    try:
        with pytest.raises(ResourceError, match="not written, the disk or quota is full") as caught:
            run(parse(values), tmp_path, display="quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == ExitCode.OUT_OF_RESOURCES
    found = checkpoint.latest(checkpoint.open_store(tmp_path))
    assert found is not None
    assert found.step == 1


def test_tailorpo_g_needs_a_differentiable_reward(document: Make, tmp_path: Path) -> None:
    values = document(method={"name": "tailorpo-g"}, rewards=[{"name": "jpeg-compressibility"}])
    with pytest.raises(
        ConfigurationError,
        match=r"spec.method.name: tailorpo-g needs a differentiable reward; jpeg-compressibility is not",
    ):
        run(parse(values), tmp_path, display="quiet")


def test_a_loss_that_is_not_finite_changes_nothing(
    document: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tailorpo_trainer.methods import objectives

    whole, calls = objectives.preference_loss, iter(range(100))
    monkeypatch.setattr(
        objectives, "preference_loss", lambda logit: whole(logit) * (float("nan") if next(calls) >= 2 else 1)
    )
    with pytest.raises(NotFiniteError, match=r"lower spec.optimizer.learningRate"):
        run(parse(document(checkpoint={"everyIterations": 100})), tmp_path, display="quiet")
    assert all(value.isfinite().all() for value in weights(tmp_path).values())
