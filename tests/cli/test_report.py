"""`exoctl report`: what is in the archive, what must not be, and that it works when nothing else does."""

from __future__ import annotations

import ast
import json
import stat
import tarfile
from pathlib import Path

import pytest

from exod.cli.report.archive import ReportError, write
from exod.cli.report.contents import MAX_PART_BYTES, ReportFile, crash_heads, outputs, read_end
from exod.cli.report.redaction import PERSON, SECRET, Redaction
from exod.errors import ExitCode
from exod.peers.trust import invite_token
from exod.platform import darwin
from exod.platform.raw_outputs import DARWIN
from tests.cli.running import Exoctl, served

KEY = "ab12" * 16
API_KEY = "my-own-api-key-4711"
PASSWORD = "hunter2-of-the-broker"


@pytest.fixture
def exoctl(tmp_path: Path) -> Exoctl:
    made = Exoctl(tmp_path)
    data = tmp_path / "data" / "exod"
    data.mkdir(parents=True)
    for path, text in (
        (data / "cluster.key", KEY + "\n"),
        (tmp_path / "api.keys", API_KEY + "\n"),
        (data / "worker.log", f"loading\nthe key is {KEY}\n"),
        (tmp_path / "exod.toml", config(tmp_path, data)),
    ):
        path.write_text(text)
        path.chmod(0o600)
    return made


def config(folder: Path, data: Path) -> str:
    return (
        f'[node]\nname = "annas-studio"\ndata_dir = "{data}"\n'
        f'[mqtt]\nbroker = "mqtt://anna:{PASSWORD}@10.0.0.9:1883"\n'
        f'[api]\nkey_file = "{folder}/api.keys"\n'
    )


def contents(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        return {
            member.name.partition("/")[2]: (archive.extractfile(member) or pytest.fail(member.name)).read().decode()
            for member in archive.getmembers()
        }


@pytest.mark.anyio
async def test_a_report_lists_what_it_holds_and_holds_no_secret(exoctl: Exoctl) -> None:
    file = exoctl.folder / "out.tar.gz"
    async with served(exoctl):
        ended = await exoctl.run("--config", str(exoctl.folder / "exod.toml"), "report", "--output", str(file))
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0] == "the report holds:"
    assert lines[-1].startswith(f"wrote {file}; ")
    listed = [line.split(" (")[0].strip() for line in lines[1:-1]]
    found = contents(file)
    assert set(found) == {"CONTENTS.txt", *listed}
    assert {
        "versions.txt",
        "config.toml",
        "config-in-force.json",
        "status.json",
        "links.json",
        "links-history.json",
        "engine.json",
        "netcheck.json",
        "events.ndjson",
        "doctor.json",
        "logs/worker.log",
    } <= set(found)
    assert any(name.startswith("system/") for name in found)
    assert "mlx " in found["versions.txt"]
    assert json.loads(found["status.json"])["schema"] == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    whole = "\n".join(found.values())
    for secret in (KEY, API_KEY, PASSWORD, "annas-studio", "anna:"):
        assert secret not in whole, secret
    assert SECRET in found["logs/worker.log"]
    assert f"mqtt://{SECRET}@10.0.0.9:1883" in found["config.toml"]


@pytest.mark.anyio
async def test_without_a_daemon_and_with_a_broken_configuration_there_is_a_report(exoctl: Exoctl) -> None:
    (exoctl.folder / "exod.toml").write_text("[node]\nnam = 1\n")
    where = ("--config", str(exoctl.folder / "exod.toml"))
    ended = await exoctl.run(*where, "--json", "report", "--output", str(exoctl.folder / "out.tar.gz"))
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    found = contents(Path(told["file"]))
    assert set(told["contents"]) == set(found)
    assert "no exod is running here" in found["daemon.txt"]
    assert "nam" in found["config.txt"]
    assert "config.invalid" in found["doctor.json"]


@pytest.mark.anyio
async def test_nothing_is_written_over(exoctl: Exoctl) -> None:
    file = exoctl.folder / "out.tar.gz"
    file.write_text("mine")
    ended = await exoctl.run("report", "--output", str(file))
    assert ended.code == ExitCode.USAGE
    assert "is there already; name another with --output" in ended.err
    assert file.read_text() == "mine"
    ended = await exoctl.run("report", "--output", str(exoctl.folder / "nowhere" / "out.tar.gz"))
    assert ended.code == ExitCode.USAGE
    assert "cannot be written: No such file or directory; name another with --output" in ended.err


def test_of_a_report_that_a_full_disk_does_not_take_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(ReportError, match="No space left on device") as caught:
        write(tmp_path / "out.tar.gz", [ReportFile("a.txt", "text")], 0.0)
    assert caught.value.exit_code == ExitCode.INTERNAL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "without"),
    [
        (f"key {KEY.upper()}", KEY.upper()),
        (
            f"exoctl cluster join {invite_token(bytes.fromhex(KEY), 'home')}",
            invite_token(bytes.fromhex(KEY), "home"),
        ),
        ("Authorization: Bearer abcDEF-123_456.789", "abcDEF"),
        ('{"api_key": "x y z", "port": 1}', "x y z"),
        ("password = geheim", "geheim"),
        ("hf_abcdefghijklmnopqrstuvwxyz in a log", "hf_abc"),
        ("mail anna.b@example.org", "anna.b@example.org"),
        ('"serial_number" : "F5KX9Q0LMN"', "F5KX9Q0LMN"),
        ("Serial Number (system): C02ABCDEF123", "C02ABCDEF123"),
        ("-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----", "abc"),
        ("ether 3c:a6:f6:12:34:56", "12:34:56"),
        ("Anna’s MacBook Pro and Anna's iMac", "Anna"),
        ('"device_name_key" : "Annas Rechner"', "Annas"),
        ("MacBook Pro von Anna", "Anna"),
        ("/Users/anna/models and ANNA", "nna"),
        ("studio-of-bert.local answers", "bert"),
    ],
)
def test_what_looks_like_a_secret_or_a_person_is_taken_out(text: str, without: str) -> None:
    redacted = Redaction(people=("anna",), hosts=("studio-of-bert.local.",))(text)
    assert without not in redacted
    assert any(stand_in in redacted for stand_in in (SECRET, PERSON, "node1", ":xx:xx:"))


def test_what_a_reader_needs_stays() -> None:
    kept = (
        "inet 169.254.10.1 netmask 0xffff0000 member: en1 flags=3<LEARNING,DISCOVER> "
        '"domain_uuid_key" : "8F0E4B1C-1111-2222-3333-444455556666" "device_name_key" : "Mac Studio" '
        "tokens_per_s 31.5 fingerprint ab:cd 2026-01-31T12:00:00 root user"
    )
    assert Redaction(people=("root", "me"), hosts=("localhost",))(kept) == kept


def test_equal_hardware_addresses_can_be_seen_to_be_equal() -> None:
    redacted = Redaction()("3c:a6:f6:12:34:56 3c:a6:f6:aa:bb:cc 3C:A6:F6:12:34:56").split()
    assert redacted[0].lower() == redacted[2].lower() != redacted[1]


def test_every_output_that_a_parser_reads_is_in_the_report_of_a_mac() -> None:
    """Whatever `Darwin` asks the system's tools stands in the list."""
    asked = set()
    for node in ast.walk(ast.parse(Path(darwin.__file__).read_text())):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            words = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            if str(words[0]).startswith(("/usr/", "/sbin/", "/bin/")):
                asked.add(tuple(map(str, words)))
    assert len(asked) >= 6
    assert asked <= set(DARWIN)
    assert ("/usr/bin/pmset", "-g") in DARWIN, "doctor reads it"


def test_a_command_that_is_missing_or_fails_says_so_in_its_place() -> None:
    found = outputs(
        [("/nowhere/ifconfig", "-v"), ("sh", "-c", "echo out; echo err >&2; exit 3"), ("sh", "-c", ":")]
    )
    assert [part.name for part in found] == ["system/ifconfig-v.txt", found[1].name, found[2].name]
    assert len({part.name for part in found}) == 3
    assert "No such file" in found[0].text
    assert found[1].text.splitlines()[1:] == ["[exit code 3]", "out", "err"]


def test_of_a_long_file_the_end_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "long.log"
    path.write_bytes(b"old\n" * MAX_PART_BYTES + b"newest")
    read = read_end(path, MAX_PART_BYTES)
    assert len(read) == MAX_PART_BYTES
    assert read.endswith("newest")


def test_of_crashes_the_newest_heads_of_ours_are_taken(tmp_path: Path) -> None:
    for name in ("Safari-2026.ips", "python3.13-2026.ips", "exod-2026.ips", "exod.txt"):
        (tmp_path / name).write_text("{}\n" + "x" * 100_000)
    found = list(crash_heads([tmp_path, tmp_path / "missing"]))
    assert {part.name for part in found} == {"crashes/python3.13-2026.ips", "crashes/exod-2026.ips"}
    assert all(len(part.text) <= 16 * 1024 for part in found)
