"""Secrets for tests of encrypted images."""

from __future__ import annotations

from qsd_trio.objects.secret import Secret
from qsd_trio.qapi import ObjectOptions
from qsd_trio.qapi.converter import from_qmp
from tests.crypto.kit import PASSWORD


def secret(value: bytes) -> Secret:
    """Return a secret object that holds ``value``."""
    options = {"qom-type": "secret", "id": "s", "data": "not loaded"}
    made = Secret.create(from_qmp(ObjectOptions, options))
    made.value = value
    return made


def secrets(**more: bytes) -> dict[str, object]:
    """Return ``s``, the password of the volumes in tests/crypto/kit.py, and others."""
    return {"s": secret(PASSWORD)} | {name: secret(value) for name, value in more.items()}
