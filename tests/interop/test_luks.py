"""LUKS against QEMU's programs: texts, queries, images of each cipher to and fro, key slots."""

from __future__ import annotations

import json
import random
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import qsd_trio
from qsd_trio.block.abc import Perm
from tests.oracle import Wait, compare, qmp
from tests.peers import requires

pytestmark = requires("qemu-storage-daemon", "qemu-img", "qemu-io")

MIB = 1 << 20
SECRET = ("--object", "secret,id=s,data=abc")
SECRETS = {"s": "abc", "two": "second", "three": "third"}
FILE = {"driver": "file", "filename": "image"}
IGNORED = ["actual-size", "iters", "master-key-iters", "uuid"]
#: What QEMU says now and then when it is to find out how fast the machine is.
UNLUCKY = "Unable to get accurate CPU usage"


def run(*args: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(arg) for arg in args], cwd=cwd, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def qemu_create(name: str, cwd: Path, *options: str, size: int = MIB) -> None:
    """Have qemu-img make a volume; with few iterations it sometimes cannot measure its own speed."""
    given = ",".join(["key-secret=s", "iter-time=10", *options])
    for _ in range(20):
        done = subprocess.run(
            ["qemu-img", "create", "-q", *SECRET, "-f", "luks", "-o", given, name, str(size)],
            cwd=cwd, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        if UNLUCKY not in done.stderr:
            break
    assert done.returncode == 0, done.stderr


def image(name: str) -> str:
    """Name a volume to qemu-img and qemu-io."""
    return f"driver=luks,key-secret=s,file.driver=file,file.filename={name}"


def add_secrets() -> list[dict[str, Any]]:
    objects = [
        qmp("object-add", qom_type="secret", id=name, data=data) for name, data in SECRETS.items()
    ]
    return [*objects, qmp("object-add", qom_type="secret", id="bin", data="//79", format="base64")]


def add(name: str = "n", **options: Any) -> dict[str, Any]:
    given = {"file": FILE, "key-secret": "s", **options}
    return qmp("blockdev-add", driver="luks", node_name=name, **given)


def compare_patiently(steps: list[Any]) -> None:
    """Compare on a volume of qemu-img's, again if the real daemon was unlucky (see UNLUCKY)."""
    for attempt in range(4):
        try:
            compare([], steps, setup=lambda path: qemu_create("image", path), ignore=IGNORED)
        except TimeoutError:  # fewer events than a success has
            if attempt == 3:
                raise
        except AssertionError as exc:
            if attempt == 3 or UNLUCKY not in str(exc):
                raise
        else:
            return


class Jobs:
    """Steps that run a job to its end; events are counted, so all jobs must be made here."""

    def __init__(self) -> None:
        self.events = 0

    def job(self, command: str, *, works: bool, **arguments: Any) -> list[Any]:
        steps = [
            qmp(command, job_id="j", **arguments),
            Wait("JOB_STATUS_CHANGE", skip=self.events + 3 + works),
            qmp("query-jobs"),
            qmp("job-dismiss", id="j"),
        ]
        self.events += 5 + works
        return steps


# -- texts and queries ---------------------------------------------------------------------------------

# (offset, struct format or None for bytes, values) of header fields; slot 0 is at 208, slot 1 at 256
FIELDS: list[tuple[int, str | None, list[Any]]] = [
    (0, None, [b"X"]),
    (6, ">H", [0, 2]),
    (8, None, [b"a" * 32, b"des\0", b"cast5\0", bytes(32)]),
    (40, None, [b"a" * 32, b"xts\0", b"xts-plain64:sha256\0", b"cbc-essiv\0", b"cbc-essiv:foo\0",
                b"foo-plain\0", b"cbc-foo\0", b"xts-benbi\0", b"-\0", b"xts-essiv\0"]),
    (72, None, [b"a" * 32, b"foo\0", b"SHA256\0", b"sha1\0", bytes(32)]),
    (104, ">I", [0, 7, 8, 4039, 4040, 8191, 8192, 2**31, 2**32 - 1]),
    (108, ">I", [0, 1, 16, 31, 32, 33, 63, 65, 128]),
    (112, None, [b"digest"]),
    (164, ">I", [0, 1]),
    (208, ">I", [0, 0xDEAD, 2**32 - 1]),
    (212, ">I", [0, 1]),
    (248, ">I", [0, 7, 9, 511, 512, 4039, 4040, 2**31]),
    (252, ">I", [0, 3999, 2**32 - 1]),
    (256, ">I", [1, 0x00AC71F3]),
    (260, ">I", [0]),
    (296, ">I", [0, 8, 511, 513, 4039]),
    (300, ">I", [0]),
]  # fmt: skip


def test_header_fields() -> None:
    """Each field at and around its limits: the same text, or the same success."""
    names = [f"{at}-{number}" for at, _, values in FIELDS for number in range(len(values))]

    def setup(directory: Path) -> None:
        qemu_create("good", directory, size=2 * MIB)
        good = (directory / "good").read_bytes()
        for at, form, values in FIELDS:
            for number, value in enumerate(values):
                data = bytearray(good)
                new = value if form is None else struct.pack(form, value)
                data[at : at + len(new)] = new
                (directory / f"{at}-{number}").write_bytes(data)
        for length in (0, 6, 592, 4096, 2068479, 2068480):
            (directory / f"short-{length}").write_bytes(good[:length])

    steps: list[Any] = [qmp("object-add", qom_type="secret", id="s", data="abc")]
    for name in [*names, *(f"short-{n}" for n in (0, 6, 592, 4096, 2068479, 2068480))]:
        steps += [
            add(file={"driver": "file", "filename": name}, read_only=True),
            qmp("blockdev-del", node_name="n"),
        ]
    compare([], steps, setup=setup)


def test_opening_and_queries() -> None:
    steps: list[Any] = [*add_secrets(), qmp("object-add", qom_type="throttle-group", id="group")]
    for secret in ("nobody", "group", "bin", "two"):
        steps.append(add(key_secret=secret, **{"key-secret": secret}))
    reopened = {"driver": "luks", "node-name": "n", "file": FILE}
    steps += [
        qmp("blockdev-add", driver="luks", node_name="n", file=FILE),
        add(file={"driver": "file", "filename": "raw"}),
        add(),
        qmp("query-named-block-nodes"),
        qmp("query-blockstats", query_nodes=True),
        qmp("x-debug-query-block-graph"),
        qmp("blockdev-reopen", options=[{**reopened, "key-secret": "two"}]),
        qmp("blockdev-reopen", options=[{**reopened, "key-secret": "s", "read-only": True}]),
        qmp("x-debug-query-block-graph"),
        qmp("blockdev-reopen", options=[{**reopened, "key-secret": "s"}]),
        qmp("block_resize", node_name="n", size=4 * MIB),
        qmp("block_resize", node_name="n", size=MIB + 100),
        qmp("block_resize", node_name="n", size=2**63 - 2**30),
        qmp("query-named-block-nodes"),
        qmp("blockdev-add", driver="raw", node_name="above", file="n"),
        qmp("query-named-block-nodes"),
        qmp("object-del", id="s"),
        qmp("nbd-server-start", addr={"type": "unix", "data": {"path": "nbd"}}),
        qmp("block-export-add", type="nbd", id="e", node_name="n", writable=True),
        qmp("x-debug-query-block-graph"),
    ]

    def setup(directory: Path) -> None:
        qemu_create("image", directory)
        (directory / "raw").write_bytes(bytes(MIB))

    compare([], steps, setup=setup, ignore=IGNORED)


#: (options of x-blockdev-amend, force, whether the job succeeds), one after the other
AMEND: list[tuple[dict[str, Any], bool, bool]] = [
    ({"state": "active"}, False, False),
    ({"state": "active", "new-secret": "nobody"}, False, False),
    ({"state": "active", "new-secret": "two", "old-secret": "s"}, False, False),
    ({"state": "active", "new-secret": "two", "keyslot": 8}, False, False),
    ({"state": "active", "new-secret": "two", "keyslot": -1}, False, False),
    ({"state": "active", "new-secret": "two", "keyslot": 0}, False, False),
    ({"state": "active", "new-secret": "two", "secret": "three"}, False, False),
    ({"state": "active", "new-secret": "two", "keyslot": 5, "iter-time": 0}, False, True),
    ({"state": "active", "new-secret": "three", "iter-time": 0, "secret": "two"}, False, True),
    ({"state": "active", "new-secret": "three", "iter-time": 0}, False, True),
    ({"state": "inactive"}, False, False),
    ({"state": "inactive", "new-secret": "two"}, False, False),
    ({"state": "inactive", "old-secret": "two", "iter-time": 3}, False, False),
    ({"state": "inactive", "old-secret": "nobody"}, False, False),
    ({"state": "inactive", "keyslot": 9}, False, False),
    ({"state": "inactive", "keyslot": -1}, False, False),
    ({"state": "inactive", "keyslot": 5, "old-secret": "three"}, False, False),
    ({"state": "inactive", "keyslot": 5, "old-secret": "two"}, False, True),
    ({"state": "inactive", "keyslot": 5}, False, False),
    ({"state": "inactive", "keyslot": 5}, True, True),
    ({"state": "inactive", "old-secret": "three"}, False, True),
    ({"state": "inactive", "old-secret": "three"}, False, False),
    ({"state": "inactive", "keyslot": 0}, False, False),
    ({"state": "inactive", "old-secret": "s"}, False, False),
    ({"state": "active", "new-secret": "two", "keyslot": 0, "iter-time": 0}, True, True),
    ({"state": "active", "new-secret": "s", "iter-time": 0}, False, False),
    ({"state": "inactive", "keyslot": 0}, True, True),
    ({"state": "inactive", "old-secret": "two"}, True, False),
]


def test_amending() -> None:
    jobs = Jobs()
    steps: list[Any] = [*add_secrets(), add()]
    for options, force, works in AMEND:
        options = {"driver": "luks", **options}
        steps += jobs.job(
            "x-blockdev-amend", works=works, node_name="n", options=options, force=force
        )
        steps.append(qmp("query-named-block-nodes"))
    compare_patiently(steps)


def test_amending_what_cannot_be() -> None:
    """Refused at once: other drivers, read-only nodes, nodes whose header others read."""
    active = {"driver": "luks", "state": "active", "new-secret": "two", "iter-time": 0}

    def amend(node: str, options: dict[str, Any], job: str = "j") -> dict[str, Any]:
        return qmp("x-blockdev-amend", job_id=job, node_name=node, options=options)

    steps = [
        *add_secrets(),
        qmp("blockdev-add", driver="file", node_name="f", filename="image"),
        qmp("blockdev-add", driver="raw", node_name="r", file="f"),
        qmp("blockdev-add", driver="luks", node_name="n", file="f", key_secret="s"),
        amend("nobody", active),
        amend("n", {"driver": "qcow2"}),
        amend("n", {"driver": "luks"}),
        amend("n", {"driver": "luks", "state": "odd"}),
        amend("r", {"driver": "raw"}),
        amend("f", {"driver": "file"}),
        amend("n", active, job="1st"),
        qmp("blockdev-add", driver="luks", node_name="m", file="f", key_secret="s"),
        amend("n", active),
        qmp("blockdev-del", node_name="m"),
        qmp("blockdev-del", node_name="n"),
        add(read_only=True),
        amend("n", active),
    ]
    compare([], steps, setup=lambda path: qemu_create("image", path), ignore=IGNORED)


def test_what_cannot_be_created() -> None:
    """The same job errors. (What can be is compared below: here the real daemon might be unlucky.)"""
    jobs = Jobs()
    steps: list[Any] = add_secrets()
    steps.append(qmp("blockdev-add", driver="file", node_name="f", filename="image"))
    for options in [
        {},
        {"key-secret": "nobody"},
        {"key-secret": "bin"},
        {"cipher-alg": "des"},
        {"cipher-alg": "3des"},
        {"cipher-alg": "cast5-128", "cipher-mode": "xts"},
        {"cipher-alg": "cast5-128", "cipher-mode": "cbc", "ivgen-alg": "essiv"},
        {"cipher-mode": "cbc", "ivgen-alg": "essiv", "ivgen-hash-alg": "sha512"},
    ]:
        given: dict[str, Any] = {"driver": "luks", "file": "f", "size": MIB, **options}
        if options and "key-secret" not in options:
            given["key-secret"] = "s"
        steps += jobs.job("blockdev-create", works=False, options=given)
    compare([], steps, setup=lambda path: (path / "image").write_bytes(b""))


# -- data ----------------------------------------------------------------------------------------------

CIPHERS = [
    {},
    {"cipher-alg": "aes-128"},
    {"cipher-mode": "xts", "ivgen-alg": "plain"},
    {"cipher-mode": "xts", "ivgen-alg": "essiv"},
    {"cipher-mode": "cbc", "ivgen-alg": "essiv"},
    {"cipher-alg": "aes-128", "cipher-mode": "cbc", "ivgen-alg": "essiv", "ivgen-hash-alg": "md5"},
    {"cipher-mode": "cbc", "ivgen-alg": "plain", "ivgen-hash-alg": "sha1"},
    {"cipher-mode": "ctr", "hash-alg": "sha384"},
    {"cipher-mode": "ecb", "hash-alg": "sha224"},
    {"cipher-alg": "cast5-128", "cipher-mode": "cbc", "hash-alg": "ripemd160"},
    {"cipher-alg": "cast5-128", "cipher-mode": "ecb", "hash-alg": "md5"},
    {
        "cipher-alg": "cast5-128",
        "cipher-mode": "cbc",
        "ivgen-alg": "essiv",
        "ivgen-hash-alg": "md5",
    },
    {"hash-alg": "sha1"},
    {"hash-alg": "sha512"},
]


@asynccontextmanager
async def a_daemon() -> AsyncIterator[qsd_trio.EmbeddedDaemon]:
    async with qsd_trio.open_daemon() as daemon:
        for name, data in SECRETS.items():
            await daemon.qmp("object-add", {"qom-type": "secret", "id": name, "data": data})
        yield daemon


async def open_image(daemon: qsd_trio.EmbeddedDaemon, path: Path, key_secret: str = "s") -> None:
    file = {"driver": "file", "filename": str(path)}
    options = {"driver": "luks", "node-name": "n", "key-secret": key_secret, "file": file}
    await daemon.qmp("blockdev-add", options)


async def run_job(daemon: qsd_trio.EmbeddedDaemon, command: str, arguments: dict[str, Any]) -> None:
    """Run a job to its end, which must be a good one."""
    with daemon.events() as events:
        await daemon.qmp(command, {"job-id": "j", **arguments})
        async for event in events:
            if event.name == "JOB_STATUS_CHANGE" and event.data["status"] == "concluded":
                break
    (job,) = await daemon.qmp("query-jobs")
    assert "error" not in job, job["error"]
    await daemon.qmp("job-dismiss", {"id": "j"})


async def work(daemon: qsd_trio.EmbeddedDaemon, model: bytearray, rng: random.Random) -> None:
    """Find ``model`` in node ``n``, and write to both."""
    user = await daemon.tables.graph.open_backend("n", Perm.CONSISTENT_READ | Perm.WRITE, Perm.ALL)
    found = bytearray(len(model))
    await user.preadv(0, [memoryview(found)])
    assert found == model
    for _ in range(12):
        offset = rng.randrange(len(model))
        data = rng.randbytes(min(rng.choice([1, 512, 4096, 5000, 200_000]), len(model) - offset))
        await user.pwritev(offset, [memoryview(data)])
        model[offset : offset + len(data)] = data
    await user.aclose()


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


async def create(path: Path, options: dict[str, Any]) -> None:
    make_empty(path)
    async with a_daemon() as daemon:
        file = {"driver": "file", "node-name": "f", "filename": str(path)}
        await daemon.qmp("blockdev-add", file)
        base = {"driver": "luks", "file": "f", "size": MIB, "key-secret": "s", "iter-time": 0}
        await run_job(daemon, "blockdev-create", {"options": base | options})


async def use_in_turns(path: Path, rng: random.Random) -> None:
    """Write by qemu-io, read and write by us, compare by qemu-img."""
    model = bytearray(b"\x5a" * MIB)
    volume, write = image(path.name), f"write -P 0x5a 0 {MIB}"
    run("qemu-io", *SECRET, "--image-opts", volume, "-c", write, cwd=path.parent)
    async with a_daemon() as daemon:
        await open_image(daemon, path)
        await work(daemon, model, rng)
    (path.parent / "model").write_bytes(model)
    raw = "driver=raw,file.driver=file,file.filename=model"
    run("qemu-img", "compare", *SECRET, "--image-opts", volume, raw, cwd=path.parent)


def information(path: Path) -> Any:
    """Return what qemu-img says of a volume, without what chance decides."""
    found = run("qemu-img", "info", "--output=json", *SECRET, "--image-opts", image(path.name),
                cwd=path.parent)  # fmt: skip
    data = json.loads(found)["format-specific"]["data"]
    for slot in data["slots"]:
        slot.pop("iters", None)
    return {name: value for name, value in data.items() if name not in IGNORED}


def name_of(cipher: dict[str, str]) -> str:
    return "-".join(cipher.values()) or "default"


@pytest.mark.parametrize("cipher", CIPHERS, ids=name_of)
async def test_volumes_of_ours(cipher: dict[str, str], tmp_path: Path) -> None:
    """QEMU reads and writes what we create, of each cipher, mode, vector and hash that both can do."""
    await create(tmp_path / "ours", cipher)
    await use_in_turns(tmp_path / "ours", random.Random(str(cipher)))


@pytest.mark.parametrize("cipher", [CIPHERS[0], CIPHERS[4], CIPHERS[9]], ids=name_of)
async def test_volumes_of_theirs(cipher: dict[str, str], tmp_path: Path) -> None:
    """We read and write what qemu-img creates; what we create is just like it."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    qemu_create("theirs", tmp_path, *(f"{name}={value}" for name, value in cipher.items()))
    await create(ours, cipher)
    assert information(ours) == information(theirs)
    assert ours.stat().st_size == theirs.stat().st_size
    await use_in_turns(theirs, random.Random(str(cipher)))


@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({"size": 0}, 2068480),
        ({"size": 1000}, 2069480),
        ({"preallocation": "metadata"}, 2068480 + MIB),
        ({"preallocation": "falloc"}, 2068480 + MIB),
        ({"preallocation": "full"}, 2068480 + MIB),
    ],
    ids=str,
)
async def test_lengths_of_new_volumes(options: dict[str, Any], length: int, tmp_path: Path) -> None:
    path = tmp_path / "ours"
    await create(path, options)
    status = path.stat()
    assert status.st_size == length
    assert (status.st_blocks * 512 >= MIB) == (options.get("preallocation") in ("falloc", "full"))
    assert information(path)["payload-offset"] == 2068480


async def test_key_slots_of_both(tmp_path: Path) -> None:
    """What one side puts into a key slot, the other opens, and takes out."""
    qemu_create("image", tmp_path)
    more = [
        arg
        for name in ("two", "three")
        for arg in ("--object", f"secret,id={name},data={SECRETS[name]}")
    ]
    path = tmp_path / "image"

    async def amend(key_secret: str, **options: Any) -> None:
        async with a_daemon() as daemon:
            await open_image(daemon, path, key_secret)
            arguments = {"node-name": "n", "options": {"driver": "luks", **options}}
            await run_job(daemon, "x-blockdev-amend", arguments)

    def qemu_amend(key_secret: str, options: str) -> None:
        named = image("image").replace("key-secret=s", f"key-secret={key_secret}")
        run("qemu-img", "amend", *SECRET, *more, "--image-opts", "-o", options, named, cwd=tmp_path)

    await amend("s", state="active", **{"new-secret": "two", "iter-time": 0})
    qemu_amend("two", "state=inactive,old-secret=s")
    await amend("two", state="active", keyslot=7, **{"new-secret": "three", "iter-time": 0})
    qemu_amend("three", "state=inactive,keyslot=1")
    with pytest.raises(AssertionError, match="Invalid password, cannot unlock any keyslot"):
        qemu_amend("two", "state=inactive,keyslot=1")
    qemu_amend("three", "state=active,new-secret=s,iter-time=10,keyslot=1")
    await amend("s", state="inactive", **{"old-secret": "three"})
    with pytest.raises(AssertionError, match="Invalid password, cannot unlock any keyslot"):
        qemu_amend("three", "state=inactive,keyslot=0")
