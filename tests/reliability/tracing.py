# SPDX-License-Identifier: Apache-2.0
"""Sees every file-system call of a child before it happens, native code's included, and can kill the child there.

A seccomp filter stops the child at each call that changes files, and this process, its tracer (ptrace), looks at the
call's arguments. Linux on x86-64 and arm64.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tests.reliability.harness import CASE_SECONDS, Ended, fork, read_log

# name -> (number on x86-64, number on arm64, kind of path: the argument of a path, of a descriptor, or of a path
# relative to a folder's descriptor)
_CALLS: dict[str, tuple[int, int, str]] = {
    "open": (2, -1, "path0"),
    "creat": (85, -1, "path0"),
    "openat": (257, 56, "at0"),
    "write": (1, 64, "fd0"),
    "pwrite64": (18, 68, "fd0"),
    "writev": (20, 66, "fd0"),
    "pwritev": (296, 70, "fd0"),
    "sendfile": (40, 71, "fd0"),
    "copy_file_range": (326, 285, "fd2"),
    "fallocate": (285, 47, "fd0"),
    "ftruncate": (77, 46, "fd0"),
    "truncate": (76, 45, "path0"),
    "fsync": (74, 82, "fd0"),
    "fdatasync": (75, 83, "fd0"),
    "rename": (82, -1, "path1"),
    "renameat": (264, 38, "at2"),
    "renameat2": (316, 276, "at2"),
    "unlink": (87, -1, "path0"),
    "unlinkat": (263, 35, "at0"),
    "mkdir": (83, -1, "path0"),
    "mkdirat": (258, 34, "at0"),
    "rmdir": (84, -1, "path0"),
    "link": (86, -1, "path1"),
    "linkat": (265, 37, "at2"),
    "symlink": (88, -1, "path1"),
    "symlinkat": (266, 36, "at1"),
    "chmod": (90, -1, "path0"),
    "fchmod": (91, 52, "fd0"),
    "fchmodat": (268, 53, "at0"),
    "utimensat": (280, 88, "at0"),
}
_COLUMN = {"x86_64": 0, "aarch64": 1}.get(platform.machine())
_NAMES = {} if _COLUMN is None else {row[_COLUMN]: name for name, row in _CALLS.items() if int(row[_COLUMN]) >= 0}
_FLAGS_OF_OPEN = {"open": 1, "openat": 2}
_AT_FDCWD = -100

_TRACEME, _CONT, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 7, 0x4200, 0x420E
_FOLLOW_AND_TRACE = (
    0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000
)  # fork, vfork, clone, exec, seccomp; kill the child if the tracer dies
_SECCOMP_STOP = signal.SIGTRAP | 7 << 8
_WALL = 0x40000000


@dataclass(frozen=True, slots=True)
class Call:
    """One file-system call: its name, and the file below the watched folder."""

    name: str
    path: str

    def __str__(self) -> str:
        return f"{self.name} {self.path}"


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("value", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


class _SyscallInfo(ctypes.Structure):
    """struct ptrace_syscall_info of a seccomp stop."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("padding", ctypes.c_uint8 * 3),
        ("architecture", ctypes.c_uint32),
        ("instruction", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 6),
        ("data", ctypes.c_uint64),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def traced(
    function: Callable[[], object],
    log: Path,
    folder: Path,
    *,
    kill_before: int | None = None,
    seconds: float = CASE_SECONDS,
) -> tuple[Ended, list[Call]]:
    """Call `function` in a forked child; return its end and the calls on files below `folder`, in order.

    kill_before: the child and all its descendants get SIGKILL before the call of this number, counted from 1.
    """
    process = fork(lambda: (_be_traced(), function()), log)
    calls: list[Call] = []
    last = 0
    try:
        with _alarm(seconds):
            for status in _stops(process, folder, calls):
                last = status
                if kill_before is not None and len(calls) >= kill_before:
                    _kill(process)
                    return Ended(-signal.SIGKILL, read_log(log)), calls
    except TimeoutError:
        _kill(process)
        return Ended(-signal.SIGKILL, read_log(log), timed_out=True), calls
    return Ended(os.waitstatus_to_exitcode(last), read_log(log)), calls


def _be_traced() -> None:
    """In the child: wait for the tracer, then stop at each call of the table."""
    if _COLUMN is None:
        raise OSError(f"no table of system calls for {platform.machine()}")
    _check(_libc.ptrace(_TRACEME, 0, None, None))
    os.kill(os.getpid(), signal.SIGSTOP)
    numbers = sorted(_NAMES)
    load_number, trace, allow = (0x20, 0, 0, 0), (0x06, 0, 0, 0x7FF00000), (0x06, 0, 0, 0x7FFF0000)
    tests = [(0x15, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    lines = [_Instruction(*line) for line in (load_number, *tests, allow, trace)]
    program = _Program(len(lines), (_Instruction * len(lines))(*lines))
    _check(_libc.prctl(38, 1, 0, 0, 0))  # PR_SET_NO_NEW_PRIVS
    _check(_libc.prctl(22, 2, ctypes.byref(program), 0, 0))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"tracing: {os.strerror(number)}")


def _stops(process: int, folder: Path, calls: list[Call]) -> Iterator[int]:
    """Yield the wait status of each stop before the child continues; the last is the process's end."""
    os.waitpid(process, _WALL)
    _check(_libc.ptrace(_SETOPTIONS, process, None, _FOLLOW_AND_TRACE))
    _libc.ptrace(_CONT, process, None, None)
    born: set[int] = set()
    while True:
        task, status = os.waitpid(-1, _WALL)
        if not os.WIFSTOPPED(status):
            if task == process:
                yield status
                return
            continue
        number = 0
        if status >> 8 == _SECCOMP_STOP:
            call = _call_of(task, folder)
            if call is not None:
                calls.append(call)
                yield status
        elif os.WSTOPSIG(status) == signal.SIGSTOP and task != process and task not in born:
            born.add(task)  # new threads and processes start stopped
        elif os.WSTOPSIG(status) != signal.SIGTRAP:
            number = os.WSTOPSIG(status)
        _libc.ptrace(_CONT, task, None, number)


def _call_of(task: int, folder: Path) -> Call | None:
    """Return the call that a task is about to make, or None if it changes nothing below `folder`."""
    info = _SyscallInfo()
    _check(_libc.ptrace(_GET_SYSCALL_INFO, task, ctypes.sizeof(info), ctypes.addressof(info)))
    name = _NAMES[info.number]
    flags = _FLAGS_OF_OPEN.get(name)
    if flags is not None and not info.arguments[flags] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
        return None
    kind = _CALLS[name][2]
    first = int(kind[-1])
    if kind.startswith("fd"):
        path = _descriptor(task, info.arguments[first])
    else:
        at = ctypes.c_int(info.arguments[first]).value if kind.startswith("at") else _AT_FDCWD
        text = _text(task, info.arguments[first + 1 if kind.startswith("at") else first])
        where = _link(f"/proc/{task}/cwd") if at == _AT_FDCWD else _descriptor(task, at)
        path = os.path.normpath(os.path.join(where, text))
    return Call(name, os.path.relpath(path, folder)) if path.startswith(f"{folder}/") else None


def _descriptor(task: int, number: int) -> str:
    return _link(f"/proc/{task}/fd/{ctypes.c_int(number).value}")


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _text(task: int, address: int) -> str:
    """Return the text at an address of a task's memory."""
    with open(f"/proc/{task}/mem", "rb", buffering=0) as memory:
        content = b""
        while b"\0" not in content and len(content) < 4096:
            at = address + len(content)
            try:
                content += os.pread(memory.fileno(), 4096 - at % 4096, at)  # to the end of the page
            except OSError:
                break
    return content.split(b"\0")[0].decode(errors="surrogateescape")


def _kill(process: int) -> None:
    """Kill the child's process group and reap all of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, _WALL)


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
