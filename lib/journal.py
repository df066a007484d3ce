"""A file of results that survives whatever stops the run: killed, out of disk, called twice."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path


class OtherSetting(ValueError):
    """A file is of another setting; `differ` names what differs, with its value there and here."""

    def __init__(self, message: str, differ: dict):
        super().__init__(message)
        self.differ = differ


class Journal:
    """A file of JSON lines: a header that says what they are of, then a line for each result.

    `header` is a dict of plain values that begins with "format", a name and a version; the file
    must be of the same setting or new. `results` are those it has, in order; `append` adds one,
    which is on the disk when it returns. Only one process at a time may hold a journal.

    Raises `ValueError` for a file of another format or setting (`OtherSetting`), naming what
    differs, and for a damaged line; the last line may be what a kill left of it, and is dropped.
    Raises `OSError` for a file that another process holds, or cannot be opened.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "squares.jsonl"
    >>> with Journal(path, {"format": "squares 1"}) as journal:
    ...     journal.append({"x": 3, "square": 9})
    >>> with Journal(path, {"format": "squares 1"}) as journal:
    ...     journal.results
    [{'x': 3, 'square': 9}]
    """

    def __init__(self, file: str | Path, header: dict):
        self.header = json.loads(json.dumps(header))
        self._handle = open(file, "a+b", buffering=0)
        try:
            self._lock()
            self.results = self._read()
        except BaseException:
            self._handle.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error) -> None:
        self._handle.close()

    def append(self, result: dict) -> None:
        """Append a result, and the header before the first: wholly and synced, or not at all.

        Raises `OSError` for a full disk; what was there before stays.
        """
        handle = self._handle
        size = handle.seek(0, os.SEEK_END)
        lines = [result] if size else [self.header, result]
        rest = "".join(json.dumps(line) + "\n" for line in lines).encode()
        try:
            while rest:
                rest = rest[handle.write(rest) :]
            os.fsync(handle.fileno())
        except OSError as error:
            with suppress(OSError):
                handle.truncate(size)
            kept = len(self.results)
            why = f"{error.strerror}; {kept} results are kept: make room and call again to go on"
            raise OSError(error.errno, why, str(handle.name)) from error
        self.results.append(result)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            why = "another run is writing to it; wait for its end or choose another file"
            raise BlockingIOError(errno.EAGAIN, why, str(self._handle.name)) from error

    def _read(self) -> list[dict]:
        """Drop a torn end, and return the results of the file."""
        handle, name = self._handle, self._handle.name
        handle.seek(0)
        *lines, torn = handle.read().split(b"\n")
        kind = self.header["format"].rpartition(" ")[0]  # without its version
        begin, first = f'{{"format": "{kind} '.encode(), (lines or [torn])[0]
        if not (first.startswith(begin) or (not lines and begin.startswith(torn))):
            raise ValueError(f"{name} is not a file of {kind}; choose another file")
        found = []
        for k, line in enumerate(lines, 1):
            with suppress(ValueError):  # the last line may be what a power cut left of it
                found.append(json.loads(line))
            if len(found) < k < len(lines):
                raise ValueError(f"line {k} of {name} is damaged; delete the line and call again")
        if found:
            self._compare(found[0])
        handle.truncate(sum(len(line) + 1 for line in lines[: len(found)]))
        return found[1:]

    def _compare(self, there: dict) -> None:
        here = self.header
        names = [k for k in here | there if there.get(k) != here.get(k)]
        differ = {k: (there.get(k), here.get(k)) for k in names}
        if differ:
            words = [f"{k} is {a!r} in the file and {b!r} here, " for k, (a, b) in differ.items()]
            why = f"{self._handle.name} is of another setting: {''.join(words)}choose another file"
            raise OtherSetting(why, differ)
