"""Images to serve: made once per run by qemu-img, except those that a load fills."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from pathlib import Path

import attrs

KIB, MIB, TIB = 1 << 10, 1 << 20, 1 << 40
SECRET = "a passphrase"


@attrs.frozen(kw_only=True)
class Image:
    """A file to export, and what lies below it."""

    name: str
    format: str  # raw | qcow2 | luks
    size: int
    #: For qemu-img's ``-o``.
    options: tuple[str, ...] = ()
    #: Empty, and made anew for every run.
    is_fresh: bool = False
    is_compressed: bool = False
    #: Of a chain of backing files. The data lies in all of them alike.
    layers: int = 1

    @property
    def driver(self) -> str:
        return "file" if self.format == "raw" else self.format

    @property
    def _secret_option(self) -> str | None:
        if self.format == "luks":
            return "key-secret"
        return "encrypt.key-secret" if "encrypt.format=luks" in self.options else None

    @property
    def files(self) -> list[str]:
        """The files it consists of, except backing files."""
        data = [o.removeprefix("data_file=") for o in self.options if o.startswith("data_file=")]
        return [self.name, *data]

    def make(self, directory: Path) -> None:
        """Write the image; contents are random so that nothing is a hole."""
        path = directory / self.name
        if self.is_fresh:
            path.unlink(missing_ok=True)
            _qemu_img(directory, "create", "-f", "qcow2", *self._o(), self.name, str(self.size))
            return
        if path.exists():
            return
        if self.layers > 1:
            self._make_chain(directory)
        else:
            self._make_full(directory)
        for name in self.files:
            _cache_in_pages(directory / name)

    def _o(self) -> list[str]:
        options = list(self.options)
        if self._secret_option is not None:
            prefix = self._secret_option.removesuffix("key-secret")
            options += [f"{self._secret_option}=s", f"{prefix}iter-time=10"]
        return ["-o", ",".join(options)] if options else []

    def _make_full(self, directory: Path) -> None:
        raw = self.name if self.format == "raw" else "content.tmp"
        block = random.Random(1).randbytes(MIB)
        if self.is_compressed:
            block = bytes(byte & 0x0F for byte in block)  # to half its size
        with open(directory / raw, "wb") as file:
            for index in range(self.size // MIB):
                file.write(block[index % 997 :] + block[: index % 997])
        if raw == self.name:
            return
        argv = ["-f", "raw", "-O", self.format, *self._o(), *["-c"] * self.is_compressed]
        if self._secret_option is not None:
            argv += ["--object", f"secret,id=s,data={SECRET}"]
        _qemu_img(directory, "convert", *argv, raw, self.name)
        (directory / raw).unlink()

    def _make_chain(self, directory: Path) -> None:
        """Put each cluster into one of the layers, by chance."""
        cluster = 64 * KIB
        rng = random.Random(1)
        where = [rng.randrange(self.layers) for _ in range(self.size // cluster)]
        below: str | None = None
        for layer in range(self.layers):
            name = self.name if layer == self.layers - 1 else f"{self.name}.{layer}"
            backing = ["-b", below, "-F", "qcow2"] if below else []
            _qemu_img(directory, "create", "-f", "qcow2", *backing, name, str(self.size))
            script = "".join(
                f"write -q -P {1 + number % 255} {number * cluster} {cluster}\n"
                for number, chosen in enumerate(where)
                if chosen == layer
            )
            subprocess.run(
                ["qemu-io", "-f", "qcow2", name],
                input=script, text=True, cwd=directory, check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            _cache_in_pages(directory / name)
            below = name

    def warm(self, directory: Path) -> None:
        """Bring the files into the page cache, and let no earlier write be under way to the disk."""
        below = [f"{self.name}.{layer}" for layer in range(self.layers - 1)]
        for name in (*self.files, *below):
            with open(directory / name, "rb", buffering=0) as file:
                os.fsync(file.fileno())
                while file.read(4 * MIB):
                    pass

    def argv(self, export: str) -> list[str]:
        """Return the options that export this image under the name `export`."""
        argv = ["--blockdev", f"driver=file,node-name={export}-file,filename={self.name}"]
        node = f"{export}-file"
        if self.driver != "file":
            node = f"{export}-format"
            more = ""
            if self._secret_option is not None:
                argv = ["--object", f"secret,id={export}-key,data={SECRET}", *argv]
                more = f",{self._secret_option}={export}-key"
                if self.format == "qcow2":
                    more += ",encrypt.format=luks"
            text = f"driver={self.driver},node-name={node},file={export}-file{more}"
            argv += ["--blockdev", text]
        return [
            *argv,
            "--export",
            f"type=nbd,id={export},node-name={node},name={export},writable=on",
        ]


def make_large(path: Path, *, clusters: int) -> None:
    """Make a qcow2 image of 1 TiB with so many allocated clusters all over it, as holes in the file.

    No program makes one in a second, hence by hand: what ``qemu-img create`` leaves (header, refcount
    table at cluster 1, one refcount block at 2, L1 table from 3 on) is filled in.
    """
    if path.exists():
        return
    bits = 16
    _qemu_img(path.parent, "create", "-f", "qcow2", path.name, str(TIB))
    guest = sorted(random.Random(1).sample(range(TIB >> bits), clusters))
    tables: dict[int, list[int]] = {}
    for number in guest:
        tables.setdefault(number >> 13, []).append(number)
    with open(path, "r+b") as file:
        file.seek(40)
        (l1,) = struct.unpack(">Q", file.read(8))
        l1_clusters = max(1, (TIB >> bits >> 13) * 8 >> bits)
        free = (l1 >> bits) + l1_clusters
        refblocks = [2]
        per_block = (1 << bits) * 8 // 16
        while len(refblocks) * per_block < free + len(tables) + clusters + len(refblocks):
            refblocks.append(free)
            free += 1
        for index, cluster in enumerate(refblocks):
            file.seek((1 << bits) + index * 8)
            file.write(struct.pack(">Q", cluster << bits))
        for index, numbers in tables.items():
            file.seek(l1 + index * 8)
            file.write(struct.pack(">Q", free << bits | 1 << 63))
            table = [0] * 8192
            for turn, number in enumerate(numbers):
                table[number & 8191] = (free + 1 + turn) << bits | 1 << 63
            file.seek(free << bits)
            file.write(struct.pack(">8192Q", *table))
            free += 1 + len(numbers)
        counts = struct.pack(">H", 1) * free
        for index, cluster in enumerate(refblocks):
            file.seek(cluster << bits)
            file.write(counts[index << bits : (index + 1) << bits])
        file.truncate(free << bits)


def _cache_in_pages(path: Path) -> None:
    """Fill the page cache as random I/O does: page by page.

    A file that was just written, or read ahead, lies in the cache in large folios. There a new kernel
    takes 25 microseconds for a write of 4 KiB, ten times what it takes in single pages, whoever writes:
    one would measure the kernel.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for offset in range(0, os.fstat(fd).st_size, 4096):
            os.pread(fd, 4096, offset)
    finally:
        os.close(fd)


def _qemu_img(directory: Path, *argv: str) -> None:
    subprocess.run(["qemu-img", *argv], check=True, stdout=subprocess.DEVNULL, cwd=directory)


RAW = Image(name="raw.img", format="raw", size=256 * MIB)
COLD = Image(name="cold.img", format="raw", size=256 * MIB)
QCOW2 = Image(name="full.qcow2", format="qcow2", size=256 * MIB)
EMPTY = Image(name="empty.qcow2", format="qcow2", size=1024 * MIB, is_fresh=True)
LAZY = attrs.evolve(EMPTY, name="lazy.qcow2", options=("lazy_refcounts=on",))
EXTENDED = Image(name="extended.qcow2", format="qcow2", size=128 * MIB, options=("extended_l2=on",))
DATA_FILE = Image(
    name="data-file.qcow2", format="qcow2", size=128 * MIB, options=("data_file=data-file.raw",)
)
COMPRESSED = Image(name="zlib.qcow2", format="qcow2", size=64 * MIB, is_compressed=True)
ZSTD = attrs.evolve(COMPRESSED, name="zstd.qcow2", options=("compression_type=zstd",))
CHAIN = Image(name="chain.qcow2", format="qcow2", size=128 * MIB, layers=10)
LUKS = Image(name="luks.img", format="luks", size=128 * MIB)
QCOW2_LUKS = Image(
    name="luks.qcow2", format="qcow2", size=128 * MIB, options=("encrypt.format=luks",)
)
