"""S3 and compatible servers: SeaweedFS, MinIO, Ceph. No torch, and boto3 only when it is needed."""

from tailorpo_trainer.s3.client import (
    SCHEME,
    STANDARD,
    Settings,
    body,
    connect,
    refuses_checksums,
    sends_checksums,
    split,
    translated_errors,
)
from tailorpo_trainer.s3.remote import Remote, read

__all__ = [
    "SCHEME",
    "STANDARD",
    "Remote",
    "Settings",
    "body",
    "connect",
    "read",
    "refuses_checksums",
    "sends_checksums",
    "split",
    "translated_errors",
]
