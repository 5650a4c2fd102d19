"""A section of settings: a frozen pydantic model whose fields are the flags of a script."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
import types
from typing import Any, Literal, Self, Union, get_args, get_origin

import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from common.errors import nearest


class Section(pydantic.BaseModel):
    """Base of every settings section.

    Fields are made with `flag`. A field may itself be a Section: its fields join the flat list of flags, and its
    docstring's first line is their heading in `--help`. Override `problems` for rules that span several fields.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def problems(self) -> Iterable[str]:
        """Sentences, one for each rule that the fields break together."""
        return ()

    @pydantic.model_validator(mode="after")
    def _refuse_problems(self) -> Self:
        found = list(self.problems())
        if found:
            raise ValueError("\n".join(found))
        return self

    @pydantic.field_validator("*")
    @classmethod
    def _refuse_other_choices_and_broken_paths(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        choices: list[Any] | None = _extra(cls.model_fields[info.field_name or ""], "choices")
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(one, Path) and any(letter < " " for letter in str(one)):
                raise ValueError(f"the path {str(one)!r} holds a control character; in TOML write a Windows path in "
                                 "single quotes ('C:\\new\\train') or with forward slashes")
            if choices and one is not None and one not in choices:
                raise ValueError(not_a_choice(one, choices))
        return value

    @classmethod
    def from_flags(cls, **values: Any) -> Self:
        """Build the section from flat flag names, whatever nested section they belong to.

        Raises ConfigError that lists every problem at once.
        """
        from common.config.parse import from_values

        return from_values(cls, values)


def flag(default: Any = None, help: str = "", *, group: str = "", choices: Iterable[str] | None = None,
         required: bool = False, alias: str | None = None, secret: bool = False, differs: str = "",
         **limits: Any) -> Any:
    """Field of a Section: one flag with the text that teaches it.

    `choices` limits a text to known names. `alias` is an old spelling that is accepted too. A `secret` is never
    printed. `differs` says how the behaviour differs from the trainer that users know under the same spelling; it is
    told in one line when the flag is used. `limits` go to pydantic (`ge`, `gt`, `le`, `lt`, `min_length` …).
    """
    extra: Any = {"group": group, "choices": list(choices) if choices is not None else None, "alias": alias,
                  "secret": secret, "differs": differs}
    first: Any = PydanticUndefined if required else default
    return pydantic.Field(first, description=help, json_schema_extra=extra, **limits)


@dataclass(frozen=True)
class FlagField:
    """One flag of a script, as found in the tree of sections."""

    name: str
    path: tuple[str, ...]
    """Names of the nested sections that lead to it."""
    annotation: Any
    info: FieldInfo
    group: str

    @property
    def help(self) -> str:
        """The flag's help text."""
        return self.info.description or ""

    @property
    def choices(self) -> list[Any] | None:
        """Allowed values, or None when the type alone decides."""
        if get_origin(self.annotation) is Literal:
            return list(get_args(self.annotation))
        choices: list[Any] | None = _extra(self.info, "choices")
        return choices

    @property
    def alias(self) -> str | None:
        """An old spelling that is accepted too."""
        alias: str | None = _extra(self.info, "alias")
        return alias

    @property
    def is_secret(self) -> bool:
        """Whether the value must not be printed."""
        return bool(_extra(self.info, "secret"))

    @property
    def differs(self) -> str:
        """How the behaviour differs from musubi-tuner's under the same spelling; empty when it does not."""
        return _extra(self.info, "differs") or ""

    @property
    def required(self) -> bool:
        """Whether the flag must be given."""
        return self.info.is_required()

    @property
    def is_switch(self) -> bool:
        """Whether the flag takes no value."""
        return self.annotation is bool

    @property
    def switch(self) -> tuple[str, str] | None:
        """("off", "on") where these are among its choices: then it may also be given as a switch is, alone on a command
        line, or as false and true in a file. None for all others."""
        return ("off", "on") if {"off", "on"} <= set(self.choices or ()) else None

    @property
    def count(self) -> int | None:
        """Number of values on the command line; None for one or more."""
        if self.is_switch:
            return 0
        if get_origin(self.annotation) is list:
            return None
        if get_origin(self.annotation) is tuple:
            inner = get_args(self.annotation)
            return None if Ellipsis in inner else len(inner)
        return 1


def flags_of(section: type[Section], path: tuple[str, ...] = ()) -> Iterator[FlagField]:
    """Every flag of `section` and of the sections inside it, in the order of declaration."""
    heading = (section.__doc__ or "").strip().split("\n")[0].rstrip(".")
    for name, info in section.model_fields.items():
        annotation = _without_none(info.annotation)
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from flags_of(annotation, (*path, name))
            continue
        field = FlagField(name, path, annotation, info, heading)
        group = _extra(info, "group")
        yield FlagField(name, path, annotation, info, group) if group else field


def _extra(info: FieldInfo, key: str) -> Any:
    """What `flag` noted beside pydantic's own settings; None for a field that was not made by it."""
    extra = info.json_schema_extra
    return extra.get(key) if isinstance(extra, dict) else None


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        inner = tuple(kind for kind in get_args(annotation) if kind is not type(None))
        return inner[0] if len(inner) == 1 else Union[inner]  # noqa: UP007
    return annotation


def not_a_choice(value: Any, choices: Iterable[Any]) -> str:
    """Sentence for a value outside its choices."""
    known = [str(choice) for choice in choices]
    return f"'{value}' is none of {', '.join(known)}{nearest(str(value), known)}."
