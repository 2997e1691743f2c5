"""Every key of the configuration is checked, and every refusal names file, key, found and allowed."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from exod.config.settings import Config, build, default_config_file, default_data_dir, is_loopback, load
from exod.errors import ConfigError
from exod.model import Kind

NOT_UTF8 = os.fsdecode(b"\xff")


def load_text(tmp_path: Path, text: str, **environment: str) -> Config:
    file = tmp_path / "exod.toml"
    file.write_text(text)
    return load(file, environment)


def test_an_empty_file_has_the_contracts_defaults(tmp_path: Path) -> None:
    config = load_text(tmp_path, "")
    assert (config.cluster.name, config.cluster.peers, config.cluster.mdns) == ("home", (), True)
    assert config.cluster.key_file == config.node.data_dir / "cluster.key"
    assert (config.mesh.port, config.mesh.include, config.mesh.exclude, config.mesh.kinds) == (52410, (), (), {})
    assert (config.mesh.degraded_ms, config.mesh.recover_ms, config.mesh.hold_up_s) == (5.0, 3.5, 3.0)
    engine = config.engine
    assert (engine.enabled, engine.model, engine.ring_port) == (True, "", 52420)
    assert (engine.sync, engine.safe_context, engine.watchdog_s, engine.split) == ("dynamic", 50_000, 2.0, "memory")
    assert engine.recovery_deadline_s == 60.0
    assert (engine.max_context, engine.kv_bits, engine.kv_group_size) == (0, 0, 64)
    assert (config.api.host, config.api.port, config.api.key_file) == ("127.0.0.1", 52415, None)
    assert (config.mqtt.broker, config.mqtt.prefix) == ("auto", "exo/1")
    assert (config.log.level, config.log.format, config.debug.enabled) == ("info", "auto", False)
    assert config.control_socket == config.node.data_dir / "exod.sock"


def test_every_key_can_be_set(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        """
        [node]
        name = "studio1"
        data_dir = "/var/exod"
        [cluster]
        name = "lab"
        key_file = "/etc/exod.key"
        peers = ["10.0.0.2:52410", "studio2.local:1"]
        mdns = false
        [mesh]
        port = 1
        include = ["en*"]
        exclude = ["utun?"]
        kinds = { "bridge0" = "thunderbolt" }
        degraded_ms = 10
        recover_ms = 2.5
        hold_up_s = 0
        [engine]
        enabled = false
        model = "mlx-community/Qwen3-0.6B"
        ring_port = 65535
        sync = "safe"
        safe_context = 0
        watchdog_s = 5
        split = [20, 12]
        recovery_deadline_s = 5
        max_context = 32768
        kv_bits = 4
        kv_group_size = 32
        [api]
        host = "0.0.0.0"
        port = 8080
        key_file = "/etc/keys"
        [mqtt]
        broker = "mqtts://me:secret@broker:8883"
        prefix = "a/b"
        [log]
        level = "debug"
        format = "json"
        [debug]
        enabled = true
        """,
    )
    assert config.node.data_dir == Path("/var/exod")
    assert config.cluster.peers == ("10.0.0.2:52410", "studio2.local:1")
    assert config.mesh.kinds == {"bridge0": Kind.THUNDERBOLT}
    assert config.engine.split == (20, 12)
    assert (config.engine.max_context, config.engine.kv_bits, config.engine.kv_group_size) == (32_768, 4, 32)
    assert config.api.key_file == Path("/etc/keys")
    assert config.debug.enabled


@pytest.mark.parametrize(
    ("section", "line", "found", "allowed"),
    [
        ("node", 'name = ""', '""', "1 to 63 characters"),
        ("node", 'name = "a/b"', '"a/b"', "without / + #"),
        ("node", f'name = "{"😀" * 63}"', "😀", "63 bytes in UTF-8 at most"),
        ("node", 'name = "a\\u001b[31m"', "a", "characters that can be seen"),
        ("node", 'name = "a\\u202eb"', "a", "characters that can be seen"),
        ("node", 'name = "a\\u009bb"', "a", "characters that can be seen"),
        ("node", 'name = "\u3164"', "\u3164", "characters that can be seen"),
        ("node", 'name = "\u2800\u2800"', "\u2800", "characters that can be seen"),
        ("node", 'name = "\u0301"', "\u0301", "characters that can be seen"),
        ("node", 'name = "  "', '"  "', "a space at its ends"),
        ("node", "data_dir = 3", "3", "a path"),
        ("node", 'data_dir = "~nobody-of-this-name/x"', "~nobody", "there is no such user"),
        ("cluster", 'name = "my home"', '"my home"', "letters, digits"),
        ("cluster", 'peers = "10.0.0.2:1"', '"10.0.0.2:1"', 'a list of "host:port"'),
        ("cluster", 'peers = ["[fe80::2]:52410"]', "[fe80::2]:52410", "exod speaks IPv4 alone"),
        ("cluster", 'peers = ["10.0.0.2"]', "10.0.0.2", 'each entry "host:port" with a port from 1 to 65535'),
        ("cluster", 'peers = ["10.0.0.2:0"]', "10.0.0.2:0", "port from 1 to 65535"),
        ("cluster", 'peers = ["10.0.0.2:²"]', "10.0.0.2:²", "port from 1 to 65535"),
        ("cluster", 'mdns = "yes"', '"yes"', "true or false"),
        ("mesh", "port = 0", "0", "a whole number from 1 to 65535"),
        ("mesh", "port = true", "true", "a whole number"),
        ("mesh", "port = 1.5", "1.5", "a whole number"),
        ("mesh", "include = [3]", "[3]", "an interface name or glob"),
        ("mesh", 'kinds = { en0 = "cable" }', "cable", '"thunderbolt", "ethernet"'),
        ("mesh", "kinds = []", "[]", "a table of interface names"),
        ("mesh", "degraded_ms = nan", "nan", "a number from 0.1 to 10000 (ms)"),
        ("mesh", "recover_ms = 5.0", "5", "a number below mesh.degraded_ms"),
        ("mesh", "hold_up_s = -1", "-1", "a number from 0 to 300 (s)"),
        ("engine", "enabled = 1", "1", "true or false"),
        ("engine", "model = 3", "3", "a folder, a repo id, or embedded:count"),
        ("engine", "ring_port = 70000", "70000", "a whole number from 1 to 65535"),
        ("engine", "ring_port = 52410", "52410", "another port than mesh.port"),
        ("engine", 'sync = "slow"', '"slow"', '"dynamic", "safe", "fast"'),
        ("engine", "safe_context = -1", "-1", "a whole number from 0"),
        ("engine", "watchdog_s = inf", "inf", "a number from 0.05 to 3600 (s)"),
        ("engine", "split = [1, 0]", "[1, 0]", "layer counts such as [20, 12]"),
        ("engine", "split = []", "[]", '"memory", "even"'),
        ("engine", "max_context = -1", "-1", "a whole number from 0 to 100000000"),
        ("engine", "kv_bits = 3", "3", "one of 0, 4, 8"),
        ("engine", "kv_bits = true", "true", "one of 0, 4, 8"),
        ("engine", 'kv_group_size = "64"', '"64"', "one of 32, 64, 128"),
        ("engine", "recovery_deadline_s = 0", "0", "a number from 1 to 3600 (s)"),
        ("api", 'host = "example.com"', '"example.com"', "an address to listen on"),
        ("api", 'host = "a:b"', '"a:b"', "an address to listen on"),
        ("api", 'host = "0.0.0.0"', '"0.0.0.0"', "a loopback address, or name bearer keys in api.key_file"),
        ("api", "port = -1", "-1", "a whole number from 0 to 65535"),
        ("mqtt", 'broker = "http://x"', "", '"auto", "embedded", "off"'),
        ("mqtt", 'broker = "mqtt://x:99999"', "", "mqtt[s]://user:pass@host:port"),
        ("mqtt", 'prefix = "exo/#"', '"exo/#"', "topic levels"),
        ("log", 'level = "loud"', '"loud"', '"debug", "info", "warning", "error"'),
        ("log", "format = 1", "1", '"auto", "console", "json"'),
        ("debug", 'enabled = "true"', '"true"', "true or false"),
    ],
)
def test_a_bad_value_is_named_with_file_key_found_and_allowed(
    tmp_path: Path, section: str, line: str, found: str, allowed: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load_text(tmp_path, f"[{section}]\n{line}\n")
    text = str(refused.value)
    assert text.startswith(f"{tmp_path}/exod.toml: {section}.{line.split(' =')[0]} = ")
    assert found in text
    assert allowed in text
    assert "\n" not in text


def test_a_brokers_password_is_never_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load_text(tmp_path, '[mqtt]\nbroker = "mqtt://me:secret@host:99999"\n')
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[nodes]\n", "[nodes] is no section; allowed: node, cluster, mesh"),
        ("[node]\nnmae = 1\n", "node.nmae: there is no such key; allowed in [node]: name, data_dir"),
        ("node = 3\n", "node = 3: it is a section, write [node]"),
        ("[node\n", "is not valid TOML"),
        ("name = \xff", "is not valid TOML: byte 8 is no text in UTF-8; save the file as UTF-8"),
        ("\xff\xfe[\0n\0", "byte 1 is no text in UTF-8; save the file as UTF-8"),
        ("[mesh]\nport = 1\nport = 2\n", "is not valid TOML: Cannot overwrite a value (at line 3, column 9)"),
        ("[mesh]\nprot = 1\n", "min_mb_per_s, seal; did you mean port?"),
        ("[mseh]\nport = 1\n", "[mseh] is no section; allowed: node, cluster, mesh"),
        ("[mseh]\nport = 1\n", "; did you mean mesh?"),
        ("port = 1\n", "port = 1: it stands in no section; write it below [mesh] or [api]"),
        ("colour = 1\n", "colour = 1: it stands in no section; write it below [node] or [cluster] or"),
    ],
)
def test_what_is_no_configuration_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "exod.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as refused:
        load(file, {})
    assert str(refused.value).startswith(f"{file}: ")
    assert message in str(refused.value)


def test_a_named_file_must_exist_and_be_readable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        load(tmp_path / "none.toml", {})
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path, {})
    (tmp_path / "large.toml").write_bytes(b"#" * 2_000_000)
    with pytest.raises(ConfigError, match="is larger than"):
        load(tmp_path / "large.toml", {})


def test_a_pipe_or_a_device_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is a pipe or a device"):
        load(tmp_path / "pipe", {})
    with pytest.raises(ConfigError, match="is a pipe or a device"):
        load(Path("/dev/zero"), {})
    assert load(Path(os.devnull), {}).cluster.name == "home"


def test_a_byte_order_mark_of_an_editor_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "exod.toml").write_bytes(b'\xef\xbb\xbf[cluster]\r\nname = "mine"\r\n')
    assert load(tmp_path / "exod.toml", {}).cluster.name == "mine"


def test_a_path_is_text(tmp_path: Path) -> None:
    """Bytes of a variable that are none would break the JSON of whatever names the path."""
    with pytest.raises(ConfigError, match=r"EXOD_NODE__DATA_DIR: node\.data_dir = .*allowed is a path in UTF-8"):
        load(Path(os.devnull), {"EXOD_NODE__DATA_DIR": os.fsdecode(b"/tmp/\xff")})


def test_the_folder_of_a_user_that_is_none_is_named() -> None:
    for path, variables in (
        (Path("~nobody-of-this-name/x"), {}),
        (None, {"EXOD_CONFIG": "~nobody-of-this-name/x"}),
    ):
        with pytest.raises(ConfigError, match=r"~nobody-of-this-name/x: there is no such user; name another file"):
            load(path, variables)


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has no entry in the password database."""

    def nobody(_: int) -> None:
        raise KeyError("uid not found")

    for variable in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for look in (lambda: load(None, {}), default_config_file, default_data_dir):
        with pytest.raises(ConfigError, match="this user has no home folder: set HOME to a folder"):
            look()


def test_the_file_is_found_through_the_environment(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[cluster]\nname = "mine"\n')
    config = load(None, {"EXOD_CONFIG": str(tmp_path / "mine.toml")})
    assert config.cluster.name == "mine"
    assert config.source == tmp_path / "mine.toml"


def test_a_file_that_was_not_named_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert load(None, {}).source is None


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        "[mesh]\nport = 1000\n",
        EXOD_MESH__PORT="2000",
        EXOD_CLUSTER__PEERS='["10.0.0.2:1"]',
        EXOD_LOG__LEVEL="debug",
        EXOD_DEBUG__ENABLED="true",
        EXOD_NODE__NAME="123",
        EXOD_ENGINE__SPLIT="[3, 5]",
        UNRELATED__THING="1",
    )
    assert config.mesh.port == 2000
    assert config.cluster.peers == ("10.0.0.2:1",)
    assert config.log.level == "debug"
    assert config.debug.enabled
    assert config.node.name == "123"
    assert config.engine.split == (3, 5)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("EXOD_MESH__PORT", "many", '$EXOD_MESH__PORT: mesh.port = "many": allowed is a whole number'),
        ("EXOD_MESH__SPEED", "1", "$EXOD_MESH__SPEED: mesh.speed: there is no such key"),
        ("EXOD_MASH__PORT", "1", "$EXOD_MASH__PORT: mash is no section"),
        (
            "EXOD_MESH_PORT",
            "1",
            "$EXOD_MESH_PORT: sets nothing; write $EXOD_MESH__PORT, with two underscores, or remove it",
        ),
        ("EXOD_NODE_DATA_DIR", "/x", "$EXOD_NODE_DATA_DIR: sets nothing; write $EXOD_NODE__DATA_DIR,"),
        ("EXOD_ENGINE__MODEL", NOT_UTF8, "$EXOD_ENGINE__MODEL: engine.model = "),
        ("EXOD_API__MODEL_NAME", NOT_UTF8, "$EXOD_API__MODEL_NAME: api.model_name = "),
        ("EXOD_MQTT__BROKER", f"mqtt://{NOT_UTF8}", "$EXOD_MQTT__BROKER: mqtt.broker = "),
        ("EXOD_MESH__KINDS", f'{{ "{NOT_UTF8}" = "wifi" }}', "$EXOD_MESH__KINDS: mesh.kinds = "),
    ],
)
def test_a_bad_variable_is_named(tmp_path: Path, variable: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_text(tmp_path, "", **{variable: value})
    assert str(refused.value).startswith(message)


def test_relative_paths_are_meant_from_where_the_file_lies(tmp_path: Path) -> None:
    config = load_text(tmp_path, '[node]\ndata_dir = "data"\n[cluster]\nkey_file = "../key"\n')
    assert config.node.data_dir == tmp_path / "data"
    assert config.cluster.key_file == tmp_path / "../key"
    assert load_text(tmp_path, '[node]\ndata_dir = "~/x"\n').node.data_dir == Path.home() / "x"


def test_keys_make_another_host_than_loopback_possible(tmp_path: Path) -> None:
    assert load_text(tmp_path, '[api]\nhost = "0.0.0.0"\nkey_file = "keys"\n').api.host == "0.0.0.0"
    assert load_text(tmp_path, '[api]\nhost = "::1"\n').api.host == "::1"
    assert [is_loopback(host) for host in ("127.0.0.9", "localhost", "::1", "10.0.0.1", "::")] == [True] * 3 + [
        False
    ] * 2


def test_certificates_for_a_broker_need_tls_and_come_in_pairs() -> None:
    tls = {"broker": "mqtts://host", "ca_file": "/ca"}
    assert build({"mqtt": tls}, {}, None).mqtt.ca_file == Path("/ca")
    for table, key in (
        ({**tls, "broker": "mqtt://host"}, "ca_file"),
        ({**tls, "cert_file": "/c"}, "key_file"),
        ({**tls, "key_file": "/k"}, "cert_file"),
    ):
        with pytest.raises(ConfigError, match=rf"mqtt\.{key}"):
            build({"mqtt": table}, {}, None)


def test_a_tensor_group_cannot_be_where_everything_is_sealed(tmp_path: Path) -> None:
    """Its sums go inside graphs, where nothing carries a MAC."""
    file = tmp_path / "exod.toml"
    file.write_text('[mesh]\nseal = "all"\n[engine]\nparallel = "tensor"\n')
    with pytest.raises(ConfigError, match=r'mesh\.seal = "all": allowed beside'):
        load(file)
