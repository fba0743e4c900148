"""Recipes of qcow2 images: what qemu-img can make, and a model of what such an image holds."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, final

import attrs

from tests.combinations import Row, covering, product

KIB, MIB = 1 << 10, 1 << 20
SECRET = "a passphrase"

#: What the pairs are made of; ``ALL_CLUSTER_SIZES`` replaces the few cluster sizes in the full product.
AXES: dict[str, list[object]] = {
    "cluster_size": [512, 4 * KIB, 32 * KIB, 64 * KIB, 2 * MIB],
    "refcount_bits": [1, 2, 4, 8, 16, 32, 64],
    "preallocation": ["off", "metadata", "falloc", "full"],
    "data_file": ["none", "file", "raw"],
    "encryption": ["none", "aes", "luks"],
    "backing": ["none", "raw", "qcow2"],
    "version": ["v2", "v3"],
    "extended_l2": [False, True],
    "compression_type": ["zlib", "zstd"],
    "compressed": [False, True],
    "lazy_refcounts": [False, True],
    "snapshots": [False, True],
    "bitmap": [False, True],
}
ALL_CLUSTER_SIZES: list[object] = [1 << bits for bits in range(9, 22)]


def is_sensible(row: Row) -> bool:
    """Say whether qemu-img 7.2 makes such an image; members that are missing are no obstacle."""

    def has(name: str, *values: object) -> bool:
        return row.get(name) in values

    if has("version", "v2") and (
        has("extended_l2", True)
        or has("data_file", "file", "raw")
        or has("compression_type", "zstd")
        or has("lazy_refcounts", True)
        or has("bitmap", True)
        or row.get("refcount_bits", 16) != 16
    ):
        return False
    if has("extended_l2", True) and has("cluster_size", 512, *(KIB << n for n in range(4))):
        return False
    if has("data_file", "file", "raw") and (
        has("compressed", True) or has("compression_type", "zstd") or has("snapshots", True)
    ):
        return False
    if has("data_file", "raw") and has("backing", "raw", "qcow2"):
        return False
    if (
        has("backing", "raw", "qcow2")
        and has("extended_l2", False)
        and has("preallocation", "metadata", "falloc", "full")
    ):
        return False
    if has("compressed", True) and (
        has("encryption", "aes", "luks") or has("preallocation", "metadata", "falloc", "full")
    ):
        return False
    # A snapshot is a second reference; several compressed clusters lie in one, each with its own.
    few = (1, 2, 4) if has("compressed", True) else (1,)
    return not (has("snapshots", True) and has("refcount_bits", *few))


def is_quick(row: Row) -> bool:
    """Say whether an image is sensible, and not one of too many for whose key QEMU takes seconds."""
    return is_sensible(row) and not (
        row.get("encryption") == "luks"
        and (
            row.get("refcount_bits", 16) not in (1, 16, 64)
            or row.get("cluster_size", 512) not in (512, 64 * KIB, 2 * MIB)
        )
    )


@final
@attrs.frozen(kw_only=True)
class Recipe:
    """An image's options, under the names that blockdev-create has for them."""

    cluster_size: int = 64 * KIB
    refcount_bits: int = 16
    preallocation: Literal["off", "metadata", "falloc", "full"] = "off"
    data_file: Literal["none", "file", "raw"] = "none"
    encryption: Literal["none", "aes", "luks"] = "none"
    backing: Literal["none", "raw", "qcow2"] = "none"
    version: Literal["v2", "v3"] = "v3"
    extended_l2: bool = False
    compression_type: Literal["zlib", "zstd"] = "zlib"
    compressed: bool = False
    lazy_refcounts: bool = False
    snapshots: bool = False
    bitmap: bool = False
    #: The virtual size; 0: one that suits the cluster size.
    given_size: int = 0

    def __str__(self) -> str:
        """Return what differs from an image without options, for a test's name."""
        parts = [self.version, str(self.cluster_size), f"rc{self.refcount_bits}"]
        if self.preallocation != "off":
            parts.append(self.preallocation)
        if self.data_file != "none":
            parts.append(f"data-{self.data_file}")
        if self.encryption != "none":
            parts.append(self.encryption)
        if self.backing != "none":
            parts.append(f"on-{self.backing}")
        if self.compression_type != "zlib":
            parts.append(self.compression_type)
        flags = ("extended_l2", "compressed", "lazy_refcounts", "snapshots", "bitmap")
        return "-".join(parts + [name for name in flags if getattr(self, name)])

    @property
    def size(self) -> int:
        """The virtual size: several L2 tables of small clusters, several clusters of large ones."""
        if self.given_size:
            return self.given_size
        size = MIB if self.cluster_size <= 4 * KIB else 8 * MIB
        if self.preallocation == "metadata":
            # What of the last cluster lies behind the end, QEMU would write: nothing else is written.
            return size
        return size + 3 * 512

    @property
    def has_noise(self) -> bool:
        """Whether there is what was allocated and never written: encrypted, it reads as noise."""
        is_allocated = self.preallocation != "off" or self.data_file == "raw"
        return self.encryption != "none" and is_allocated

    @property
    def secret(self) -> list[str]:
        """The arguments that give QEMU's programs the passphrase."""
        return [] if self.encryption == "none" else ["--object", f"secret,id=s,data={SECRET}"]

    def qemu_img_options(self, name: str) -> str:
        """Return the value of qemu-img create's ``-o``."""

        def on(value: bool) -> str:
            return "on" if value else "off"

        options = [
            f"compat={'0.10' if self.version == 'v2' else '1.1'}",
            f"cluster_size={self.cluster_size}",
            f"preallocation={self.preallocation}",
        ]
        if self.version == "v3":
            options += [
                f"refcount_bits={self.refcount_bits}",
                f"lazy_refcounts={on(self.lazy_refcounts)}",
                f"extended_l2={on(self.extended_l2)}",
                f"compression_type={self.compression_type}",
            ]
        if self.data_file != "none":
            options += [f"data_file={name}.data", f"data_file_raw={on(self.data_file == 'raw')}"]
        if self.encryption != "none":
            options += [f"encrypt.format={self.encryption}", "encrypt.key-secret=s"]
        if self.encryption == "luks":
            options.append("encrypt.iter-time=1")
        return ",".join(options)

    def create_options(self, file: str, data_file: str) -> dict[str, Any]:
        """Return blockdev-create's options for an image on the nodes ``file`` and ``data_file``."""
        options: dict[str, Any] = {
            "driver": "qcow2",
            "file": file,
            "size": self.size,
            "version": self.version,
            "cluster-size": self.cluster_size,
            "preallocation": self.preallocation,
            "refcount-bits": self.refcount_bits,
            "extended-l2": self.extended_l2,
            "lazy-refcounts": self.lazy_refcounts,
            "compression-type": self.compression_type,
        }
        if self.data_file != "none":
            options |= {"data-file": data_file, "data-file-raw": self.data_file == "raw"}
        if self.backing != "none":
            options |= {"backing-file": "below", "backing-fmt": self.backing}
        if self.encryption != "none":
            encrypt: dict[str, Any] = {"format": self.encryption, "key-secret": "s"}
            if self.encryption == "luks":
                encrypt["iter-time"] = 1
            options["encrypt"] = encrypt
        return options

    def node_options(self, path: Path) -> dict[str, Any]:
        """Return what blockdev-add gets for node ``n``, without what the image itself says."""
        options: dict[str, Any] = {
            "driver": "qcow2",
            "node-name": "n",
            "discard": "unmap",
            "file": {"driver": "file", "filename": str(path)},
        }
        if self.encryption != "none":
            options["encrypt"] = {"format": self.encryption, "key-secret": "s"}
        return options

    def image_opts(self, name: str) -> str:
        """Return what stands for the file name after ``--image-opts``."""
        text = f"driver=qcow2,file.filename={name}"
        if self.encryption != "none":
            text += f",encrypt.format={self.encryption},encrypt.key-secret=s"
        return text


@final
class Kitchen:
    """Runs QEMU's programs in one folder, on the image ``name`` made after a recipe."""

    def __init__(self, recipe: Recipe, directory: Path, name: str = "image") -> None:
        self.recipe = recipe
        self.directory = directory
        self.name = name
        self.path = directory / name
        #: What shows through the image where nothing is allocated.
        self.below = bytes(recipe.size)

    def run(self, *argv: str, script: str = "") -> str:
        """Run a program, with the passphrase; fail with what it says if it fails."""
        program, command, *rest = argv
        # qemu-img takes objects after the subcommand.
        secret = self.recipe.secret
        full = (
            [program, command, *secret, *rest]
            if program == "qemu-img"
            else [program, *secret, command, *rest]
        )
        for _ in range(5):
            done = subprocess.run(
                full,
                cwd=self.directory,
                input=script,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            # QEMU measures how much work a key may be, and gives up where others take its core.
            if "Unable to get accurate CPU usage" not in done.stderr:
                break
        assert done.returncode == 0, f"{full}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def make_below(self) -> None:
        """Make the backing file, if the recipe has one."""
        recipe = self.recipe
        if recipe.backing == "none":
            return
        # Shorter than the image above it.
        content = random.Random(1).randbytes(recipe.size * 3 // 4 // 512 * 512)
        raw = self.directory / ("below" if recipe.backing == "raw" else "below.raw")
        raw.write_bytes(content)
        if recipe.backing == "qcow2":
            self.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "below.raw", "below")
        self.below = content + bytes(recipe.size - len(content))

    def create_empty(self) -> None:
        """Make the image with qemu-img; the backing file is there."""
        recipe = self.recipe
        backing = [] if recipe.backing == "none" else ["-b", "below", "-F", recipe.backing]
        self.run(
            "qemu-img", "create", "-q", "-f", "qcow2", "-o", recipe.qemu_img_options(self.name),
            *backing, self.name, str(recipe.size),
        )  # fmt: skip

    def create(self) -> bytearray:
        """Make the image with qemu-img and fill some of it; return a model of its content."""
        recipe = self.recipe
        self.make_below()
        model = bytearray(self.below)
        self.create_empty()
        if recipe.has_noise:
            model[:] = self.read()
        rng = random.Random(str(recipe))
        if recipe.compressed:
            self.write_compressed(model, rng)
        self.write(model, rng)
        return model

    def write_compressed(self, model: bytearray, rng: random.Random) -> None:
        """Fill some clusters, compressed; nothing may be there yet."""
        size = self.recipe.cluster_size
        commands = []
        clusters = -(-len(model) // size)
        for number in rng.sample(range(clusters), min(clusters, 12)):
            offset = number * size
            length = min(size, len(model) - offset)
            value = rng.randrange(1, 256)
            commands.append(f"write -c -P {value} {offset} {length}")
            model[offset : offset + length] = bytes([value]) * length
        self.qemu_io(commands)

    def write(self, model: bytearray, rng: random.Random, count: int = 8) -> None:
        """Let qemu-io write and zero at random; ``model`` follows."""
        commands = []
        for _ in range(count):
            offset = rng.randrange(len(model) // 512) * 512
            length = min(rng.choice([512, 3 * 512, 70 * 512, 64 * KIB]), len(model) - offset)
            value = rng.choice([0, rng.randrange(1, 256)])
            kind = f"write -P {value}" if value else "write -z"
            commands.append(f"{kind} {offset} {length}")
            model[offset : offset + length] = bytes([value]) * length
        self.qemu_io(commands)

    def qemu_io(self, commands: list[str]) -> None:
        """Run requests; all must succeed."""
        opts = self.recipe.image_opts(self.name)
        out = self.run("qemu-io", "--image-opts", opts, script="\n".join(commands) + "\n")
        assert out.count("ops;") == len(commands), out

    def snapshot(self, name: str) -> None:
        """Take an internal snapshot."""
        opts = self.recipe.image_opts(self.name)
        self.run("qemu-img", "snapshot", "--image-opts", "-c", name, opts)

    def add_bitmap(self, name: str) -> None:
        """Add a persistent dirty bitmap."""
        opts = self.recipe.image_opts(self.name)
        self.run("qemu-img", "bitmap", "--add", "--image-opts", opts, name)

    def check(self) -> None:
        """Have qemu-img check the image; errors and leaks fail."""
        self.run("qemu-img", "check", "--image-opts", self.recipe.image_opts(self.name))

    def read(self, snapshot: str | None = None) -> bytes:
        """Return the content as qemu-img sees it, of now or of a snapshot."""
        chosen = [] if snapshot is None else ["-l", f"snapshot.name={snapshot}"]
        out = self.directory / "content"
        opts = self.recipe.image_opts(self.name)
        self.run("qemu-img", "convert", *chosen, "-O", "raw", "--image-opts", opts, out.name)
        return out.read_bytes()

    def info(self) -> Any:
        """Return what qemu-img says of the image, without what differs between two equal ones."""
        opts = self.recipe.image_opts(self.name)
        found = json.loads(self.run("qemu-img", "info", "--output=json", "--image-opts", opts))
        del found["actual-size"]
        data = found["format-specific"]["data"]
        if "data-file" in data:
            data["data-file"] = Path(data["data-file"]).name
        encrypt = data.get("encrypt", {})
        for name in ("uuid", "master-key-iters"):  # random; measured
            encrypt.pop(name, None)
        for slot in encrypt.get("slots", []):
            slot.pop("iters", None)
        return found

    def map(self) -> Any:
        """Return qemu-img's map of the image, without where in the file things are."""
        opts = self.recipe.image_opts(self.name)
        found: list[Any] = []
        for extent in json.loads(
            self.run("qemu-img", "map", "--output=json", "--image-opts", opts)
        ):
            extent["offset"] = "offset" in extent
            if found and {**extent, "start": 0, "length": 0} == {
                **found[-1],
                "start": 0,
                "length": 0,
            }:
                found[-1]["length"] += extent["length"]
            else:
                found.append(extent)
        return found


def recipes(choice: str, *, creatable: bool = False) -> list[Recipe]:
    """Return the recipes of every pair of options ("2"), every triple ("3") ..., or "all" there are.

    ``creatable``: only what blockdev-create knows, too.
    """
    axes = dict(AXES)
    if creatable:
        axes["encryption"] = ["none", "luks"]
    if choice == "all":
        axes["cluster_size"] = ALL_CLUSTER_SIZES
        rows: Iterable[Row] = product(axes, is_sensible)
    else:
        rule = is_quick if choice == "2" else is_sensible
        rows = covering(axes, rule, strength=int(choice))
    return [Recipe(**row) for row in rows]  # type: ignore[arg-type]
