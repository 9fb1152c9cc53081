"""The result of a run in one sentence that claims no more than was measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from tailorpo_trainer import stats
from tailorpo_trainer.report import number_format
from tailorpo_trainer.report.run_data import Evaluation, Run
from tailorpo_trainer.spec.job import Reward
from tailorpo_trainer.stats import Difference, Value


@dataclass(frozen=True)
class Change:
    """One quantity before and after. kind: `reward`, `term`, `watched` or `diversity`."""

    name: str
    kind: str
    before: Value
    after: Value
    difference: Difference | None
    decimals: int


@dataclass(frozen=True)
class Verdict:
    """tone: `up`, `down`, `flat` or `unknown`; notes: further sentences for the reader."""

    tone: str
    sentence: str
    notes: list[str]


def formula(rewards: Sequence[Reward]) -> str:
    """The reward as a formula with the document's weights."""
    if len(rewards) == 1 and rewards[0].weight == 1:
        return rewards[0].name
    text = " + ".join(f"{reward.weight:g} × {reward.name}" for reward in rewards)
    return text.replace("+ -", "− ").replace("-", "−") if text.startswith("-") else text.replace("+ -", "− ")


def change_of_reward(before: Evaluation, after: Evaluation) -> Change:
    """The change of the reward, paired by picture if both have the same pictures."""
    difference = stats.paired(before.scores, after.scores) or stats.unpaired(
        before.reward, before.error, after.reward, after.error, after.images
    )
    decimals = _decimals(difference, after.reward)
    return Change("held-out reward", "reward", before.reward, after.reward, difference, decimals)


def changes(run: Run, terms: Sequence[str]) -> list[Change]:
    """From the first to the last evaluation: the reward, its terms if there are several, watched rewards, diversity."""
    if len(run.evaluations) < 2:
        return []
    before, after = run.evaluations[0], run.evaluations[-1]
    found = [change_of_reward(before, after)]
    for name in after.rewards:
        watched = name in after.watched or name not in terms
        if not watched and len(terms) == 1:
            continue
        b, a = before.rewards.get(name), after.rewards[name]
        difference = stats.unpaired(b, before.errors.get(name), a, after.errors.get(name), after.images)
        kind = "watched" if watched else "term"
        found.append(Change(name, kind, b, a, difference, _decimals(difference, a)))
    for key in ("diversity", "feature_diversity"):
        b, a = getattr(before, key), getattr(after, key)
        if b is None or a is None:
            continue
        error, last_error = getattr(before, f"{key}_error"), getattr(after, f"{key}_error")
        difference = stats.unpaired(b, error, a, last_error, after.images)
        found.append(Change(key.replace("_", " "), "diversity", b, a, difference, 3))
    return found


def verdict(run: Run) -> Verdict:
    """The verdict from the first and the last evaluation."""
    state = "" if run.done >= run.job.spec.training.iterations else f" after {_progress(run)}"
    if not run.evaluations:
        text = f"Nothing was measured on held-out noise{state}: this run cannot say whether the model improved."
        return Verdict("unknown", text, [])
    before, after = run.evaluations[0], run.evaluations[-1]
    what = formula(run.job.spec.rewards)
    if before is after:
        of = "the base model" if before.iteration == 0 else f"iteration {before.iteration}"
        figure = number_format.number(before.reward)
        text = f"Only {of} was evaluated{state} ({what}: {figure}): there is nothing yet to compare it with."
        return Verdict("unknown", text, [])
    change = change_of_reward(before, after)
    difference, places = change.difference, change.decimals
    if difference is None:
        return Verdict("unknown", f"The evaluations{state} hold no reward that can be compared.", [])
    tone = "flat" if not difference.significant else "up" if difference.mean > 0 else "down"
    old, new = (number_format.number(value, decimals=places) for value in (change.before, change.after))
    figures = f"{old} to {new}"
    gain = number_format.signed(difference.mean, decimals=places)
    low, high = (number_format.signed(end, decimals=places) for end in (difference.low, difference.high))
    interval = f"95{number_format.NARROW_SPACE}% interval {low}\u00a0to\u00a0{high}"
    how = (
        f"{number_format.plural(difference.count, 'picture')}, paired on the same noise"
        if difference.paired
        else f"{number_format.plural(difference.count, 'picture')}, not paired"
    )
    verb = {
        "up": f"Held-out {what} rose from {figures}{state}: {gain}",
        "down": f"Held-out {what} fell from {figures}{state}: {gain}",
        "flat": f"No change of held-out {what}{state} that could be told from chance: {figures}, {gain}",
    }[tone]
    return Verdict(tone, f"{verb} ({interval}; {how}).", _notes(run, before, after, tone))


def _notes(run: Run, before: Evaluation, after: Evaluation, tone: str) -> list[str]:
    notes = []
    for change in changes(run, [reward.name for reward in run.job.spec.rewards]):
        gain = change.difference
        fallen = gain is not None and gain.high < 0
        chance = ""
        if change.kind == "diversity":
            fallen = bool(change.before and change.after is not None and change.after < 0.8 * change.before)
            chance = " (which may be chance: its interval includes 0)" if gain and not gain.significant else ""
        if tone == "up" and change.kind in ("watched", "diversity") and fallen:
            places = number_format.common_decimals([change.before, change.after], 3)
            old, new = (number_format.number(value, 3, places) for value in (change.before, change.after))
            notes.append(
                f"At the same time {change.name} fell from {old} to {new}{chance}: look at the pictures before "
                "trusting the reward."
            )
    if before.iteration:
        notes.append(f"The first evaluation is of iteration {before.iteration}, not of the base model.")
    trained, held_out = set(run.training_prompts or ()), set(run.held_out or ())
    if trained & held_out:
        which = "the prompts are" if held_out <= trained else "some of the prompts are"
        notes.append(f"Held-out means noise that training never sees; {which} those of the training.")
    elif held_out:
        notes.append("Held-out means prompts and noise that training never sees.")
    if longer := run.cut_prompts.get("longer"):
        cut = run.cut_prompts
        alike = f"; {cut['alike']:.0f} of them begin like another prompt" if cut.get("alike") else ""
        notes.append(
            f"Of {longer:.0f} of the {cut.get('total') or longer:.0f} prompts the model's text encoder reads only the "
            f"first {cut.get('tokens') or 0:.0f} tokens{alike}."
        )
    return notes


def _progress(run: Run) -> str:
    return f"{number_format.count(run.done)} of {number_format.count(run.job.spec.training.iterations)} iterations"


def _decimals(difference: Difference | None, fallback: Value) -> int:
    half = None if difference is None else (difference.high - difference.low) / 2
    return number_format.decimals_for(half, fallback)
