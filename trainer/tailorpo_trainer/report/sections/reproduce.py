"""What a reader needs to repeat the run."""

import re

from markupsafe import Markup, escape

from tailorpo_trainer.report.run_data import Run

_LINE = re.compile(r"^(?P<indent>\s*(?:- )*)(?:(?P<key>[\w.\"/-]+)(?P<colon>:)(?=\s|$))?(?P<rest>.*)$")
_NUMBER = re.compile(r"[-+]?(\d[\d_]*(\.\d*)?([eE][-+]?\d+)?|\.\d+)")
_USERINFO = re.compile(r"(?<=://)[^/@\s\"']+@")


def yaml(text: str) -> Markup:
    """A document as HTML with highlighted keys, numbers and texts. Passwords in addresses are left out."""
    return Markup("\n").join(_line(line) for line in _USERINFO.sub("…@", text).rstrip().splitlines())


def _line(line: str) -> Markup:
    found = _LINE.match(line)
    if found is None or line.lstrip().startswith("#"):
        return Markup('<span class="y-c">{}</span>').format(line)
    out = escape(found["indent"])
    if found["key"]:
        out += Markup('<span class="y-k">{}</span>:').format(found["key"])
    rest = found["rest"]
    value = rest.strip()
    if not value:
        return out + escape(rest)
    kind = "y-n" if _NUMBER.fullmatch(value) or value in ("true", "false", "null") else "y-s"
    space = rest[: len(rest) - len(rest.lstrip())]
    return out + Markup('{}<span class="{}">{}</span>').format(space, kind, value)


def facts(run: Run) -> list[tuple[str, str]]:
    """Seed, machine and versions."""
    environment = run.environment
    packages = environment.get("packages")
    machine = [str(environment[key]) for key in ("accelerator", "processor", "platform") if environment.get(key)]
    rows = [
        ("Seed", str(run.job.spec.training.seed)),
        ("Device", str(environment.get("device", ""))),
        ("Machine", ", ".join(machine)),
        (
            "CPUs, threads",
            ", ".join(str(environment[key]) for key in ("cpus", "threads") if environment.get(key)),
        ),
        ("Python", str(environment.get("python", ""))),
    ]
    if isinstance(packages, dict):
        rows += [(str(name), str(version)) for name, version in packages.items()]
    if run.attempt > 1:
        rows.append(("Attempts", f"{run.attempt}: the run was resumed from checkpoints"))
    return [(name, text) for name, text in rows if text]
