"""The NBD protocol, sans-IO: negotiation and the codecs of the transmission phase.

Source: "The NBD protocol", doc/proto.md of the NetworkBlockDevice project, with the extended-headers
extension. Names are the spec's, minus the prefix: ``NBD_OPT_GO`` is ``Opt.GO``.
"""

from __future__ import annotations
