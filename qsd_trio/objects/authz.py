"""Authorization: which of the identities that TLS has verified may connect."""

from __future__ import annotations

import json
import os
import re
from abc import abstractmethod
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, final

from qsd_trio.errors import QmpError
from qsd_trio.objects.abc import UserCreatable, as_enum, as_str, user_creatable_object

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from qsd_trio.objects.abc import ObjectTable
    from qsd_trio.untyped import Json, Options

POLICIES = ("deny", "allow")
FORMATS = ("exact", "glob")


@final
class Rule(NamedTuple):
    """One line of an access list. ``format`` is None where the client left it out (then: exact)."""

    match: str
    policy: str
    format: str | None = None


@lru_cache(maxsize=256)
def _glob(pattern: str) -> re.Pattern[str]:
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.compile("".join(parts), re.DOTALL)


def decide(rules: Iterable[Rule], default: str, identity: str) -> bool:
    """Return whether ``identity`` is allowed: the first rule that matches decides, else ``default``.

    In a glob ``*`` stands for any text and ``?`` for one character; nothing else is special.
    """
    for rule in rules:
        if rule.format == "glob":
            matches = _glob(rule.match).fullmatch(identity) is not None
        else:
            matches = rule.match == identity
        if matches:
            return rule.policy == "allow"
    return default == "allow"


class Authz(UserCreatable):
    """An object that can be named as ``tls-authz``."""

    @abstractmethod
    def is_allowed(self, identity: str) -> bool:
        """Return whether the client that proved to be ``identity`` may go on."""


@user_creatable_object("authz-simple")
@final
class AuthzSimple(Authz):
    """Allow exactly one identity."""

    def __init__(self, id_: str, identity: str) -> None:
        self.id = id_
        self._identity = identity

    @classmethod
    def create(cls, options: Options) -> Self:
        """Make the object."""
        return cls(options.id, options.identity)

    def is_allowed(self, identity: str) -> bool:
        """Return whether ``identity`` is the one."""
        return identity == self._identity

    def get_property(self, name: str) -> Json:
        """Return ``identity``."""
        return self._identity

    async def set_property(self, name: str, value: Json) -> None:
        """Set ``identity``."""
        self._identity = as_str(name, value)


def _rules(value: Json, name: str) -> list[Rule]:
    """Make rules of a JSON list, with a visitor's errors."""
    if not isinstance(value, list):
        raise QmpError(f"Invalid parameter type for '{name}', expected: array")
    rules = []
    for index, item in enumerate(value):
        at = f"{name}[{index}]"
        if not isinstance(item, dict):
            raise QmpError(f"Invalid parameter type for '{at}', expected: object")
        for member in ("match", "policy"):
            if member not in item:
                raise QmpError(f"Parameter '{at}.{member}' is missing")
        match = as_str(f"{at}.match", item["match"])
        policy = as_enum("policy", item["policy"], POLICIES)
        given = item.get("format")
        format_ = as_enum("format", given, FORMATS) if "format" in item else None
        for member in item:
            if member not in ("match", "policy", "format"):
                raise QmpError(f"Parameter '{at}.{member}' is unexpected")
        rules.append(Rule(match, policy, format_))
    return rules


@user_creatable_object("authz-list")
@final
class AuthzList(Authz):
    """Allow or deny by a list of rules."""

    def __init__(self, id_: str, policy: str, rules: list[Rule]) -> None:
        self.id = id_
        self._policy = policy
        self._rules = rules

    @classmethod
    def create(cls, options: Options) -> Self:
        """Make the object; without rules and policy it denies everybody."""
        rules = [
            Rule(rule.match, rule.policy.value, rule.format and rule.format.value)
            for rule in options.rules or ()
        ]
        return cls(options.id, options.policy.value if options.policy else "deny", rules)

    def is_allowed(self, identity: str) -> bool:
        """Return what the first rule that matches says."""
        return decide(self._rules, self._policy, identity)

    def get_property(self, name: str) -> Json:
        """Return ``policy`` or ``rules``."""
        if name == "policy":
            return self._policy
        return [
            {key: value for key, value in rule._asdict().items() if value is not None}
            for rule in self._rules
        ]

    async def set_property(self, name: str, value: Json) -> None:
        """Set ``policy`` or ``rules``."""
        if name == "policy":
            self._policy = as_enum(name, value, POLICIES)
        else:
            self._rules = _rules(value, name)


# QAPI and QOM disagree about the name, so the real daemon can make none.
@user_creatable_object("authz-listfile", qom_name="authz-list-file")
@final
class AuthzListFile(Authz):
    """Allow or deny by a list of rules in a JSON file: ``{"policy": ..., "rules": [...]}``.

    With ``refresh`` a changed file is read again before the next decision; one that cannot be read then
    denies everybody.
    """

    def __init__(self, id_: str, filename: str, refresh: bool) -> None:
        self.id = id_
        self._filename = filename
        self._refresh = refresh
        self._policy = "deny"
        self._rules: list[Rule] = []
        self._version: tuple[int, int, int] | None = None

    @classmethod
    def create(cls, options: Options) -> Self:
        """Make the object."""
        return cls(options.id, options.filename, options.refresh is not False)

    async def complete(self, table: ObjectTable) -> None:
        """Read the file."""
        self._read()

    def _read(self) -> None:
        try:
            with open(self._filename, "rb") as file:
                status = os.fstat(file.fileno())
                text = file.read()
        except OSError as exc:
            raise QmpError(f"Unable to read '{self._filename}': {exc.strerror}") from None
        try:
            value = json.loads(text)
        except ValueError as exc:
            raise QmpError(f"Unable to parse '{self._filename}': {exc}") from None
        if not isinstance(value, dict):
            raise QmpError(f"File '{self._filename}' must contain a JSON object")
        rules = _rules(value.get("rules", []), "rules")
        self._policy = as_enum("policy", value.get("policy", "deny"), POLICIES)
        self._rules = rules
        self._version = self._version_of(status)

    @staticmethod
    def _version_of(status: os.stat_result) -> tuple[int, int, int]:
        return status.st_ino, status.st_mtime_ns, status.st_size

    def is_allowed(self, identity: str) -> bool:
        """Return what the first rule that matches says."""
        if self._refresh:
            try:
                if self._version_of(os.stat(self._filename)) != self._version:
                    self._read()
            except (OSError, QmpError):
                self._policy, self._rules, self._version = "deny", [], None
        return decide(self._rules, self._policy, identity)

    def get_property(self, name: str) -> Json:
        """Return ``filename`` or ``refresh``."""
        return self._filename if name == "filename" else self._refresh

    async def set_property(self, name: str, value: Json) -> None:
        """Refuse: the file is chosen when the object is made."""
        raise QmpError(f"Property '{name}' cannot be changed")
