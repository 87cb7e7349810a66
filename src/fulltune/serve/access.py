"""Check where a server may listen and who may ask it, before anything is loaded."""

from __future__ import annotations

import errno
import ipaddress
import socket
from pathlib import Path

from fulltune.errors import ConfigError
from fulltune.runtime import extras
from fulltune.runtime.validation import read_failure

#: Packages of the extra, and the names of their modules.
_NEEDED = ("fastapi", "uvicorn", "prometheus-client")

#: Shortest token, in characters.
_SHORTEST_TOKEN = 16

#: Connections that are open at the same time.
CONNECTIONS = 1024


def is_loopback(host: str) -> bool:
    """Return True for an address that only this machine can reach."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_packages() -> None:
    """Check that the packages of the extra are installed.

    Raises:
        MissingDependencyError: One is not.
    """
    extras.check("a server", _NEEDED, "serve")


def checked_token(host: str, token_file: str | Path | None) -> str:
    """Return the token that requests must carry; empty for a server that this machine alone can reach.

    Raises:
        ConfigError: Other machines can reach the server and there is no token, or the file has none.
    """
    if token_file is None:
        if is_loopback(host):
            return ""
        raise ConfigError(
            f"the host {host!r} can be reached by other machines",
            expected="a token that requests must carry",
            fix="write one to a file (openssl rand -hex 32 > token) and add --token-file token",
            field="--host",
        )
    path = Path(token_file).expanduser()
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the token cannot be read ({read_failure(error)})",
            expected="an ASCII text file",
            where=str(path),
            field="--token-file",
        ) from None
    if len(token) < _SHORTEST_TOKEN or any(character.isspace() for character in token):
        raise ConfigError(
            f"a token of {len(token)} characters",
            expected=f"one word of at least {_SHORTEST_TOKEN} characters",
            fix="create one with: openssl rand -hex 32",
            where=str(path),
            field="--token-file",
        )
    return token


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address.

    Raises:
        ConfigError: The address is in use, or is not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(CONNECTIONS)
        except OSError:
            listening.close()
            raise
    except (OSError, OverflowError) as error:
        in_use = getattr(error, "errno", None) == errno.EADDRINUSE
        fix = (
            "choose another with --port, or --port 0 for any free one" if in_use else "choose another --host or --port"
        )
        raise ConfigError(
            f"{host}:{port} cannot be used ({getattr(error, 'strerror', None) or error})",
            expected="a free port of an address of this machine",
            fix=fix,
            field="--port",
        ) from None
    return listening
