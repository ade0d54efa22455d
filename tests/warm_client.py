"""What stands for a process of `tests/warm.py`: it hands over all that it was given, and ends as its fork has ended.

Arguments: the server's socket, then the command line of Python. It imports as little as it can.
"""

import array
import json
import os
import signal
import socket
import sys

# The fork has a session of its own, so that it gets from here what a group gets as a whole.
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


def main() -> None:
    server = socket.socket(socket.AF_UNIX)
    server.connect(sys.argv[1])
    files = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
    files = sorted(number for number in files if number != server.fileno() and _is_open(number))
    request = {
        "arguments": sys.argv[2:],
        "folder": os.getcwd(),  # noqa: PTH109
        "environment": dict(os.environ),
        "files": files,
        "umask": os.umask(0o22),
        "ignored": [number for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN],
    }
    os.umask(request["umask"])
    answers = server.makefile("rb")
    fork = int(answers.readline())
    for number in PASSED_ON:
        if number not in request["ignored"]:
            signal.signal(number, lambda number, _: os.kill(fork, number))
    content = json.dumps(request).encode()
    descriptors = array.array("i", files)
    server.sendmsg([len(content).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
    server.sendall(content)
    for number in files:
        os.close(number)
    code = int(answers.readline() or -signal.SIGKILL)
    if code < 0:
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _is_open(number: int) -> bool:
    """The list of open files was open itself while it was read."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


main()
