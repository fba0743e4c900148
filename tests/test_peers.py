"""The rules by which a missing peer skips a test or fails it."""

from __future__ import annotations

import pytest

from tests import peers


@pytest.mark.parametrize(
    ("setting", "demanded"),
    [
        ("", False),
        ("all", True),
        ("qemu-img, fio", True),
        ("fio", False),
        ("all,-fio", True),
        ("all,-qemu-img", False),
    ],
)
def test_setting_decides_whether_a_peer_is_demanded(setting: str, demanded: bool) -> None:
    assert peers.is_demanded("qemu-img", setting) is demanded


def test_missing_peer_skips_where_nobody_demands_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSD_REQUIRE", "")
    with pytest.raises(pytest.skip.Exception, match="no-such-program is missing"):
        peers.check("sh", "module:json", "/dev/null", "no-such-program")


def test_missing_peer_fails_where_it_is_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSD_REQUIRE", "all")
    with pytest.raises(pytest.fail.Exception, match="demands it"):
        peers.check("module:no_such_module")
