"""The two versions of this program."""

#: Of the package.
VERSION = "0.1.0"
#: Of the storage daemon whose behaviour this one follows; clients decide by it what they may ask for.
QEMU_VERSION = (7, 2, 22)
#: The ``package`` text of query-version, and what --version shows in parentheses.
PACKAGE = f"qsd-trio {VERSION}"
