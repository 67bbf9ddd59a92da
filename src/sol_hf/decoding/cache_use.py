# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""One call at a time uses a cache. Two calls would each append their tokens to the keys of the other.

The second call may come from another thread, or from code that the first one calls, such as a streamer. The function
of `custom_generate` is the exception: its calls are the decoding of the call that it belongs to.
"""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..cache.sol_cache import SOLCache


@dataclass(frozen=True)
class CacheUse:
    """A call that uses a cache.

    Args:
        thread (`int`): Its thread.
        lends (`bool`): Whether calls that it makes may use the cache, too.
    """

    thread: int
    lends: bool


_USES: "weakref.WeakKeyDictionary[SOLCache, CacheUse]" = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def refuse_used(cache: SOLCache) -> None:
    """Raise a ValueError if a call uses a cache and does not lend it to those that it makes."""
    use = _USES.get(cache)
    if use is not None and not (use.lends and use.thread == threading.get_ident()):
        raise ValueError(
            "This cache is in use by another call that is still running, in another thread or further up in this one: "
            "wait for that call, or pass a cache of its own, from `model.new_cache()` or `copy.deepcopy`."
        )


@contextmanager
def using(cache: SOLCache, lends: bool = False) -> Iterator[None]:
    """Within the block, other calls cannot use a cache.

    Args:
        cache ([`SOLCache`]): The cache.
        lends (`bool`, *optional*, defaults to `False`): Whether calls within the block may use it, too.

    Raises:
        ValueError: if a call uses it already.
    """
    with _LOCK:
        refuse_used(cache)
        before, _USES[cache] = _USES.get(cache), CacheUse(threading.get_ident(), lends)
    try:
        yield
    finally:
        with _LOCK:
            if before is None:
                del _USES[cache]
            else:
                _USES[cache] = before
