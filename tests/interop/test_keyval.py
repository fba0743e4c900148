"""keyval, QemuOpts and sizes: what the C daemon says to a text on its command line, we say."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from qsd_trio.errors import QmpError
from qsd_trio.qapi import BlockdevOptions, BlockExportOptions, ObjectOptions
from qsd_trio.qapi.keyval import parse_option
from qsd_trio.qapi.qemuopts import OptsError, parse_opts
from tests.peers import requires

LONG = "a" * 127
EXPORT = "type=vhost-user-blk,id=a,node-name=b,addr.type=unix,addr.path=x,"
MEMORY = "memory-backend-ram,id=a,"

# All wrong, so that the daemon stops at once.
BLOCKDEV = [
    "", ",", "null-co,,", "null-co,,x", "null-co,=x", "null-co,1=x", "null-co,a b=x",
    "null-co,node-name", "null-co,node-name,", "null-co,a.=x", "null-co,.a=x", "null-co,a..b=x",
    "null-co,a.b.=x", "null-co,help", "help", "?", "null-co,?", "null-co,a.0=x,a.b=y",
    "null-co,a.0=x,a.2=y", "null-co,a.1=x", "null-co,a.0.b=x,a.0=y", "null-co,0=x",
    "null-co,a.01=x", "null-co,a.0=x,a.00=y", "null-co,a.0=x,a.00=y,a.2=z",
    "null-co,a.99999999999=x", f"null-co,{LONG}=x", f"null-co,a{LONG}=x", f"null-co,z.a{LONG}=x",
    "null-co,_x=1", "null-co,__x_y=1", "null-co,__com.foo_y=1", "null-co,__com.foo_y.a=1",
    "driver=null-co,driver.x=1", "driver.x=1,driver=null-co", "null-co,node-name=a=b,zz=1",
    "null-co,a=1,a.b=2", "null-co,a.b=1,a=2", "null-co,a.b=1,a.0=2", "null-co,a.b.0=1,a.b.c=2",
    "null-co,a.b.1=1", "null-co,a.0.0=1,a.0.2=1", "null-co,é=1", "null-co,a:b=1", "x=y,help",
    "null-co,help=on", "null-co,a.help", "null-co,-a=1", "null-co,a-=1", "driver=null-co,,",
    "null-co=x", "null-co.x=1", "a.b", "null,co", "qcow2,file.driver=file",
    "qcow2,file.driver=file,file.filename.x=1", "qcow2,file.driver=file,file.filename=1,file.z.x=1",
    "qcow2,file=x,file.driver=file", "quorum,children.0=a,children.1.driver=file",
    "quorum,vote-threshold=a,children.0=a", "quorum,vote-threshold=1,children=a",
    "qcow2,file=a,backing.0=b", "file,filename=x,locking=maybe", "file,filename=x,cache.direct=si",
    "file,filename=x,cache=on", "file,filename=x,read-only=ON", "file,filename=x,read-only=",
    "file,filename=x,read-only.x=on", "file,filename=x,aio-max-batch=x", "blkdebug,image=a,set-state=x",
    "blkdebug,image=a,inject-error.0.event=foo", "blkdebug,image=a,inject-error.0.errno=x",
    "blkdebug,image=a,max-transfer=99999999999,zz=1", "blkdebug,image=a,max-transfer=-1,zz=1",
    *[
        f"null-co,{name}={value},zz=1"
        for name in ("size", "latency-ns")
        for value in ("1", " 1", "+1", "-1", "- 1", "010", "09", "0x1f", "0xg", "1a", "", "0x",
                      "18446744073709551615", "18446744073709551616", "-18446744073709551615",
                      "-9223372036854775809", "1 ", "1k", "1e3", "9" * 30)
    ],
]  # fmt: skip
SIZES = (
    "1", "1.5k", "1.5", "1.5b", ".5k", "1.k", "0x10", "0x10b", "0x1.8k", "1e3", "1e3k", " 1k", "+1k", "-0", "-1",
    "16E", "15.9E", "18446744073709551615", "18446744073709551616", "1kb", "1KiB", "", "0b", "1.0", "1.0b", "0.1k",
    "0x", "1e", "1E", "1e1", "010", "1K", "1m", "1G", "1T", "1P", "1x", "k", "9" * 40,
)  # fmt: skip
EXPORTS = [f"{EXPORT}logical-block-size={size},zz=1" for size in SIZES]
EXPORTS += [f"{EXPORT}num-queues={count},zz=1" for count in ("1k", "99999", "-1", "65535", "0x10")]
OBJECTS = [
    f"{MEMORY}size=1k,host-nodes.0=5,host-nodes.1=a",
    f"{MEMORY}size=1k,host-nodes=5",
    f"{MEMORY}size=1k,host-nodes.0.b=5",
    f"{MEMORY}size=1k,host-nodes.1=5",
    f"{MEMORY}size=1k,host-nodes.0=70000",
    f"{MEMORY}size=1k,policy=maybe",
    f"{MEMORY}size=1k,policy.x=maybe",
    "secret,id=a,format=x",
    "qom-type=secret",
]
CHARDEV = [
    "socket,id=a,server=maybe,zz=1", "socket,id=a,zz=1,server=maybe", "socket,id=a,to=x",
    "socket,id=a,to=-1,zz", "socket,id=a,to=1k", "socket,id=a,to=99999999999999999999999",
    "ringbuf,id=a,size=1x", "ringbuf,id=a,size=-1", "ringbuf,id=a,size=99999999999999999999999999",
    "null,id=", "null,id=1a", "null,id=a,,b=c", "null,id=a,=x", "null,id=a,foo", "null,id=a,nofoo",
    "null,id=a,help=on", "null,id=a,nomux,zz=1", "null,id,zz=1", "null,noid,zz=1", "null,id=a b",
    "null,id=a,on", "null,id=a,delay,zz=1", "null,id=a,nodelay,zz=1", "null,id=a,wait=,zz=1",
    "null,id=a,path=x,,y,zz=1", "null,id=a,mux=yes,mux=n,mux=TRUE",
]  # fmt: skip


def real(option: str, text: str) -> str:
    """Return what the daemon prints, without the name of the program and the option in front."""
    argv = ["qemu-storage-daemon", option, text]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    return done.stderr.replace(f"qemu-storage-daemon: {option} {text}: ", "")


def all_real(option: str, texts: list[str]) -> list[str]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda text: real(option, text), texts))


def ours(kind: type[object], implied: str, text: str) -> str:
    def no_json(text: str) -> object:
        raise AssertionError(text)

    try:
        parse_option(kind, text, implied, no_json)
    except QmpError as error:
        return f"{error}\n"
    return "accepted"


@requires("qemu-storage-daemon")
@pytest.mark.parametrize(
    ("option", "kind", "implied", "texts"),
    [
        ("--blockdev", BlockdevOptions, "driver", BLOCKDEV),
        ("--export", BlockExportOptions, "type", EXPORTS),
        ("--object", ObjectOptions, "qom-type", OBJECTS),
    ],
)
def test_keyval(option: str, kind: type[object], implied: str, texts: list[str]) -> None:
    theirs = dict(zip(texts, all_real(option, texts), strict=True))
    assert {text: ours(kind, implied, text) for text in texts} == theirs


@requires("qemu-storage-daemon")
def test_chardev_options() -> None:
    theirs = dict(zip(CHARDEV, all_real("--chardev", CHARDEV), strict=True))
    assert {text: ours_opts(text) for text in CHARDEV} == theirs


def ours_opts(text: str) -> str:
    printed = []
    try:
        parse_opts(text, "backend", warn=lambda m, hint: printed.extend([f"warning: {m}", hint]))
    except OptsError as error:
        printed.extend([str(error), error.hint] if error.hint else [str(error)])
    else:
        printed.append("accepted")
    return "\n".join([*printed, ""])
