"""Where a run's results go and where its checkpoints are kept: one folder, or a folder here and a bucket."""

from dataclasses import dataclass
from pathlib import Path

from tailorpo_trainer import s3
from tailorpo_trainer.checkpoint import Store, open_store
from tailorpo_trainer.results.run_folder import RunFolder
from tailorpo_trainer.spec.job import TailorPOJob
from tailorpo_trainer.spec.rules import S3_SETTINGS


@dataclass(frozen=True)
class Locations:
    """`output` is a folder of this machine; `storage`, for the checkpoints, is the same folder, or an S3 URI.

    job: the document with the `spec.checkpoint` that is in effect, since `--output` may replace the storage. Saved as
        `job.yaml` of the output folder, it says where the checkpoints are.
    """

    output: Path
    storage: str
    job: TailorPOJob

    @property
    def in_s3(self) -> bool:
        """Whether the checkpoints are in S3, and not beside the results."""
        return self.storage.startswith(s3.SCHEME)

    def open(self) -> Store:
        """The store of the checkpoints."""
        settings = s3.Settings(**{name: getattr(self.job.spec.checkpoint, name) for name in S3_SETTINGS})
        return open_store(self.storage, settings)


def choose(job: TailorPOJob, output: Path | None, base: Path | None = None) -> Locations:
    """The locations of a run: `--output` if it is given, else `spec.checkpoint.storage`, else `runs/NAME`.

    A folder holds both results and checkpoints. With a storage in S3 the results go to `runs/NAME`. Relative paths of
    the document start from the folder `base`.
    """
    options = job.spec.checkpoint
    if output is None and options.storage is not None and options.storage.startswith(s3.SCHEME):
        ca_file = None if options.ca_file is None else str(((base or Path()) / options.ca_file).absolute())
        job = _with(job, ca_file=ca_file)
        return Locations(Path("runs") / job.metadata.name, options.storage, job)
    if output is None:
        output = Path("runs") / job.metadata.name
        if options.storage is not None:
            open_store(options.storage)  # refuses what is neither a folder nor in S3
            output = (base or Path()) / Path(options.storage.removeprefix("file://")).expanduser()
    return Locations(output, str(output), _with(job, storage=None, **dict.fromkeys(S3_SETTINGS)))


def of(folder: Path) -> Locations:
    """The locations of the run with this output folder. Raises `ConfigurationError` if it is no output folder."""
    job = RunFolder(folder).read_job()
    storage = job.spec.checkpoint.storage
    if storage is None or not storage.startswith(s3.SCHEME):
        storage = str(folder)
    return Locations(folder, storage, job)


def find(uri: str, settings: s3.Settings = s3.STANDARD) -> Store:
    """The store at a folder or S3 URI; for a run's output folder, the store of its checkpoints."""
    if "://" not in uri and RunFolder(Path(uri)).job.is_file():
        return of(Path(uri)).open()
    return open_store(uri, settings)


def _with(job: TailorPOJob, **values: str | None) -> TailorPOJob:
    checkpoint = job.spec.checkpoint.model_copy(update=values)
    return job.model_copy(update={"spec": job.spec.model_copy(update={"checkpoint": checkpoint})})
