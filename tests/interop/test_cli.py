"""The command line against the real daemon's: texts, order, exit codes.

Ours runs in this process, through main(): what is compared ends before it serves.
"""

from __future__ import annotations

import gc
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsd_trio import trace
from qsd_trio.cli import main
from tests.oracle import REAL, requires

pytestmark = requires("qemu-storage-daemon")


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """Put back what a program may change and a test run may not."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGPIPE)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    gc.enable()
    trace.reset()


def both(argv: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    real = subprocess.run(
        [*REAL, *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20
    )
    capfd.readouterr()
    status = main(["qemu-storage-daemon", *argv])
    ours = capfd.readouterr()
    out = ours.out
    for newer_than_7_2 in ("  hub\n", "  poll-weight=<int>\n"):
        out = out.replace(newer_than_7_2, "")
    assert (status, out, ours.err) == (real.returncode, real.stdout, real.stderr)


FIRST_PASS = [
    "--nope",
    "--nope=x",
    "--nope -V",
    "stray --nope",
    "--blockdev",
    "--b",
    "--pidfile",
    "-T",
    "-x",
    "-zz --version",
    "--help=x",
    "--daemonize=x",
    "--=x",
    "--object help --nope",
]


@pytest.mark.parametrize("line", FIRST_PASS)
def test_first_pass(line: str, capfd: pytest.CaptureFixture[str]) -> None:
    both(line.split(), capfd)


SECOND_PASS = [
    ["stray"],
    ["-"],
    ["", "--blockdev", "nope"],
    ["--blockdev", "nope"],
    ["--blockdev=nope"],
    ["--b", "nope"],
    ["--blockdev", ""],
    ["--blockdev="],
    ["--blockdev", "--help"],
    ["--blockdev", "driver=nope,node-name=x"],
    ["--blockdev", "driver=file,node-name=x,filename=/nope"],
    ["--blockdev", '{"driver":"null-co"'],
    ["--blockdev", '{"driver":"null-co","node-name":5}'],
    ["--blockdev", "{}"],
    ["--blockdev", "{} x"],
    ["--blockdev", "null-co,node-name=a", "--blockdev", "null-co,node-name=a"],
    ["--blockdev", "null-co,node-name=a,size=x"],
    ["--blockdev", "null-co,node-name=a,size=1,foo=bar"],
    ["--blockdev", "null-co,node-name=a,read-only=maybe"],
    ["--blockdev", "null-co,node-name=a,cache.direct=maybe"],
    ["--blockdev", "a.=b"],
    ["--blockdev", ".a=b"],
    ["--blockdev", "help"],
    ["--blockdev", "driver=null-co,help"],
    ["--export", "help"],
    ["--export", "nbd"],
    ["--export", "nope,id=x"],
    ["--export", "type=nbd,id=x,node-name=x"],
    ["--nbd-server", "help"],
    ["--nbd-server", "addr.type=unix"],
    ["--nbd-server", "addr.type=nope"],
    ["--nbd-server", "addr.type=unix,addr.path=/nope/x"],
    ["--nbd-server", "x"],
    ["--monitor", "help"],
    ["--monitor", "x"],
    ["--monitor", "chardev=x,mode=readline"],
    ["--monitor", "chardev=x,mode=foo"],
    ["--monitor", "chardev=x,pretty=maybe"],
    ["--monitor", ""],
    ["--chardev", "null"],
    ["--chardev", ""],
    ["--chardev", "help"],
    ["--chardev", "?"],
    ["--chardev", "nope,id=x"],
    ["--chardev", "null,id=x,foo=bar"],
    ["--chardev", "null,id=1"],
    ["--chardev", "null,id=a", "--chardev", "null,id=a"],
    ["--chardev", "null,id=x", "--monitor", "chardev=x,mode=readline"],
    ["--chardev", "null,id=x", "--monitor", "chardev=x,foo=bar"],
    ["--object", ""],
    ["--object", "help"],
    ["--object", "?"],
    ["--object=help"],
    ["--object", "help,id=x"],
    ["--object", "secret"],
    ["--object", "secret,id=a"],
    ["--object", "secret,id=1a,data=x"],
    ["--object", "secret,id=a,data=x,foo=y"],
    ["--object", "secret,=x"],
    ["--object", "secret,help=on"],
    ["--object", "id=a"],
    ["--object", "nope,id=a"],
    ["--object", '{"qom-type":"secret"}'],
    ["--object", '{"help":"x"}'],
    ["--object", "secret,id=a,data=b", "--object", "iothread,id=a"],
    ["--object", "iothread,id=a,poll-max-ns=x"],
    ["--object", "iothread,id=a,poll-max-ns=-1"],
    ["--object", "throttle-group,id=a,limits.iops-total=1,limits.iops-read=1"],
    ["--object", "throttle-group,id=a,x-iops-total=-1"],
    ["--object", "throttle-group,id=a,limits=1"],
    ["--object", "authz-list,id=a,rules.0.match=x"],
    ["--object", "authz-list,id=a,rules.1.match=x"],
    ["--object", "thread-context,id=a,cpu-affinity=5000"],
    ["--object", "thread-context,id=a,cpu-affinity.0=0,node-affinity.0=0"],
    *(
        ["--object", f"{name},help"]
        for name in [
            "authz-list",
            "authz-list-file",
            "authz-listfile",
            "authz-simple",
            "iothread",
            "main-loop",
            "pr-manager-helper",
            "secret",
            "secret_keyring",
            "thread-context",
            "throttle-group",
            "tls-cipher-suites",
            "tls-creds-anon",
            "tls-creds-psk",
            "tls-creds-x509",
            "container",
            "chardev-socket",
            "object",
            "user-creatable",
            "nope",
        ]
    ),
    ["--object", "help", "--blockdev", "nope"],
    ["--blockdev", "nope", "--object", "help"],
    ["--pidfile", "/nope/x"],
    ["--pidfile", ""],
    ["--pidfile", "/nope/x", "stray"],
    ["--trace", "nope", "stray"],
    ["-T", "nope", "stray"],
    ["-Tnope", "stray"],
    ["--trace=-nope", "stray"],
    ["--trace", "nope*", "stray"],
    ["--trace", "", "stray"],
    ["--trace", "x=y"],
    ["--trace", "qmp*,foo=x"],
    ["--trace", "qmp_*,enable=nope", "stray"],
    ["--trace", "events=/nope"],
    ["--trace", "file=/nope/x"],
]


@pytest.mark.parametrize("argv", SECOND_PASS, ids=" ".join)
def test_second_pass(argv: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    both(argv, capfd)


def test_trace_events_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "events").write_text("qmp*\n# comment\n\nnope\nblk_co*\n-blk_co_preadv\n")
    both(["--trace", "events=events,file=log", "stray"], capfd)
    assert (tmp_path / "log").read_bytes() == b""


def test_our_trace_names_are_the_real_ones_where_we_say_so(
    capfd: pytest.CaptureFixture[str],
) -> None:
    listing = subprocess.run([*REAL, "--trace", "help"], capture_output=True, text=True, timeout=20)
    real = set(listing.stdout.split())
    own = {
        "bdrv_close",
        "blk_co_flush",
        "blk_co_pdiscard",
        "blk_co_pwrite_zeroes",
        "export_add",
        "export_deleted",
    }
    assert set(trace.EVENTS) - real == own
    assert main(["qsd-trio", "--trace", "help"]) == 0
    assert set(capfd.readouterr().out.split()) >= set(trace.EVENTS)


def test_version_has_the_real_form(capfd: pytest.CaptureFixture[str]) -> None:
    real = subprocess.run([*REAL, "--version"], capture_output=True, text=True, timeout=20).stdout
    assert main(["qsd-trio", "--version"]) == 0
    ours = capfd.readouterr().out
    form = re.compile(r"(\S+) version (\d+)\.(\d+)\.(\d+) \(.+\)\nCopyright .+\n")
    assert form.fullmatch(real)
    assert form.fullmatch(ours)


def test_help_names_the_same_options(capfd: pytest.CaptureFixture[str]) -> None:
    real = subprocess.run([*REAL, "--help"], capture_output=True, text=True, timeout=20).stdout
    assert main(["qsd-trio", "--help"]) == 0
    ours = capfd.readouterr().out
    option = re.compile(r"^ +(?:-(\w), )?--([\w-]+)", re.MULTILINE)
    assert set(option.findall(ours)) == set(option.findall(real))
