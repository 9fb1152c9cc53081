"""The rules of the document in CEL, as the API server checks them, with the error messages of `tailorpo`.

`tailorpo_trainer.spec.rules` holds the same rules in Python; each of its functions has a twin here of the same name.
Defaults are set before rules are evaluated, so a field that has one needs no `has(...)`, except in the entries of a
list, where no defaults are set.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from tailorpo_operator.api.schema import structural
from tailorpo_trainer.spec import pod_template_rules, rules
from tailorpo_trainer.spec.job import (
    NOT_IN_EXPERIMENT,
    Checkpoint,
    Method,
    Prompts,
    Reward,
    RewardGuidance,
    Sampling,
    Spec,
    TailorPOJob,
    Training,
)
from tailorpo_trainer.spec.pod_template import Template, Variable, Volume, VolumeMount
from tailorpo_trainer.spec.types import JOB_NAME, PATTERNS, SpecModel
from tailorpo_trainer.spec.violations import alias, or_list

UNCHANGEABLE = (
    "defines the experiment and cannot change: take the change back, or apply it as a job of another name, which needs "
    "a spec.checkpoint.storage of its own"
)


@dataclass(frozen=True)
class Rule:
    """A rule about one model's objects: `name` is that of its Python twin, `{...}` in a message is CEL.

    Attributes:
        field: the path that an error names, as `.path`.
        at: the property that holds the rule and that is its `self`; "" for the object. A property is cheaper: the API
            server evaluates each rule at each write, also of the status, and the way to a property takes long.
    """

    name: str
    model: type[BaseModel]
    condition: str
    message: str
    field: str = ""
    at: str = ""

    def validation(self) -> dict[str, Any]:
        """The entry of `x-kubernetes-validations`."""
        message = (
            {"messageExpression": _message_expression(self.message)}
            if "{" in self.message
            else {"message": self.message}
        )
        return {"rule": self.condition, **message, **({"fieldPath": self.field} if self.field else {})}


def validations(model: str, at: str = "") -> list[dict[str, Any]]:
    """The rules for the schema of the model with that name, or of one of its properties."""
    return [rule.validation() for rule in RULES if (rule.model.__name__, rule.at) == (model, at)]


def _message_expression(message: str) -> str:
    """A message with CEL in braces as one CEL expression. (The cost of `string(...)` and `join` is unbounded.)"""
    template, values = re.sub(r"\{.*?\}", "%s", message), re.findall(r"\{(.*?)\}", message)
    return f"{json.dumps(template)}.format([{', '.join(values)}])"


def _list(names: Sequence[str]) -> str:
    return f"[{', '.join(f'{name!r}' for name in names)}]"


def _method_parameters() -> Iterator[Rule]:
    owned = set[str]().union(*rules.METHOD_PARAMETERS.values())
    for field in Method.model_fields:
        if field in owned:
            name = alias(Method, field)
            owners = [method for method, fields in rules.METHOD_PARAMETERS.items() if field in fields]
            yield Rule(
                "method_parameters",
                Method,
                f"!has(self.{name}) || self.name in {_list(owners)}",
                f"does not belong to method '{{self.name}}': leave it out, or choose {or_list(owners)}",
                f".{name}",
            )


def _reward_parameters() -> Iterator[Rule]:
    plugin = rules.PLUGIN_PARAMETERS
    for field in Reward.model_fields:
        if field in ("name", "weight"):
            continue
        allowed = [reward for reward, fields in rules.REWARD_PARAMETERS.items() if field in fields]
        refused = [reward for reward in rules.REWARD_PARAMETERS if reward not in allowed]
        named = f"!(self.name in {_list(refused)})" if field in plugin else f"self.name in {_list(allowed)}"
        name = alias(Reward, field)
        message = "does not belong to reward '{self.name}'"
        yield Rule("reward_parameters", Reward, f"!has(self.{name}) || {named}", message, f".{name}")
    yield Rule(
        "reward_parameters",
        Reward,
        "self.name != 'http' || has(self.endpoints)",
        "reward 'http' needs at least one URL, such as http://host:8080",
        ".endpoints",
    )


def _exactly_one(name: str, model: type[SpecModel], fields: Sequence[str]) -> Rule:
    names = [alias(model, field) for field in fields]
    has = [f"has(self.{field})" for field in names]
    shown = [f"{has[0]} ? \"'{names[0]}'\" : ''"]
    for number, field in enumerate(names[1:], start=1):
        before = " || ".join(has[:number])
        shown.append(f"{has[number]} ? ({before} ? \" and '{field}'\" : \"'{field}'\") : ''")
    shown.append(f"{' || '.join(has)} ? '' : 'none'")
    present = "".join(f"{{{expression}}}" for expression in shown)
    condition = f"[{', '.join(has)}].filter(given, given).size() == 1"
    return Rule(name, model, condition, f"needs exactly one of {or_list(names)}, has {present}")


def _known_schemes() -> Iterator[Rule]:
    for model, fields in rules.SCHEMES.items():
        for field, (schemes, way_out) in fields.items():
            name = alias(model, field)
            known = "".join(f" || self.{name}.startsWith('{scheme}')" for scheme in schemes)
            condition = f"!has(self.{name}) || !self.{name}.matches('{rules.SCHEME}'){known}"
            message = f"has a scheme that is not known here: give {way_out}"
            yield Rule("known_schemes", model, condition, message, f".{name}")


def _same_rewards() -> str:
    """Whether two lists of rewards are equal in what is in the experiment: not in how a scorer is reached.

    One may spell out defaults that the other leaves out.
    """
    unset = {"string": "''", "array": "[]", "number": "-1.0", "integer": "-1", "object": "{}"}
    schema = structural(Reward.model_json_schema(by_alias=True))
    equal = []
    for field, info in Reward.model_fields.items():
        if field in NOT_IN_EXPERIMENT["rewards"]["__all__"]:
            continue
        name = alias(Reward, field)
        missing = unset[schema["properties"][name]["type"]] if info.default is None else repr(info.default)
        value = f"reward.{name}" if info.is_required() else f"has(reward.{name}) ? reward.{name} : {missing}"
        equal.append(f"self.map(reward, {value}) == oldSelf.map(reward, {value})")
    return " && ".join(equal)


def _immutable() -> Iterator[Rule]:
    for model, left_out in ((Spec, NOT_IN_EXPERIMENT), (Training, NOT_IN_EXPERIMENT["training"])):
        for field, info in model.model_fields.items():
            if field not in left_out:
                # A transition rule at a field is not evaluated when the field is added or removed.
                assert info.is_required() or info.default is not None, f"{field} may be missing"
                yield Rule("immutable", model, "self == oldSelf", UNCHANGEABLE, at=info.alias or field)
    yield Rule("immutable", Spec, _same_rewards(), UNCHANGEABLE, at="rewards")
    yield Rule(
        "immutable",
        Training,
        "self >= oldSelf",
        "may only grow: {oldSelf} were asked for before; for a shorter run, apply a job of another name",
        at="iterations",
    )


STEPS = "self.sampling.steps"
TRAINED = (
    "(has(self.sampling.trainedSteps.count) ? self.sampling.trainedSteps.count : "
    f"self.method.name in ['tailorpo', 'tailorpo-g'] ? ({STEPS} < 5 ? {STEPS} : 5) : "
    f"self.method.name == 'spo' ? ({STEPS} < 2 ? 1 : {STEPS} * 4 / 5) : {STEPS})"
)
SAMPLES = "self.training.promptsPerIteration * self.training.samplesPerPrompt"
ROWS = f"{SAMPLES} * {TRAINED}"
PROCESSES = "(self.workers * self.processesPerWorker)"
UNMOUNTED = "!(has(self.volumes) && self.volumes.exists(volume, volume.name == mount.name))"
RESERVED_LABEL = " || ".join(f"key.startsWith('{prefix}')" for prefix in pod_template_rules.RESERVED_LABELS)

RULES = (
    # A `fieldPath` cannot point into metadata.
    Rule("name", TailorPOJob, "self.metadata.name.size() <= 40", "metadata.name is too long: at most 40"),
    Rule("name", TailorPOJob, f"self.metadata.name.matches('{JOB_NAME}')", f"metadata.name {PATTERNS[JOB_NAME]}"),
    *_method_parameters(),
    Rule(
        "scoring_decoder",
        Spec,
        f"!has(self.model.scoringDecoder) || self.method.name in {_list(rules.STEP_WISE)}",
        "does not belong to method '{self.method.name}', which scores finished pictures alone: leave it out, or choose "
        f"{or_list(rules.STEP_WISE)}",
        ".model.scoringDecoder",
    ),
    Rule(
        "guided_winner",
        Method,
        "!has(self.continueFrom) || self.continueFrom != 'guided-winner' || !(self.name in ['tailorpo', 'spo'])",
        "'{self.name}' has no guided winner: use 'winner' or 'random', or method 'tailorpo-g'",
        ".continueFrom",
    ),
    Rule(
        "guidance_target",
        RewardGuidance,
        "!has(self.strength) || has(self.target)",
        "needs spec.method.rewardGuidance.target, the reward to push towards; or use `fraction` instead",
        ".strength",
    ),
    _exactly_one("one_prompt_source", Prompts, tuple(Prompts.model_fields)),
    Rule(
        "trained_steps",
        Sampling,
        "!has(self.trainedSteps.count) || self.trainedSteps.count <= self.steps",
        "{self.trainedSteps.count} is more than spec.sampling.steps: at most {self.steps}",
        ".trainedSteps.count",
    ),
    *_reward_parameters(),
    Rule(
        "maximise_something",
        Spec,
        "self.size() == 0 || self.exists(reward, !has(reward.weight) || reward.weight != 0.0)",
        "all weights are 0: at least one must differ from 0",
        at="rewards",
    ),
    Rule(
        "enough_updates",
        Spec,
        f"self.training.updatesPerIteration == 1 || self.training.updatesPerIteration <= {ROWS}",
        f"{{self.training.updatesPerIteration}} updates cannot be made from {{{ROWS}}} rows (prompts x "
        f"samples x trained steps): at most {{{ROWS}}}",
        ".training.updatesPerIteration",
    ),
    Rule(
        "equal_shares",
        Spec,
        f"{PROCESSES} < 1 || {SAMPLES} % {PROCESSES} == 0",
        f"{{{SAMPLES}}} samples an iteration (promptsPerIteration x samplesPerPrompt) cannot be shared equally "
        f"by {{{PROCESSES}}} processes: use a multiple of {{{PROCESSES}}}",
        ".training.promptsPerIteration",
    ),
    *(
        Rule(
            "s3_settings",
            Checkpoint,
            f"!has(self.{field}) || (has(self.storage) && self.storage.startsWith('s3://'))",
            "needs spec.checkpoint.storage to be in S3, as s3://bucket/prefix",
            f".{field}",
        )
        for field in (alias(Checkpoint, name) for name in rules.S3_SETTINGS)
    ),
    *_known_schemes(),
    *(_exactly_one("one_source", model, fields) for model, fields in pod_template_rules.ONE_OF.items()),
    Rule(
        "one_value",
        Variable,
        "!has(self.value) || !has(self.valueFrom)",
        "stands beside `value`: leave one of them out",
        ".valueFrom",
    ),
    Rule(
        "mounted_volumes",
        Template,
        f"!has(self.volumeMounts) || !self.volumeMounts.exists(mount, {UNMOUNTED})",
        f"'{{self.volumeMounts.filter(mount, {UNMOUNTED})[0].name}}' is the name of none of spec.template.volumes",
        ".volumeMounts",
    ),
    Rule(
        "reserved",
        Variable,
        f"!(self.name in {_list(pod_template_rules.RESERVED_VARIABLES)})",
        "'{self.name}' is set by TailorPO: leave it out",
        ".name",
    ),
    *(
        Rule(
            "reserved",
            Template,
            f"!has(self.{field}) || !self.{field}.exists(key, {RESERVED_LABEL})",
            "is set by TailorPO or Kubernetes: leave it out",
            f".{field}",
        )
        for field in ("labels", "annotations")
    ),
    Rule(
        "reserved",
        Volume,
        f"!self.name.startsWith('{pod_template_rules.RESERVED_VOLUMES}')",
        f"'{{self.name}}' is a name of TailorPO's own: use one without '{pod_template_rules.RESERVED_VOLUMES}'",
        ".name",
    ),
    Rule(
        "reserved",
        VolumeMount,
        f"!(self.mountPath in ['{pod_template_rules.SHARED_MEMORY}', '{pod_template_rules.SHARED_MEMORY}/'])",
        f"{pod_template_rules.SHARED_MEMORY} is mounted by TailorPO: set its size as spec.template.shmSize",
        ".mountPath",
    ),
    Rule(
        "reserved",
        VolumeMount,
        f"!(self.mountPath + '/').startsWith('{pod_template_rules.DOCUMENT_FOLDER}/')",
        f"{pod_template_rules.DOCUMENT_FOLDER} holds the document, and nothing else: choose another folder",
        ".mountPath",
    ),
    *_immutable(),
)
