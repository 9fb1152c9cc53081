"""The numbers of `metrics.jsonl` in MLflow and Weights & Biases, by their own libraries."""

import os
import secrets
import time
from collections import deque
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from tailorpo_trainer.errors import ConfigurationError, UnavailableError
from tailorpo_trainer.spec.progress import Progress
from tailorpo_trainer.telemetry.observer import Line, Observer, RunStart
from tailorpo_trainer.telemetry.scalars import scalars


class MLflow(Observer):
    """To the server of `MLFLOW_TRACKING_URI`, or into OUTPUT/mlflow.db. A resume continues the job's last run there."""

    def __init__(self, root: Path, progress: Progress) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            from mlflow import MlflowClient, entities, exceptions
        except ImportError:
            raise ConfigurationError("--mlflow: it is not installed: pip install 'tailorpo[mlflow]'") from None
        self._connect, self._metric, self._error = MlflowClient, entities.Metric, exceptions.MlflowException
        self._uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.absolute() / 'mlflow.db'}"
        self._name, self._job = progress.name, f"{progress.namespace or ''}/{progress.name}"
        self._client: Any = None
        self._run, self._sent = "", deque[Any](maxlen=100)

    def begin(self, start: RunStart) -> None:
        try:
            client = self._connect(self._uri, registry_uri=self._uri)
            found = client.get_experiment_by_name("tailorpo")
            experiment = found.experiment_id if found is not None else client.create_experiment("tailorpo")
            same = client.search_runs([experiment], f"tags.`tailorpo.job` = '{self._job}'", max_results=1)
            if same and start.iteration:
                self._run = same[0].info.run_id
                client.update_run(self._run, status="RUNNING")
            else:
                run = client.create_run(experiment, tags={"tailorpo.job": self._job}, run_name=self._name)
                self._run = run.info.run_id
        except self._error as error:
            raise UnavailableError(f"--mlflow: {self._uri}: {error}") from None
        self._client = client

    def iteration(self, line: Line) -> None:
        metrics = [self._metric(*each, int(1000 * time.time()), line["iteration"]) for each in scalars(line)]
        self._sent.append(self._client.log_batch(self._run, metrics, synchronous=self._uri.startswith("sqlite:")))

    evaluation = checkpoint = iteration

    def alarm(self, line: Line) -> None:
        self._client.set_tag(self._run, f"alarm.{line['name']}", line["message"])

    def close(self) -> None:
        if self._client is not None:
            for end in (*(sent.wait for sent in self._sent if sent), partial(self._client.set_terminated, self._run)):
                with suppress(self._error):  # a server that is away now must not end a run that is done
                    end()


class WeightsAndBiases(Observer):
    """Into OUTPUT/wandb, for `wandb sync`; to the server with `WANDB_MODE=online`. A resume there is the same run."""

    def __init__(self, root: Path, progress: Progress) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb
        except ImportError:
            raise ConfigurationError("--wandb: it is not installed: pip install 'tailorpo[wandb]'") from None
        self._folder, self._name = root / "wandb", progress.name
        self._wandb: Any = wandb
        self._run: Any = None

    def begin(self, start: RunStart) -> None:
        kept = self._folder / "id"
        self._folder.mkdir(parents=True, exist_ok=True)
        if not start.iteration or not kept.exists():
            kept.write_text(secrets.token_hex(8))
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "tailorpo"), name=self._name, group=self._name,
            id=kept.read_text(), resume="allow", dir=self._folder.parent, mode=os.environ.get("WANDB_MODE", "offline"),
            settings=self._wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        self._run.define_metric("*", step_metric="iteration")

    def iteration(self, line: Line) -> None:
        self._run.log({**dict(scalars(line)), "iteration": line["iteration"]})

    evaluation = checkpoint = iteration

    def alarm(self, line: Line) -> None:
        self._run.summary[f"alarm/{line['name']}"] = line["message"]

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
