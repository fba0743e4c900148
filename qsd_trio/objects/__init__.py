"""User-creatable objects. The table below is the room's index."""

from __future__ import annotations

from qsd_trio.registry import user_creatable

user_creatable.index(
    {
        "authz-list": "qsd_trio.objects.authz",
        "authz-listfile": "qsd_trio.objects.authz",
        "authz-simple": "qsd_trio.objects.authz",
        "iothread": "qsd_trio.objects.event_loop",
        "main-loop": "qsd_trio.objects.event_loop",
        "secret": "qsd_trio.objects.secret",
        "secret_keyring": "qsd_trio.objects.secret",
        "thread-context": "qsd_trio.objects.thread_context",
        "throttle-group": "qsd_trio.objects.throttle_group",
    }
)
