"""Exceptions of libraries while a model is loaded, converted to this project's errors with one sentence each."""

import errno
from collections.abc import Iterator

from tailorpo_trainer.errors import ConfigurationError, DataError, ResourceError, TailorPOError, UnavailableError
from tailorpo_trainer.spec.job import Model


def pipeline_error(model: Model, local: bool, error: Exception) -> TailorPOError:
    """The error for an exception from loading a pipeline; local: from a folder."""
    subject, text = f"spec.model.name: {model.name!r}", one_line(error)
    if (machine_error := _machine_error(subject, error)) is not None:
        return machine_error
    if model.variant and "variant" in text:
        return ConfigurationError(f"spec.model.variant: {model.variant!r} is not in {model.name!r}: {text}")
    if local:
        return local_error(subject, error)
    return hub_error("spec.model.name", model.name, error, model.revision)


def local_error(subject: str, error: Exception) -> TailorPOError:
    """The error for an exception from loading a folder; subject: the document's field and its value."""
    return _machine_error(subject, error) or DataError(f"{subject} cannot be loaded: {one_line(error)}")


def hub_error(field: str, name: str, error: Exception, revision: str | None = None) -> TailorPOError:
    """The error for an exception of huggingface_hub; `field` of the document names the repository `name`."""
    from huggingface_hub import constants, errors, get_token

    def caused(*kinds: type[BaseException]) -> bool:
        return any(isinstance(item, kinds) for item in _chain(error))

    subject = f"{field}: {name!r}"
    if (machine_error := _machine_error(subject, error)) is not None:
        return machine_error
    if caused(errors.HFValidationError):
        return ConfigurationError(f"{subject} is no hub id: {one_line(error)}")
    if caused(errors.GatedRepoError):
        return ConfigurationError(
            f"{subject} is gated: accept its licence on its hub page, then set HF_TOKEN to a token that may read it"
        )
    if caused(errors.RevisionNotFoundError):
        return ConfigurationError(
            f"{field.removesuffix('.name')}.revision: {revision!r} is no branch, tag or commit of {name!r} on the hub"
        )
    status = next((code for item in _chain(error) if (code := _status(item))), 0)
    if caused(errors.RepositoryNotFoundError) or (status == 401 and get_token() is None):
        return ConfigurationError(
            f"{subject} is neither here nor on the hub, or is private there: check the name, or set HF_TOKEN"
        )
    if caused(errors.DisabledRepoError):
        return ConfigurationError(f"{subject} has been disabled on the hub: choose another model")
    if missing := next((item for item in _chain(error) if isinstance(item, errors.RemoteEntryNotFoundError)), None):
        file = str(missing.response.url).rpartition("/")[2]
        return ConfigurationError(f"{subject} has no {file} on the hub: give the id of another repository")
    if status in (401, 403):
        return ConfigurationError(f"{subject}: the hub refuses this token ({status}): check HF_TOKEN")
    if status == 429 or status >= 500:
        return UnavailableError(f"{subject}: the hub answered {status}: try again later, or name a folder")
    if constants.HF_HUB_OFFLINE:
        return ConfigurationError(
            f"{subject} is not whole in this machine's cache, and HF_HUB_OFFLINE forbids to download it: unset "
            "that, or name a folder"
        )
    if _offline(error):
        return UnavailableError(
            f"{subject} is neither in this machine's cache nor reachable on the hub: check the network (or "
            "HF_ENDPOINT), or name a folder"
        )
    return ConfigurationError(f"{subject} cannot be loaded from the hub: {one_line(error)}")


def _offline(error: Exception) -> bool:
    """Whether an exception in the chain is about the network or an incomplete cache."""
    from huggingface_hub import errors

    kinds = (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, ConnectionError, TimeoutError)
    return any(
        isinstance(item, kinds)
        or type(item).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests")
        for item in _chain(error)
    )


def _machine_error(subject: str, error: Exception) -> TailorPOError | None:
    """The error if this machine's disk, permissions or memory are the cause."""
    for item in _chain(error):
        if isinstance(item, OSError) and item.errno in (errno.ENOSPC, errno.EDQUOT):
            return ResourceError(f"{subject}: the disk of the hub's cache is full: make room, or set HF_HOME")
        if isinstance(item, PermissionError):
            return ConfigurationError(
                f"{subject}: {item.filename} may not be used ({item.strerror}): set HF_HOME to a folder that can be "
                "written"
            )
        if isinstance(item, MemoryError):
            return ResourceError(f"{subject}: there is not enough memory to load it")
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    visited: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in visited:
        visited.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


def _status(error: BaseException) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def one_line(error: BaseException) -> str:
    """The text of an exception in one line of at most 200 characters, to end a message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200].rsplit(" ", 1)[0] + " ..."
