"""QMP without I/O: QEMU's dialect of JSON in and out, and the shape of a request."""

from qsd_trio.protocol.qmp.parser import JsonError, JsonStream, parse_json
from qsd_trio.protocol.qmp.request import Request, check_request, is_oob
from qsd_trio.protocol.qmp.serialise import dump_json

__all__ = [
    "JsonError",
    "JsonStream",
    "Request",
    "check_request",
    "dump_json",
    "is_oob",
    "parse_json",
]
