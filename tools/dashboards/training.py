"""The dashboard "Training": one run, or several compared, from what the trainer itself reports."""

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import units

from tools.dashboards import variables
from tools.dashboards.panels import (
    BLUE,
    GREEN,
    RED,
    TEXT,
    YELLOW,
    File,
    Panel,
    Row,
    Steps,
    assembled,
    by_step,
    cells,
    faint,
    lines,
    states,
    value,
)
from tools.dashboards.queries import JOB, NAME, Query, each, over, rate, selected

UID = "tailorpo-training"
SMOOTH = "$smoothing"
LOG_2 = 0.693


def dashboard() -> File:
    return assembled(
        UID,
        "TailorPO / Training",
        "Is the reward rising, is there something to learn from, is it over-optimising, what does it cost, when will "
        "it end? One run, or several compared.",
        [
            variables.datasource(),
            variables.cluster("tailorpo_step"),
            variables.namespace("tailorpo_step"),
            variables.job("tailorpo_step"),
            variables.smoothing(),
        ],
        [_overview(), _reward(), _learning(), _over_optimisation(), _speed(), _safety()],
        _annotations(),
    )


def _annotations() -> list[build.AnnotationQuery]:
    started = Query(f"1000 * {each('tailorpo_attempt_start_timestamp_seconds')}")
    saved = Query(f"1000 * {each('tailorpo_checkpoint_last_success_timestamp_seconds')}")
    alarm = Query(f"{each('tailorpo_alarm', 'alarm')} == 1", f"{NAME}: {{{{alarm}}}}")
    return [
        variables.annotation("Attempts", BLUE, started, "An attempt began", at_value=True, shown=True),
        variables.annotation("Alarms", RED, alarm, "Alarm", at_value=False, shown=True),
        variables.annotation("Checkpoints", GREEN, saved, "A checkpoint was written", at_value=True, shown=False),
    ]


def _overview() -> Row:
    step, of = each("tailorpo_step"), each("tailorpo_iterations")
    return Row("Now").line(
        4,
        (
            5,
            value(
                "Done",
                "Share of the requested iterations that are finished, over all attempts.",
                [Query(f"{step} / {of}")],
                units.PercentUnit,
                Steps(BLUE, [(1, GREEN)]),
                decimals=0,
            ),
        ),
        (
            5,
            value(
                "Time left",
                "Estimated time to the end, evaluations included. Absent until an iteration was measured.",
                [Query(each("tailorpo_eta_seconds"))],
                units.Seconds,
            ),
        ),
        (
            5,
            value(
                "Held-out reward",
                "Mean reward of the last evaluation, on noise and prompts that training does not use.",
                [Query(each("tailorpo_evaluation_reward"))],
                units.Short,
                none="No evaluation yet",
            ),
        ),
        (
            4,
            value(
                "Attempt",
                "Number of the attempt that runs, from 1. A larger one means that earlier attempts ended before the "
                "run was done.",
                [Query(each("tailorpo_attempt"))],
                units.NoUnit,
                Steps(TEXT, [(2, YELLOW)]),
            ),
        ),
        (
            5,
            value(
                "Alarms raised",
                "How many kinds of alarm were raised in this run. Which ones: below, under over-optimisation.",
                [Query(f"sum by ({JOB}) ({each('tailorpo_alarm', 'alarm')})")],
                units.NoUnit,
                Steps(GREEN, [(1, RED)]),
            ),
        ),
    )


def _reward() -> Row:
    mean, error = each("tailorpo_evaluation_reward"), each("tailorpo_evaluation_reward_standard_error")
    held_out = lines(
        "Held-out reward and its interval",
        "The figure to judge a run by: the mean reward on noise and prompts that training does not use, at each "
        "evaluation. The dashed lines are its 95 % interval: runs whose intervals overlap widely are not different.",
        [Query(mean), Query(f"{mean} - 1.96 * {error}"), Query(f"{mean} + 1.96 * {error}")],
        axis="reward",
        none="No evaluation yet",
    )
    training = lines(
        "Training reward",
        "Mean reward of the pictures of each iteration (thin) and its mean over the smoothing window (thick). Each "
        "iteration draws other prompts and noise, so the thin line is noisy; only the held-out reward is measured on "
        "the same pictures each time.",
        [Query(over("avg_over_time", "tailorpo_reward", SMOOTH)), Query(each("tailorpo_reward"))],
        axis="reward",
    )
    steps = by_step(
        "Training reward by iteration",
        "The same over iterations instead of time, so that runs of different speed or start can be compared. "
        "`tailorpo compare` also aligns runs by pictures, reward queries, work and seconds.",
        [Query(each("tailorpo_step"), "iteration"), Query(each("tailorpo_reward"), "reward")],
        units.Short,
        "reward",
    )
    scored = lines(
        "Each reward, held-out",
        "Each reward of the document by itself, in its own unit, on held-out noise; also those that are only measured. "
        "One that falls while the sum rises is the price of the gain.",
        [Query(each("tailorpo_evaluation_score", "reward"), f"{NAME} {{{{reward}}}}")],
        none="No evaluation yet",
    )
    drawn = lines(
        "Each reward, training",
        "Each reward of the sum by itself, in its own unit, as the mean of the last iteration.",
        [Query(each("tailorpo_training_score", "reward"), f"{NAME} {{{{reward}}}}")],
    )
    return (
        Row("Reward: does it rise?")
        .line(9, (12, faint(held_out, "B", "C", dashed=True)), (12, faint(training, "B")))
        .line(8, (8, steps), (8, scored), (8, drawn))
    )


def _learning() -> Row:
    gap = lines(
        "Reward gap",
        "The winner's reward less the loser's, mean over the pairs of an iteration (thin) and over the smoothing "
        "window (thick). At 0 no pair has a winner, and nothing is learnt. Absent for ddpo, which has no pairs.",
        [Query(over("avg_over_time", "tailorpo_reward_gap", SMOOTH)), Query(each("tailorpo_reward_gap"))],
        axis="reward",
        low=0,
        none="This method has no pairs",
    )
    by_denoising_step = cells(
        "Reward gap by denoising step: $job",
        "Where in the denoising there is something to choose between: the mean reward gap of the pairs at each trained "
        "step, 00 the noisiest. A row that stays pale contributes little: spec.sampling.trainedSteps selects others.",
        [
            Query(
                f"max by (denoising_step) ({selected('tailorpo_step_reward_gap_last')})",
                "{{denoising_step}}",
            )
        ],
        units.Short,
        "denoising step",
    )
    loss = lines(
        "Loss",
        "Loss of the last iteration. A preference method begins at log 2 = 0.693 (dashed); what counts is whether it "
        "falls below it, not how far.",
        [Query(over("avg_over_time", "tailorpo_loss", SMOOTH)), Query(each("tailorpo_loss"))],
        axis="nats",
        steps=Steps(GREEN, [(LOG_2, TEXT)]),
    )
    logit = lines(
        "Preference logit",
        "How strongly the policy prefers winners, against the reference. Beyond ±5 (dashed) the loss hardly depends on "
        "it any more: lower spec.method.beta or the learning rate.",
        [Query(each("tailorpo_logit"))],
        axis="nats",
        steps=Steps(YELLOW, [(-5, GREEN), (5, YELLOW)]),
        none="This method has no pairs",
    )
    accuracy = lines(
        "Implicit accuracy",
        "Share of the pairs that the policy already orders like the reward. 50 % is chance (dashed).",
        [Query(each("tailorpo_implicit_accuracy"))],
        units.PercentUnit,
        steps=Steps(YELLOW, [(0.5, GREEN)]),
        none="This method has no pairs",
        low=0,
        high=1,
    )
    clamped = lines(
        "Clamped ratios",
        "Share of the likelihood ratios that were clamped and gave no gradient. Above half (dashed) an alarm is "
        "raised: lower the learning rate, or widen the clamp.",
        [Query(each("tailorpo_clamped_ratio"))],
        units.PercentUnit,
        steps=Steps(GREEN, [(0.5, RED)]),
        none="This method clamps nothing",
        low=0,
        high=1,
    )
    gradient = lines(
        "Gradient norm",
        "Norm of the gradient before clipping, the largest in each interval. Ten times its usual size means that "
        "training is about to break.",
        [Query(over("max_over_time", "tailorpo_gradient_norm", "$__rate_interval"))],
        low=0,
    )
    pace = lines(
        "Learning rate",
        "Step size of the last update, after warm-up and schedule.",
        [Query(each("tailorpo_learning_rate"))],
        units.ScientificNotation,
        low=0,
    )
    return (
        Row("Is there something to learn, and is it learnt?")
        .line(9, (24, by_denoising_step.repeat("job").repeat_direction("h").max_per_row(3)))
        .line(8, (8, faint(gap, "B")), (8, faint(loss, "B")), (8, logit))
        .line(8, (6, accuracy), (6, clamped), (6, gradient), (6, pace))
    )


def _over_optimisation() -> Row:
    diversity = lines(
        "Diversity",
        "Mean distance between held-out pictures of one prompt, as a share of white. It falls when the policy "
        "collapses: the reward then rises at the cost of sameness.",
        [Query(each("tailorpo_diversity"))],
        axis="share of white",
        low=0,
        none="No evaluation yet",
    )
    feature = lines(
        "Feature diversity",
        "The same between embeddings of CLIP (1 − cosine), which notices collapses that pixels hide. Only where "
        "clip-score is among the rewards, also if it is only measured.",
        [Query(each("tailorpo_feature_diversity"))],
        axis="1 − cosine",
        low=0,
        none="clip-score is not measured",
    )
    alarms = states(
        "Alarms",
        "Raised once the trainer has seen a symptom several times in a row, and kept until the run ends. The log and "
        "report.html say what to do; so does the runbook.",
        [Query(each("tailorpo_alarm", "alarm"), f"{NAME} {{{{alarm}}}}")],
        {"0": ("not raised", GREEN), "1": ("raised", RED)},
    )
    return Row("Is it over-optimising?").line(8, (7, diversity), (7, feature), (10, alarms))


def _speed() -> Row:
    busy = rate("tailorpo_phase_seconds_sum", "phase", window=SMOOTH)
    pictures = lines(
        "Pictures per second",
        "Training pictures, averaged over the last iterations. Evaluations and checkpoints are not counted.",
        [Query(each("tailorpo_images_per_second"))],
        axis="pictures / s",
        low=0,
    )
    phases = lines(
        "Time by phase",
        "On what the time is spent over the smoothing window, in seconds of a phase per second: rollout (denoising), "
        "decode, score (waiting for rewards), check (of the scoring decoder), update, checkpoint (how long training "
        "waited), evaluation. Choose a window longer than an iteration, or the sum goes up and down.",
        [Query(busy, f"{NAME} {{{{phase}}}}")],
        units.PercentUnit,
        stacked=True,
        low=0,
    )
    used = f"{rate('tailorpo_flops_total')} / {each('tailorpo_peak_flops')}"
    utilisation = lines(
        "Utilisation",
        "Model: floating-point operations of the model per second, as a share of the accelerators' peak. Accelerator: "
        "share of the time in which a kernel ran, as nvidia-smi reports it, high also where the model's is low.",
        [
            Query(used, f"{NAME} model"),
            Query(each("tailorpo_accelerator_utilization_ratio"), f"{NAME} accelerator"),
        ],
        units.PercentUnit,
        none="No known accelerator",
        low=0,
        high=1,
    )
    memory = lines(
        "Accelerator memory",
        "Memory of the first process by kind, the largest in each interval, and the limit of its device.",
        [
            Query(
                over("max_over_time", "tailorpo_accelerator_memory_bytes", "$__rate_interval", "kind"),
                f"{NAME} {{{{kind}}}}",
            ),
            Query(each("tailorpo_accelerator_memory_limit_bytes"), f"{NAME} limit"),
        ],
        units.BytesIEC,
        low=0,
        none="No accelerator",
    )
    return (
        Row("Speed, and what it costs")
        .line(8, (8, pictures), (8, phases), (8, utilisation))
        .line(
            4,
            (5, _spent("Pictures drawn", "tailorpo_samples_total", "for training")),
            (5, _spent("Reward queries", "tailorpo_reward_queries_total", "scored by rewards")),
            (5, _spent("Denoiser forwards", "tailorpo_denoiser_forwards_total", "passed through the denoiser")),
            (5, _spent("FLOPs", "tailorpo_flops_total", "floating-point operations of the model")),
            (
                4,
                value(
                    "GPU time",
                    "Accelerators times the time in which the pods held them, over the whole life of the job, as the "
                    "operator counts it.",
                    [Query(each("tailorpo_job_gpu_seconds_total"), instant=True)],
                    units.Seconds,
                    none="Not on a cluster",
                ),
            ),
        )
        .line(7, (24, memory))
    )


def _spent(title: str, metric: str, what: str) -> Panel:
    return value(
        title,
        f"How many were {what} in the time range, by all attempts and including work that was repeated.",
        [Query(f"sum by ({JOB}) (increase({selected(metric)}[$__range]))", instant=True)],
        units.Short,
        decimals=1,
    )


def _safety() -> Row:
    saved, begun = (
        selected("tailorpo_checkpoint_last_success_timestamp_seconds"),
        selected("tailorpo_attempt_start_timestamp_seconds"),
    )
    age = lines(
        "Age of the newest checkpoint",
        "Time since this process last committed a checkpoint, or since it began. An alert fires after two hours "
        "(dashed).",
        [Query(f"time() - max by ({JOB}) ({saved} or {begun})")],
        units.Seconds,
        low=0,
        steps=Steps(GREEN, [(7200, RED)]),
    )
    at_risk = lines(
        "Iterations that a crash would lose",
        "Finished iterations that are not in the newest checkpoint.",
        [Query(f"{each('tailorpo_step')} - {each('tailorpo_checkpoint_step')}")],
        units.Short,
        low=0,
        none="No checkpoint yet",
    )
    pace = lines(
        "Iterations per minute",
        "Over the smoothing window. At 0 the run stalls; below 0 an attempt resumed from an older iteration.",
        [Query(f"60 * {over('deriv', 'tailorpo_step', SMOOTH)}")],
    )
    saving_time = rate("tailorpo_checkpoint_seconds_sum", window=SMOOTH)
    saved_number = rate("tailorpo_checkpoint_seconds_count", window=SMOOTH)
    saving = lines(
        "Duration of checkpoints",
        "From copying the state to the committed checkpoint, mean over the smoothing window. Training goes on.",
        [Query(f"{saving_time} / {saved_number}")],
        units.Seconds,
        low=0,
    )
    failed = lines(
        "Failed checkpoints",
        "Checkpoints that could not be written, in each interval. Several in a row end the run.",
        [Query(rate("tailorpo_checkpoint_failures_total", function="increase"))],
        units.Short,
        low=0,
        steps=Steps(GREEN, [(1, RED)]),
    )
    attempts = lines(
        "Attempts",
        "A step up is a restart. Annotations mark when each attempt began.",
        [Query(each("tailorpo_attempt"))],
        units.NoUnit,
        low=0,
    )
    return (
        Row("Does it go on, and what would a crash cost?")
        .line(7, (8, age), (8, at_risk), (8, pace))
        .line(7, (8, saving), (8, failed), (8, attempts))
    )
