"""Whole runs in several processes: the same experiment, the same end, whatever happens on the way."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from tailorpo_trainer import checkpoint, methods, models, rewards
from tailorpo_trainer.diffusion.ddim import choose_steps
from tailorpo_trainer.diffusion.noise import Noise, Purpose
from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.distributed.signals import Stop
from tailorpo_trainer.distributed.world import World, join
from tailorpo_trainer.document import parse
from tailorpo_trainer.errors import ExitCode
from tailorpo_trainer.methods.ddpo import DDPO
from tailorpo_trainer.rollout.rows import Pairs, Transitions
from tailorpo_trainer.rollout.scoring import Scorer
from tailorpo_trainer.rollout.trajectories import sample_branched_trajectories
from tailorpo_trainer.spec.job import TailorPOJob
from tailorpo_trainer.training import loss_scaling
from tailorpo_trainer.training.loop import run
from tailorpo_trainer.training.updater import Updater

Make = Callable[..., dict[str, Any]]
Start = Callable[..., Any]
RunAll = Callable[..., list[Any]]

FOUR = {"iterations": 3, "promptsPerIteration": 4}


def newest(folder: Path) -> tuple[int, dict[str, Tensor]]:
    found = checkpoint.latest(checkpoint.open_store(folder))
    assert found is not None
    return found.step, found.tensors("adapter")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def lines(folder: Path, kind: str = "iteration") -> list[dict[str, Any]]:
    read = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if line["kind"] == kind]


def training(job: TailorPOJob, folder: Path) -> Callable[[int], None]:
    return lambda rank: run(job, folder, display="quiet")


@pytest.mark.parametrize("name", ["tailorpo", "ddpo"])
def test_one_two_and_four_processes_draw_the_same(document: Make, run_all: RunAll, tmp_path: Path, name: str) -> None:
    """Pictures, rewards and what they cost. Rounding sets later iterations apart, so only the first is compared."""
    job = parse(document(method={"name": name}, training=FOUR))
    for size in (1, 2, 4):
        run_all(size, training(job, tmp_path / str(size)))
    alone, alone_measured = lines(tmp_path / "1"), lines(tmp_path / "1", "evaluation")
    for size in (2, 4):
        found, measured = lines(tmp_path / str(size)), lines(tmp_path / str(size), "evaluation")
        for key in {"loss", "reward", "reward_std", "gap", "gradient_norm"} & alone[0].keys():
            assert found[0][key] == pytest.approx(alone[0][key], rel=1e-3, abs=1e-6), key
        assert measured[0]["scores"] == pytest.approx(alone_measured[0]["scores"], rel=1e-4)
        assert measured[0]["diversity"] == pytest.approx(alone_measured[0]["diversity"], rel=1e-4)
        for work in ("images", "reward_queries", "denoiser_forwards", "decodes"):
            assert found[-1]["totals"][work] == alone[-1]["totals"][work], work
        assert (tmp_path / str(size) / "adapter").is_dir()


def recorded(job: TailorPOJob) -> tuple[Pairs | Transitions, Tensor]:
    """One iteration's rows of all samples, and the samples' text."""
    policy, method = models.load_policy(job.spec), methods.build(job.spec.method)
    prompts = ["a cat", "a dog", "a bee", "a cat"]
    reward = rewards.load(job.spec.rewards, policy.device)
    steps = job.spec.sampling.trained_steps
    assert steps.count is not None
    scene = methods.RolloutContext(
        policy=policy,
        text=policy.embed(prompts),
        prompts=torch.tensor([0, 1, 2, 0]),
        noise=Noise((0, Purpose.TRAINING, 0), range(4), policy.latent_shape),
        score=Scorer(policy, reward, prompts),
        trained=choose_steps(policy.sampler, steps.count, "spread"),
    )
    return method.rows(scene, method.rollout(scene)), scene.text


def share(rows: Any, text: Tensor, world: World) -> tuple[Any, Tensor]:
    """The rows of this process' samples, numbered from 0, and their text."""
    mine = world.share(len(text))
    chosen = [n for n, sample in enumerate(rows.sample.tolist()) if sample in mine]
    names = [name for name in type(rows).__dataclass_fields__ if getattr(rows, name) is not None]
    own = {name: getattr(rows, name)[chosen] for name in names}
    return type(rows)(**own | {"sample": own["sample"] - mine.start}), text[mine.start : mine.stop]


@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize("name", ["tailorpo", "d3po", "ddpo"])
def test_the_same_pairs_give_the_same_gradient_in_any_number_of_processes(
    document: Make, run_all: RunAll, tmp_path: Path, name: str, updates: int
) -> None:
    # Row by row, or the shape of a batch would decide how the denoiser rounds.
    options = FOUR | {"updatesPerIteration": updates, "microBatchSize": 1}
    job = parse(document(method={"name": name, "stepWeight": "balanced"}, training=options))
    rows, text = recorded(job)

    def gradients(rank: int) -> None:
        with join(Stop(), 30, 30) as world:
            policy = models.load_policy(job.spec)
            with torch.no_grad():  # a fresh adapter is the reference, and half of its gradient is 0
                for number, value in enumerate(policy.parameters):
                    value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(number)))
            updater = Updater(policy, methods.build(job.spec.method), job.spec, world)
            found: list[Tensor] = []
            terms = torch.zeros(())

            def count(gradient: Tensor) -> None:
                terms.add_(gradient.norm())

            for value in policy.parameters:
                value.register_hook(count)

            def keep(*_: Any) -> None:
                found.append(torch.cat([value.grad.flatten() for value in policy.parameters if value.grad is not None]))

            updater.optimizer.register_step_pre_hook(keep)
            updater.optimizer.param_groups[0]["lr"] = 0.0
            facts = updater.iterate(*share(rows, text, world))
            world.same(policy.adapter())
            torch.save(
                [*found, torch.tensor(facts.loss), facts.facts["logit"].sort().values, terms],
                tmp_path / f"{world.size}-{rank}",
            )

    for size in (1, 2, 4):
        run_all(size, gradients)
    *alone, loss, logits, terms = torch.load(tmp_path / "1-0")
    assert len(alone) == updates
    for size in (2, 4):
        for rank in range(size):
            *found, its_loss, its_logits, _ = torch.load(tmp_path / f"{size}-{rank}")
            # Sums whose terms cancel each other: what is rounded is the terms, of which a loss has some of the order 1.
            torch.testing.assert_close(its_logits, logits, rtol=0, atol=1e-6)
            torch.testing.assert_close(its_loss, loss, rtol=1e-5, atol=1e-7)
            for one, other in zip(alone, found, strict=True):
                assert float((one - other).norm()) <= 3e-6 * float(terms) / updates


def test_stopped_at_any_process_and_gone_on_with_is_as_if_never_stopped(
    document: Make, start: Start, run_all: RunAll, tmp_path: Path
) -> None:
    job = parse(document(training=FOUR, checkpoint={"everyIterations": 100}))
    run_all(2, training(job, tmp_path / "whole"))

    def stopped(rank: int) -> None:
        def roll_out(*arguments: Any, **options: Any) -> Any:
            if rank == 1 and next(calls) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return whole(*arguments, **options)

        whole, calls = sample_branched_trajectories, iter(range(100))
        with patch("tailorpo_trainer.methods.base.sample_branched_trajectories", roll_out):
            run(job, tmp_path / "parts", display="quiet")

    ended = start(2, stopped).wait()
    assert [each.code for each in ended] == [ExitCode.STOPPED] * 2, ended[0].stderr
    assert "stopped by SIGTERM at rank 1 after iteration 1 of 3" in ended[0].stderr
    assert newest(tmp_path / "parts")[0] == 1
    run_all(2, training(job, tmp_path / "parts"))
    assert same(newest(tmp_path / "whole")[1], newest(tmp_path / "parts")[1])


def test_stopped_in_an_update_no_reward_is_counted_twice(
    document: Make, start: Start, run_all: RunAll, tmp_path: Path
) -> None:
    """DDPO's statistics of an iteration whose update was not made are those of the same iteration made again."""
    options = {"iterations": 4, "promptsPerIteration": 2, "samplesPerPrompt": 9, "microBatchSize": 6}
    prompts, steps = {"list": ["a cat", "a dog"]}, {"steps": 2, "trainedSteps": {"count": 1}, "guidanceScale": 1.0}
    job = parse(document(method={"name": "ddpo"}, prompts=prompts, sampling=steps, training=options))
    run_all(2, training(job, tmp_path / "whole"))

    def stopped(rank: int) -> None:
        def loss(*arguments: Any) -> Any:
            if rank == 1 and next(calls) == 2:  # the first micro-batch of the second iteration
                os.kill(os.getpid(), signal.SIGTERM)
            return whole(*arguments)

        whole, calls = DDPO.loss, iter(range(100))
        with patch.object(DDPO, "loss", loss):
            run(job, tmp_path / "parts", display="quiet")

    ended = start(2, stopped).wait()
    assert [each.code for each in ended] == [ExitCode.STOPPED] * 2, ended[0].stderr
    assert newest(tmp_path / "parts")[0] == 1
    run_all(2, training(job, tmp_path / "parts"))
    assert same(newest(tmp_path / "whole")[1], newest(tmp_path / "parts")[1])
    kept = [checkpoint.latest(checkpoint.open_store(tmp_path / name)) for name in ("whole", "parts")]
    one, other = (found.tensors("method") for found in kept if found is not None)
    assert same(one, other)
    assert one["counts"].tolist() == [32, 32]


def test_in_fp16_all_processes_find_the_same_scale(document: Make, run_all: RunAll, tmp_path: Path) -> None:
    """From one that is far too large: their updates are made again together, and one may have no row of an update."""
    options = {"iterations": 2, "promptsPerIteration": 2, "updatesPerIteration": 3, "precision": "fp16"}
    job = parse(document(training=options, sampling={"steps": 4, "trainedSteps": {"count": 2}, "guidanceScale": 1.0}))
    with patch.object(loss_scaling, "INITIAL_SCALE", 2.0**60):
        run_all(2, training(job, tmp_path))
    found = checkpoint.latest(checkpoint.open_store(tmp_path))  # saved only if all processes have the same weights
    assert found is not None
    assert found.step == 2
    assert 1 < found.state["scaler"]["scale"] < 2.0**60


def kill_and_resume(document: Make, start: Start, run_all: RunAll, folder: Path, kills: int) -> None:
    """Any process is killed at any of its denoiser calls, again and again; the end is as if nothing had been."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    drawn = random.Random(seed)
    job = parse(document(training={"iterations": 4, "promptsPerIteration": 4}))
    run_all(2, training(job, folder / "whole"))
    killed = 0
    while killed < kills:
        who, call = drawn.randrange(2), drawn.randrange(40)

        def work(rank: int, who: int = who, call: int = call) -> None:
            def predict(*arguments: Any) -> Tensor:
                if rank == who and next(calls) == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return whole(*arguments)

            whole, calls = Policy.predict, iter(range(10_000))
            with patch.object(Policy, "predict", predict):
                run(job, folder / "parts", display="quiet")

        ended = start(2, work).wait()
        if ended[who].code == 0:  # complete: kill the next one from its beginning
            assert same(newest(folder / "whole")[1], newest(folder / "parts")[1])
            shutil.rmtree(folder / "parts")
            continue
        assert {who: ended[who].code, 1 - who: ended[1 - who].code} == {who: -signal.SIGKILL, 1 - who: ExitCode.STALLED}
        killed += 1
    run_all(2, training(job, folder / "parts"))
    assert same(newest(folder / "whole")[1], newest(folder / "parts")[1])
    print(f"{kills} kills, differences: 0")


def test_killed_anywhere_two_processes_end_as_if_they_had_not_been(
    document: Make, start: Start, run_all: RunAll, tmp_path: Path
) -> None:
    kill_and_resume(document, start, run_all, tmp_path, kills=3)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_killed_twenty_times(document: Make, start: Start, run_all: RunAll, tmp_path: Path) -> None:
    kill_and_resume(document, start, run_all, tmp_path, kills=20)


def test_a_run_may_go_on_with_another_number_of_processes(document: Make, run_all: RunAll, tmp_path: Path) -> None:
    for iterations, size in ((1, 2), (2, 1), (3, 4)):
        job = parse(document(training=FOUR | {"iterations": iterations}))
        run_all(size, training(job, tmp_path))
        assert newest(tmp_path)[0] == iterations
    assert [line["iteration"] for line in lines(tmp_path)] == [1, 2, 3]


def test_samples_that_cannot_be_shared_equally_are_refused(document: Make, start: Start, tmp_path: Path) -> None:
    ended = start(3, training(parse(document(training=FOUR)), tmp_path)).wait()
    assert [each.code for each in ended] == [ExitCode.CONFIGURATION] * 3
    assert "4 samples an iteration" in ended[0].stderr
    assert "use a multiple of 3" in ended[0].stderr


@pytest.mark.parametrize(
    ("part", "values", "said"),
    [
        ("optimizer", {"learningRate": 0.001}, "spec.optimizer.learningRate: 0.01 at rank 0, 0.001 at rank 1"),
        ("checkpoint", {"everyIterations": 2}, "spec.checkpoint.everyIterations: 1 at rank 0, 2 at rank 1"),
        ("prompts", {"list": ["a cat", "a dog"]}, 'spec.prompts.list[2]: "a bee" at rank 0, not set at rank 1'),
    ],
)
def test_processes_with_other_documents_are_refused_when_they_meet(
    document: Make, start: Start, tmp_path: Path, part: str, values: dict[str, Any], said: str
) -> None:
    base = {"training": FOUR, "checkpoint": {"everyIterations": 1}}
    jobs = [parse(document(**base)), parse(document(**base | {part: values}))]
    ended = start(2, lambda rank: run(jobs[rank], tmp_path / str(rank), display="quiet")).wait()
    assert [each.code for each in ended] == [ExitCode.CONFIGURATION] * 2, ended[0].stderr
    assert all(
        f"the processes of this run differ:\n  {said}\nstart all of them with the same" in e.stderr for e in ended
    )
    assert not (tmp_path / "0" / "metrics.jsonl").exists()


def test_processes_with_other_files_or_packages_are_refused(document: Make, start: Start, tmp_path: Path) -> None:
    """Under the same names: prompts that were edited on one machine, an image that was built another day."""

    def other_prompts(rank: int) -> None:
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "prompts.txt").write_text(f"a cat\na {'dog' if rank else 'bee'}")
        run(
            parse(document(training=FOUR, prompts={"file": "prompts.txt"})),
            tmp_path / "prompts",
            base=tmp_path / str(rank),
        )

    def other_torch(rank: int) -> None:
        versions = {"python": "3.12.1" if rank else "3.12.9", "torch": f"2.{rank}"}
        with patch("tailorpo_trainer.training.agreement.software", lambda: versions):
            run(parse(document(training=FOUR)), tmp_path / "torch", display="quiet")

    def other_model(rank: int) -> None:
        load = models.load_policy

        def loaded(*arguments: Any) -> Policy:
            policy = load(*arguments)
            with torch.no_grad():
                next(policy.vae.parameters()).flatten()[0] += 1e-6 * rank
            return policy

        with patch("tailorpo_trainer.models.load_policy", loaded):
            run(parse(document(training=FOUR)), tmp_path / "model", display="quiet")

    for work, said in (
        (other_prompts, 'spec.prompts: "SHA-256 '),
        (other_model, ".decoder: "),
        (other_torch, 'versions.torch: "2.0" at rank 0, "2.1" at rank 1'),
    ):
        ended = start(2, work).wait()
        assert [each.code for each in ended] == [ExitCode.CONFIGURATION] * 2, ended[0].stderr
        assert all(said in each.stderr and "python" not in each.stderr.split(said)[1] for each in ended)


def test_each_process_may_reach_its_scorer_and_save_memory_in_its_own_way(
    document: Make, run_all: RunAll, tmp_path: Path
) -> None:
    def own(rank: int) -> None:
        extra = {"microBatchSize": 1} if rank else {}
        run(parse(document(training=FOUR | extra, workers=1 + rank)), tmp_path, display="quiet")

    run_all(2, own)
    assert newest(tmp_path)[0] == 3


class Odd:
    """A reward that does something odd in one process, at one of its calls."""

    name, unit, differentiable = "odd", "", False

    def __init__(self, rank: int, call: int, what: Callable[[], Any]) -> None:
        self.calls, self.what = iter(range(1000)), what
        self.when = call if int(os.environ["RANK"]) == rank else None

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        scores = images.mean(dim=(1, 2, 3))
        return scores * self.what() if next(self.calls) == self.when else scores


def odd_run(document: Make, folder: Path, what: Callable[[], Any], **parts: Any) -> Callable[[int], None]:
    """A run whose reward does something odd in the second iteration, in the second process."""
    values = document(
        rewards=[{"name": "odd"}],
        training=FOUR,
        evaluation={"everyIterations": 0},
        checkpoint={"everyIterations": 100},
        **parts,
    )

    def work(_: int) -> None:
        plugin = SimpleNamespace(name="odd", value="test", load=lambda: lambda *_: Odd(1, 2, what))
        with patch("tailorpo_trainer.rewards.weighted_sum.find", lambda name: plugin):
            run(parse(values), folder, display="quiet")

    return work


def test_a_failure_in_one_process_ends_all_after_a_checkpoint(document: Make, start: Start, tmp_path: Path) -> None:
    first, second = start(2, odd_run(document, tmp_path, lambda: float("nan"))).wait()
    assert (first.code, second.code) == (ExitCode.STALLED, ExitCode.NOT_FINITE)
    assert "rank 1 ended the run: " in first.stderr
    assert newest(tmp_path)[0] == 1
    (alarm,) = lines(tmp_path, "alarm")
    assert (alarm["name"], alarm["iteration"]) == ("not-finite", 2)
    assert alarm["message"].startswith("rank 1 ended the run: reward 'odd' returned nan for prompt ")
    assert json.loads((tmp_path / "progress.json").read_text())["phase"] == "Failed"


def test_a_process_that_is_killed_ends_all_and_the_first_saves_what_there_is(
    document: Make, start: Start, tmp_path: Path
) -> None:
    work = odd_run(document, tmp_path, lambda: os.kill(os.getpid(), signal.SIGKILL))
    first, second = start(2, work).wait()
    assert (first.code, second.code) == (ExitCode.STALLED, -signal.SIGKILL)
    assert newest(tmp_path)[0] == 1
    assert lines(tmp_path, "alarm") == []


def test_a_process_that_hangs_is_ended_and_says_where(document: Make, start: Start, tmp_path: Path) -> None:
    work = odd_run(document, tmp_path, lambda: time.sleep(1000), runPolicy={"stallTimeoutSeconds": 2})
    first, second = start(2, work).wait()
    assert (first.code, second.code) == (ExitCode.STALLED, ExitCode.STALLED)
    assert "rank 1 made no progress for 2 s (spec.runPolicy.stallTimeoutSeconds)" in second.stderr
    assert "in __call__" in second.stderr  # where it hangs


def test_the_first_process_alone_serves_and_counts_for_all(
    document: Make, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tailorpo_trainer.telemetry.exporters import TelemetryOptions
    from tailorpo_trainer.telemetry.prometheus import Metrics

    def keep(self: Metrics) -> None:
        labels = {"job_namespace": "", "job_name": "test"}
        samples = self.registry.get_sample_value("tailorpo_samples_total", labels)
        (tmp_path / "samples").write_text(str(samples))

    monkeypatch.setattr(Metrics, "close", keep)
    job = parse(document(training=FOUR, evaluation={"everyIterations": 0}))
    ended = start(
        2, lambda rank: run(job, tmp_path / "run", display="quiet", telemetry=TelemetryOptions(port=0))
    ).wait()
    assert [each.code for each in ended] == [0, 0], ended
    assert ["metrics: http://" in each.stderr for each in ended] == [True, False]
    assert float((tmp_path / "samples").read_text()) == 12
