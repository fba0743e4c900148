"""Names of nodes and files."""

from __future__ import annotations

import pytest

from qsd_trio.block.names import (
    FilenamePolicy,
    NodeNames,
    check_node_name,
    json_filename,
)
from qsd_trio.errors import QmpError
from qsd_trio.protocol.qmp.serialise import members_in_order


@pytest.mark.parametrize("name", ["a", "A-1._z", "x" * 31])
def test_good_names(name: str) -> None:
    check_node_name(name)


@pytest.mark.parametrize("name", ["", "1", "#a", "a b", "a/b", "a\n", "\u00e4", "_a"])
def test_bad_names(name: str) -> None:
    with pytest.raises(QmpError, match="Invalid node-name"):
        check_node_name(name)


def test_generated_names_never_collide_with_a_users() -> None:
    names = NodeNames()
    made = {names.generate() for _ in range(100)}
    assert len(made) == 100
    for name in made:
        with pytest.raises(QmpError):
            check_node_name(name)


def test_json_filename_is_in_the_order_of_the_real_daemon() -> None:
    options = {
        "file": {"filename": "d.img", "driver": "file"},
        "size": 4096,
        "driver": "raw",
        "offset": 512,
    }
    assert json_filename(options) == (
        'json:{"offset": 512, "driver": "raw", "size": 4096,'
        ' "file": {"driver": "file", "filename": "d.img"}}'
    )
    assert members_in_order({"driver": 1, "read-zeroes": 2}) == ["read-zeroes", "driver"]


@pytest.mark.parametrize(
    ("name", "image", "path"),
    [
        ("base.img", "top.img", "base.img"),
        ("base.img", "/a/b/top.img", "/a/b/base.img"),
        ("../base.img", "d/top.img", "d/../base.img"),
        ("/x/base.img", "/a/top.img", "/x/base.img"),
        ("d/with:colon", "top.img", "d/with:colon"),
    ],
)
def test_plain_names_in_images_are_resolved(name: str, image: str, path: str) -> None:
    assert FilenamePolicy().resolve(name, image) == path


@pytest.mark.parametrize("name", ["json:{}", "nbd:localhost:10809", "file:x", "", "a\0b", ":x"])
def test_other_names_in_images_are_refused(name: str) -> None:
    with pytest.raises(QmpError, match="The image names"):
        FilenamePolicy().resolve(name, "top.img")
