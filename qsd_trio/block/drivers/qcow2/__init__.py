"""The qcow2 image format: ``driver`` opens images, ``create`` makes them."""

from qsd_trio.block.drivers.qcow2.create import create as create
from qsd_trio.block.drivers.qcow2.driver import Qcow2 as Qcow2
