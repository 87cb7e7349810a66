"""Say how to install the extras of fulltune, by the way in which fulltune itself was installed.

The name ``fulltune[serve]`` means a package of an index. In a clone it is ``.[serve]``, and after an installation from
a repository it needs the address.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from fulltune.errors import MissingDependencyError


def install(extra: str) -> str:
    """Return the command that installs an extra."""
    origin = _origin()
    url = str(origin.get("url", ""))
    if "dir_info" in origin:
        folder = Path(url2pathname(urlsplit(url).path))
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f"pip install {editable}'{'.' if folder == Path.cwd() else folder}[{extra}]'"
    if "vcs_info" in origin:
        source = origin["vcs_info"]
        return f"pip install 'fulltune[{extra}] @ {source['vcs']}+{url}@{source['commit_id']}'"
    return f"pip install 'fulltune[{extra}] @ {url}'" if url else f"pip install 'fulltune[{extra}]'"


def _origin() -> dict[str, Any]:
    """Return where fulltune was installed from (PEP 610); nothing for an index, or if it was not installed."""
    try:
        text = distribution("fulltune").read_text("direct_url.json")
    except PackageNotFoundError:
        return {}
    return dict(json.loads(text)) if text else {}


def check(what: str, packages: Sequence[str], extra: str, *, field: str = "") -> None:
    """Check that packages can be imported.

    Args:
        what: Feature that needs them, for the message.
        packages: Names of the packages, or of their modules.
        extra: The extra that contains them.
        field: Option or config key that asks for the feature.

    Raises:
        MissingDependencyError: Some cannot; names them and the extra.
    """
    absent = [name for name in packages if importlib.util.find_spec(name.replace("-", "_")) is None]
    if absent:
        raise missing(what, absent, extra, field=field)


def missing(
    what: str, packages: Sequence[str], extra: str, *, field: str = "", where: str = "", instead: str = ""
) -> MissingDependencyError:
    """Return the error that a feature needs packages that are not installed; ``instead`` is another way out."""
    verb, them = ("is", "it") if len(packages) == 1 else ("are", "them")
    named = " and ".join(filter(None, (", ".join(packages[:-1]), packages[-1])))
    return MissingDependencyError(
        f"{what} needs {named}, which {verb} not installed",
        fix=f"install {them} with `{install(extra)}`" + (f", or {instead}" if instead else ""),
        where=where,
        field=field,
    )
