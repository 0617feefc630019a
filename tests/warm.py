"""A stand-in for a project's Python whose starts cost little: for the tests that start a training many times.

Importing torch and Lightning takes four seconds of computing, half of what a short training takes. A server of the same
environment imports them once, and nothing of the engine's or the team's; each start is a fork of it, with the caller's
arguments, folder, variables and open files. Signals go through, but for SIGKILL, which reaches the fork a moment later.
On Linux only: elsewhere the stand-in is the environment's own Python.
"""

from __future__ import annotations

import atexit
import fcntl
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# wandb is not among them: it makes a temporary folder when it is imported, which the first fork to end would remove.
LIBRARIES = ("lightning.pytorch.cli", "torchvision", "webdataset", "cv2", "jinja2", "pyarrow")
CLIENT = '''#!{python} -IS
"""As the Python whose path stands above, by the server of tests/warm.py."""
import json, os, signal, socket, sys
files = []
for name in os.listdir("/proc/self/fd"):
    try:
        os.fstat(int(name))
    except OSError:
        continue  # it was the list's own
    files.append(int(name))
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    start = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ), files]).encode()
    socket.send_fds(server, [len(start).to_bytes(8)], files)
    server.sendall(start)
    process = int.from_bytes(server.recv(8))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, _: os.kill(process, number))
    status = int.from_bytes(server.recv(8), signed=True)
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
'''


class WarmPython:
    """The server of one environment, with `libraries` imported. `path` is what to call in place of its Python.

    Args:
        python: the environment's.
        folder: where the stand-in and the server's socket lie.
        libraries: modules that the server imports.
        variables: what the server has in its environment while it does, besides this process's.
    """

    def __init__(self, python: str, folder: Path, libraries: Sequence[str] = LIBRARIES, **variables: str) -> None:
        self.path = Path(python)
        self._server: subprocess.Popen[bytes] | None = None
        if sys.platform != "linux":
            return
        folder.mkdir(parents=True, exist_ok=True)
        address, self.path = folder / "socket", folder / "python"
        command = [python, str(Path(__file__).resolve()), str(address), *libraries]
        environment = {**os.environ, **variables}
        self._server = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._server.stdout and self._server.stdout.readline() == b"ready\n", "the server has not started"
        self.path.write_text(CLIENT.format(python=python, address=str(address)))
        self.path.chmod(0o755)

    def stop(self) -> None:
        if self._server:
            self._server.terminate()
            self._server.wait()


def serve(address: str, libraries: Sequence[str]) -> None:
    """Fork for each start, until whoever began this server ends it or is gone."""
    for library in libraries:
        __import__(library)
    assert threading.active_count() == 1, "a process with threads cannot be forked"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(16)
        print("ready", flush=True)
        while listener.fileno() in select.select([listener.fileno(), 0], [], [])[0]:
            caller, _ = listener.accept()
            if not os.fork():
                listener.close()
                _attend(caller)
            caller.close()


def _attend(caller: socket.socket) -> None:
    """Start what the caller asks for, tell it the process and how that has ended; without the caller, kill it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, sent, _, _ = socket.recv_fds(caller, 8, 253)  # as many as can be sent
    length, start = int.from_bytes(head), b""
    while len(start) < length:
        part = caller.recv(length - len(start))
        if not part:
            os._exit(1)  # the caller was killed in the middle of it
        start += part
    arguments, folder, environment, files = json.loads(start)
    if not (process := os.fork()):
        caller.close()
        _open_as(files, sent)
        os._exit(_run(arguments, folder, environment))
    for file in sent:
        os.close(file)
    caller.sendall(process.to_bytes(8))
    ended = os.pidfd_open(process)
    if ended not in select.select([ended, caller.fileno()], [], [])[0]:
        os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with suppress(OSError):
        caller.sendall(status.to_bytes(8, signed=True))
    os._exit(0)


def _open_as(wanted: Sequence[int], files: Sequence[int]) -> None:
    """Give open files the numbers that they had in the process that sent them."""
    aside = [fcntl.fcntl(file, fcntl.F_DUPFD, max(wanted) + 1) for file in files]
    for file in files:
        os.close(file)
    for file, number in zip(aside, wanted, strict=True):
        os.dup2(file, number)
        os.close(file)


def _run(arguments: list[str], folder: str, environment: dict[str, str]) -> int:
    """What an interpreter does with its arguments (-m MODULE, -c CODE or a script); its exit status."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    text = {"encoding": "utf-8", "write_through": bool(environment.get("PYTHONUNBUFFERED"))}
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _writer(1, **text)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _writer(2, line_buffering=True, errors="backslashreplace", **text)  # type: ignore[misc]
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    sys.executable = os.environ.pop("PYTHONEXECUTABLE", sys.executable)  # of the children of a program, not of theirs
    sys.path[:1] = [one for one in environment.get("PYTHONPATH", "").split(os.pathsep) if one]
    status: object = 0
    try:
        if arguments[0] == "-m":
            sys.path.insert(0, folder)
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.path.insert(0, "")
            sys.argv = ["-c", *arguments[2:]]
            exec(compile(arguments[1], "<string>", "exec"), sys.modules["__main__"].__dict__)
        else:
            sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:
        traceback.print_exc()
        status = 130
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if not isinstance(status, int) and status is not None:
        print(status, file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return int(status or 0) & 0xFF  # type: ignore[call-overload]


def _writer(number: int, **text: object) -> io.TextIOWrapper:
    line = {"line_buffering": os.isatty(number)} | text
    return io.TextIOWrapper(io.BufferedWriter(io.FileIO(number, "w", closefd=False)), **line)  # type: ignore[arg-type]


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
