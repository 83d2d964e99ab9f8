"""Run untrusted Python programs: `runner` on the engine's side, `jail` and its modules on the program's.

A program gets a separate process with layers around it, each of which is sufficient for its purpose: namespaces
(separate network, processes and read-only file system), Landlock (files), seccomp (system calls: no socket, fork, exec
or signal to others) and resource limits (processor, memory, files). `runner.find_confinement` finds the layers that a
machine has by attacking them; a machine on which an attack succeeds runs no code tasks.
"""
