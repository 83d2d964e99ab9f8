"""The Linux system calls that Python's standard library lacks. Each raises OSError when the kernel refuses."""

from __future__ import annotations

import ctypes
import os
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 2

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2

# These have one number on every architecture, or are looked up by machine.
_MOUNT_SETATTR = 442
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_ADD_RULE = 445
_LANDLOCK_RESTRICT_SELF = 446
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}

_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Move this process into new namespaces."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Call mount(2)."""
    kind_bytes = None if kind is None else kind.encode()
    result = _libc.mount(source.encode(), target.encode(), kind_bytes, ctypes.c_ulong(flags), options.encode() or None)
    _check(result, f"mount {target}")


def set_mount_attributes(target: str, attributes: int) -> None:
    """Add MS_RDONLY, MS_NOSUID, MS_NODEV or MS_NOEXEC to a mount and all below it; their bits are the same here."""
    structure = struct.pack("=QQQQ", attributes, 0, 0, 0)
    _syscall(_MOUNT_SETATTR, _AT_FDCWD, target.encode(), _AT_RECURSIVE, structure, len(structure))


def pivot_root(new_root: str, old_root: str) -> None:
    """Make `new_root` this namespace's root, the one before it reachable at `old_root`."""
    _syscall(_PIVOT_ROOT[os.uname().machine], new_root.encode(), old_root.encode())


def detach(target: str) -> None:
    """Unmount at once for everybody in this namespace."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def die_with_parent() -> None:
    """Be killed when the parent's thread that started this process ends."""
    _prctl(_PR_SET_PDEATHSIG, 9)


def forbid_new_privileges() -> None:
    """Forbid all privileges that a later exec could gain; an unprivileged process needs this to confine itself."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def hide_from_tracers() -> None:
    """Refuse core dumps, and ptrace or /proc access by processes of the same user."""
    _prctl(_PR_SET_DUMPABLE, 0)


def show_to_parent() -> None:
    """Take `hide_from_tracers` back, for /proc."""
    _prctl(_PR_SET_DUMPABLE, 1)


def drop_capabilities() -> None:
    """Give up every capability, for good."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _syscall(_CAPSET[os.uname().machine], header, struct.pack("=6I", *[0] * 6))


def set_seccomp_filter(instructions: list[tuple[int, int, int, int]]) -> None:
    """Install a classic BPF program of (code, jump if true, jump if false, k) on this process."""
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in instructions))
    # struct sock_fprog: a 16-bit length, then an aligned pointer.
    header = struct.pack("@HP", len(instructions), ctypes.addressof(program))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header)


def landlock_version() -> int:
    """Return the version of the kernel's Landlock interface; 0 if there is none."""
    try:
        return _syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1)
    except OSError:
        return 0


def landlock_ruleset(handled_access: int) -> int:
    """Return a descriptor of a new rule set that forbids the given kinds of access everywhere."""
    attributes = struct.pack("=Q", handled_access)
    return _syscall(_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)


def landlock_allow(ruleset: int, directory: int, access: int) -> None:
    """Allow kinds of access to a file, or beneath a folder, given by its descriptor."""
    rule = struct.pack("=Qi", access, directory)
    _syscall(_LANDLOCK_ADD_RULE, ruleset, 1, rule, 0)


def landlock_restrict(ruleset: int) -> None:
    """Put this thread under the rule set, for good."""
    _syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0)


def _prctl(option: int, *arguments: int | bytes) -> None:
    padded = [*arguments, 0, 0, 0, 0][:4]
    _check(_libc.prctl(option, *(_wide(argument) for argument in padded)), f"prctl {option}")


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *(_wide(argument) for argument in arguments)), f"call {number}")


def _wide(argument: int | bytes | None) -> ctypes.c_long | bytes | None:
    """Make an integer fill a register: ctypes would pass it with an undefined upper half to a variadic function."""
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
