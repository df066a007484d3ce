"""Run a command that nobody else runs at the same time, and end it when whoever started us ends.

python book/run.py [--lock FILE] [--log FILE] COMMAND ...

With --lock, wait until no other process has FILE locked. With --log, the command writes to FILE,
and a failure shows the end of it and its name. This file needs nothing but Python itself, since it
also runs the installation.
"""

import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time


def end_with_parent(end=lambda: os._exit(1)):
    """Watch the process that started us from a thread, and call `end` once it is gone.

    A process that is killed cannot tell its children. And make, interrupted alone, not by Ctrl-C,
    which reaches its children too, waits for them without a word; Linux shows that it no longer
    catches the signal.
    """
    parent = os.getppid()
    catching = catches_interrupt(parent)

    def watch():
        while os.getppid() == parent and catches_interrupt(parent) == catching:
            time.sleep(0.5)
        end()

    threading.Thread(target=watch, daemon=True).start()


def catches_interrupt(pid):
    """Return whether a process handles SIGINT, or None where the system does not say."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            caught = re.search(r"^SigCgt:\s*(\w+)", file.read(), re.MULTILINE)
    except OSError:
        return None
    return caught and bool(int(caught[1], 16) & 1 << (signal.SIGINT - 1))


def locked(name):
    """Return the open file `name`, locked; the lock is gone with the file or with this process."""
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    file = open(name, "a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another make, which has {name} locked", flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def run(command, lock=None, log=None):
    """Run a command to its end and return its status; see the top of this file."""
    children = []

    def end(*_):
        if not children:
            os._exit(1)
        children[0].terminate()

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
    end_with_parent(end)
    held = lock and locked(lock)
    output = log and open(log, "w")
    # make passes open files to the makes below it
    children.append(subprocess.Popen(command, stdout=output, stderr=output, close_fds=False))
    status = children[0].wait()
    if held:
        held.close()
    return abs(status)


def main():
    command, options = sys.argv[1:], {}
    while command and command[0] in ("--lock", "--log"):
        options[command[0][2:]], command = command[1], command[2:]
    if not command:
        sys.exit(__doc__)
    status = run(command, **options)
    if status and "log" in options:
        with open(options["log"], encoding="utf-8", errors="replace") as file:
            sys.stderr.writelines(file.readlines()[-15:])
        print(f"{command[0]} failed; the log: {options['log']}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
