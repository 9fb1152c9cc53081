"""Where a run's results go and where its checkpoints are kept: one folder, or a folder here and a bucket."""

from dataclasses import dataclass
from pathlib import Path

from tailorpo_trainer import s3
from tailorpo_trainer.checkpoint import Store, open_store
from tailorpo_trainer.results.run_folder import Output
from tailorpo_trainer.spec.job import TailorPOJob
from tailorpo_trainer.spec.rules import S3_SETTINGS


@dataclass(frozen=True)
class Locations:
    """`output` is a folder of this machine; `storage` is the same folder, or an S3 URI.

    job: the document with `spec.checkpoint` as it is followed: `--output` may have replaced what it says. As `job.yaml`
    of the output folder it leads to the checkpoints.
    """

    output: Path
    storage: str
    job: TailorPOJob

    @property
    def apart(self) -> bool:
        """Whether checkpoints are kept elsewhere than the results."""
        return self.storage.startswith(s3.SCHEME)

    def open(self) -> Store:
        """The store of the checkpoints."""
        settings = s3.Settings(**{name: getattr(self.job.spec.checkpoint, name) for name in S3_SETTINGS})
        return open_store(self.storage, settings)


def choose(job: TailorPOJob, output: Path | None, base: Path | None = None) -> Locations:
    """`--output` if it is given, else `spec.checkpoint.storage`, else `runs/NAME`.

    A folder holds both results and checkpoints. With a storage in S3 results go to `runs/NAME`. Relative paths of the
    document start from the folder `base`.
    """
    kept = job.spec.checkpoint
    if output is None and kept.storage is not None and kept.storage.startswith(s3.SCHEME):
        ca_file = None if kept.ca_file is None else str(((base or Path()) / kept.ca_file).absolute())
        job = _with(job, ca_file=ca_file)
        return Locations(Path("runs") / job.metadata.name, kept.storage, job)
    if output is None:
        output = Path("runs") / job.metadata.name
        if kept.storage is not None:
            open_store(kept.storage)  # refuses what is neither a folder nor in S3
            output = (base or Path()) / Path(kept.storage.removeprefix("file://")).expanduser()
    return Locations(output, str(output), _with(job, storage=None, **dict.fromkeys(S3_SETTINGS)))


def of(folder: Path) -> Locations:
    """The places of the run whose output folder this is. Raises `ConfigurationError` if it is none."""
    job = Output(folder).read_job()
    kept = job.spec.checkpoint.storage
    return Locations(folder, kept if kept is not None and kept.startswith(s3.SCHEME) else str(folder), job)


def find(uri: str, settings: s3.Settings = s3.STANDARD) -> Store:
    """The store of a storage that a person names: a folder, an S3 URI, or a run's output folder, which leads to it."""
    if "://" not in uri and Output(Path(uri)).job.is_file():
        return of(Path(uri)).open()
    return open_store(uri, settings)


def _with(job: TailorPOJob, **values: str | None) -> TailorPOJob:
    checkpoint = job.spec.checkpoint.model_copy(update=values)
    return job.model_copy(update={"spec": job.spec.model_copy(update={"checkpoint": checkpoint})})
