"""A lock on a file, for as long as it is open."""

import errno
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENOLCK)


def lock_file(file: BinaryIO) -> bool:
    """Lock an open file until it is closed or the process ends; False where the system cannot.

    BlockingIOError where another process, or another opening of it, has the lock.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        raise
    return True
