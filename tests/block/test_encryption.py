"""block/encryption.py: passwords, batches, key slots that change, crashes meanwhile."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

import pytest

from qsd_trio.block import ciphering
from qsd_trio.block.ciphering import encrypted, read_decrypted
from qsd_trio.block.encryption import HeaderArea, LuksVolume, password
from qsd_trio.crypto import luks
from qsd_trio.crypto.luks import Header
from qsd_trio.errors import QmpError
from qsd_trio.iov import iov_fill
from qsd_trio.qapi import BlockdevAmendOptions
from qsd_trio.qapi.converter import from_qmp
from qsd_trio.testing.memory import FakeOpener, child_of, node_over
from qsd_trio.testing.recorder import RecordingDisk
from tests.block.secrets import secret, secrets
from tests.crypto.kit import volume
from tests.texts import refused


@functools.cache
def made() -> tuple[Header, bytes, bytes]:
    return volume()


def opener(**more: bytes) -> FakeOpener:
    return FakeOpener(objects=secrets(two=b"two", three=b"three", **more))


def area(disk: RecordingDisk) -> HeaderArea:
    return HeaderArea(child_of(node_over(disk)))


async def open_on(disk: RecordingDisk, key_secret: str = "s") -> LuksVolume:
    return await LuksVolume.open(area(disk), opener(), key_secret)


async def amend(found: LuksVolume, *, force: bool = False, **options: object) -> None:
    given = {name.replace("_", "-"): value for name, value in options.items()}
    typed = from_qmp(BlockdevAmendOptions, {"driver": "luks", **given})
    await found.amend(opener(), typed, force=force)


def active(found: LuksVolume) -> list[int]:
    return [index for index, slot in enumerate(found.header.slots) if slot.active]


# -- secrets -------------------------------------------------------------------------------------------


def test_passwords() -> None:
    objects = FakeOpener(objects={"s": secret(b"abc"), "bin": secret(b"\xff")})
    assert password(objects, "s") == b"abc"
    with refused("Parameter 'key-secret' is required for cipher"):
        password(objects, None)
    with refused("Parameter 'encrypt.key-secret' is required for cipher"):
        password(objects, None, prefix="encrypt.")
    with refused("No secret with id 'x'"):
        password(objects, "x")
    with refused("Data from secret s is not valid UTF-8"):
        password(objects, "bin")


# -- data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [512, 4096, 64 << 10, (64 << 10) + 512, 600 << 10])
async def test_there_and_back_inline_and_in_workers(length: int) -> None:
    cipher = (await open_on(RecordingDisk(made()[2]))).cipher
    plain = random.Random(length).randbytes(length)
    pieces = [memoryview(plain)[: length // 3], memoryview(plain)[length // 3 :]]
    found = await encrypted(cipher, pieces, 7)
    assert bytes(found) == cipher.encrypt(plain, 7)
    asked = []

    async def read(offset: int, iov: Sequence[memoryview]) -> None:
        asked.append(offset)
        iov_fill(iov, found)

    back = bytearray(length)
    await read_decrypted(cipher, read, 4096, 7, [memoryview(back)[:100], memoryview(back)[100:]])
    assert back == plain
    assert asked == [4096]


async def test_workers_get_what_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    cipher = (await open_on(RecordingDisk(made()[2]))).cipher
    calls = []

    class Pool:
        async def run(self, fn: object, data: memoryview, sector: int) -> bytes:
            calls.append((len(data), sector))
            return bytes(data)

        async def take_turn(self) -> None:
            calls.append("inline")

    monkeypatch.setattr(ciphering, "worker_pool", Pool)
    await encrypted(cipher, [memoryview(bytes(ciphering.INLINE))], 0)
    await encrypted(cipher, [memoryview(bytes(ciphering.BATCH + 512))], 3)
    assert calls == ["inline", (ciphering.BATCH, 3), (512, 3 + ciphering.BATCH // 512)]


# -- key slots -----------------------------------------------------------------------------------------


async def test_opening() -> None:
    header, _, data = made()
    found = await open_on(RecordingDisk(data))
    assert found.header == header
    assert found.cipher.encrypt(bytes(512), 0)
    with refused("Invalid password, cannot unlock any keyslot"):
        await open_on(RecordingDisk(data), "two")


async def test_an_area_has_an_end() -> None:
    child = child_of(node_over(RecordingDisk(made()[2])))
    with refused("Request for data outside of extension header"):
        await LuksVolume.open(HeaderArea(child, 0, 4096), opener(), "s")


async def test_life_of_key_slots() -> None:
    disk = RecordingDisk(made()[2])
    found = await open_on(disk)
    await amend(found, state="active", new_secret="two", iter_time=0)
    await amend(found, state="active", new_secret="three", keyslot=5, iter_time=0, secret="two")
    assert active(found) == [0, 1, 5]
    for id_ in ("s", "two", "three"):
        assert active(await open_on(disk, id_)) == [0, 1, 5]
    old = found.header.slots[1]
    material = slice(old.offset * 512, old.offset * 512 + found.header.material_length)
    before = disk.data[material]
    await amend(found, state="inactive", old_secret="two")
    assert active(found) == [0, 5]
    assert disk.data[material] != before
    with refused("Invalid password, cannot unlock any keyslot"):
        await open_on(disk, "two")
    await amend(found, state="inactive", keyslot=0)
    assert active(await open_on(disk, "three")) == [5]
    with refused("Invalid password, cannot unlock any keyslot"):  # "s" is what it was opened with
        await amend(found, state="active", new_secret="two", iter_time=0)
    await amend(found, state="inactive", keyslot=5, force=True)
    with refused("Invalid password, cannot unlock any keyslot"):
        await open_on(disk, "three")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"state": "active"}, "'new-secret' is required to activate a keyslot"),
        (
            {"state": "active", "new_secret": "two", "old_secret": "s"},
            "'old-secret' must not be given when activating keyslots",
        ),
        (
            {"state": "active", "new_secret": "two", "keyslot": -1},
            "Invalid keyslot 4294967295 specified, must be between 0 and 7",
        ),
        (
            {"state": "active", "new_secret": "two", "keyslot": 0},
            "Refusing to overwrite active keyslot 0 - please erase it first",
        ),
        ({"state": "active", "new_secret": "nobody"}, "No secret with id 'nobody'"),
        (
            {"state": "inactive", "new_secret": "two"},
            "'new-secret' must not be given when erasing keyslots",
        ),
        (
            {"state": "inactive", "keyslot": 0, "iter_time": 1},
            "'iter-time' must not be given when erasing keyslots",
        ),
        (
            {"state": "inactive", "keyslot": -1},
            "Invalid keyslot -1 specified, must be between 0 and 7",
        ),
        ({"state": "inactive", "keyslot": 3}, "Given keyslot 3 is already erased (inactive) "),
        (
            {"state": "inactive", "keyslot": 0, "old_secret": "two"},
            "Given keyslot 0 doesn't contain the given old password for erase operation",
        ),
        (
            {"state": "inactive", "old_secret": "two"},
            "No keyslots match given (old) password for erase operation",
        ),
        (
            {"state": "inactive", "keyslot": 0},
            "Attempt to erase the only active keyslot 0 which will erase all the data in the image"
            " irreversibly - refusing operation",
        ),
        (
            {"state": "inactive", "old_secret": "s"},
            "All the active keyslots match the (old) password that was given and erasing them will"
            " erase all the data in the image irreversibly - refusing operation",
        ),
    ],
)
async def test_refusals_change_nothing(options: dict[str, object], text: str) -> None:
    disk = RecordingDisk(made()[2])
    found = await open_on(disk)
    with refused(text):
        await amend(found, **options)
    assert disk.data == made()[2]
    assert found.header == made()[0]


async def test_a_full_header_takes_no_more() -> None:
    found = await open_on(RecordingDisk(made()[2]))
    slot = found.header.slots[0]
    for index in range(1, luks.SLOTS):
        copy = luks.KeySlot(active=True, iterations=1, offset=found.header.slots[index].offset)
        found.header = found.header.with_slot(index, copy)
    with refused("Can't add a keyslot - all keyslots are in use"):
        await amend(found, state="active", new_secret="two")
    assert slot.active


async def opens(disk: RecordingDisk, key_secret: str) -> bool:
    """Say whether a password opens a volume whose header is sound."""
    try:
        await open_on(disk, key_secret)
    except QmpError as exc:
        if str(exc) != "Invalid password, cannot unlock any keyslot":
            raise
        return False
    return True


@pytest.mark.parametrize("index", [1, 6], ids=["slot in a sector", "slot across two sectors"])
async def test_crashes_leave_the_other_passwords(index: int) -> None:
    """After each write, torn or not: the header is sound, password ``s`` opens; what was finished holds."""
    disk = RecordingDisk(made()[2])
    found = await open_on(disk)
    await amend(found, state="active", new_secret="two", keyslot=index, iter_time=0)
    added = disk.journal.now()
    await amend(found, state="inactive", keyslot=index)
    erased = disk.journal.now()
    rng = random.Random(index)
    seen = set()
    for crash in disk.journal.crashes(rng, 12):
        left = RecordingDisk(crash.images[0])
        await open_on(left)
        now_open = await opens(left, "two")
        seen.add(now_open)
        assert not now_open or crash.position <= erased
    assert seen == {True, False}
    assert added < erased
    after = RecordingDisk(disk.data)
    with refused("Invalid password, cannot unlock any keyslot"):
        await open_on(after, "two")
