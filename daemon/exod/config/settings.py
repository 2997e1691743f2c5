"""The configuration: one TOML file, environment overrides, and a check of every key.

`load` never guesses: an unknown key or a bad value is a ConfigError that names the file (or the variable), the key,
what was found and what is allowed.
"""

from __future__ import annotations

import difflib
import os
import socket
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from exod.config import checks
from exod.config.keys import Key, keys_of_host
from exod.errors import ConfigError
from exod.model import Kind

ENVIRONMENT_PREFIX: Final = "EXOD_"
CONFIG_VARIABLE: Final = "EXOD_CONFIG"
CONFIG_FILE_NAME: Final = "exod.toml"

MAX_FILE_BYTES: Final = 1024 * 1024
"""A configuration is a page of text; a larger file is not one."""

SECRET_KEYS: Final = frozenset({("mqtt", "broker")})
"""A broker's URL may hold a password: what was found there is not shown."""


class NodeConfig(msgspec.Struct, frozen=True):
    name: str
    data_dir: Path


class ClusterConfig(msgspec.Struct, frozen=True):
    name: str
    key_file: Path
    peers: tuple[str, ...]
    mdns: bool


class MeshConfig(msgspec.Struct, frozen=True):
    port: int
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    kinds: dict[str, Kind]
    degraded_ms: float
    recover_ms: float
    hold_up_s: float
    min_mb_per_s: float
    seal: str


class EngineConfig(msgspec.Struct, frozen=True):
    enabled: bool
    model: str
    ring_port: int
    sync: str
    safe_context: int
    watchdog_s: float
    split: str | tuple[int, ...]
    parallel: str
    nodes: str
    transport: str
    max_context: int
    kv_bits: int
    kv_group_size: int
    recovery_deadline_s: float
    max_concurrent: int
    prompt_cache: str
    spare: str


class ApiConfig(msgspec.Struct, frozen=True):
    host: str
    port: int
    key_file: Path | None
    hosts: tuple[str, ...]
    origins: tuple[str, ...]
    model_name: str
    commands: bool
    tls_cert: Path | None
    tls_key: Path | None


class MqttConfig(msgspec.Struct, frozen=True):
    broker: str
    prefix: str
    discovery_prefix: str
    commands: bool
    ca_file: Path | None
    cert_file: Path | None
    key_file: Path | None


class LogConfig(msgspec.Struct, frozen=True):
    level: str
    format: str
    file: Path | None
    max_mib: int
    keep: int


class DebugConfig(msgspec.Struct, frozen=True):
    enabled: bool
    rdma_stand_in: bool

    @property
    def plays_rdma(self) -> bool:
        return self.enabled and self.rdma_stand_in


class Config(msgspec.Struct, frozen=True):
    """Everything, checked and with defaults filled in. `source` is the file it came from, if any."""

    node: NodeConfig
    cluster: ClusterConfig
    mesh: MeshConfig
    engine: EngineConfig
    api: ApiConfig
    mqtt: MqttConfig
    log: LogConfig
    debug: DebugConfig
    source: Path | None = None

    @property
    def control_socket(self) -> Path:
        return self.node.data_dir / "exod.sock"


class Setting(msgspec.Struct, frozen=True):
    """One key as it is in force. `source` is the file or the variable that sets it; empty for the default."""

    section: str
    key: str
    value: Any
    source: str


# --- reading ------------------------------------------------------------------------------------------------


def default_config_file() -> Path:
    """The platform's user config folder."""
    from platformdirs import user_config_path

    return _of_home(user_config_path) / CONFIG_FILE_NAME


def default_data_dir() -> Path:
    from platformdirs import user_data_path

    return _of_home(user_data_path)


def _of_home(folder: Callable[..., Path]) -> Path:
    try:
        return folder("exod", appauthor=False)
    except RuntimeError:  # no HOME, and no entry in the password database, as in some containers
        raise ConfigError("this user has no home folder: set HOME to a folder, as an absolute path") from None


def load(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Config:
    """The configuration from `path`, else $EXOD_CONFIG, else the user's config folder (which may be absent)."""
    environment = os.environ if environment is None else environment
    file, table = _file_and_table(path, environment)
    return build(table, environment, file if table is not None else None)


def config_file(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Path:
    """Where `load` would look: `path`, else $EXOD_CONFIG, else the user's config folder."""
    environment = os.environ if environment is None else environment
    file = _named(path, environment) or default_config_file()
    try:
        return file.expanduser()
    except RuntimeError:
        raise ConfigError(f"{file}: there is no such user; name another file with --config") from None


def every_key() -> dict[str, dict[str, Key]]:
    """Every section and key, with the defaults for this host."""
    return keys_of_host(default_data_dir(), _host_name())


def load_settings(path: Path | None = None, environment: Mapping[str, str] | None = None) -> list[Setting]:
    """Every key's value as `load` would have it, and where it comes from. Raises ConfigError."""
    environment = os.environ if environment is None else environment
    file, table = _file_and_table(path, environment)
    source = file if table is not None else None
    values = msgspec.to_builtins(build(table, environment, source), enc_hook=str)
    keys, found = _collect(table, environment, source)
    return [
        Setting(section, key, values[section][key], found[section][key][0] if key in found[section] else "")
        for section in keys
        for key in keys[section]
    ]


def _named(path: Path | None, environment: Mapping[str, str]) -> Path | None:
    return path or (Path(environment[CONFIG_VARIABLE]) if environment.get(CONFIG_VARIABLE) else None)


def _file_and_table(path: Path | None, environment: Mapping[str, str]) -> tuple[Path, dict[str, Any] | None]:
    file = config_file(path, environment)
    return file, _read(file, must_exist=_named(path, environment) is not None)


def _host_name() -> str:
    return socket.gethostname().split(".")[0][:63] or "node"


def _bytes_of(file: Path) -> bytes:
    """At most one byte more than is allowed. Raises OSError, and ConfigError for what is no file."""

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_NONBLOCK)  # a pipe without a writer would be waited for

    with open(file, "rb", opener=opener) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode) and file != Path(os.devnull):
            raise ConfigError(f"{file}: is a pipe or a device, not a file; name another with --config")
        return stream.read(MAX_FILE_BYTES + 1)


def _read(file: Path, must_exist: bool) -> dict[str, Any] | None:
    try:
        data = _bytes_of(file)
    except (FileNotFoundError, NotADirectoryError):
        if must_exist:
            raise ConfigError(f"{file}: there is no such file; name another with --config") from None
        return None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{file}: is larger than {MAX_FILE_BYTES} bytes; a configuration is not")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file}: is not valid TOML: byte {error.start + 1} is no text in UTF-8; save the file as UTF-8"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: is not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{file}: is not valid TOML: it is nested too deeply") from None


def build(table: dict[str, Any] | None, environment: Mapping[str, str], source: Path | None) -> Config:
    """Checks every key of `table` and of the environment's overrides. Raises ConfigError."""
    keys, found = _collect(table, environment, source)
    where = _where(source)
    values = {section: _checked(section, keys[section], found[section], where) for section in keys}
    return _assemble(values, where, source)


_Found = dict[str, dict[str, tuple[str, Any]]]
"""For each section and key that is set: where, and the value as it was written."""


def _where(source: Path | None) -> str:
    return str(source) if source else "the configuration"


def _collect(
    table: dict[str, Any] | None, environment: Mapping[str, str], source: Path | None
) -> tuple[dict[str, dict[str, Key]], _Found]:
    """Every known key, and what is set. Raises ConfigError for what is not known."""
    keys = every_key()
    where = _where(source)
    found: _Found = {section: {} for section in keys}
    for section, entries in (table or {}).items():
        if section not in keys:
            raise ConfigError(f"{where}: {_no_section(section, entries, keys)}")
        if not isinstance(entries, dict):
            raise ConfigError(f"{where}: {section} = {_show(entries)}: it is a section, write [{section}]")
        for key, value in entries.items():
            _known(keys, section, key, where)
            if keys[section][key].check is checks.path and source is not None:
                value = _beside(source, value)
            found[section][key] = (where, value)
    for variable, text in environment.items():
        override = _override(variable)
        if override is None:
            _refuse_near_miss(variable, keys)
            continue
        section, key = override
        if section not in keys:
            raise ConfigError(
                f"${variable}: {section} is no section; allowed: {', '.join(keys)}{_meant(section, keys)}"
            )
        _known(keys, section, key, f"${variable}")
        found[section][key] = (f"${variable}", _override_value(text))
    return keys, found


def _beside(source: Path, value: Any) -> Any:
    """A relative path in a file is meant from where the file lies: a service has no folder of its own."""
    if isinstance(value, str) and value and not value.startswith("~"):
        return str(source.absolute().parent / value)
    return value


def _no_section(word: str, entries: Any, keys: dict[str, dict[str, Key]]) -> str:
    """What is wrong with a word at the top of the file: a section's name, or a key that stands in none."""
    if isinstance(entries, dict | list):
        return f"[{word}] is no section; allowed: {', '.join(keys)}{_meant(word, keys)}"
    owners = [f"[{section}]" for section in keys if word in keys[section]] or [f"[{section}]" for section in keys]
    return f"{word} = {_show(entries)}: it stands in no section; write it below {' or '.join(owners)}"


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _refuse_near_miss(variable: str, keys: dict[str, dict[str, Key]]) -> None:
    """One line too few between section and key: it would be taken for another program's variable, and not count."""
    for section in keys:
        key = variable.removeprefix(f"{ENVIRONMENT_PREFIX}{section.upper()}_").lower()
        if variable.startswith(ENVIRONMENT_PREFIX) and key in keys[section]:
            right = f"{ENVIRONMENT_PREFIX}{section}__{key}".upper()
            raise ConfigError(f"${variable}: sets nothing; write ${right}, with two underscores, or remove it")


def _known(keys: dict[str, dict[str, Key]], section: str, key: str, where: str) -> None:
    if key not in keys[section]:
        allowed = ", ".join(keys[section]) + _meant(key, keys[section])
        raise ConfigError(f"{where}: {section}.{key}: there is no such key; allowed in [{section}]: {allowed}")


def _override(variable: str) -> tuple[str, str] | None:
    """(section, key) of EXOD_<SECTION>__<KEY>; None for any other variable."""
    if not variable.startswith(ENVIRONMENT_PREFIX) or "__" not in variable:
        return None
    section, _, key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
    return section, key


class _FromVariable(msgspec.Struct, frozen=True):
    """What stands in a variable: a TOML value where it parses as one that is allowed, else a text."""

    text: str
    parsed: Any

    def __str__(self) -> str:
        return self.text


def _override_value(text: str) -> _FromVariable:
    try:
        return _FromVariable(text, tomllib.loads(f"value = {text}")["value"])
    except (tomllib.TOMLDecodeError, RecursionError):
        return _FromVariable(text, text)


def _show(value: Any) -> str:
    if isinstance(value, _FromVariable):
        value = value.parsed
    text = f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _check(key: Key, value: Any) -> Any:
    """What stands in a variable has no quotes to tell the text 123 from the number."""
    if not isinstance(value, _FromVariable):
        return key.check(value)
    try:
        checked = key.check(value.parsed)
    except checks.RejectedError:
        checked = key.check(value.text)
    if not checks.is_utf8(value.text):
        raise checks.RejectedError("text in UTF-8")  # it would break the JSON of whatever names it
    return checked


def _checked(section: str, keys: dict[str, Key], found: dict[str, tuple[str, Any]], where: str) -> dict[str, Any]:
    values = {}
    for name, key in keys.items():
        source, value = found.get(name, (where, key.default))
        try:
            values[name] = _check(key, value)
        except checks.RejectedError as error:
            shown = "…" if (section, name) in SECRET_KEYS else _show(value)
            raise ConfigError(f"{source}: {section}.{name} = {shown}: allowed is {error}") from None
    return values


def _assemble(values: dict[str, dict[str, Any]], where: str, source: Path | None) -> Config:
    """Builds the structs and checks what concerns more than one key."""
    node, cluster, mesh, api = values["node"], values["cluster"], values["mesh"], values["api"]
    node["data_dir"] = node["data_dir"] or default_data_dir()
    cluster["key_file"] = cluster["key_file"] or node["data_dir"] / "cluster.key"
    if mesh["recover_ms"] >= mesh["degraded_ms"]:
        raise ConfigError(
            f"{where}: mesh.recover_ms = {mesh['recover_ms']:g}: allowed is a number below mesh.degraded_ms "
            f"({mesh['degraded_ms']:g}), or a path would flap at the limit"
        )
    if mesh["seal"] == "all" and values["engine"]["parallel"] == "tensor":
        raise ConfigError(
            f'{where}: mesh.seal = "all": allowed beside engine.parallel = "auto" or "pipeline" alone, for a '
            "tensor group's ranks exchange sums inside graphs, where nothing carries a MAC"
        )
    _check_ports(values, where)
    if not is_loopback(api["host"]) and api["key_file"] is None:
        raise ConfigError(
            f'{where}: api.host = "{api["host"]}": allowed is a loopback address, or name bearer keys in '
            f"api.key_file (one a line): everyone on that network could use the model"
        )
    if (api["tls_cert"] is None) != (api["tls_key"] is None):
        given, other = ("tls_cert", "tls_key") if api["tls_cert"] else ("tls_key", "tls_cert")
        raise ConfigError(f'{where}: api.{given} = "{api[given]}": allowed is it together with api.{other}')
    if "*" in api["origins"] and api["key_file"] is None:
        raise ConfigError(
            f'{where}: api.origins = ["*"]: allowed is a list of origins, or name bearer keys in api.key_file: '
            "every web page that is open on this host could use the model"
        )
    _check_mqtt_files(values["mqtt"], where)
    return Config(
        node=NodeConfig(**node),
        cluster=ClusterConfig(**cluster),
        mesh=MeshConfig(**mesh),
        engine=EngineConfig(**values["engine"]),
        api=ApiConfig(**api),
        mqtt=MqttConfig(**values["mqtt"]),
        log=LogConfig(**values["log"]),
        debug=DebugConfig(**values["debug"]),
        source=source,
    )


def _check_mqtt_files(mqtt: dict[str, Any], where: str) -> None:
    given = [key for key in ("ca_file", "cert_file", "key_file") if mqtt[key] is not None]
    if given and not mqtt["broker"].startswith("mqtts://"):
        raise ConfigError(f"{where}: mqtt.{given[0]}: allowed only beside an mqtts:// broker")
    if (mqtt["cert_file"] is None) != (mqtt["key_file"] is None):
        missing = "key_file" if mqtt["key_file"] is None else "cert_file"
        raise ConfigError(f"{where}: mqtt.{missing}: is missing: a certificate and its key belong together")


def _check_ports(values: dict[str, dict[str, Any]], where: str) -> None:
    ports = {
        "mesh.port": values["mesh"]["port"],
        "engine.ring_port": values["engine"]["ring_port"],
        "api.port": values["api"]["port"],
    }
    owners: dict[int, str] = {}
    for name, port in ports.items():
        if port in owners:
            raise ConfigError(f"{where}: {name} = {port}: allowed is another port than {owners[port]}")
        owners[port] = name


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
