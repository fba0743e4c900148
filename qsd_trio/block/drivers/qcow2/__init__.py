"""The qcow2 image format: ``driver`` opens images, ``create`` makes them."""

from qsd_trio.block.drivers.qcow2 import create, driver

__all__ = ["create", "driver"]
