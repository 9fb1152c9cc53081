"""The laptop and the API server validate a document alike: both accept it, or both refuse it.

What only one of them judges is no part of these documents. The laptop alone: characters that no file or environment
can hold, more bytes or depth than its reader takes. The API server alone: its own metadata, beside the name.
"""

import json
import random
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kubernetes import client

from tailorpo_operator.api import types as names
from tailorpo_trainer import document
from tests.documents import GOOD, STRANGE, objects, replaced, spoil_values
from tests.edges import edges, spoil_fields

Judge = Callable[[str], str | None]
"""Why a document, as JSON, is refused; None if it is taken."""

SEEDS = st.integers(0, 2**32)
RELAXED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.fixture
def server(api: client.ApiClient, definition: str, namespace: str) -> Judge:
    """Creates as a dry run, over one connection that stays open."""
    http = api.rest_client.pool_manager
    path = f"/apis/{names.GROUP}/{names.VERSION}/namespaces/{namespace}/{definition}"
    url = f"{api.configuration.host}{path}?dryRun=All&fieldValidation=Strict"

    def judge(text: str) -> str | None:
        answer = http.request("POST", url, body=text.encode(), headers={"Content-Type": "application/json"})
        reported = json.loads(answer.data)
        assert answer.status in (201, 400, 422), reported
        return None if answer.status == 201 else str(reported["message"])

    return judge


@pytest.fixture
def laptop(tmp_path: Path) -> Judge:
    """`tailorpo validate`."""
    file = tmp_path / "job.yaml"

    def judge(text: str) -> str | None:
        file.write_text(text)
        try:
            document.read(file)
        except document.DocumentError as error:
            return str(error)
        return None

    return judge


def damaged(seed: int) -> dict[str, Any]:
    """A good document, written out or as it is, with up to three mutations."""
    rng = random.Random(seed)
    data = deepcopy(rng.choice(GOOD))
    if rng.random() < 0.3:
        data = document.values(document.parse(data))
    if rng.random() < 0.05:
        data[rng.choice(["apiVersion", "kind", "spec", "more"])] = deepcopy(rng.choice(STRANGE))
        return data
    if rng.random() < 0.05:
        data["metadata"]["name"] = rng.choice(["A", "a.b", "1a", "a-", "a" * 40, "a" * 41, "", "a-1", 5, None])
        return data
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if rng.random() < 0.7:
            spoil_fields(data["spec"], rng)
        else:
            spoil_values(data["spec"], rng)
    return data


def sendable(data: Any) -> str | None:
    """The document as JSON as kubectl sends it, unless it is one of those that only the laptop judges."""
    try:
        text = json.dumps(whole(data), allow_nan=False)
    except ValueError:
        return None
    return None if "\\u0000" in text or "\\ud800" in text else text


def whole(value: Any) -> Any:
    """The same with 20.0 as 20: JSON has one kind of number, and Go writes it so."""
    if isinstance(value, dict):
        return {key: whole(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [whole(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53 else value


def compare(seed: int, server: Judge, laptop: Judge) -> bool | None:
    """Whether both take the document of a seed; None if it is none for both."""
    text = sendable(damaged(seed))
    if text is None:
        return None
    here, there = laptop(text), server(text)
    assert (here is None) == (there is None), f"{text[:2000]}\n\nlaptop: {here}\nAPI server: {there}"
    return here is None


def test_both_draw_each_bound_at_the_same_place(server: Judge, laptop: Judge) -> None:
    """Every bound of every field, in a document where just inside is right."""
    met: set[str] = set()
    unmet: set[str] = set()
    for data in [*GOOD, *(document.values(document.parse(good)) for good in GOOD)]:
        for index, (path, container, schema) in enumerate(objects(data["spec"])):
            for name, field in schema["properties"].items():
                for number, (inside, beyond) in enumerate(edges(field, container.get(name))):
                    place = f"{path}.{name} {number}"
                    if place in met:
                        continue
                    texts = [json.dumps(replaced(data, index, name, value)) for value in inside]
                    if any(laptop(text) for text in texts):
                        unmet.add(place)
                        continue
                    met.add(place)
                    assert [server(text) for text in texts] == [None] * len(texts)
                    for text in (json.dumps(replaced(data, index, name, value)) for value in beyond):
                        assert laptop(text), text[-500:]
                        assert server(text), text[-500:]
    assert len(met) > 250
    # A mount's name must be a volume's.
    assert {place.split()[0] for place in unmet - met} == {"spec.template.volumeMounts.name"}


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=RELAXED)
@given(SEEDS)
def test_both_take_the_same_documents(server: Judge, laptop: Judge, seed: int) -> None:
    compare(seed, server, laptop)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@settings(max_examples=10_000, deadline=None, suppress_health_check=RELAXED)
@given(SEEDS)
def test_both_take_the_same_ten_thousand_documents(server: Judge, laptop: Judge, seed: int) -> None:
    compare(seed, server, laptop)


def test_the_documents_are_of_both_kinds(server: Judge, laptop: Judge) -> None:
    """Otherwise the tests above would prove little."""
    found = Counter(compare(seed, server, laptop) for seed in range(100))
    assert found[True] > 20
    assert found[False] > 20
    assert found[None] < 20


@pytest.mark.parametrize("number", range(len(GOOD)))
def test_the_documents_are_good_before(server: Judge, laptop: Judge, number: int) -> None:
    text = json.dumps(GOOD[number])
    assert (laptop(text), server(text)) == (None, None)
