"""A client for S3 and compatible servers, and one clear message for each kind of failure. No torch."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tailorpo_trainer.errors import ConfigurationError, ResourceError, TailorPOError, UnavailableError

SCHEME = "s3://"


VARIABLES = {
    "endpoint": "AWS_ENDPOINT_URL",
    "region": "AWS_REGION",
    "ca_file": "AWS_CA_BUNDLE",
    "checksums": "AWS_REQUEST_CHECKSUM_CALCULATION",
}
FIELDS = {
    "endpoint": "spec.checkpoint.endpoint",
    "region": "spec.checkpoint.region",
    "ca_file": "spec.checkpoint.caFile",
    "checksums": "spec.checkpoint.checksums",
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
    checksums: str | None = None
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
    if settings.checksums is not None:
        config = config.merge(Config(request_checksum_calculation=settings.checksums))
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


CREDENTIAL_OPERATIONS = {"AssumeRole", "AssumeRoleWithWebIdentity", "GetRoleCredentials", "CreateToken"}
TOKEN_FILES = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
ROLE_VARIABLES = "AWS_ROLE_ARN, AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ENDPOINT_URL_STS and the profile"
NO_TLS = ("WRONG VERSION NUMBER", "RECORD LAYER FAILURE", "PACKET LENGTH TOO LONG", "UNKNOWN PROTOCOL", "HTTP REQUEST")
"""In OpenSSL's errors about a server that answers in plain text, over several of its versions."""

MAY_REFUSE_CHECKSUMS = (400, 403, 411, 501)
"""Answers of servers that know no checksums in a request.

501 to their header, 400 or 403 because they read the body, in chunks with a checksum behind, as the object itself, and
411 because its length stands in another header.
"""


def sends_checksums(client: Any) -> bool:
    """Whether a client adds checksums to its requests wherever it can, which is the default of Amazon's SDKs."""
    return bool(client.meta.config.request_checksum_calculation == "when_supported")


def refuses_checksums(error: Exception) -> bool:
    """Whether an answer may be that of a server that knows no checksums: it has no other known cause."""
    from botocore.exceptions import ClientError

    if not isinstance(error, ClientError):
        return False
    code = str(error.response.get("Error", {}).get("Code", ""))
    other = {*(DENIED.keys() - {"SignatureDoesNotMatch"}), *TRANSIENT, *FULL, "NoSuchBucket", "AccessDenied"}
    return (
        error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in MAY_REFUSE_CHECKSUMS and code not in other
    )


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
    except OSError as error:
        if error.filename not in {os.environ.get(name) for name in TOKEN_FILES} - {None}:
            raise
        raise ConfigurationError(
            f"{subject}: the token of the role cannot be read: {error.filename}: {error.strerror}"
        ) from None


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
    """The error for an answer that reports one, of the server or of the service that gives credentials."""
    if error.operation_name in CREDENTIAL_OPERATIONS:
        code = str(error.response.get("Error", {}).get("Code", ""))
        return ConfigurationError(f"{subject}: the role is not given to this process ({code}): check {ROLE_VARIABLES}")
    known = _error_of_store(subject, client, settings, error, writing)
    if settings.checksums == "when_supported" and writing and refuses_checksums(error):
        advice = f"set {settings.name('checksums')} to when_required"
        return type(known)(f"{known}; or, if the server knows no checksums, {advice}")
    return known


def _error_of_store(subject: str, client: Any, settings: Settings, error: Any, writing: bool) -> TailorPOError:
    answer = error.response
    code, text = str(answer.get("Error", {}).get("Code", "")), str(answer.get("Error", {}).get("Message", ""))
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    endpoint = _endpoint(client)
    if code in DENIED:
        return ConfigurationError(f"{subject}: {DENIED[code].format(endpoint=endpoint)}")
    if code == "NoSuchBucket":
        path = urlsplit(str(client.meta.endpoint_url)).path.strip("/") if client is not None else ""
        advice = f"leave /{path} out of {settings.name('endpoint')}, or" if path else "create it, or"
        return ConfigurationError(f"{subject}: there is no such bucket at {endpoint}: {advice} correct its name")
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
    if isinstance(error, boto.TokenRetrievalError | boto.SSOError):
        return ConfigurationError(f"{subject}: the profile's login has expired or is missing: log in again ({text})")
    if isinstance(error, boto.ProxyConnectionError):
        proxy = urlsplit(str(error.kwargs.get("proxy_url", ""))).hostname
        return UnavailableError(f"{subject}: the proxy {proxy} cannot be reached: check HTTP_PROXY and HTTPS_PROXY")
    asked = urlsplit(str(getattr(error, "kwargs", {}).get("endpoint_url") or "")).netloc.rpartition("@")[2]
    # In virtual-hosted requests the bucket stands before the host.
    if asked and client is not None and not f".{asked}".endswith(f".{_endpoint(client)}"):
        return UnavailableError(
            f"{subject}: {asked}, which gives the credentials, cannot be reached ({type(error).__name__}): check the "
            f"network, {ROLE_VARIABLES}"
        )
    if "Invalid bucket name" in text:
        return ConfigurationError(f"{subject}: its bucket's name is none that S3 allows")
    if isinstance(error, boto.SSLError):
        if any(each in text.upper().replace("_", " ") for each in NO_TLS):
            return ConfigurationError(f"{subject}: {endpoint} does not speak TLS: write http:// in {address}")
        trusted = f"{'set' if settings.ca_file is None else 'check'} {settings.name('ca_file')}"
        why = re.search(r"certificate verify failed: ([^(\[]+)|(hostname .* doesn't match [^(]*)", text)
        if why is None:
            return UnavailableError(f"{subject}: no TLS connection to {endpoint}: {text}")
        reason = (why[1] or why[2]).strip()
        if why[2] or any(word in reason for word in ("expired", "ismatch", "not valid", "not yet")):
            return UnavailableError(f"{subject}: the certificate of {endpoint} is refused: {reason}")
        return UnavailableError(f"{subject}: {endpoint} has no certificate that is trusted here: {trusted}")
    if isinstance(error, boto.EndpointConnectionError | boto.ConnectTimeoutError):
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
