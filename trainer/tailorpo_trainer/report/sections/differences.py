"""Differences between runs, and whether their values may be compared."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tailorpo_trainer.document.dump import values
from tailorpo_trainer.report.run_data import Run

SAME_SCORES = ("batchSize", "timeoutSeconds", "retries")
"""Fields of a reward that do not change its scores."""


def fields(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Fields of the documents that differ between runs: path, and the value of each run."""
    flat = [_flatten(values(run.job)) for run in runs]
    paths = list(dict.fromkeys(path for document in flat for path in document))
    rows = [(path, [document.get(path, "not set") for document in flat]) for path in paths]
    return [(path, texts) for path, texts in rows if len(set(texts)) > 1 and path != "metadata.name"]


def warnings(runs: Sequence[Run], labels: Sequence[str]) -> list[str]:
    """Reasons why curves may not be compared, one sentence each. labels: the names of the runs on the page."""
    found = []
    if _differ(runs, reward):
        found.append(
            f"The rewards differ: {_groups(runs, labels, reward)}. Their curves measure different things, so their "
            "heights cannot be compared, and no difference between runs with different rewards is given."
        )
    if _differ(runs, _model):
        found.append(
            f"The base models differ: {_groups(runs, labels, _model)}. These runs do not start from the same pictures."
        )
    names = [name for name, what in _SETTINGS.items() if _differ(runs, what)]
    if names:
        groups = _groups(runs, labels, lambda run: [_SETTINGS[name](run) for name in names])
        cause = ", and may come from the prompts alone" if "prompts" in names else ""
        found.append(
            f"The evaluations differ in {_join(names)}: {groups}. These runs are measured on different pictures, so "
            f"differences between them are not paired{cause}."
        )
    machines = [(run.environment.get("processor"), run.environment.get("accelerator")) for run in runs]
    if len(set(machines)) > 1 or _differ(runs, lambda run: run.environment.get("threads")):
        found.append("The runs were made on different machines or numbers of threads: do not compare their seconds.")
    unfinished = [label for run, label in zip(runs, labels, strict=True) if run.done < run.job.spec.training.iterations]
    if unfinished:
        found.append(f"Not finished: {_join(unfinished)}.")
    return found


def same_pictures(one: Run, other: Run) -> bool:
    """Whether both are evaluated on the same prompts and noise, from the same model and in the same way."""
    return not any(_differ([one, other], what) for what in (*_SETTINGS.values(), _model))


def same_reward(one: Run, other: Run) -> bool:
    """Whether both maximise the same reward, and so measure the same."""
    return not _differ([one, other], reward)


def reward(run: Run) -> list[dict[str, Any]]:
    """The terms of the reward, without fields that do not change the scores."""
    terms = values(run.job)["spec"]["rewards"]
    return [{key: entry for key, entry in term.items() if key not in SAME_SCORES} for term in terms]


def _model(run: Run) -> object:
    return values(run.job)["spec"]["model"]


def _sampling(run: Run) -> dict[str, Any]:
    sampling = values(run.job)["spec"]["sampling"]
    return {key: entry for key, entry in sampling.items() if key != "trainedSteps"}


_SETTINGS: Mapping[str, Callable[[Run], object]] = {
    "prompts": lambda run: run.held_out or values(run.job)["spec"]["prompts"],
    "number of pictures": lambda run: run.job.spec.evaluation.images,
    "seed": lambda run: run.job.spec.training.seed,
    "sampling": _sampling,
}


def _differ(runs: Sequence[Run], what: Callable[[Run], object]) -> bool:
    first = what(runs[0])
    return any(what(run) != first for run in runs[1:])


def _groups(runs: Sequence[Run], labels: Sequence[str], what: Callable[[Run], object]) -> str:
    """The runs that agree stand together: `one and two against three`."""
    groups: list[tuple[object, list[str]]] = []
    for run, label in zip(runs, labels, strict=True):
        found = what(run)
        mine = next((names for other, names in groups if other == found), None)
        if mine is None:
            groups.append((found, [label]))
        else:
            mine.append(label)
    return " against ".join(_join(names) for _, names in groups)


def _flatten(value: object, path: str = "") -> dict[str, str]:
    if isinstance(value, Mapping):
        found: dict[str, str] = {}
        for key, entry in value.items():
            found |= _flatten(entry, f"{path}.{key}" if path else str(key))
        return found
    if isinstance(value, list):
        if any(isinstance(entry, Mapping) for entry in value):
            found = {}
            for number, entry in enumerate(value):
                found |= _flatten(entry, f"{path}[{number}]")
            return found
        return {path: ", ".join(str(entry) for entry in value) or "none"}
    return {path: str(value).lower() if isinstance(value, bool) else str(value)}


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
