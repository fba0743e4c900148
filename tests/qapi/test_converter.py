"""Strict and lenient conversion, and back."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd_trio.errors import QmpError
from qsd_trio.qapi import (
    NULL,
    BlockdevOptions,
    BlockdevOptions_file,
    BlockdevOptions_qcow2,
    BlockdevOptionsFile,
    BlockdevRefOrNull,
    BlockDirtyBitmap,
    BlockExportOptions,
    BlockExportOptions_nbd,
    BlockExportOptions_vhost_user_blk,
    ChardevBackend,
    ChardevBackend_socket,
    ImageInfo,
    NbdServerOptions,
    ObjectOptions,
    OnOffAuto,
    Qcow2OverlapCheckFlags,
    Qcow2OverlapCheckMode,
    SocketAddress_unix,
    SocketAddressLegacy_unix,
    ThrottleLimits,
    UnixSocketAddress,
)
from qsd_trio.qapi._schema import load_schema
from qsd_trio.qapi.converter import (
    args_from_qmp,
    command_arg_type,
    from_keyval,
    from_qmp,
    to_qmp,
)
from tests.qapi.samples import Samples


def error_of(kind: type[object], value: Any) -> str:
    with pytest.raises(QmpError) as caught:
        from_qmp(kind, value)
    return str(caught.value)


def test_flat_union() -> None:
    value = {"driver": "file", "node-name": "a", "filename": "x", "locking": "auto"}
    options = from_qmp(BlockdevOptions, value)
    assert options == BlockdevOptions_file(node_name="a", filename="x", locking=OnOffAuto.AUTO)
    assert isinstance(options, BlockdevOptionsFile)
    assert to_qmp(options) == value


def test_nested_unions_and_alternates() -> None:
    value = {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": "x"},
        "backing": None,
        "overlap-check": {"template": "all", "active-l1": False},
    }
    options = from_qmp(BlockdevOptions, value)
    assert isinstance(options, BlockdevOptions_qcow2)
    assert options.file == BlockdevOptions_file(filename="x")
    assert options.backing is NULL
    flags = Qcow2OverlapCheckFlags(template=Qcow2OverlapCheckMode.ALL, active_l1=False)
    assert options.overlap_check == flags
    assert to_qmp(options) == value


def test_alternate_of_enum_and_struct_takes_the_enum() -> None:
    options = from_qmp(BlockdevOptions, {"driver": "qcow2", "file": "a", "overlap-check": "none"})
    assert isinstance(options, BlockdevOptions_qcow2)
    assert options.overlap_check is Qcow2OverlapCheckMode.NONE


def test_legacy_union_keeps_its_data() -> None:
    value = {
        "type": "socket",
        "data": {"addr": {"type": "unix", "data": {"path": "x"}}, "server": True},
    }
    backend = from_qmp(ChardevBackend, value)
    assert isinstance(backend, ChardevBackend_socket)
    address = SocketAddressLegacy_unix(data=UnixSocketAddress(path="x"))
    assert backend.data.addr == address
    assert to_qmp(backend) == value


def test_list_of_alternates() -> None:
    value = {
        "type": "nbd",
        "id": "e",
        "node-name": "a",
        "bitmaps": ["b", {"node": "c", "name": "d"}],
    }
    export = from_qmp(BlockExportOptions, value)
    assert isinstance(export, BlockExportOptions_nbd)
    assert export.bitmaps == ["b", BlockDirtyBitmap(node="c", name="d")]
    assert to_qmp([export]) == [value]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "Parameter 'driver' is missing"),
        ({"driver": 5}, "Invalid parameter type for 'driver', expected: string"),
        ({"driver": "foo"}, "Parameter 'driver' does not accept value 'foo'"),
        ({"driver": "file"}, "Parameter 'filename' is missing"),
        ({"driver": "file", "zzz": 1}, "Parameter 'filename' is missing"),
        ({"driver": "file", "filename": "x", "zzz": 1}, "Parameter 'zzz' is unexpected"),
        ({"driver": "raw", "file": 5}, "Invalid parameter type for 'file', expected: BlockdevRef"),
        (
            {"driver": "raw", "file": {"driver": "file"}},
            "Parameter 'file.filename' is missing",
        ),
        (
            {"driver": "null-co", "latency-ns": 2**64},
            "Parameter 'latency-ns' expects uint64",
        ),
        (
            {"driver": "null-co", "size": True},
            "Invalid parameter type for 'size', expected: integer",
        ),
        (
            {"driver": "null-co", "size": "1"},
            "Invalid parameter type for 'size', expected: integer",
        ),
        # The discriminator comes first, wherever it stands.
        ({"cache": 5, "driver": "foo"}, "Parameter 'driver' does not accept value 'foo'"),
        # A driver that Debian's daemon is built without is none.
        ({"driver": "io_uring"}, "Parameter 'driver' does not accept value 'io_uring'"),
    ],
)
def test_error_texts(value: Any, text: str) -> None:
    assert error_of(BlockdevOptions, value) == text


def test_errors_in_lists_have_indices() -> None:
    with pytest.raises(
        QmpError, match=r"^Invalid parameter type for 'options\[1\]', expected: object"
    ):
        args_from_qmp("blockdev-reopen", {"options": [{"driver": "null-co"}, 5]})
    with pytest.raises(QmpError, match=r"^Parameter 'children\.1\.filename' is missing"):
        children = ["a", {"driver": "file"}]
        from_keyval(
            BlockdevOptions, {"driver": "quorum", "vote-threshold": "1", "children": children}
        )


def test_range_errors_name_the_member_alone() -> None:
    value = {"addr": {"type": "inet", "host": "a", "port": "1", "to": 65536}}
    assert error_of(NbdServerOptions, value) == "Parameter 'to' expects uint16_t"


def test_negative_numbers_wrap_where_qemu_lets_them() -> None:
    options: Any = from_qmp(BlockdevOptions, {"driver": "null-co", "latency-ns": -1})
    assert options.latency_ns == 2**64 - 1


def test_lenient_scalars() -> None:
    options: Any = from_keyval(
        BlockdevOptions,
        {
            "driver": "null-co",
            "size": "0x10",
            "read-zeroes": "y",
            "cache": {"direct": "off"},
            "detect-zeroes": "unmap",
        },
    )
    assert (options.size, options.read_zeroes, options.cache.direct) == (16, True, False)
    assert options.detect_zeroes.value == "unmap"
    export = from_keyval(
        BlockExportOptions,
        {
            "type": "vhost-user-blk",
            "id": "a",
            "node-name": "b",
            "addr": {"type": "unix", "path": "x"},
            "logical-block-size": "4k",
        },
    )
    assert isinstance(export, BlockExportOptions_vhost_user_blk)
    assert export.logical_block_size == 4096
    assert export.addr == SocketAddress_unix(path="x")


def test_lenient_takes_no_json_scalars() -> None:
    with pytest.raises(QmpError, match=r"^Parameters 'size\.\*' are unexpected"):
        from_keyval(BlockdevOptions, {"driver": "null-co", "size": {"a": "1"}})


def test_newer_members_are_known() -> None:
    args = args_from_qmp("block-stream", {"device": "a", "backing-mask-protocol": True})
    assert args.backing_mask_protocol is True
    value = {"driver": "luks", "header": "a", "file": "b", "active": False}
    assert to_qmp(from_qmp(BlockdevOptions, value)) == {**value}
    assert command_arg_type("blockdev-set-active") is not None


def test_removed_members_stay_accepted() -> None:
    secret = {"qom-type": "secret", "id": "a", "data": "x", "loaded": True}
    assert to_qmp(from_qmp(ObjectOptions, secret)) == secret
    gluster = {"driver": "gluster", "volume": "v", "path": "p", "server": []}
    assert to_qmp(from_qmp(BlockdevOptions, gluster)) == gluster
    socket = {"addr": {"type": "fd", "data": {"str": "3"}}, "reconnect": 3, "reconnect-ms": 4}
    backend = {"type": "socket", "data": socket}
    assert to_qmp(from_qmp(ChardevBackend, backend)) == backend


def test_commands_without_arguments() -> None:
    assert command_arg_type("quit") is None
    assert args_from_qmp("quit", {}) is None
    with pytest.raises(QmpError, match=r"^Parameter 'a' is unexpected$"):
        args_from_qmp("quit", {"a": 1})
    with pytest.raises(KeyError):
        args_from_qmp("nonsense", {})


def test_absent_members_are_left_out() -> None:
    assert to_qmp(ThrottleLimits()) == {}
    info = ImageInfo(filename="a", format="raw", virtual_size=0, dirty_flag=False)
    assert to_qmp(info) == {
        "filename": "a",
        "format": "raw",
        "virtual-size": 0,
        "dirty-flag": False,
    }


def test_every_type_round_trips() -> None:
    """Right arguments of all commands come back as they went in."""
    count = 0
    for name, sample in list(Samples(load_schema()).all())[::4]:
        arguments = {key: value for key, value in sample.items() if key != "zzz"}
        try:
            args = args_from_qmp(name, arguments)
        except QmpError:
            continue
        count += 1
        back = {} if args is None else to_qmp(args)
        assert json.loads(json.dumps(back)) == _unsigned(arguments, back), name
    assert count > 500


def _unsigned(value: Any, like: Any) -> Any:
    """Bring negative numbers to where they wrapped."""
    if isinstance(value, dict):
        return {key: _unsigned(item, like[key]) for key, item in value.items()}
    if isinstance(value, list):
        return [_unsigned(item, other) for item, other in zip(value, like, strict=True)]
    if isinstance(value, int) and value < 0 < like:
        return value % 2**64
    return value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None)
@given(JSON)
def test_any_json_is_refused_where_none_is_right(value: Any) -> None:
    for convert in (from_qmp, from_keyval):
        with pytest.raises(QmpError):
            convert(BlockdevOptions, value)


@settings(max_examples=40, deadline=None)
@given(JSON)
def test_any_json_as_a_member_is_taken_or_refused(value: Any) -> None:
    for name in ("file", "backing", "cache-size", "overlap-check", "encrypt", "cache"):
        sample = {"driver": "qcow2", "file": "a", name: value}
        with contextlib.suppress(QmpError):
            assert to_qmp(from_qmp(BlockdevOptions, sample)) == sample


def test_alternates_have_no_class_of_their_own() -> None:
    assert BlockdevRefOrNull is not None
    with pytest.raises(QmpError, match="expected: BlockdevRefOrNull"):
        from_qmp(BlockdevOptions, {"driver": "qcow2", "file": "a", "backing": 5})
