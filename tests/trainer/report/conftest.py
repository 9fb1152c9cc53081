"""Output folders of runs that never ran: figures that look like the real ones, and small pictures."""

import json
import math
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tailorpo_trainer import document

MakeRun = Callable[..., Path]


def make_run(
    root: Path,
    *,
    name: str = "vivid-animals",
    method: str = "tailorpo",
    iterations: int = 60,
    done: int | None = None,
    every: int = 10,
    images: int = 32,
    gain: float = 8.0,
    seed: int = 0,
    watched: tuple[str, ...] = ("clip-score",),
    prompts: tuple[str, ...] = ("a cat", "a dog", "a bee", "a fox"),
    held_out: tuple[str, ...] = ("a wolf", "a whale", "a turtle", "a hen"),
    side: int = 16,
    pictures: bool = True,
    spec: dict[str, Any] | None = None,
    alarm: bool = False,
    flops: bool = False,
    drawn: Callable[[int, float], np.ndarray] | None = None,
) -> Path:
    """A folder as `tailorpo run` leaves it. drawn: (number, progress) -> picture uint8 [h, w, 3]."""
    random = np.random.default_rng(seed + 1)
    root.mkdir(parents=True, exist_ok=True)
    done = iterations if done is None else done
    values = {
        "model": {"name": "tiny-animals"},
        "prompts": {"list": list(prompts)},
        "rewards": [{"name": "colourfulness"}],
        "method": {"name": method},
        "sampling": {"steps": 20},
        "training": {"iterations": iterations, "promptsPerIteration": 8, "seed": 0},
        "evaluation": {
            "everyIterations": every,
            "images": images,
            "prompts": {"list": list(held_out)},
            "rewards": [{"name": one} for one in watched],
        },
    } | (spec or {})
    job = {
        "apiVersion": "tailorpo.dev/v1alpha1",
        "kind": "TailorPOJob",
        "metadata": {"name": name},
        "spec": values,
    }
    (root / "job.yaml").write_text(document.dump(document.parse(job)), encoding="utf-8")
    _json(root / "prompts.json", {"training": list(prompts), "evaluation": list(held_out)})
    _json(root / "environment.json", ENVIRONMENT)
    base = np.random.default_rng(7).normal(34, 6, images)  # the same noise in every run: the same base scores
    own = np.random.default_rng(8).normal(0, 1.5, images)
    lines: list[dict[str, Any]] = []
    totals: dict[str, float] = {}
    for iteration in range(done + 1):
        share = 1 - math.exp(-3 * iteration / iterations)
        if iteration:
            line = _iteration(iteration, share, method, gain, random)
            totals = {key: totals.get(key, 0) + value for key, value in line.pop("work").items()}
            lines.append(line | {"totals": {key: round(value, 4) for key, value in totals.items()}})
        if every and (iteration % every == 0 or iteration == iterations):
            scores = base + share * (gain + own) + random.normal(0, 0.8, images) * bool(iteration)
            lines.append(_evaluation(iteration, share, scores, watched, held_out, totals))
            if pictures:
                for number in range(min(8, images)):
                    _picture(root, iteration, number, share, side, drawn)
        if alarm and iteration == done // 2:
            lines.append({"kind": "alarm", "iteration": iteration, "name": "over-optimisation", "message": ALARM})
    (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    phase = "Succeeded" if done == iterations else "Stopped"
    _json(root / "progress.json", {"name": name, "phase": phase, "step": done, "of": iterations, "attempt": 1})
    if flops:
        cost = {"denoiser_forward": 2e8, "denoiser_backward": 4e8, "decode": 1e8, "scoring": 5e7}
        _json(root / "cost.json", cost)
    return root


ENVIRONMENT = {
    "python": "3.11.7", "platform": "Linux-6.1-x86_64", "processor": "AMD EPYC", "cpus": 2, "threads": 2,
    "device": "cpu", "accelerator": None, "packages": {"tailorpo": "0.1.0", "torch": "2.9.0", "diffusers": "0.36.0"},
}  # fmt: skip
ALARM = (
    "the reward rises while something else falls (clip-score from 24 to 19): look at the pictures; stop earlier, "
    "take an earlier checkpoint, raise method.beta, or add what falls to the rewards"
)


def _iteration(iteration: int, share: float, method: str, gain: float, random: np.random.Generator) -> dict[str, Any]:
    line: dict[str, Any] = {
        "kind": "iteration",
        "iteration": iteration,
        "loss": math.log(2) - 0.12 * share + random.normal(0, 0.02),
        "reward": 34 + gain * share + random.normal(0, 1.6),
        "reward_std": 5.0,
        "rewards": {"colourfulness": 34.0},
        "logit": 0.3 * share + random.normal(0, 0.03),
        "logit_abs": 0.5 * share + abs(random.normal(0, 0.03)),
        "clamped": None,
        "gradient_norm": 0.4 + abs(random.normal(0, 0.15)),
        "learning_rate": 1e-4,
        "images_per_second": 11.0,
        "phase_seconds": {"rollout": 0.42, "decode": 0.08, "score": 0.02, "update": 0.31, "checkpoint": 0.03},
        "work": {
            "images": 8, "reward_queries": 80, "denoiser_forwards": 600, "denoiser_forwards_with_gradient": 80,
            "decodes": 80, "seconds": 0.86 + random.normal(0, 0.02),
        },
    }  # fmt: skip
    if method != "ddpo":
        line |= {
            "gap": 3 + random.normal(0, 0.2),
            "gap_by_step": {str(s): max(0.1, 6 - 0.28 * s + random.normal(0, 0.5)) for s in (0, 5, 10, 14, 19)},
            "tied": 0.0,
            "implicit_accuracy": min(1.0, 0.5 + 0.2 * share + random.normal(0, 0.05)),
        }
    return line


def _evaluation(
    iteration: int,
    share: float,
    scores: np.ndarray,
    watched: tuple[str, ...],
    prompts: tuple[str, ...],
    totals: dict[str, float],
) -> dict[str, Any]:
    error = float(scores.std(ddof=1) / len(scores) ** 0.5)
    parts = {"colourfulness": float(scores.mean()), **dict.fromkeys(watched, 24 - 1.2 * share)}
    return {
        "kind": "evaluation",
        "iteration": iteration,
        "images": len(scores),
        "reward": float(scores.mean()),
        "reward_standard_error": error,
        "rewards": parts,
        "rewards_standard_error": {"colourfulness": error, **dict.fromkeys(watched, 0.6)},
        "watched": list(watched),
        "diversity": 0.3 - 0.03 * share,
        "diversity_standard_error": 0.01,
        "feature_diversity": 0.32 - 0.02 * share,
        "feature_diversity_standard_error": 0.03,
        "scores": [round(float(score), 6) for score in scores],
        "prompts": [prompts[n % len(prompts)] for n in range(min(32, len(scores)))],
        "seconds": 2.4,
        "totals": {key: round(value, 4) for key, value in totals.items()},
    }


def _picture(
    root: Path, iteration: int, number: int, share: float, side: int, drawn: Callable[..., np.ndarray] | None
) -> None:
    folder = root / "samples" / f"iteration-{iteration:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    if drawn is None:
        pixels = np.random.default_rng(number).integers(0, 200, (side, side, 3)) + int(40 * share)
    else:
        pixels = drawn(number, share)
    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}.png")


def _json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture
def a_run(tmp_path: Path) -> MakeRun:
    """Makes folders under `tmp_path`: `a_run("one", iterations=20)`."""
    return lambda folder="run", **options: make_run(tmp_path / folder, **options)


class Page(HTMLParser):
    """A page as a reader's program sees it; raises at the first element that is not closed in order.

    Attributes:
        ids: of all elements. text: without scripts and styles. values: of `<data>` by the enclosing `data-change`,
            `data-run` or section. images: (src, alt). links: everything that could be loaded.
    """

    VOID = frozenset(("meta", "img", "input", "br", "link", "hr", "path"))

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.stack: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.parts: list[str] = []
        self.values: dict[str, list[float]] = {}
        self.images: list[tuple[str, str]] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.scripts: dict[str, str] = {}
        self.feed(html)
        self.close()
        assert not self.stack, f"left open: {self.stack}"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.parts).split())

    @property
    def data(self) -> Any:
        return json.loads(self.scripts["data"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        if "id" in found:
            self.ids.append(found["id"])
        self.links += [found[key] for key in ("src", "href", "action", "poster", "srcset") if key in found]
        if tag == "img":
            self.images.append((found["src"], found["alt"]))  # a KeyError is a picture without an alternative
        if tag == "data":
            place = next((name for _, name in reversed(self.stack) if name), "")
            self.values.setdefault(place, []).append(float(found["value"]))
        if tag == "tr":
            self.rows.append([])
        if tag not in self.VOID:
            name = (
                found.get("data-change") or found.get("data-run") or (found.get("id", "") if tag == "section" else "")
            )
            self.stack.append((tag, name or (found.get("id", "") if tag == "script" else "")))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack[-1][0] == tag, f"</{tag}> closes <{self.stack[-1][0]}> at {self.getpos()}"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        tag = self.stack[-1][0] if self.stack else ""
        if tag == "script":
            name = self.stack[-1][1]
            self.scripts[name] = self.scripts.get(name, "") + data
        elif tag != "style":
            self.parts.append(data)
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append(data)


@pytest.fixture
def page() -> Callable[[Path], Page]:
    """Reads a page, and fails where it is not well-formed."""
    return lambda path: Page(path.read_text(encoding="utf-8"))
