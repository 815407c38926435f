"""Every setting of the server, with its default and what it is for; and where its value comes from.

A flag (``--max-batch 32``) goes before the environment (``TINYGRAD_ISH_SERVE_MAX_BATCH=32``), and
that before a file of TOML (``--config serve.toml``, in it ``max_batch = 32``). A name that is not a
setting is refused wherever it stands.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, NoReturn, get_type_hints

__all__ = ["Settings", "SettingsError", "about", "read", "show"]

PREFIX = "TINYGRAD_ISH_SERVE_"
TEXTS = tuple[str, ...]


class SettingsError(ValueError):
    """A setting that does not exist, or a value that it cannot have."""


@dataclass(frozen=True)
class Settings:
    """Sizes are in bytes, times in seconds. ``about()`` gives what each is for."""

    # where
    host: Annotated[str, "the address to listen on; 0.0.0.0 for all"] = "127.0.0.1"
    port: Annotated[int, "the port to listen on; 0 for any free one"] = 8000
    workers: Annotated[int, "processes that share the port and the mapped weights"] = 1
    device: Annotated[str, "what computes: cpu, numpy or cuda; empty for the usual"] = ""
    # batches
    max_batch: Annotated[int, "most rows that are run together"] = 64
    max_queue: Annotated[int, "most requests that wait for one model"] = 1024
    max_queue_bytes: Annotated[int, "most bytes of inputs that wait for one model"] = 64 * 2**20
    timeout: Annotated[float, "from a request's arrival to its answer, unless it says less"] = 10.0
    # limits
    max_body: Annotated[int, "largest body, before and after decompression"] = 16 * 2**20
    max_elements: Annotated[int, "most numbers in one request"] = 4_000_000
    max_headers: Annotated[int, "most bytes of a request's headers"] = 64 * 2**10
    max_connections: Annotated[int, "most connections of a process; beyond, idle ones go"] = 4096
    body_timeout: Annotated[float, "for a body to arrive"] = 10.0
    header_timeout: Annotated[float, "for headers to arrive, and an answer to be taken"] = 10.0
    keep_alive: Annotated[float, "how long an idle connection is kept"] = 30.0
    # shutting down
    grace: Annotated[float, "at shutdown, how long work is still taken, while not ready"] = 0.5
    drain: Annotated[float, "longest wait for running requests at shutdown"] = 10.0
    # models
    memory: Annotated[int, "most bytes of loaded weights, the least used are unloaded; 0: any"] = 0
    reload: Annotated[bool, "watch model folders and load what is published"] = True
    # who may do what
    management: Annotated[bool, "allow loading and unloading over HTTP"] = False
    keys: Annotated[str, "a file of API keys, read again when it changes (see auth.py)"] = ""
    cors: Annotated[
        tuple[str, ...], "origins whose pages may call, with commas between; * all"
    ] = ()
    tls_cert: Annotated[str, "a PEM file with the certificate: serve HTTPS"] = ""
    tls_key: Annotated[str, "a PEM file with its private key, if not in the same"] = ""
    tls_key_password: Annotated[str, "the password of the private key"] = ""
    tls_ca: Annotated[str, "a PEM file: ask clients for certificates signed by these"] = ""
    # what is told
    log_level: Annotated[str, "debug, info, warning or error"] = "info"
    log_format: Annotated[str, "text, json, or auto: text on a terminal"] = "auto"
    access_log: Annotated[bool, "a line for each request; failures have one in any case"] = False

    def __post_init__(self) -> None:
        for name, kind in _types().items():
            object.__setattr__(self, name, _checked(name, kind, getattr(self, name)))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise SettingsError(
                    f"{name}: expected {_listed(choices)}, got {getattr(self, name)!r}"
                )
        for name in ("workers", "max_batch", "max_queue", "max_connections"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}: expected 1 or more, got 0")
        if self.port > 65535:
            raise SettingsError(f"port: expected 0 to 65535, got {self.port}")
        if self.tls_key and not self.tls_cert:
            raise SettingsError("tls_key: it needs tls_cert")


def _checked(name: str, kind: Any, value: Any) -> Any:
    """A value of its type, and not below 0."""
    if kind == TEXTS and type(value) in (list, tuple) and all(type(v) is str for v in value):
        return tuple(value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise SettingsError(f"{name}: expected {_kind(kind)}, got {value!r}")
    if kind in (int, float) and not 0 <= value < 2**53:
        raise SettingsError(f"{name}: expected 0 or more, got {value!r}")
    return value


CHOICES = {
    "log_level": ("debug", "info", "warning", "error"),
    "log_format": ("auto", "json", "text"),
}
NAMES = [f.name for f in fields(Settings)]


def about() -> dict[str, str]:
    """What each setting is for, by name."""
    hints = get_type_hints(Settings, include_extras=True)
    return {name: hints[name].__metadata__[0] for name in NAMES}


def read(
    argv: Sequence[str], environment: Mapping[str, str]
) -> tuple[list[str], Settings, dict[str, str]]:
    """The models' paths, the settings, and for each that is not a default where it comes from.

    Raises SettingsError, and SystemExit for ``--help`` and a flag without its value.
    """
    arguments = _parser().parse_args(argv)
    given = {n: v for n, v in vars(arguments).items() if n in NAMES and v is not None}
    flags = {name: _parsed(name, value, _flag(name)) for name, value in given.items()}
    variables = _from_environment(environment)
    path = arguments.config or variables.pop("config", "")
    file = _from_file(path) if path else {}
    sources = {
        **dict.fromkeys(file, f"file {path}"),
        **{name: PREFIX + name.upper() for name in variables},
        **{name: f"flag {_flag(name)}" for name in flags},
    }
    return arguments.paths, Settings(**{**file, **variables, **flags}), sources


def show(settings: Settings, sources: Mapping[str, str]) -> str:
    """All settings: those that were set, with where; the others in one paragraph."""
    values = {name: _shown(name, getattr(settings, name)) for name in NAMES}
    width = max([len(f"{name} = {values[name]}") for name in sources], default=0)
    lines = [
        f"  {f'{name} = {values[name]}':{width}}  ({where})" for name, where in sources.items()
    ]
    rest = ", ".join(f"{n}\N{NO-BREAK SPACE}{values[n]}" for n in NAMES if n not in sources)
    columns = min(shutil.get_terminal_size((100, 24)).columns, 100)
    paragraph = textwrap.wrap(
        f"defaults: {rest}", columns - 2, break_on_hyphens=False, break_long_words=False
    )
    return "\n".join(["settings", *lines, *[f"  {line}" for line in paragraph]])


# --- where values come from ----------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Says what a misspelt flag may have meant."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        for word in unknown:
            flag = word.partition("=")[0]
            known = [name for name in self._option_string_actions if name.startswith("--")]
            raise SettingsError(f"there is no flag {flag}{_meant(flag, known)}")
        return found

    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tinygrad-ish serve",
        description="Serve programs (what tinygrad_ish.export wrote) over HTTP.",
        epilog=f"Each setting can also be a variable, {PREFIX}MAX_BATCH for --max-batch, or stand "
        "in the file: max_batch = 32. Flags go first, then variables, then the file.",
        allow_abbrev=False,
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a program, or a folder of models")
    parser.add_argument("--config", metavar="FILE", help="a TOML file with settings")
    defaults = Settings()
    for name, what in about().items():
        default = getattr(defaults, name)
        options: dict[str, Any] = {"dest": name, "default": None}
        shown = f" ({_shown(name, default)})" if default not in ("", ()) else ""
        options["help"] = (what + shown).replace("%", "%%")
        if type(default) is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = {int: "N", float: "SECONDS"}.get(type(default), "TEXT")
        parser.add_argument(_flag(name), **options)
    return parser


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for variable, value in environment.items():
        if variable.startswith(PREFIX):
            name = variable[len(PREFIX) :].lower()
            if name not in (*NAMES, "config") or variable != PREFIX + name.upper():
                known = [PREFIX + n.upper() for n in NAMES]
                raise SettingsError(f"{variable} is not a setting{_meant(variable, known)}")
            found[name] = value if name == "config" else _parsed(name, value, variable)
    return found


def _from_file(path: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: {error}") from None
    for name, value in found.items():
        if name not in NAMES:
            raise SettingsError(f"{path}: {name} is not a setting{_meant(name, NAMES)}")
        found[name] = _parsed(name, value, path) if type(value) is str else value
    return found


TRUTH = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def _parsed(name: str, value: Any, where: str) -> Any:
    """A value of the setting's type, out of text."""
    kind = _types()[name]
    if type(value) is bool:  # --reload, --no-reload
        return value
    try:
        if kind is bool:
            return TRUTH[value.lower()]
        if kind == TEXTS:
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return kind(value)
    except (ValueError, KeyError):
        raise SettingsError(f"{name} ({where}): expected {_kind(kind)}, got {value!r}") from None


def _types() -> dict[str, Any]:
    if not _TYPES:
        _TYPES.update(get_type_hints(Settings))
    return _TYPES


_TYPES: dict[str, Any] = {}


def _kind(kind: Any) -> str:
    return {int: "an int", float: "a number", bool: "true or false", str: "text"}.get(
        kind, "texts with commas between"
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _shown(name: str, value: Any) -> str:
    if name == "tls_key_password" and value:
        return "(set)"
    if value in ("", ()):
        return "none"
    if isinstance(value, tuple):
        return ",".join(value)
    return (
        f"{value:g}"
        if type(value) is float
        else str(value).lower()
        if type(value) is bool
        else str(value)
    )


def _meant(name: str, known: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, 1, 0.6)
    return f"; did you mean {near[0]}?" if near else "; tinygrad-ish serve --help lists them"


def _listed(choices: Sequence[str]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"
