"""The S3 store against a real server, straight and through a proxy that fails."""

import http.server
import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import botocore
import pytest

from tailorpo_trainer import s3
from tailorpo_trainer.checkpoint import CorruptError, ExistsError, MissingError, Store, open_store
from tailorpo_trainer.checkpoint.storage.s3 import S3Store
from tailorpo_trainer.errors import ConfigurationError, ExitCode, ResourceError, UnavailableError
from tests.faults import Fault, Proxy, always, nth

BIG = bytes(range(256)) * (17 << 12)  # 17 MiB: two parts


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailorpo_trainer.checkpoint.storage.s3.PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)


@pytest.fixture
def uri(s3_bucket: str) -> str:
    return f"s3://{s3_bucket}/runs/one"


@pytest.fixture
def store(uri: str) -> Store:
    return open_store(uri)


@pytest.fixture
def faulty(faults: Proxy, s3_bucket: str) -> Store:
    """A store behind the proxy `faults`."""
    return open_store(f"s3://{s3_bucket}/runs/one")


def test_what_is_written_is_read(store: Store, uri: str) -> None:
    store.write("attempt-0001/step-00000001/state.json", b"one")
    store.write("attempt-0001/step-00000001/state.json", b"other")
    assert store.read("attempt-0001/step-00000001/state.json") == b"other"
    assert store.size("attempt-0001/step-00000001/state.json") == 5
    assert store.uri("run.json") == f"{uri}/run.json"


def test_large_objects_go_in_parts(store: Store, s3_server: Any, s3_bucket: str) -> None:
    store.write("big", BIG)
    assert store.read("big", len(BIG)) == BIG
    etag = s3_server.client().head_object(Bucket=s3_bucket, Key="runs/one/big")["ETag"]
    assert etag.strip('"').endswith("-2")


def test_names_are_those_with_the_prefix(store: Store, uri: str) -> None:
    for name in ("run.json", "attempt-0001/attempt.json", "attempt-0001/step-1/a b+ü", "attempt-0010/b"):
        store.write(name, b"")
    open_store(f"{uri}-two").write("attempt-0001/other", b"")
    assert store.names("attempt-0001/") == ["attempt-0001/attempt.json", "attempt-0001/step-1/a b+ü"]
    assert store.names("attempt-") == ["attempt-0001/attempt.json", "attempt-0001/step-1/a b+ü", "attempt-0010/b"]
    assert store.names("") == ["attempt-0001/attempt.json", "attempt-0001/step-1/a b+ü", "attempt-0010/b", "run.json"]
    assert store.names("nothing/") == []


def test_the_root_of_a_bucket_is_a_storage(s3_bucket: str) -> None:
    store = open_store(f"s3://{s3_bucket}")
    store.write("run.json", b"1")
    assert store.names("") == ["run.json"]
    assert store.uri("run.json") == f"s3://{s3_bucket}/run.json"


def test_more_names_and_deletes_than_fit_in_a_page(store: Store) -> None:
    wanted = [f"attempt-0001/{number:05d}" for number in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.write(name, b""), wanted))
    assert store.names("attempt-0001/") == wanted
    store.delete([*wanted, "never-there"])
    assert store.names("") == []


def test_missing_objects(store: Store) -> None:
    for ask in (store.read, store.size):
        with pytest.raises(MissingError, match=r"run\.json: is missing"):
            ask("run.json")


def test_of_many_claims_one_wins(store: Store) -> None:
    def claim(number: int) -> bytes | None:
        try:
            store.write("attempt-0001/attempt.json", b"%d" % number, if_absent=True)
        except ExistsError:
            return None
        return b"%d" % number

    with ThreadPoolExecutor(8) as pool:
        winners = [winner for winner in pool.map(claim, range(8)) if winner is not None]
    assert winners == [store.read("attempt-0001/attempt.json")]


def test_the_same_bytes_are_our_own_retry(store: Store) -> None:
    store.write("manifest.json", b"mine", if_absent=True)
    store.write("manifest.json", b"mine", if_absent=True)
    with pytest.raises(ExistsError, match=r"manifest\.json"):
        store.write("manifest.json", b"another's", if_absent=True)


@pytest.mark.parametrize("reset", ["before", "after"])
def test_a_claim_whose_answer_is_lost_is_ours(faulty: Store, faults: Proxy, reset: str) -> None:
    """After: the put landed, so botocore's second try gets a 412."""
    faults.rule = nth(1, Fault(reset=reset))
    faulty.write("attempt.json", b"mine", if_absent=True)
    assert faulty.read("attempt.json") == b"mine"
    assert faults.injected == 1


def test_two_conditional_puts_at_once_are_tried_again(faulty: Store, faults: Proxy) -> None:
    faults.rule = nth(1, Fault(409, "ConditionalRequestConflict"))
    faulty.write("attempt.json", b"mine", if_absent=True)
    assert faulty.read("attempt.json") == b"mine"


@pytest.mark.parametrize("fault", [Fault(500), Fault(503, "SlowDown"), Fault(reset="before"), Fault(reset="after")])
@pytest.mark.parametrize("data", [b"small", BIG], ids=["put", "parts"])
def test_a_fault_that_passes_is_not_seen(faulty: Store, faults: Proxy, fault: Fault, data: bytes) -> None:
    faults.rule = nth(1, fault, times=2)
    faulty.write("a", data)
    faults.rule = nth(1, fault, method="GET", times=2)
    assert faulty.read("a", len(data)) == data
    assert faults.injected == 4


@pytest.mark.parametrize("keep", [0, 1, 1000])
def test_an_answer_that_breaks_off_is_asked_for_again(faulty: Store, faults: Proxy, keep: int) -> None:
    faulty.write("a", BIG)
    faults.rule = nth(1, Fault(keep=keep), method="GET", times=2)
    assert faulty.read("a", len(BIG)) == BIG
    faults.rule = always(Fault(keep=keep), method="GET")
    with pytest.raises(UnavailableError, match=r"broke off, after all retries.*\(a\)"):
        faulty.read("a", len(BIG))


def test_slow_bytes_only_take_time(faulty: Store, faults: Proxy) -> None:
    faults.rule = always(Fault(rate=64e6))
    faulty.write("a", BIG)
    faults.rule = always(Fault(rate=64e6), method="GET")
    assert faulty.read("a", len(BIG)) == BIG


@pytest.mark.parametrize(
    ("fault", "expected", "text"),
    [
        (Fault(500), UnavailableError, "failed with 500 InternalError after all retries"),
        (Fault(reset="before"), UnavailableError, "broke off, after all retries"),
        (Fault(507, "XMinioStorageFull"), ResourceError, "no space left or the quota is used up (XMinioStorageFull)"),
        (Fault(403, "QuotaExceeded"), ResourceError, "no space left or the quota is used up (QuotaExceeded)"),
        (Fault(403, "AccessDenied"), ConfigurationError, "may not write it at 127.0.0.1:"),
        (Fault(501, "NotImplemented"), ConfigurationError, "does not know how to do this (PutObject)"),
    ],
)
def test_a_write_that_cannot_be_is_one_sentence(
    faulty: Store, faults: Proxy, s3_bucket: str, fault: Fault, expected: type[Exception], text: str
) -> None:
    faults.rule = always(fault)
    for if_absent in (False, True):
        with pytest.raises(expected) as caught:
            faulty.write("a", b"data", if_absent=if_absent)
        assert str(caught.value).startswith(f"checkpoint storage s3://{s3_bucket}/runs/one: ")
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)
    faults.rule = lambda *_: None
    with pytest.raises(MissingError):
        faulty.read("a")


def test_an_upload_without_space_leaves_nothing(faulty: Store, faults: Proxy, s3_server: Any, s3_bucket: str) -> None:
    faults.rule = nth(2, Fault(507, "InsufficientStorage"), within="partNumber", times=1000)
    with pytest.raises(ResourceError) as caught:
        faulty.write("a", BIG)
    assert caught.value.exit_code == ExitCode.OUT_OF_RESOURCES
    assert faulty.names("") == []
    assert "Uploads" not in s3_server.client().list_multipart_uploads(Bucket=s3_bucket)


def test_a_wrong_secret(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ConfigurationError) as caught:
        open_store(uri).read("run.json")
    assert str(caught.value) == (
        f"checkpoint storage {uri}: the secret key does not fit the access key: check AWS_SECRET_ACCESS_KEY"
    )


def test_a_missing_bucket(s3_bucket: str) -> None:
    store = open_store("s3://no-such-bucket/runs")
    for ask in (lambda: store.read("run.json"), lambda: store.names("")):
        with pytest.raises(
            ConfigurationError, match=r"^checkpoint storage s3://no-such-bucket/runs: there is no such bu"
        ):
            ask()


def test_each_key_that_cannot_be_deleted_is_an_error(
    store: Store, s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(store, S3Store)
    answer = {"Errors": [{"Key": "runs/one/a", "Code": "AccessDenied", "Message": "no"}]}
    monkeypatch.setattr(store.client, "delete_objects", lambda **_: answer)
    with pytest.raises(ConfigurationError, match=r"may not write it at .*s3:DeleteObject"):
        store.delete(["a"])


def knows_no_checksums(fault: Fault) -> Any:
    """Refuses requests with a checksum, as servers that were written before Amazon's SDKs sent them."""

    def rule(method: str, headers: Any) -> Fault | None:
        sent = any(name.lower().startswith(("x-amz-checksum-", "x-amz-sdk-checksum")) for name in headers)
        return fault if sent and method in ("PUT", "POST") else None

    return rule


REFUSALS = [
    Fault(501, "NotImplemented"),
    Fault(400, "InvalidArgument"),
    Fault(403, "SignatureDoesNotMatch"),
    Fault(411, "MissingContentLength"),
]


@pytest.mark.parametrize("fault", REFUSALS, ids=lambda fault: fault.code)
def test_a_server_that_knows_no_checksums_is_written_to_without(
    faulty: Store, faults: Proxy, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    faults.header_rule = knows_no_checksums(fault)
    faulty.write("claim", b"mine", if_absent=True)
    with pytest.raises(ExistsError):
        faulty.write("claim", b"another's", if_absent=True)
    faulty.write("small", b"small")
    faulty.write("big", BIG)
    assert faulty.read("big", len(BIG)) == BIG
    [warning] = caplog.messages
    assert "spec.checkpoint.checksums, or AWS_REQUEST_CHECKSUM_CALCULATION, may say when_required" in warning
    faulty.delete(["claim", "small", "never-there"])  # of several at once only with a checksum: one by one
    assert faulty.names("") == ["big"]
    refused = faults.injected
    faulty.write("small", b"small")
    faulty.delete(["small", "big"])
    assert (faulty.names(""), faults.injected) == ([], refused)


def test_the_first_object_may_be_one_in_parts(faulty: Store, faults: Proxy) -> None:
    faults.header_rule = knows_no_checksums(REFUSALS[0])
    faulty.write("big", BIG)
    assert faulty.read("big", len(BIG)) == BIG


def test_the_document_decides_on_checksums(
    faults: Proxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faults.header_rule = knows_no_checksums(REFUSALS[2])
    with pytest.raises(ConfigurationError, match=r"set spec\.checkpoint\.checksums to when_required$"):
        S3Store(f"s3://{s3_bucket}/x", s3.Settings(checksums="when_supported")).write("a", b"1")
    faults.injected = 0
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    S3Store(f"s3://{s3_bucket}/x", s3.Settings(checksums="when_required")).write("a", b"1")
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    S3Store(f"s3://{s3_bucket}/x").write("a", b"1")
    assert (faults.injected, caplog.messages) == (0, [])


def test_a_wrong_secret_is_no_question_of_checksums(
    uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ConfigurationError, match=r"check AWS_SECRET_ACCESS_KEY$"):
        open_store(uri).write("a", b"1")
    assert caplog.messages == []


def test_a_server_that_ignores_the_condition_of_a_put_is_refused(
    faulty: Store, faults: Proxy, uri: str, s3_server: Any
) -> None:
    """It is asked once, with the same bytes, so that nothing is lost on such a server."""
    faults.rule = nth(2, Fault(200), within="run.json")
    with pytest.raises(ConfigurationError, match=r"does not honour `If-None-Match: \*`, so two runs could overwrite"):
        faulty.write("run.json", b"mine", if_absent=True)
    with pytest.raises(ConfigurationError, match="does not honour"):
        faulty.write("attempt-0001/attempt.json", b"mine", if_absent=True)
    other = S3Store(uri, s3.Settings(endpoint=s3_server.endpoint))
    assert other.read("run.json") == b"mine"
    asked = len(faults.requests)
    honest = S3Store(uri)
    honest.write("a", b"1", if_absent=True)
    honest.write("b", b"1", if_absent=True)
    assert [method for method, _ in faults.requests[asked:]] == ["PUT"] * 3


def test_an_endpoint_with_a_path_is_named_where_its_bucket_is_missing(s3_server: Any, s3_bucket: str) -> None:
    settings = s3.Settings(f"{s3_server.endpoint}/s3")
    with pytest.raises(
        ConfigurationError, match=r"no such bucket at .*: leave /s3 out of spec\.checkpoint\.endpoint, or"
    ):
        S3Store(f"s3://{s3_bucket}/x", settings).names("")


def test_stale_uploads_are_swept_where_asked_and_nowhere_else(store: Store, s3_server: Any, s3_bucket: str) -> None:
    client = s3_server.client()
    keys = ["runs/one/attempt-0001/step-1/a", "runs/one/attempt-0002/a", "runs/two/attempt-0001/a"]
    for key in keys:
        upload = client.create_multipart_upload(Bucket=s3_bucket, Key=key)["UploadId"]
        client.upload_part(Bucket=s3_bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"torn")
    assert store.names("") == []
    store.delete_unfinished("attempt-0001/")
    left = client.list_multipart_uploads(Bucket=s3_bucket)["Uploads"]
    assert sorted(upload["Key"] for upload in left) == keys[1:]


def test_a_writer_whose_upload_is_swept_begins_again(faulty: Store, faults: Proxy, uri: str, s3_server: Any) -> None:
    other = S3Store(uri, s3.Settings(endpoint=s3_server.endpoint))
    faults.rule = nth(2, Fault(then=lambda: other.delete_unfinished("attempt-0001/")), within="partNumber")
    faulty.write("attempt-0001/big", BIG)
    assert faults.injected == 1
    assert faulty.read("attempt-0001/big", len(BIG)) == BIG


def test_settings_of_the_document_go_before_the_environment(
    s3_server: Any, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = S3Store(f"s3://{s3_bucket}/x", s3.Settings(s3_server.endpoint, region="eu-north-1", path_style=True))
    store.write("a", b"1")
    assert store.read("a") == b"1"
    assert store.client.meta.region_name == "eu-north-1"
    virtual = s3.connect("x", s3.Settings("https://s3.example", path_style=False))
    url = virtual.generate_presigned_url("get_object", {"Bucket": s3_bucket, "Key": "a"})
    assert url.startswith(f"https://{s3_bucket}.s3.example/a?")


def test_what_is_wrong_with_a_setting_is_said_of_whoever_gave_it(faults: Proxy, s3_bucket: str) -> None:
    given = s3.Settings("http://127.0.0.1:9", region="eu-north-1")
    with pytest.raises(UnavailableError, match=r"cannot be reached: check the network, or spec\.checkpoint\.endpoint"):
        S3Store(f"s3://{s3_bucket}/x", given).read("a")
    faults.rule = always(Fault(400, "AuthorizationHeaderMalformed"), method="GET")
    for settings, name in (
        (s3.Settings(region="eu-north-1"), "spec.checkpoint.region"),
        (s3.Settings(region="eu-north-1", names={"region": "--region"}), "--region"),
        (s3.Settings(), "AWS_REGION"),
    ):
        with pytest.raises(ConfigurationError, match=f"is in another region: set {name} to its own$"):
            S3Store(f"s3://{s3_bucket}/x", settings).read("a")


def test_encryption_is_asked_for_by_headers(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a server does it is not tested here: SeaweedFS has no KMS without one of another vendor."""
    store = S3Store(f"s3://{s3_bucket}/x", s3.Settings(sse_kms_key_id="key-1"))
    asked: list[dict[str, Any]] = []
    for event in ("PutObject", "CreateMultipartUpload"):
        store.client.meta.events.register(
            f"before-sign.s3.{event}", lambda request, **_: asked.append(dict(request.headers))
        )
    for data in (b"", BIG):
        with pytest.raises(UnavailableError, match="failed with 500"):
            store.write("a", data)
    for headers in asked:
        assert headers["x-amz-server-side-encryption"] == "aws:kms"
        assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "key-1"
    assert len(asked) >= 2


def test_a_server_with_a_certificate_of_its_own(tmp_path: Path, s3_bucket: str) -> None:
    """The file of `caFile` is what is trusted; without it the message says what to set."""
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -keyout key.pem -out ca.pem -subj /CN=localhost"
    command = [*make.split(), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca.pem", tmp_path / "key.pem")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        endpoint = f"https://127.0.0.1:{server.server_port}"
        misnamed = s3.Settings(f"https://localhost:{server.server_port}", ca_file=str(tmp_path / "ca.pem"))
        with pytest.raises(UnavailableError, match=r"the certificate of localhost.* is refused: .*match"):
            S3Store("s3://bucket", misnamed).read("a")
        trusting = S3Store("s3://bucket", s3.Settings(endpoint, ca_file=str(tmp_path / "ca.pem")))
        assert trusting.read("a") == b"{}"
        with pytest.raises(UnavailableError, match="has no certificate that is trusted here: set AWS_CA_BUNDLE"):
            S3Store("s3://bucket", s3.Settings(endpoint)).read("a")
        others = s3.Settings(endpoint, ca_file=str(Path(botocore.__file__).parent / "cacert.pem"))
        with pytest.raises(UnavailableError, match=r"is trusted here: check spec\.checkpoint\.caFile"):
            S3Store("s3://bucket", others).read("a")
        server.shutdown()
    with pytest.raises(
        ConfigurationError, match=r"no file of certificates at .*none\.pem: check spec\.checkpoint\.caFile"
    ):
        S3Store("s3://bucket", s3.Settings(ca_file=str(tmp_path / "none.pem")))


def test_bytes_that_are_not_what_the_store_stored_are_corrupt(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import FlexibleChecksumError

    def lying(*_: object) -> bytes:
        raise FlexibleChecksumError(error_msg="Expected checksum A did not match calculated checksum B")

    monkeypatch.setattr(store, "_get", lying)
    with pytest.raises(CorruptError, match="is not what was stored"):
        store.read("a")


def test_what_failed_is_named_and_not_the_store(
    s3_server: Any, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server without TLS, a proxy, and a role whose credentials cannot be had."""
    uri = f"s3://{s3_bucket}/x"
    with pytest.raises(ConfigurationError, match=r"does not speak TLS: write http:// in spec\.checkpoint\.endpoint$"):
        S3Store(uri, s3.Settings(s3_server.endpoint.replace("http", "https"))).read("a")
    with monkeypatch.context() as patch:
        patch.setenv("HTTP_PROXY", "http://name:secret@127.0.0.1:9")
        with pytest.raises(UnavailableError, match=r": the proxy 127\.0\.0\.1 cannot be reached") as caught:
            S3Store(uri, s3.Settings("http://s3.example")).read("a")
        assert "secret" not in str(caught.value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/trainer")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/no/token")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")
    with pytest.raises(ConfigurationError, match="the token of the role cannot be read: /no/token: No such file"):
        open_store(uri).read("a")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", __file__)
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9, which gives the credentials, cannot be reached"):
        open_store(uri).read("a")
