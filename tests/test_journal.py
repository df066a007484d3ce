"""A journal keeps what it acknowledged: torn, damaged, killed, locked, and on a full disk."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lib.journal import Journal, OtherSetting

ROOT = Path(__file__).parents[1]
HEADER = {"format": "squares 1", "low": 0, "options": {"tol": 0.5}}
RESULTS = [{"x": x, "square": x * x, "name": "ü" * x} for x in range(6)]


def write(file, results=RESULTS, header=HEADER) -> bytes:
    with Journal(file, header) as journal:
        for result in results:
            journal.append(result)
    return file.read_bytes()


def read(file, header=HEADER) -> list:
    with Journal(file, header) as journal:
        return journal.results


@pytest.fixture
def file(tmp_path):
    return tmp_path / "file.jsonl"


def test_results_come_back_in_order_and_a_line_each(file):
    assert read(file) == [] and file.read_bytes() == b""
    whole = write(file)
    assert [json.loads(line) for line in whole.splitlines()] == [HEADER, *RESULTS]
    assert whole.endswith(b"\n") and read(file) == RESULTS == read(str(file))
    more = {"x": 6, "square": 36}
    assert write(file, [more]).startswith(whole) and read(file) == [*RESULTS, more]


def test_results_are_those_of_before_and_of_now(file):
    write(file, RESULTS[:2])
    with Journal(file, HEADER) as journal:
        assert journal.results == RESULTS[:2]
        journal.append(RESULTS[2])
        assert journal.results == RESULTS[:3] and file.read_bytes().count(b"\n") == 4


def test_a_result_is_on_the_disk_when_append_returns(file, monkeypatch):
    synced = []

    def sync(descriptor):
        synced.append(os.pread(descriptor, 10**6, 0).count(b"\n"))

    monkeypatch.setattr(os, "fsync", sync)
    write(file)
    assert synced == [2, 3, 4, 5, 6, 7]  # the first with its header


def test_a_header_without_results_is_kept(file):
    file.write_text(json.dumps(HEADER) + "\n")
    assert read(file) == []
    assert write(file, RESULTS[:1]).count(b"squares 1") == 1


# --- what a kill, a power cut or an editor leaves ------------------------------------------------


def test_a_file_torn_at_any_byte_keeps_its_whole_lines(file, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a matter of time
    whole = write(file)
    for cut in range(len(whole) + 1):
        file.write_bytes(whole[:cut])
        kept = max(0, whole[:cut].count(b"\n") - 1)
        assert read(file) == RESULTS[:kept], f"cut at byte {cut}"
        assert write(file, RESULTS[kept:]) == whole, f"cut at byte {cut}"


@pytest.mark.parametrize("last", [b"\n", b"\0" * 40 + b"\n", b'{"x": 1,\n', b"\xff\xfe\n", b"\0\0"])
def test_a_last_line_that_makes_no_sense_is_dropped(file, last):
    whole = write(file)
    file.write_bytes(whole + last)
    assert read(file) == RESULTS and file.read_bytes() == whole


@pytest.mark.parametrize("line", [1, 2, 5])
@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b"", lambda b: b"\0" * len(b)])
def test_a_line_damaged_in_the_middle_is_named_and_nothing_is_changed(file, line, damage):
    lines = write(file).split(b"\n")
    lines[line] = damage(lines[line])
    file.write_bytes(b"\n".join(lines))
    before = file.read_bytes()
    message = rf"line {line + 1} of {file} is damaged; delete the line and call again"
    with pytest.raises(ValueError, match=message):
        read(file)
    assert file.read_bytes() == before
    file.write_bytes(b"\n".join(lines[:line] + lines[line + 1 :]))
    assert read(file) == RESULTS[: line - 1] + RESULTS[line:]


def test_a_header_damaged_behind_its_format_is_named(file):
    header, rest = write(file).split(b"\n", 1)
    file.write_bytes(header[:-3] + b"\n" + rest)
    with pytest.raises(ValueError, match="line 1 of .* is damaged"):
        read(file)


WRITER = """
import os, sys
from lib.journal import Journal

class Handle:
    'A file in the middle of whose third write the process is killed.'
    def __init__(self, handle):
        self.handle, self.count = handle, 0
    def __getattr__(self, name):
        return getattr(self.handle, name)
    def write(self, rest):
        self.count += 1
        if self.count == 3:
            self.handle.write(rest[: int(sys.argv[2])])
            os.kill(os.getpid(), 9)
        return self.handle.write(rest)

with Journal(sys.argv[1], {"format": "squares 1"}) as journal:
    if len(sys.argv) > 2:
        journal._handle = Handle(journal._handle)
    for x in range(len(journal.results), 10**6):
        journal.append({"x": x, "text": "abcdefgh" * 20_000})
        print(x, flush=True)
"""


def start(*arguments) -> subprocess.Popen:
    """Start a process that appends to a journal and prints what it has been told is there."""
    command = [sys.executable, "-c", WRITER, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_every_line_acknowledged_before_kill_9_is_there(file):
    there = 0
    for least in (1, 5, 2):  # and each goes on with what the last has left
        with start(file) as run:
            for _ in range(least):
                assert run.stdout.readline()
            run.send_signal(signal.SIGKILL)
            acknowledged = there + least + run.stdout.read().count("\n")
        assert run.returncode == -signal.SIGKILL
        found = [result["x"] for result in read(file, {"format": "squares 1"})]
        assert found == list(range(len(found)))
        assert acknowledged <= len(found) <= acknowledged + 1  # one was on its way
        there = len(found)


@pytest.mark.parametrize("written", [0, 1, 100, 160_000, 10**6])
def test_kill_9_in_the_middle_of_appending(file, written):
    with start(file, written) as run:
        assert run.stdout.read() == "0\n1\n"
    assert run.returncode == -signal.SIGKILL
    whole = written == 10**6
    assert file.read_bytes().endswith(b"\n") == (whole or not written)
    found = [result["x"] for result in read(file, {"format": "squares 1"})]
    assert found == [0, 1, *([2] if whole else [])]
    assert file.read_bytes().count(b"\n") == 1 + len(found)


# --- another file, another run, another setting ---------------------------------------------------


@pytest.mark.parametrize(
    "text", ["x", "my notes", "my notes\n", "\n", "[1]\n", "{}\n", '{"format": "cubes 1"}\n', "\0"]
)
def test_a_file_of_something_else_is_left_alone(file, text):
    file.write_text(text)
    with pytest.raises(ValueError, match=f"{file} is not a file of squares; choose another file"):
        read(file)
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "squares 2"}, "format is 'squares 1' in the file and 'squares 2' here, choose"),
        ({"low": 1}, "low is 0 in the file and 1 here, choose another file"),
        ({"options": {"tol": 0.25}}, "options is {'tol': 0.5} in the file and {'tol': 0.25} here"),
        ({"high": 9}, "high is None in the file and 9 here"),
    ],
)
def test_a_file_of_another_setting_is_refused_by_its_name(file, change, message):
    before = write(file)
    with pytest.raises(ValueError, match=f"{file} is of another setting: {message}") as error:
        read(file, HEADER | change)
    assert str(error.value).count(" in the file and ") == 1 and file.read_bytes() == before
    assert read(file) == RESULTS  # and nobody holds it


def test_every_setting_that_differs_is_named(file):
    write(file)
    with pytest.raises(ValueError, match="low is 0 .* here, options is .* here, choose"):
        read(file, HEADER | {"low": 1, "options": None})


def test_a_setting_that_only_the_file_has_is_named(file):
    write(file)
    with pytest.raises(ValueError, match="low is 0 in the file and None here, choose"):
        read(file, {k: v for k, v in HEADER.items() if k != "low"})


def test_a_header_is_compared_as_it_is_written(file):
    write(file, header=HEADER | {"pair": (1, 2)})
    assert read(file, HEADER | {"pair": [1, 2]}) == RESULTS


def test_a_journal_is_held_by_one_at_a_time(file):
    write(file)
    program = f"from lib.journal import Journal; Journal({str(file)!r}, {HEADER})"
    other = [sys.executable, "-c", program]
    with Journal(file, HEADER) as journal:
        with pytest.raises(BlockingIOError, match="another run is writing to it; wait") as error:
            Journal(file, HEADER)
        assert error.value.errno == errno.EAGAIN and error.value.filename == str(file)
        done = subprocess.run(other, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and "another run is writing to it" in done.stderr
        journal.append({"x": 6})
    assert read(file) == [*RESULTS, {"x": 6}]
    assert subprocess.run(other, cwd=ROOT).returncode == 0


def test_a_journal_is_free_after_an_error_inside(file):
    with pytest.raises(KeyboardInterrupt), Journal(file, HEADER) as journal:
        journal.append(RESULTS[0])
        raise KeyboardInterrupt
    assert read(file) == RESULTS[:1]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        Journal(tmp_path / "not" / "there", HEADER)
    with pytest.raises(IsADirectoryError):
        Journal(tmp_path, HEADER)


# --- a full disk ----------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 1, 20])
def test_a_disk_that_is_full_while_writing(file, room):
    before, limits = write(file, RESULTS[:3]), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:  # a limit on the size of the file: a short write, then an error
        with Journal(file, HEADER) as journal:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, limits[1]))
            with pytest.raises(OSError, match="3 results are kept: make room and call") as error:
                journal.append(RESULTS[3])
            assert error.value.errno == errno.EFBIG and error.value.filename == str(file)
            assert file.read_bytes() == before and journal.results == RESULTS[:3]
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            journal.append(RESULTS[3])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert read(file) == RESULTS[:4]


@pytest.mark.parametrize("kept", [0, 3])
def test_a_disk_that_is_full_while_syncing(file, kept, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = write(file, RESULTS[:kept]) if kept else b""
    with Journal(file, HEADER) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match=f"{kept} results are kept: make room") as error:
                journal.append(RESULTS[kept])
        assert error.value.errno == errno.ENOSPC and error.value.filename == str(file)
        assert file.read_bytes() == before
        journal.append(RESULTS[kept])
    assert read(file) == RESULTS[: kept + 1]


def test_a_short_write_is_gone_on_with(file, monkeypatch):
    class Slow:
        """A file that takes seven bytes at a time."""

        def __init__(self, handle):
            self.handle = handle

        def __getattr__(self, name):
            return getattr(self.handle, name)

        def write(self, rest):
            return self.handle.write(rest[:7])

    with Journal(file, HEADER) as journal:
        journal._handle = Slow(journal._handle)
        for result in RESULTS:
            journal.append(result)
    assert read(file) == RESULTS


def test_what_json_cannot_say_is_not_written(file):
    write(file, RESULTS[:1])
    with Journal(file, HEADER) as journal:
        with pytest.raises(TypeError):
            journal.append({"x": {1, 2}})
        assert journal.results == RESULTS[:1]
    assert read(file) == RESULTS[:1]


def test_an_error_of_another_setting_says_its_message_alone():
    error = OtherSetting("a is 1 there", {"a": (1, 2)})
    assert str(error) == "a is 1 there" and error.differ == {"a": (1, 2)}
