"""Virtio, the part that devices in user space need: guest memory, split virtqueues, block requests.

Sans-IO. What the driver (the guest) writes is untrusted: every field is read once and checked before it is used.
Source: OASIS Virtual I/O Device (VIRTIO) Version 1.2.
"""
