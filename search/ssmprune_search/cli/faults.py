"""What went wrong, as a message and an exit status."""

from __future__ import annotations

import errno
import sys

FAILED, WRONG_CALL, INTERRUPTED = 1, 2, 130
_REFUSED = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
"""What an operating system says of files that cannot be read or written."""


def told(fault: Exception) -> tuple[str | None, int]:
    """What to say of a fault, and the exit status; nothing of one that nobody can put right."""
    errors = sys.modules.get("ssmprune.errors")  # not loaded: the fault is none of ours
    if errors is not None and isinstance(fault, errors.SsmpruneError):
        return str(fault), WRONG_CALL if isinstance(fault, errors.UsageError) else FAILED
    if isinstance(fault, OSError) and fault.errno in _REFUSED:
        rule = f"files must be readable and writable, but {fault.filename or 'one'} is not"
        remedy = "check the path, its permissions and the room on its disk"
        return f"{rule}: {fault.strerror}; {remedy}.", FAILED
    torch = sys.modules.get("torch")
    is_torchs = torch is not None and isinstance(fault, torch.OutOfMemoryError)
    if is_torchs or isinstance(fault, MemoryError) or "can't allocate memory" in str(fault):
        rule = "what is computed must fit into the memory that is free, but does not"
        return f"{rule}; give a smaller --batch-size, or free some.", FAILED
    return None, FAILED
