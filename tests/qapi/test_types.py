"""The classes made at run time are those the stub shows, and only what is used is made."""

from __future__ import annotations

import ast
import enum
import subprocess
import sys
import typing
from functools import cache
from pathlib import Path

import attrs
import pytest

from qsd_trio import qapi
from qsd_trio.qapi import (
    NULL,
    BlockdevDriver,
    BlockdevOptions,
    BlockdevOptions_qcow2,
    BlockdevOptionsQcow2,
    BlockPermission,
    QapiObject,
    SocketAddress_inet,
)

STUB = Path(qapi.__file__).with_suffix(".pyi")


@cache
def stub_classes() -> dict[str, ast.ClassDef]:
    tree = ast.parse(STUB.read_text())
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def test_each_class_is_as_the_stub_shows_it() -> None:
    assert len(stub_classes()) > 600
    for name, node in stub_classes().items():
        made = getattr(qapi, name)
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        if not bases:  # enum.Enum
            shown = {
                ast.unparse(item.targets[0]): ast.literal_eval(item.value)
                for item in node.body
                if isinstance(item, ast.Assign)
            }
            assert issubclass(made, enum.Enum)
            assert {member.name: member.value for member in made} == shown
            continue
        assert [base.__name__ for base in made.__bases__] == bases
        own = {field.name: field for field in attrs.fields(made) if not field.inherited}
        shown_members = [item for item in node.body if isinstance(item, ast.AnnAssign)]
        assert [ast.unparse(item.target) for item in shown_members] == list(own)
        for item in shown_members:
            has_default = own[ast.unparse(item.target)].default is not attrs.NOTHING
            assert has_default is (item.value is not None), name


def test_alternates_are_unions_of_their_branches() -> None:
    assert typing.get_args(qapi.BlockdevRef) == (BlockdevOptions, str)
    assert typing.get_args(qapi.StrOrNull) == (str, qapi.QapiNull)
    assert typing.get_args(qapi.BlockExportIothreads) == (str, list[str])


def test_branch_is_both_union_and_struct() -> None:
    node = BlockdevOptions_qcow2(node_name="a", file="b", backing=NULL)
    assert isinstance(node, BlockdevOptions)
    assert isinstance(node, BlockdevOptionsQcow2)
    assert node.driver is BlockdevDriver.QCOW2
    assert node.lazy_refcounts is None
    assert (
        repr(node)
        == "BlockdevOptions_qcow2(driver=<BlockdevDriver.QCOW2: 'qcow2'>, node_name='a', file='b', backing=NULL)"
    )


def test_objects_compare_by_members_and_are_frozen() -> None:
    one, same = (SocketAddress_inet(host="a", port="1") for _ in range(2))
    other = attrs.evolve(one, port="2")
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != "a"
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        one.host = "b"  # type: ignore[misc]


def test_names_are_mechanical() -> None:
    assert BlockPermission.WRITE_UNCHANGED.value == "write-unchanged"
    assert qapi.QCryptoCipherAlgo._3DES.value == "3des"
    fields = [field.name for field in attrs.fields(qapi.QAuthZListRule)]
    assert fields == ["match", "policy", "format"]
    assert [field.name for field in attrs.fields(qapi.BlockExportDelArg)] == ["id", "mode"]
    assert [field.name for field in attrs.fields(qapi.BlockExportDeletedEvent)] == ["id"]


@pytest.mark.parametrize("name", ["Nonsense", "BlockdevOptions_nonsense", "lower", "_private"])
def test_unknown_names_are_attribute_errors(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(qapi, name)


def test_only_what_is_used_is_made() -> None:
    code = """
from qsd_trio.qapi import BlockdevOptions, _build
from qsd_trio.qapi.converter import from_keyval
from_keyval(BlockdevOptions, {"driver": "file", "filename": "x", "node-name": "a"})
print(_build.make.cache_info().currsize)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 4  # the union, the struct, the branch, the enum of drivers


def test_every_struct_is_a_qapi_object() -> None:
    for name, node in stub_classes().items():
        if any(isinstance(base, ast.Name) for base in node.bases):
            assert issubclass(getattr(qapi, name), QapiObject)
