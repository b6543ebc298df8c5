"""A real sshd on the loopback device, which knows nothing of the user's own keys and settings."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import socket
import subprocess
import time
from pathlib import Path

from .processes import BLOCKMIG, Processes, Running

HOST = "127.0.0.1"


class SSHServer:
    """An sshd, and the ssh that may log in there as this user.

    @ivar ssh: the ssh command, for C{--ssh}.
    @ivar options: further ones of every move.
    @ivar state: where the receivers keep the records of devices.
    @ivar remote: what blockmig is called there, for C{--remote-command}: its records of devices are
        in a folder of their own.
    """

    def __init__(self, processes: Processes, room: Path, *lines: str) -> None:
        self.room = room / "ssh"
        self.room.mkdir(mode=0o700)
        self.options: tuple[object, ...] = ()
        self._processes = processes
        self.port = _free_port()
        for name in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.room / name], check=True
            )
        key = " ".join((self.room / "host.pub").read_text().split()[:2])
        (self.room / "known").write_text(f"[{HOST}]:{self.port} {key}\n")
        shutil.copy(self.room / "user.pub", self.room / "authorized")
        config = [
            *(f"Port {self.port}", f"ListenAddress {HOST}", f"HostKey {self.room}/host"),
            *(f"AuthorizedKeysFile {self.room}/authorized", "StrictModes no", "UsePAM no"),
            *("PasswordAuthentication no", "PermitRootLogin yes", "PidFile none", *lines),
        ]
        (self.room / "sshd_config").write_text("\n".join(config) + "\n")
        self.config(f"Host {HOST}")
        self.ssh = f"ssh -F {self.room}/ssh_config"
        self.remote = str(self.room / "blockmig")
        self.keep_records_in(room / "far-state")
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        self.start()

    def keep_records_in(self, state: Path) -> None:
        """Where the receivers keep the records of devices from now on."""
        self.state = state
        command = f'exec {shlex.quote(BLOCKMIG)} "$@" --state-dir {shlex.quote(str(state))}'
        script = self.room / "blockmig"
        script.write_text(f"#!/bin/sh\n{command}\n")
        script.chmod(0o755)

    def config(self, *lines: str) -> None:
        """What the user's own ssh configuration says beside where the keys are."""
        mine = [
            *(f"Port {self.port}", f"IdentityFile {self.room}/user", "IdentitiesOnly yes"),
            *(f"UserKnownHostsFile {self.room}/known", f"User {getpass.getuser()}"),
        ]
        (self.room / "ssh_config").write_text("\n".join([*lines, *mine]) + "\n")

    def start(self) -> None:
        """Start sshd, and wait until it accepts connections."""
        tool = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
        assert tool is not None, "sshd is needed for this test and is not installed"
        self.server = self._processes.start(tool, "-D", "-e", "-f", self.room / "sshd_config")
        end = time.monotonic() + 20
        while True:
            assert self.server.status is None, self.server.stderr
            assert time.monotonic() < end, self.server.stderr
            try:
                socket.create_connection((HOST, self.port), 1).close()
                return
            except OSError:
                time.sleep(0.02)

    def move(self, source: Path, path: Path | str, *options: object) -> Running:
        """Start a move to a path there."""
        return self._processes.start(*self.command(source, path, *options))

    def command(self, source: Path, path: Path | str, *options: object) -> list[str]:
        """The command that moves a disk there."""
        return [
            *(BLOCKMIG, "move", str(source), f"{HOST}:{path}", "--ssh", self.ssh),
            *("--remote-command", self.remote, "--log-format", "json", "-v"),
            *map(str, (*self.options, *options)),
        ]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])
