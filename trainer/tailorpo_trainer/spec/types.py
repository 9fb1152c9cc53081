"""Shared by all objects of the document: their base class, the types of text, and Kubernetes' quantities.

A pattern means the same to pydantic and to the API server (RE2): no `\\s`, `\\d` or `\\w`, which differ beyond ASCII.
"""

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainValidator, StringConstraints, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
JOB_NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
VISIBLE = r"^[^\x00-\x20\x7f]+$"
HTTP = r"^https?://[^\x00-\x20\x7f]+$"
DATA_KEY = r"^[-._a-zA-Z0-9]+$"
VARIABLE = r"^[-._a-zA-Z][-._a-zA-Z0-9]*$"
LABEL_KEY = (
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?$"
)
LABEL_VALUE = r"^([A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?)?$"
MOUNT_PATH = r"^/[^:\x00-\x1f\x7f]*$"
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"

PATTERNS = {
    JOB_NAME: "must be lower-case letters, digits and '-', from a letter to a letter or digit",
    DNS_LABEL: "must be lower-case letters, digits and '-', from and to a letter or digit",
    DNS_NAME: "must be lower-case letters, digits, '-' and '.', each part from and to a letter or digit",
    VISIBLE: "must have no spaces",
    HTTP: "must be a URL, http://... or https://..., without spaces",
    DATA_KEY: "must be letters, digits, '-', '_' and '.'",
    VARIABLE: "must be letters, digits, '-', '_' and '.', and not begin with a digit",
    LABEL_KEY: "must be a label's key, such as team or example.com/team",
    LABEL_VALUE: "must be letters, digits, '-', '_' and '.', from and to a letter or digit",
    MOUNT_PATH: "must be an absolute path without ':'",
    QUANTITY: "must be a number, perhaps with one of m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei",
}
"""For each pattern, the message for a text that does not match."""

QUANTITY_SENTENCE = "must be a whole number, or text such as '500m', '1.5' or '16Gi'"

Name = Annotated[str, StringConstraints(min_length=1, max_length=40, pattern=JOB_NAME)]
"""A DNS-1035 label with room for the longest name derived from it, `NAME-NNNN-NN`."""

Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
URI = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
Endpoint = Annotated[str, StringConstraints(min_length=1, max_length=2048, pattern=HTTP)]

ObjectName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=DNS_NAME)]
"""Of a Secret, a ConfigMap, a claim, a class: a DNS-1123 subdomain."""

Label = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=DNS_LABEL)]
"""A DNS-1123 label: of a namespace or a volume."""

DataKey = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=DATA_KEY)]
"""A key of a Secret or a ConfigMap."""

LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=317, pattern=LABEL_KEY)]
LabelValue = Annotated[str, StringConstraints(max_length=63, pattern=LABEL_VALUE)]


def _quantity(value: Any) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
        return value
    if isinstance(value, str) and len(value) <= 32 and re.search(QUANTITY, value) and not value.endswith("\n"):
        return value
    raise PydanticCustomError("quantity", QUANTITY_SENTENCE)


Quantity = Annotated[
    int | str,
    PlainValidator(_quantity),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "maxLength": 32, "pattern": QUANTITY}]}
    ),
]
"""An amount of a resource, as Kubernetes writes it; never negative."""


class SpecModel(BaseModel):
    """Base of every object of the document: unknown keys are refused, values do not change after parsing."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,  # like the API server: "20" is not a number
        allow_inf_nan=False,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
    )
