"""Runs Python programs that nobody trusts: `runner` on our side, `jail` and what it uses on theirs.

A program gets a process of its own with layers around it, each enough to stop what it is there for:
namespaces (its own network, processes and read-only file system), Landlock (files), seccomp (system
calls: no socket, no fork, no exec, no signal to others) and resource limits (processor, memory, files).
Which layers a machine has is found out by `runner.find_confinement`, which attacks them all; a machine
where an attack succeeds runs no code tasks.
"""
