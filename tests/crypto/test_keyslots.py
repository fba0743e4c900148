"""crypto/keyslots.py, pbkdf.py, antiforensic.py."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd_trio.crypto import antiforensic, keyslots, pbkdf
from qsd_trio.crypto.algorithms import spec
from tests.crypto.kit import PASSWORD, material_of, volume
from tests.texts import refused


@pytest.mark.parametrize(
    ("cipher", "hash_"),
    [
        (("aes-128", "xts", "plain64", None), "sha256"),
        (("aes-128", "cbc", "essiv", "sha256"), "sha1"),
        (("aes-192", "cbc", "plain64", None), "ripemd160"),  # not whole sectors of key material
    ],
    ids=str,
)
def test_a_slot_gives_the_key_to_its_password_alone(
    cipher: tuple[str, str, str, str | None], hash_: str
) -> None:
    header, key, data = volume(spec(*cipher), hash_)
    material = material_of(data, header, 0)
    assert keyslots.unlock(header, 0, material, PASSWORD) == key
    assert keyslots.unlock(header, 0, material, PASSWORD + b"!") is None
    assert keyslots.unlock(header, 0, bytes(len(material)), PASSWORD) is None


@given(st.binary(min_size=1, max_size=70), st.integers(2, 9), st.sampled_from(["sha1", "sha512"]))
def test_key_material_gives_the_key_back(key: bytes, stripes: int, hash_: str) -> None:
    material = antiforensic.split(key, stripes, hash_)
    assert len(material) == stripes * len(key)
    assert antiforensic.merge(material, stripes, hash_) == key


def test_every_stripe_is_needed() -> None:
    key = bytes(range(32))
    material = antiforensic.split(key, 8, "sha256")
    for stripe in range(8):
        broken = bytearray(material)
        broken[stripe * 32] ^= 1
        assert antiforensic.merge(bytes(broken), 8, "sha256") != key


def test_more_time_is_more_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pbkdf, "iterations_per_second", lambda hash_, length: 1_000_000)

    def iterations(milliseconds: int, share: int = 1) -> int:
        return pbkdf.iterations_for("sha1", 20, milliseconds, share=share, least=1000)

    assert [iterations(ms) for ms in (0, 1, 2000)] == [1000, 1000, 2_000_000]
    assert iterations(2000, share=8) == 250_000
    with refused(
        "PBKDF iterations 5000000000 larger than 4294967295: Numerical result out of range"
    ):
        iterations(5_000_000)
    with refused("PBKDF iterations 1000000 too large to scale: Numerical result out of range"):
        iterations(-1)


def test_the_measurement_counts_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves by a millisecond for 1,000 iterations: a million in a second."""
    done = itertools.count()
    spent = [0.0]

    def derive(hash_: str, password: bytes, salt: bytes, iterations: int, length: int) -> bytes:
        next(done)
        spent[0] += iterations / 1_000_000
        return bytes(length)

    monkeypatch.setattr(pbkdf, "derive", derive)
    monkeypatch.setattr("time.thread_time", lambda: spent[0])
    assert pbkdf.iterations_per_second("sha256", 32) == pytest.approx(1_000_000, rel=0.01)
    assert next(done) > 1  # one run was too short to tell
