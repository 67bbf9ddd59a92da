# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Kills a launched run, as when a machine goes down."""

import subprocess

import psutil


def kill(run: subprocess.Popen) -> None:
    """SIGKILL for the launcher and its workers, which are in sessions of their own."""
    if run.poll() is not None:
        return
    launcher = psutil.Process(run.pid)
    processes = [*launcher.children(recursive=True), launcher]
    for process in processes:
        process.kill()
    run.wait()
    psutil.wait_procs(processes, timeout=20)
