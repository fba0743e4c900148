"""Any sequence of requests, resizes and reopens gives what a bytearray gives."""

from __future__ import annotations

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd_trio.block.abc import ReqFlag
from qsd_trio.block.io import Node
from qsd_trio.testing.memory import memory_node, pattern
from tests.block.drivers.qcow2.kit import Disk, check, make, opened, read, read_fast, write

SIZE = 40 * 512  # of the image at first: 512-byte clusters
BELOW = pattern(30 * 512)

places = st.integers(0, 60 * 512)
lengths = st.sampled_from([1, 100, 512, 513, 1024, 5000, 20_000])
requests = st.one_of(
    st.tuples(st.just("write"), places, lengths),
    st.tuples(st.just("write fast"), places, lengths),
    st.tuples(st.sampled_from(["zero", "zero unmap", "discard"]), places, lengths),
    st.tuples(st.just("resize"), st.integers(0, 60), st.just(0)),
    st.tuples(st.sampled_from(["flush", "reopen", "reopen slow"]), st.just(0), st.just(0)),
)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(requests, max_size=25),
    version=st.sampled_from([2, 3]),
    order=st.sampled_from([4, 4, 0, 6]),
    backed=st.booleans(),
)
def test_any_sequence(
    steps: list[tuple[str, int, int]], version: int, order: int, backed: bool
) -> None:
    trio.run(run, steps, version, order if version == 3 else 4, backed)


async def run(steps: list[tuple[str, int, int]], version: int, order: int, backed: bool) -> None:
    below = BELOW if backed else b""
    disk = Disk(await make(SIZE, cluster_bits=9, version=version, refcount_order=order))
    model = bytearray(below.ljust(SIZE, b"\0"))
    rest = list(steps)
    while True:
        async with opened(disk, memory_node(BELOW) if backed else None, l2_cache_size=1024) as node:
            while rest:
                name, offset, length = rest.pop(0)
                if name.startswith("reopen"):
                    disk.fast = not name.endswith("slow")
                    break
                await step(node, model, name, offset, length, keeps=version == 2 and backed)
            else:
                break
    report = check(bytes(disk.data), below)
    assert (report.errors, report.leaks) == ([], [])
    assert report.content == model


async def step(
    node: Node, model: bytearray, name: str, offset: int, length: int, *, keeps: bool
) -> None:
    """Do one step on node and model; ``keeps``: a discard changes nothing."""
    if name == "flush":
        await node.flush()
        return
    if name == "resize":
        size = offset * 512
        await node.truncate(size)
        del model[size:]
        model += bytes(size - len(model))
    else:
        size = len(model)
        offset = min(offset, size)
        length = min(length, size - offset)
        if not length:
            return
        if name.startswith("write"):
            data = pattern(length, offset + 1)
            await write(node, offset, data, fast=name.endswith("fast"))
            model[offset : offset + length] = data
        elif name == "discard":
            await node.pdiscard(offset, length)
            low, high = -(-offset // 512) * 512, (offset + length) // 512 * 512
            if low < high and not keeps:
                model[low:high] = bytes(high - low)
        else:
            flags = ReqFlag.MAY_UNMAP if name.endswith("unmap") else ReqFlag.NONE
            await node.pwrite_zeroes(offset, length, flags)
            model[offset : offset + length] = bytes(length)
    if model:
        assert await read(node, 0, len(model)) == model
        fast = read_fast(node, 0, len(model))
        assert fast is None or fast == model
