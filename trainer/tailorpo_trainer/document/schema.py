"""The document's fields by their YAML names, from the models."""

from collections.abc import Iterable
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tailorpo_trainer.document.problems import Loc
from tailorpo_trainer.spec.job import TailorPOJob


def fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model by their YAML names."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def inner_model(field: FieldInfo) -> type[BaseModel] | None:
    """The model inside a field's annotation such as `list[Reward] | None`."""
    return next(iter(_models(field.annotation)), None)


def model_at(loc: Loc) -> type[BaseModel] | None:
    """The model that describes the object at a path."""
    model: type[BaseModel] | None = TailorPOJob
    for key in loc:
        if isinstance(key, int):
            continue
        known = fields(model) if model is not None else {}
        model = inner_model(known[key]) if key in known else None
    return model


def field_at(loc: Loc) -> FieldInfo | None:
    """The field at a path."""
    model = model_at(loc[:-1])
    return None if model is None or not loc else fields(model).get(str(loc[-1]))


def is_open(loc: Loc) -> bool:
    """Whether the entry of a list at a path is a mapping that is passed to Kubernetes unchecked."""
    field = field_at(loc[:-1])
    return field is not None and any(get_origin(inner) is dict for inner in _nested(field.annotation))


def is_map(field: FieldInfo) -> bool:
    """Whether a field holds a mapping of free keys to values of one type, such as labels."""
    return any(get_origin(inner) is dict and Any not in get_args(inner) for inner in _nested(field.annotation))


def _nested(annotation: Any) -> Iterable[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from _nested(argument)


def _models(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models(argument)
