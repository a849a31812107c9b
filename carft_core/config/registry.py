"""Registries: the algorithms, merges and families by name, and how a config speaks of one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, TypeVar, cast

from pydantic import (
    ConfigDict,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    SerializationInfo,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from carft_sweep.carft_core.config.fields import Section, error_of, explained
from carft_sweep.carft_core.errors import Problem, RequestError, misspelt, unknown

T = TypeVar("T")
Anything = TypeVar("Anything")
NAME = re.compile(r"[a-z][a-z0-9_]*")


class Registry(dict[str, T]):
    """Things of one kind by their own `name`, in the order of their registration."""

    def __init__(
        self,
        kind: str,
        base: type,
        *,
        function: str = "",
        lacks: Callable[[Any], str | None] = lambda _: None,
    ) -> None:
        """Take `kind` for messages ("algorithm"), and what the things are: subclasses of `base`, or
        instances whose attribute `function` does the work. `lacks` returns what a complete subclass
        still lacks, or None."""
        super().__init__()
        self.kind, self._base, self._function, self._lacks = kind, base, function, lacks

    def code(self, thing: T) -> Any:
        """Return the class or function that defines a thing; its source is in the identity of
        runs."""
        return getattr(thing, self._function) if self._function else thing

    def register(self, thing: Anything) -> Anything:
        """Add a thing under its own name and return it, so that this method serves as a decorator.
        A thing defined again in the same place, as in a reloaded module, replaces the old one.
        Raises RequestError for a thing of another kind, or a wrong or taken name."""
        wrong = self._refusal(thing) or _misnamed(thing) or self._conflict(cast(T, thing))
        if wrong:
            shown = getattr(thing, "__qualname__", repr(getattr(thing, "name", thing))[:80])
            raise RequestError(f"{self.kind} {shown} cannot be registered: {wrong}")
        self[vars(thing)["name"]] = cast(T, thing)
        return thing

    def unknown(self, name: object) -> str:
        """Return a message for an unregistered name: the nearest name, or all, and how to add
        one."""
        own = " One of your own is registered in a file that `import:` or --import names."
        return unknown(self.kind, name, self, own)

    def _refusal(self, thing: Any) -> str | None:
        """Return why a thing is not of this kind; None if it is."""
        base = self._base
        if self._function:
            if not isinstance(thing, base):
                return f"it must be of the class {base.__name__}"
            if not hasattr(self.code(cast(T, thing)), "__qualname__"):
                return f"its `{self._function}` must be a function that a module defines"
            return None
        if not isinstance(thing, type) or not issubclass(thing, base) or thing is base:
            instead = ", not its instance" if isinstance(thing, base) else ""
            return f"it must be a class derived from {base.__name__}{instead}"
        if inspect.isabstract(thing):
            return f"it lacks {', '.join(sorted(getattr(thing, '__abstractmethods__', ())))}"
        return self._lacks(thing)

    def _conflict(self, thing: T) -> str | None:
        name = vars(thing)["name"]
        if name not in self or self._origin(self[name]) == self._origin(thing):
            return None
        return f"the name {name!r} is taken by {self._origin(self[name])}; give it another"

    def _origin(self, thing: T) -> str:
        code = self.code(thing)
        return f"{code.__module__}.{code.__qualname__}"


class Registered(Section):
    """A frozen pydantic model whose fields are settings, and which configs name: `{name: car_ft,
    kl_weight: 3}`, or `car_ft` alone.

    The base class of a kind has a `registry`. Wherever a field is annotated with that base class,
    in the trial config or in another algorithm (`of: Algorithm`), such a mapping becomes an
    instance of the class that is registered under the name, and a dump has the name again.
    """

    # A default `1` of a float is 1.0 then, as it is in a worker, whose config went through JSON.
    model_config = ConfigDict(validate_default=True)

    name: ClassVar[str]
    summary: ClassVar[str]
    registry: ClassVar[Registry[Any]]

    @model_validator(mode="wrap")
    @classmethod
    def _by_name(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        fields = {"name": value} if isinstance(value, str) else value
        if "registry" not in vars(cls):
            if isinstance(fields, Mapping) and fields.get("name") == cls.name:
                fields = {key: field for key, field in fields.items() if key != "name"}
            return handler(fields)
        if isinstance(value, cls):
            return value
        registry = cls.registry
        if not isinstance(fields, Mapping) and fields is not None:
            raise ValueError(f"must be a mapping of fields, got {value!r}")
        name = (fields or {}).get("name")
        if name is None and (key := misspelt("name", fields or ())):
            raise error_of([Problem((key,), unknown("field", key, ["name"]))])
        if name is None:
            message = f"which {registry.kind}? Known: {', '.join(sorted(registry))}."
            raise error_of([Problem(("name",), message)])
        if not isinstance(name, str) or name not in registry:
            raise error_of([Problem(("name",), registry.unknown(name))])
        try:
            return cast(Self, registry[name].model_validate(fields))
        except ValidationError as error:
            raise error_of(explained(error, registry[name])) from None

    @model_serializer
    def _with_name(self, info: SerializationInfo) -> dict[str, Any]:
        fields = {"name": self.name, **dict(self)}
        return {key: field for key, field in fields.items() if key not in (info.exclude or ())}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        if "registry" not in vars(cls):
            return super().__get_pydantic_json_schema__(schema, handler)
        named = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
        return {"anyOf": [{"type": "string"}, named]}


def _misnamed(thing: object) -> str | None:
    """Return what is wrong with a thing's own `name` or `summary`; None when nothing is."""
    own = vars(thing)
    for field in ("name", "summary"):
        if not isinstance(own.get(field), str):
            sample = (
                f'{field}: ClassVar[str] = "..."' if isinstance(thing, type) else f'{field}="..."'
            )
            return f"it has no `{field}` of its own, as in {sample}"
    if not NAME.fullmatch(own["name"]):
        return (
            f"its name {own['name']!r} must be lower-case letters, digits and '_', beginning with "
            "a letter, such as 'my_method'"
        )
    if not own["summary"].strip() or "\n" in own["summary"]:
        return "its summary must be one line that says what it is"
    return None
