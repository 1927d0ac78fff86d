"""Addresses that fsspec opens, such as ``s3://bucket/shards``, and what their stores may say."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from schemas.errors import AmbientOmniError, BadInput
from schemas.store import one_line

_PASSWORD = re.compile(r"://[^/@]*:[^/@]*@")


def is_address(text: str) -> bool:
    """Say whether a place is in an object store and not a path of this machine."""
    return "://" in text


def open_store(address: str) -> tuple[Any, str]:
    """Return fsspec's file system of an address, one a process, and the path in it.

    Raises:
        BadInput: the address holds a password; addresses stand in tables and messages.
    """
    import fsspec

    if _PASSWORD.search(address):
        raise BadInput(
            f"an address {address.partition('://')[0]}://... holds a password, and addresses are "
            "stored and shown; give credentials by the environment instead"
        )
    store, path = fsspec.core.url_to_fs(address)
    return store, str(path)


@contextmanager
def told_in_a_line(what: str, then: str = "") -> Iterator[None]:
    """Turn whatever a file system raises inside the block into one line for a person.

    Each store has exceptions of its own, and many are no OSError: credentials that are not there,
    for example.

    Args:
        what: what could not be done, such as "s3://b/0.tar cannot be read".
        then: what to do about it.

    Raises:
        BadInput: instead of it.
    """
    try:
        yield
    except AmbientOmniError:
        raise
    except Exception as error:
        said = one_line(error) or type(error).__name__
        raise BadInput(f"{what}: {said}" + (f"; {then}" if then else "")) from error
