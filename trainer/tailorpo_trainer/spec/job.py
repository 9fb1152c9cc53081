"""What a training run is: the `TailorPOJob` document as pydantic models, without torch.

The same models serve the laptop, the trainer pod and the operator, which generates the CustomResourceDefinition
from them. YAML names are camelCase, Python names snake_case. Every field states its unit and its bounds here
and nowhere else; where a run runs on a cluster is in `pod_template.py`, rules across fields are in `rules.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tailorpo_trainer.spec.pod_template import Scheduling, Template
from tailorpo_trainer.spec.types import URI, DataKey, Endpoint, Label, Name, ObjectName, Prompt, SpecModel, Text

API_VERSION = "tailorpo.dev/v1alpha1"
KIND = "TailorPOJob"

MethodName = Literal["tailorpo", "tailorpo-g", "spo", "d3po", "ddpo"]


class ScoringDecoder(SpecModel):
    """A smaller decoder for the pictures that candidates are ranked by in the middle of denoising.

    Finished pictures (those of the last denoising step, and all of an evaluation) keep the model's own decoder.
    """

    name: URI = Field(
        description="A diffusers `AutoencoderTiny`: `tiny-animals` (shipped, for the model of that name), a folder, an "
        "`s3://` prefix of one, or a Hugging Face hub id such as `madebyollin/taesd`.",
    )
    revision: Text | None = Field(None, description="Branch, tag or commit of a hub id. Pin a commit to reproduce.")


class Model(SpecModel):
    """The diffusion model that is aligned."""

    name: URI = Field(
        "tiny-animals",
        description="`tiny-animals` (shipped), a folder with a `model_index.json`, an `s3://` prefix of one, or a "
        "Hugging Face hub id such as `stable-diffusion-v1-5/stable-diffusion-v1-5`.",
    )
    revision: Text | None = Field(None, description="Branch, tag or commit of a hub id. Pin a commit to reproduce.")
    variant: Text | None = Field(None, description="Weight file variant of a hub id or folder, such as `fp16`.")
    scoring_decoder: ScoringDecoder | None = Field(
        None,
        description="Ranks candidates by a smaller decoder's pictures: much less work on real models, and an "
        "approximation, whose agreement with the model's own decoder the run measures. Step-wise methods only. "
        "Default: none.",
    )


class LoRA(SpecModel):
    """The low-rank adapter that is trained (Hu et al. 2021); the base weights never change."""

    rank: int = Field(8, ge=1, le=512, description="Rank of both adapter matrices.")
    alpha: float = Field(8, gt=0, le=4096, description="Scale: the adapter's output is multiplied by alpha / rank.")
    target_modules: list[Text] = Field(
        ["to_q", "to_k", "to_v", "to_out.0"],
        min_length=1,
        max_length=64,
        description="Endings of the names of the denoiser's modules that get an adapter.",
    )
    initial: URI | None = Field(
        None,
        description="An existing LoRA of the denoiser to start from instead of a fresh one, as diffusers, PEFT or "
        "kohya's tools write it: a file, or a folder, `s3://` prefix or hub id that holds it.",
    )


class ConfigMapKey(SpecModel):
    """A key of a ConfigMap in the job's namespace."""

    name: ObjectName = Field(description="Name of the ConfigMap.")
    key: DataKey = Field("prompts.txt", description="Key whose value holds one prompt a line.")


class Prompts(SpecModel):
    """Where prompts come from: exactly one of the fields."""

    builtin: Literal["animals", "tiny-animals", "tiny-animals-held-out"] | None = Field(
        None,
        description="`animals`: the 45 animals of the DDPO paper. `tiny-animals`: three of four animals that the "
        "shipped model knows; `tiny-animals-held-out`: the others.",
    )
    list_: list[Prompt] | None = Field(
        None, alias="list", min_length=1, max_length=1000, description="The prompts themselves."
    )
    file: URI | None = Field(
        None,
        description="A text file with one prompt a line, or .jsonl or .json with a key `prompt`, as a path beside the "
        "document.",
    )
    config_map_key_ref: ConfigMapKey | None = Field(
        None, description="A ConfigMap's key with one prompt a line; on a cluster only."
    )


class Reward(SpecModel):
    """One term of the weighted sum that is maximised."""

    name: Text = Field(
        description="`colourfulness`, `clip-score`, `jpeg-compressibility`, `jpeg-incompressibility`, `http`, or the "
        "name of an installed plug-in (entry point group `tailorpo.rewards`)."
    )
    weight: float = Field(
        1.0, ge=-1e6, le=1e6, description="Factor of this reward in the sum; negative to push it down."
    )
    model: URI | None = Field(
        None, description="For `clip-score`: a CLIPModel's hub id or folder. Default: the shipped tiny scorer."
    )
    endpoints: list[Endpoint] | None = Field(
        None, min_length=1, max_length=32, description="For `http`: the URLs that score, used in turn."
    )
    timeout_seconds: float | None = Field(
        None, gt=0, le=3600, description="For `http`: seconds for one request until its answer is whole. Default 60."
    )
    retries: int | None = Field(
        None, ge=0, le=100, description="For `http`: further tries of one batch before giving up. Default 5."
    )
    batch_size: int | None = Field(None, ge=1, le=4096, description="Images scored at once. Default: all there are.")
    parameters: dict[Text, Text] | None = Field(
        None, max_length=64, description="For plug-ins: passed to the plug-in as they are, text to text."
    )


class RewardGuidance(SpecModel):
    """How `tailorpo-g` pushes the winner up the reward's gradient, after ranking.

    y_w' = y_w + 2 strength (target - r)+ grad r, its length limited to `fraction` of the step's noise,
    sigma sqrt(D). Without `strength` the push always has that length.
    """

    fraction: float = Field(
        0.2, gt=0, le=1, description="Length of the push, as a fraction of the noise's expected length sigma sqrt(D)."
    )
    strength: float | None = Field(
        None, gt=0, le=1e6, description="Step size eta of the push in latent units; needs `target`."
    )
    target: float | None = Field(
        None, ge=-1e9, le=1e9, description="Reward (in the sum's unit) above which a winner is not pushed."
    )
    gradient: Literal["full", "detached"] = Field(
        "full", description="`full`: through the denoiser; `detached`: through the decoder and reward only."
    )
    schedule: Literal["constant", "linear"] = Field(
        "constant", description="`linear`: the push falls to zero over the iterations."
    )


class Method(SpecModel):
    """The algorithm, and those of its parameters that belong to it."""

    name: MethodName = Field(description="The preference-optimisation method.")
    beta: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Inverse temperature of the preference, in units of 1 / log-probability; its meaning depends on "
        "`logProbability`. All but `ddpo`.",
    )
    log_probability: Literal["mean", "sum"] = Field(
        "mean", description="Reduction of Gaussian log-probabilities over a latent's elements."
    )
    candidates: int | None = Field(
        None, ge=2, le=64, description="Next latents drawn from one latent; best and worst form the pair. `spo` only."
    )
    continue_from: Literal["winner", "random", "guided-winner"] | None = Field(
        None,
        description="The candidate the trajectory goes on from: default `winner` for `tailorpo`, `guided-winner` "
        "for `tailorpo-g`, `random` for `spo`.",
    )
    threshold: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Certainty up to which a pair weighs 0: the difference of the softmax probabilities of best and "
        "worst, tanh(gap / 2) of their gap in the reward sum, whose scores count as logits. 0.3 is a gap of 0.619. "
        "`spo` only.",
    )
    clamp_ratio: float | None = Field(
        None, gt=0, lt=1, description="Likelihood ratios are clamped to 1 +- this. `spo` and `d3po` only."
    )
    clip_range: float | None = Field(
        None, gt=0, lt=1, description="PPO's clip range of the likelihood ratio. `ddpo` only."
    )
    advantage_clip: float | None = Field(
        None, gt=0, le=1e6, description="Normalised advantages are clipped to +- this. `ddpo` only."
    )
    step_weight: Literal["uniform", "balanced"] = Field(
        "uniform",
        description="`balanced`: a denoising step's loss is weighted by sigma over the mean's sensitivity to the noise "
        "prediction, so that no step dominates the gradient; mean 1 over the trained steps.",
    )
    reward_guidance: RewardGuidance | None = Field(None, description="The push of the winner. `tailorpo-g` only.")


class TrainedSteps(SpecModel):
    """Which denoising steps are trained."""

    count: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="How many. Default: 5 for `tailorpo` and `tailorpo-g`, four fifths for `spo`, all for `d3po` and "
        "`ddpo`; never more than there are.",
    )
    choose: Literal["spread", "early", "late", "random"] | None = Field(
        None,
        description="Which: evenly spread, the noisiest, the cleanest, or drawn anew each iteration. Default `spread`, "
        "`late` for `spo`.",
    )


class Sampling(SpecModel):
    """How pictures are drawn: DDIM (Song et al. 2020) with stochasticity eta."""

    steps: int = Field(20, ge=2, le=1000, description="Denoising steps of one trajectory.")
    trained_steps: TrainedSteps = Field(TrainedSteps(), description="The denoising steps that are trained.")
    guidance_scale: float = Field(
        5.0, ge=1, le=50, description="Classifier-free guidance, in sampling and training alike; 1 switches it off."
    )
    eta: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of DDPM's noise added at each step; 0 would leave nothing to choose between.",
    )
    timestep_spacing: Literal["leading", "trailing", "linspace"] | None = Field(
        None, description="Which timesteps are visited. Default: as the model's scheduler says."
    )
    negative_prompt: Annotated[str, StringConstraints(max_length=1024)] = Field(
        "", description="Prompt of the unconditional half of the guidance."
    )
    height: int | None = Field(
        None, ge=8, le=4096, multiple_of=8, description="Pixels. Default: as the model was trained."
    )
    width: int | None = Field(
        None, ge=8, le=4096, multiple_of=8, description="Pixels. Default: as the model was trained."
    )


class Optimizer(SpecModel):
    """AdamW (Loshchilov and Hutter 2019) on the adapter's weights."""

    learning_rate: float = Field(1e-4, gt=0, le=1, description="Step size.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="`linear` and `cosine` fall to zero at the last update."
    )
    warmup_updates: int = Field(0, ge=0, le=1_000_000, description="Updates over which the step size rises from 0.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the gradient's running mean.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the squared gradient's running mean.")
    epsilon: float = Field(1e-8, gt=0, le=1, description="Added to the denominator.")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="Decoupled weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, le=1e6, description="Gradients are scaled down to this norm.")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of an exponential moving average of the adapter, used in evaluation "
        "and in the final adapter. Default: none is kept.",
    )


class Training(SpecModel):
    """How long, how much at once, and from which seed."""

    iterations: int = Field(100, ge=1, le=10_000_000, description="Rounds of sampling and updating.")
    prompts_per_iteration: int = Field(8, ge=1, le=65_536, description="Prompts drawn for one iteration.")
    samples_per_prompt: int = Field(
        1, ge=1, le=1024, description="Trajectories for each of them (`d3po`: pairs of trajectories)."
    )
    updates_per_iteration: int = Field(
        1, ge=1, le=10_000, description="Optimiser steps that one iteration's records are split into."
    )
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="Rows in one forward and backward pass; gradients accumulate. Default: a megapixel's worth (4 of "
        "512 x 512).",
    )
    sampling_batch_size: int | None = Field(
        None, ge=1, le=65_536, description="Trajectories sampled at once. Default: four megapixels' worth, at most 64."
    )
    decode_batch_size: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Latents decoded to pictures at once. Default: a megapixel's worth, at most 64.",
    )
    seed: int = Field(0, ge=0, le=2**53 - 1, description="Seed of prompts, noise and the adapter's initial weights.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Arithmetic of the denoiser: `auto` is bf16 on accelerators that compute in it, fp16 on those that "
        "only emulate it (Nvidia's 7.0 and 7.5), fp32 on older ones and on CPUs. In fp16 losses are scaled, so that "
        "small gradients are not lost.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more denoiser work."
    )
    vae_slicing: bool = Field(False, description="Decode pictures one by one: less memory.")


class Evaluation(SpecModel):
    """Measuring on prompts and noise that training never sees."""

    every_iterations: int = Field(
        10, ge=0, le=10_000_000, description="Iterations between evaluations; 0 switches them off."
    )
    images: int = Field(64, ge=2, le=65_536, description="Pictures drawn for one evaluation, over the prompts in turn.")
    prompts: Prompts | None = Field(None, description="Prompts to evaluate on. Default: the training prompts.")
    rewards: list[Reward] = Field(
        [], max_length=16, description="Further rewards to watch, not to maximise: they show over-optimisation."
    )


class Checkpoint(SpecModel):
    """Where and when progress is kept. Credentials of S3 are found by boto3's standard chain, never written here."""

    storage: URI | None = Field(
        None,
        description="A folder, which then also holds the results, or `s3://bucket/prefix`. `tailorpo run --output DIR` "
        "replaces it. Default: the output folder.",
    )
    every_iterations: int = Field(10, ge=1, le=10_000_000, description="Iterations between checkpoints.")
    keep: int = Field(
        3,
        ge=1,
        le=10_000,
        description="Newest checkpoints kept, and besides them the one with the best evaluation; others are deleted.",
    )
    max_failures: int = Field(
        3,
        ge=1,
        le=10_000,
        description="Checkpoints in a row that could not be written, each after several tries over about a minute, "
        "before the run gives up.",
    )
    endpoint: Endpoint | None = Field(
        None, description="URL of an S3 server. Default: `AWS_ENDPOINT_URL`, or Amazon's own. `s3://` only."
    )
    region: Text | None = Field(
        None, max_length=64, description="Region of the bucket. Default: `AWS_REGION`, or the profile's. `s3://` only."
    )
    path_style: bool | None = Field(
        None,
        description="Whether the bucket is part of the path (`https://host/bucket`) or of the host's name. Default: of "
        "the path, but for Amazon's own hosts. `s3://` only.",
    )
    ca_file: URI | None = Field(
        None,
        description="PEM file of the certificates to trust, as a path beside the document. Default: `AWS_CA_BUNDLE`, "
        "or the system's. `s3://` only.",
    )
    checksums: Literal["when_supported", "when_required"] | None = Field(
        None,
        description="Whether requests to S3 carry checksums, in the words of Amazon's SDKs. Default: "
        "`AWS_REQUEST_CHECKSUM_CALCULATION`, or `when_supported`, and `when_required` for a server that refuses them. "
        "`s3://` only.",
    )
    sse_kms_key_id: Text | None = Field(
        None,
        description="Key that the server encrypts objects with (SSE-KMS). Default: the bucket's own. `s3://` only.",
    )
    secret_name: ObjectName | None = Field(
        None, description="Secret whose keys become the trainer's environment; on a cluster only."
    )


class RunPolicy(SpecModel):
    """Deadlines, retries, suspension and clean-up. The trainer reads the two timeouts and the grace period."""

    suspend: bool = Field(False, description="Stop after a checkpoint and hold no pods until this is false again.")
    active_deadline_seconds: int | None = Field(
        None,
        ge=1,
        le=2**31 - 1,
        description="Seconds from the first pod on, over all attempts, until a run fails.",
    )
    start_deadline_seconds: int | None = Field(
        None, ge=1, le=2**31 - 1, description="Seconds an attempt may wait for all its pods to run before it fails."
    )
    rendezvous_timeout_seconds: int = Field(
        600, ge=1, le=86_400, description="Seconds that processes wait for each other when an attempt begins."
    )
    stall_timeout_seconds: int = Field(
        1800,
        ge=1,
        le=7 * 86_400,
        description="Seconds without any progress (a denoiser call, an update) after which a process ends with exit "
        "code 74. While it loads, at least 1800.",
    )
    termination_grace_period_seconds: int = Field(
        120, ge=1, le=86_400, description="Seconds for a checkpoint between a request to stop and the kill."
    )
    backoff_limit: int = Field(3, ge=0, le=1000, description="Retries after failures that count, with growing delay.")
    ttl_seconds_after_finished: int | None = Field(
        None, ge=0, le=2**31 - 1, description="Seconds after its end when the job is deleted. Default: never."
    )


class TrainingSpec(SpecModel):
    """All that defines what is trained, on what, by which method, and how it is watched and kept."""

    model: Model = Field(Model(), description="The diffusion model that is aligned.")
    lora: LoRA = Field(LoRA(), description="The adapter that is trained.")
    prompts: Prompts = Field(description="Prompts to train on.")
    rewards: list[Reward] = Field(min_length=1, max_length=16, description="Terms of the weighted sum to maximise.")
    method: Method = Field(description="The algorithm and its parameters.")
    sampling: Sampling = Field(Sampling(), description="How pictures are drawn.")
    optimizer: Optimizer = Field(Optimizer(), description="How the adapter is updated.")
    training: Training = Field(Training(), description="How long, how much at once, from which seed.")
    evaluation: Evaluation = Field(Evaluation(), description="Measuring on what training never sees.")
    checkpoint: Checkpoint = Field(Checkpoint(), description="Where and when progress is kept.")


class Spec(TrainingSpec):
    """The training run, and where it runs: the latter is read by the operator alone."""

    workers: int = Field(1, ge=1, le=1024, description="Pods of one gang.")
    processes_per_worker: int = Field(1, ge=1, le=64, description="Processes in one pod, one for each accelerator.")
    template: Template = Field(Template(), description="Image, resources, environment and placement of a pod.")
    run_policy: RunPolicy = Field(RunPolicy(), description="Deadlines, retries, suspension, clean-up.")
    scheduling: Scheduling = Field(Scheduling(), description="Queue, priority and gang of the pods.")


CLUSTER_FIELDS = tuple(name for name in Spec.model_fields if name not in TrainingSpec.model_fields)
"""Fields of `Spec` that define where a run runs, not what it trains."""

TRAINER_RUN_POLICY = ("rendezvous_timeout_seconds", "stall_timeout_seconds", "termination_grace_period_seconds")
"""Fields of `RunPolicy` that the trainer reads as well."""

NOT_IN_EXPERIMENT: dict[str, Any] = dict.fromkeys((*CLUSTER_FIELDS, "evaluation", "checkpoint"), True)
NOT_IN_EXPERIMENT["training"] = {
    "iterations",
    "micro_batch_size",
    "sampling_batch_size",
    "decode_batch_size",
    "gradient_checkpointing",
    "vae_slicing",
}
NOT_IN_EXPERIMENT["rewards"] = {"__all__": {"endpoints", "timeout_seconds", "retries", "batch_size"}}
"""Fields of `Spec` that do not define the experiment: where it runs, its evaluation and checkpoints, its length, its
batch sizes, and how a scorer is reached. All of these may change when a run is resumed; batch sizes change only how
sums round."""


class Metadata(BaseModel):
    """The part of Kubernetes' ObjectMeta that names the job; the other fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: Name = Field(description="Name of the job: lower-case letters, digits and `-`, at most 40.")
    namespace: Label | None = Field(None, description="Namespace on a cluster.")
    labels: dict[str, str] | None = Field(None, description="Labels; on a cluster some reach the pods.")
    annotations: dict[str, str] | None = Field(None, description="Annotations; on a cluster some reach the pods.")


class TailorPOJob(SpecModel):
    """One document: a training run that `tailorpo run` and the operator understand alike."""

    api_version: Literal["tailorpo.dev/v1alpha1"] = Field(description="Version of this document's format.")
    kind: Literal["TailorPOJob"] = Field(description="Kind of this document.")
    metadata: Metadata = Field(description="The job's name.")
    spec: Spec = Field(description="What to train and where.")
    status: Any = Field(None, description="Written by the operator, so that `kubectl get -o yaml` can be run again.")
