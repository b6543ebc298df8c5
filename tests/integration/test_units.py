"""The units in `deploy`: the commands do their work under them, by a systemd that is real."""

from __future__ import annotations

import json
import os
import re
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.disks import MIB, digest, loop_device, random_image
from tests.support.systemd import DEPLOY, Host, systemd_host

BLOCKMIG = "/opt/blockmig/bin/blockmig"
RECEIVE, SERVE = "blockmig-receive@web.service", "blockmig-serve@web.service"
DISK = "/var/lib/blockmig/web/disk.img"
STATE = "/var/lib/private/blockmig/web"
URI = "nbd://127.0.0.1:10809/"
LIMIT = 16
"""Ten times the exposure that is accepted; without these settings it is 96."""


@pytest.fixture
def there(room: Path) -> Iterator[Host]:
    with systemd_host(room) as made:
        yield made


def tell(there: Host, text: str, name: str = "web") -> None:
    there.path(f"/etc/blockmig/{name}.env").write_text(text)


def example(there: Host, unit: str, name: str, *changes: tuple[str, str]) -> None:
    """Use one of our drop-ins."""
    text = (DEPLOY / f"{name}.conf").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    there.drop_in(unit, name, text)


def received(there: Host, size: int = 8 * MIB) -> str:
    """A disk that was received by the unit; its digest."""
    image = random_image(there.path("/root/web.img"), size)
    there.start(RECEIVE)
    there.checked(BLOCKMIG, "send", "/root/web.img", URI)
    there.wait_for(RECEIVE, "ActiveState", "inactive")
    return digest(image)


def served(there: Host) -> str:
    """What a client reads; its digest."""
    there.path("/root/copy.img").unlink(missing_ok=True)
    there.checked("nbdcopy", URI, "/root/copy.img")
    return digest(there.path("/root/copy.img"))


@pytest.mark.parametrize("unit", sorted(path.name for path in DEPLOY.glob("*.service")))
def test_a_unit_is_exposed_to_little(unit: str) -> None:
    words = ["systemd-analyze", "security", "--offline=true", f"--threshold={LIMIT}"]
    done = subprocess.run([*words, DEPLOY / unit], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "Overall exposure level" in done.stdout


def test_the_units_are_valid(there: Host) -> None:
    names = sorted(path.name.replace("@", "@web") for path in DEPLOY.glob("*@.*"))
    assert len(names) == 4
    done = there.run("systemd-analyze", "verify", *(f"/run/units/{name}" for name in names))
    about_ours = [line for line in done.stderr.splitlines() if "blockmig" in line]
    assert (done.returncode, about_ours) == (0, []), done.stderr


def test_a_disk_is_received_and_then_served(there: Host) -> None:
    sent = received(there)
    assert there.show(RECEIVE, "Result") == "success"
    assert there.show(RECEIVE, "NRestarts") == "0"
    assert there.checked(BLOCKMIG, "inspect", DISK).startswith("canonical")
    there.start(SERVE)
    assert served(there) == sent
    other = random_image(there.path("/root/other.img"), 8 * MIB, seed=2)
    there.checked("nbdcopy", "--flush", "/root/other.img", URI)
    assert digest(there.path(f"{STATE}/disk.img")) == digest(other)
    there.checked("systemctl", "stop", SERVE)
    assert (there.show(SERVE, "Result"), there.show(SERVE, "NRestarts")) == ("success", "0")


def test_a_service_has_no_privileges(there: Host) -> None:
    there.start(RECEIVE)
    process = there.show(RECEIVE, "MainPID")
    lines = there.checked("cat", f"/proc/{process}/status").splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind][0], 16) == 0, kind
    assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
    assert all(int(user) >= 61184 for user in status["Uid"]), "one that is made for it"
    for path in ("/", "/etc", "/usr", "/var", "/var/lib", "/root", "/home"):
        done = there.run(
            *("nsenter", "-t", process, "-m", "--", "sh", "-c", f": >{path}/created-by-a-test")
        )
        assert done.returncode != 0, f"{path} can be written, even by root"


def test_root_can_ask_a_service_how_it_does(there: Host) -> None:
    there.start(RECEIVE)
    text = there.checked(
        *(BLOCKMIG, "status", "--json", "--control", "/run/blockmig-receive/web/control")
    )
    assert json.loads(text)["listening"] == [URI]


def test_a_receiver_that_dies_is_started_again(there: Host) -> None:
    there.start(RECEIVE)
    before = there.show(RECEIVE, "MainPID")
    there.drop_in(RECEIVE, "soon", "[Service]\nRestartSec=0\n")
    there.checked("systemctl", "kill", "--signal=KILL", RECEIVE)
    there.wait_for(RECEIVE, "NRestarts", "1")
    there.wait_for(RECEIVE, "ActiveState", "active")
    assert there.show(RECEIVE, "MainPID") != before
    assert received(there)


def test_one_that_refuses_is_not(there: Host) -> None:
    received(there)
    tell(there, "RECEIVE_OPTIONS=--id another\n")
    there.drop_in(RECEIVE, "soon", "[Service]\nRestartSec=0\n")
    assert there.run("systemctl", "start", RECEIVE).returncode != 0
    assert there.show(RECEIVE, "ActiveState") == "failed"
    assert there.show(RECEIVE, "ExecMainStatus") == "1"
    assert there.show(RECEIVE, "NRestarts") == "0"


def test_a_socket_starts_the_server(there: Host) -> None:
    sent = received(there)
    socket = SERVE.replace(".service", ".socket")
    there.drop_in(socket, "where", "[Socket]\nListenStream=127.0.0.1:10809\n")
    there.start(socket)
    assert there.show(SERVE, "ActiveState") == "inactive"
    assert served(there) == sent
    assert there.show(SERVE, "ActiveState") == "active"
    there.checked("nbdinfo", "nbd+unix:///?socket=/run/blockmig-serve-web.sock")


def test_a_secret_is_a_credential(there: Host) -> None:
    secret = there.path("/etc/blockmig/web.secret")
    secret.write_text("a secret of some length\n")
    secret.chmod(0o600)
    example(there, RECEIVE, "secret")
    random_image(there.path("/root/web.img"), MIB)
    there.start(RECEIVE)
    stranger = there.run(BLOCKMIG, "send", "/root/web.img", URI)
    assert stranger.returncode == 1
    send = (BLOCKMIG, "send", "--secret", "/etc/blockmig/web.secret", "/root/web.img", URI)
    there.checked(*send)
    there.wait_for(RECEIVE, "ActiveState", "inactive")
    assert there.show(RECEIVE, "Result") == "success"


def test_files_elsewhere_take_a_path_and_permission(there: Host) -> None:
    there.path("/srv/images").mkdir()
    tell(there, "DISK=/srv/images/web.img\n")
    assert there.run("systemctl", "start", RECEIVE).returncode != 0
    assert "Read-only file system" in there.log(RECEIVE)
    there.drop_in(RECEIVE, "images", "[Service]\nReadWritePaths=/srv/images\n")
    there.path("/srv/images").chmod(0o1777)
    there.checked("systemctl", "reset-failed", RECEIVE)
    sent = received(there)
    assert digest(there.path("/srv/images/web.img")) == sent


def test_a_service_has_one_device_and_root_finds_its_records(room: Path) -> None:
    for name in ("one", "two"):
        with (room / name).open("wb") as file:
            file.truncate(4 * MIB)
    with (
        loop_device(room / "one") as one,
        loop_device(room / "two") as two,
        systemd_host(room, one, two) as there,
    ):
        for device in (one, two):
            there.checked("chgrp", "disk", device)
            there.checked("chmod", "660", device)
        example(there, RECEIVE, "device", ("/dev/vg0/web", str(one)))
        tell(there, f"DISK={two}\n")
        assert there.run("systemctl", "start", RECEIVE).returncode != 0
        assert "Operation not permitted" in there.log(RECEIVE)
        there.checked("systemctl", "reset-failed", RECEIVE)
        tell(there, f"DISK={one}\n")
        there.start(RECEIVE)
        assert there.run(BLOCKMIG, "inspect", two).stdout.startswith("canonical")
        random_image(there.path("/root/web.img"), 4 * MIB)
        there.checked(BLOCKMIG, "send", "/root/web.img", URI)
        there.wait_for(RECEIVE, "ActiveState", "inactive")
        found = there.checked(BLOCKMIG, "inspect", one)
        assert found.startswith("canonical")
        assert "received from" in found
        names = os.listdir(there.path(STATE))
        assert [re.sub(".*[.]", "", name) for name in names] == ["RECEIVED"]
        # Root sends it on, without having been told where its records are.
        again = there.run(BLOCKMIG, "receive", "--listen", "127.0.0.1:10810", one)
        assert again.returncode == 0
        assert "nothing to do" in again.stdout + again.stderr


def test_in_a_directory_that_root_used_once_its_owner_has_no_say(room: Path) -> None:
    with (room / "one").open("wb") as file:
        file.truncate(MIB)
    with loop_device(room / "one") as one, systemd_host(room, one) as there:
        random_image(there.path("/root/web.img"), MIB)
        receive = [BLOCKMIG, "receive", one, "--state-dir", "/srv/it", "--listen", "10809"]
        there.unit(
            "once.service", f"[Service]\nType=notify\nExecStart={' '.join(map(str, receive))}"
        )
        there.start("once.service")
        there.checked(BLOCKMIG, "send", "/root/web.img", URI)
        there.wait_for("once.service", "ActiveState", "inactive")
        assert "received from" in there.checked(BLOCKMIG, "inspect", one)
        (record,) = there.path("/srv/it").iterdir()
        forged = record.with_name(record.name.replace("RECEIVED", "MIGRATED"))
        forged.write_text(record.read_text().replace("RECEIVED", "MIGRATED"))
        record.unlink()
        assert there.run(BLOCKMIG, "inspect", one).stdout.startswith("not canonical")
        for path in (forged, forged.parent):
            os.chown(path, 54321, 54321)
        found = there.run(BLOCKMIG, "inspect", one)
        assert found.returncode == 5
        assert "belongs to the user 54321" in found.stdout
        chosen = there.run(BLOCKMIG, "inspect", one, "--state-dir", "/srv/it")
        assert chosen.stdout.startswith("not canonical")


def test_a_server_can_wait_for_the_disk_while_it_is_received(there: Host) -> None:
    tell(there, "SERVE_OPTIONS=--standby --id web-7\nRECEIVE_OPTIONS=--id web-7\n")
    there.drop_in(SERVE, "standby", "[Service]\nTimeoutStartSec=infinity\n")
    image = random_image(there.path("/root/web.img"), MIB)
    there.checked("systemctl", "start", "--no-block", SERVE)
    there.start(RECEIVE)
    there.wait_for(
        SERVE, "StatusText", f"waiting until the migration web-7 into {DISK} is complete"
    )
    there.checked(BLOCKMIG, "send", "--id", "web-7", "/root/web.img", URI)
    there.wait_for(SERVE, "ActiveState", "active")
    assert served(there) == digest(image)


def probe(there: Host, program: str) -> str:
    """Make a unit that differs from ours only in what it runs; its name."""
    there.path("/etc/blockmig/probe.py").write_text(textwrap.dedent(program))
    text = (DEPLOY / "blockmig-serve@.service").read_text()
    text = re.sub("(?m)^ExecStart=.*$", "ExecStart=/opt/blockmig/bin/python ${PROBE}", text)
    text = text.replace("Type=notify", "Type=oneshot\nEnvironment=PROBE=/etc/blockmig/probe.py")
    added = there.path("/run/units/blockmig-serve@.service.d/test.conf").read_text()
    there.unit("blockmig-probe@.service", text + added)
    return "blockmig-probe@web.service"


def test_a_service_knows_the_addresses_of_the_host(there: Host) -> None:
    there.checked("ip", "address", "add", "192.0.2.7/32", "dev", "lo")
    unit = probe(
        there,
        """
        from blockmig.transport.addresses import host_addresses

        print(host_addresses(0))
        """,
    )
    there.start(unit)
    assert there.log(unit) == "['192.0.2.7']\n"


def with_certificates(there: Host) -> None:
    """As docs/tls.md has it: /etc/blockmig/tls here, and another host's in /root/web1."""
    make = f"cd /root && {BLOCKMIG} certificates pki web1 127.0.0.1"
    there.checked("sh", "-ec", f"umask 022; {make}; cp -a pki/127.0.0.1 /etc/blockmig/tls")
    tell(there, "RECEIVE_OPTIONS=--allow-name web1\nSERVE_OPTIONS=--allow-name web1\n")


def test_a_disk_is_received_and_served_with_TLS(there: Host) -> None:
    with_certificates(there)
    for unit in (RECEIVE, SERVE):
        example(there, unit, "tls")
    image = random_image(there.path("/root/web.img"), 8 * MIB)
    there.drop_in(RECEIVE, "without", "[Service]\nMemoryDenyWriteExecute=yes\n")
    assert there.run("systemctl", "start", RECEIVE).returncode != 0
    assert "MemoryDenyWriteExecute=no" in there.log(RECEIVE)
    there.drop_in(RECEIVE, "without", "")
    there.checked("systemctl", "reset-failed", RECEIVE)
    there.start(RECEIVE)
    refused = there.run(BLOCKMIG, "send", "--give-up-after", "1", "/root/web.img", URI)
    assert refused.returncode != 0
    uri = "nbds://127.0.0.1/?tls-certificates=/root/pki/web1"
    there.checked(BLOCKMIG, "send", "/root/web.img", uri)
    there.wait_for(RECEIVE, "ActiveState", "inactive")
    there.start(SERVE)
    there.checked("nbdcopy", uri, "/root/copy.img")
    assert digest(there.path("/root/copy.img")) == digest(image)
    process = there.show(SERVE, "MainPID")
    credentials = f"/run/credentials/{SERVE}"
    listing = there.checked("nsenter", "-t", process, "-m", "ls", "-l", credentials)
    assert len(re.findall("(?m)^-r--------", listing)) == 3
    assert there.run("nbdinfo", "--size", URI).returncode != 0
