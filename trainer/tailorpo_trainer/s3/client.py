"""A client for S3 and compatible servers, and one clear message for each kind of failure. No torch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tailorpo_trainer.errors import ConfigurationError, ResourceError, TailorPOError, UnavailableError

SCHEME = "s3://"


VARIABLES = {"endpoint": "AWS_ENDPOINT_URL", "region": "AWS_REGION", "ca_file": "AWS_CA_BUNDLE"}
FIELDS = {
    "endpoint": "spec.checkpoint.endpoint",
    "region": "spec.checkpoint.region",
    "ca_file": "spec.checkpoint.caFile",
}


@dataclass(frozen=True)
class Settings:
    """Settings of a store that a document may give; boto3's standard chain finds the others. Never a credential.

    names: for each setting, the field or option that the user gave it by.
    """

    endpoint: str | None = None
    region: str | None = None
    path_style: bool | None = None
    ca_file: str | None = None
    sse_kms_key_id: str | None = None
    names: Mapping[str, str] = field(default_factory=lambda: FIELDS)

    def name(self, setting: str) -> str:
        """The field or option to change for this setting, or the environment variable if it was not given."""
        return (VARIABLES if getattr(self, setting) is None else self.names)[setting]


STANDARD = Settings()


def split(uri: str, subject: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise ConfigurationError(f"{subject}: names no bucket: give s3://bucket/prefix")
    return bucket, key.rstrip("/")


def connect(subject: str, settings: Settings = STANDARD) -> Any:
    """A boto3 client by the standard chain: AWS_ENDPOINT_URL(_S3), AWS_PROFILE, keys, roles, AWS_MAX_ATTEMPTS."""
    try:
        from boto3.session import Session
        from botocore.config import Config
    except ImportError:
        raise ConfigurationError(f"{subject}: S3 needs boto3: pip install 'tailorpo[trainer]'") from None

    if settings.ca_file is not None and not Path(settings.ca_file).is_file():
        name = settings.name("ca_file")
        raise ConfigurationError(f"{subject}: there is no file of certificates at {settings.ca_file}: check {name}")
    given = {"endpoint_url": settings.endpoint, "region_name": settings.region, "verify": settings.ca_file}
    config = Config(retries={"mode": "standard"}, connect_timeout=10, read_timeout=60)
    with translated_errors(subject, settings=settings):
        session = Session()
        client = session.client("s3", config=config, **given)
        style = (client.meta.config.s3 or {}).get("addressing_style")
        if settings.path_style is not None:
            style = "path" if settings.path_style else "virtual"
        elif style is None and not _endpoint(client).endswith((".amazonaws.com", ".amazonaws.com.cn")):
            style = "path"  # bucket.host needs a wildcard name and certificate, which private servers rarely have
        if style is not None:
            client = session.client("s3", config=config.merge(Config(s3={"addressing_style": style})), **given)
    return client


@contextmanager
def translated_errors(
    subject: str, client: Any = None, settings: Settings = STANDARD, *, writing: bool = False
) -> Iterator[None]:
    """Turn exceptions of boto3 into errors of one sentence that begins with `subject`.

    settings: those of the client, so that the message names the ones that were used.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as error:
        raise _error_of_answer(subject, client, settings, error, writing) from None
    except (BotoCoreError, Boto3Error, ResponseParserError, ValueError) as error:
        raise _error_without_answer(subject, client, settings, error) from None


DENIED = {
    "InvalidAccessKeyId": "the access key is not known to {endpoint}: check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key does not fit the access key: check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session token has expired: renew AWS_SESSION_TOKEN",
    "InvalidToken": "the session token is refused: check AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock and that of {endpoint} differ too much: set the clock",
}
DENIED["ExpiredTokenException"] = DENIED["TokenRefreshRequired"] = DENIED["ExpiredToken"]
TRANSIENT = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequests",
    "RequestTimeout",
}
FULL = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}
PERMISSIONS = {
    False: "read it at {endpoint}: allow s3:ListBucket and s3:GetObject",
    True: "write it at {endpoint}: allow s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload",
}


def body(client: Any, bucket: str, key: str, too_large: Callable[[int], Exception], most: int) -> bytes:
    """The bytes of an object; raises `too_large(size)`, before any byte is read, if there are more than `most`.

    Errors of botocore are raised as they are.
    """
    answer = client.get_object(Bucket=bucket, Key=key)
    # `with answer["Body"]` would give the stream below botocore's, whose errors are those of urllib3.
    with closing(answer["Body"]) as stream:
        if (size := int(answer["ContentLength"])) > most:
            raise too_large(size)
        return bytes(stream.read())


def _error_of_answer(subject: str, client: Any, settings: Settings, error: Any, writing: bool) -> TailorPOError:
    """The error for an answer of the server that reports one."""
    answer = error.response
    code, text = str(answer.get("Error", {}).get("Code", "")), str(answer.get("Error", {}).get("Message", ""))
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    endpoint = _endpoint(client)
    if code in DENIED:
        return ConfigurationError(f"{subject}: {DENIED[code].format(endpoint=endpoint)}")
    if code == "NoSuchBucket":
        return ConfigurationError(f"{subject}: there is no such bucket at {endpoint}: create it, or correct its name")
    if code in FULL or status == 507:
        return ResourceError(f"{subject}: not written, {endpoint} has no space left or the quota is used up ({code})")
    if code in TRANSIENT or (status >= 500 and status != 501):
        return UnavailableError(
            f"{subject}: {endpoint} failed with {status} {'' if code == str(status) else code + ' '}after all retries"
        )
    if status == 412:
        return UnavailableError(f"{subject}: was replaced meanwhile: start again")
    if status == 404:
        return ConfigurationError(f"{subject}: there is no such object at {endpoint}")
    if status == 403:
        return ConfigurationError(
            f"{subject}: these credentials may not {PERMISSIONS[writing].format(endpoint=endpoint)}"
        )
    if status == 501:
        return ConfigurationError(f"{subject}: {endpoint} does not know how to do this ({error.operation_name})")
    if status in (301, 307) or code == "AuthorizationHeaderMalformed":
        return ConfigurationError(
            f"{subject}: the bucket is in another region: set {settings.name('region')} to its own"
        )
    return ConfigurationError(f"{subject}: {endpoint} answered {status} {code}: {text[:200]}")


def _error_without_answer(subject: str, client: Any, settings: Settings, error: Exception) -> TailorPOError:
    """The error for a request that got no answer, or that could not be sent."""
    from boto3.exceptions import RetriesExceededError
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    endpoint, text = _endpoint(client), " ".join(str(error).split())[:200]
    address = settings.name("endpoint")
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        return ConfigurationError(
            f"{subject}: no S3 credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or "
            "a role"
        )
    if "Invalid bucket name" in text:
        return ConfigurationError(f"{subject}: its bucket's name is none that S3 allows")
    if isinstance(error, boto.SSLError):
        trusted = f"{'set' if settings.ca_file is None else 'check'} {settings.name('ca_file')}"
        return UnavailableError(f"{subject}: {endpoint} has no certificate that is trusted here: {trusted}")
    if isinstance(error, boto.EndpointConnectionError | boto.ConnectTimeoutError | boto.ProxyConnectionError):
        return UnavailableError(f"{subject}: {endpoint} cannot be reached: check the network, or {address}")
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError | boto.IncompleteReadError | RetriesExceededError):
        return UnavailableError(f"{subject}: {endpoint} broke off, after all retries ({type(error).__name__})")
    if isinstance(error, ResponseParserError):
        return UnavailableError(f"{subject}: {endpoint} does not answer as S3 does: check {address}")
    if text.startswith("Invalid endpoint"):
        return ConfigurationError(f"{subject}: {address} is no URL such as http://127.0.0.1:8333")
    return ConfigurationError(f"{subject}: {text}")


def _endpoint(client: Any) -> str:
    """Host and port of a client's server; not the whole URL, which may contain a password."""
    parts = urlsplit(str(client.meta.endpoint_url)) if client is not None else None
    if parts is None or parts.hostname is None:
        return "the store"
    return parts.hostname + (f":{parts.port}" if parts.port else "")
