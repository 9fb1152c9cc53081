"""Read from S3 and its kin: SeaweedFS, MinIO, Ceph. No torch, and boto3 only when it is needed."""

from tailorpo_trainer.s3.client import SCHEME, connect, explained
from tailorpo_trainer.s3.remote import Remote, read

__all__ = ["SCHEME", "Remote", "connect", "explained", "read"]
