"""The version of this package, and of those that results depend on."""

import platform
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "scikit-learn", "sacrebleu")


def versions() -> dict[str, str]:
    """Return the versions of the installed packages that results depend on."""
    installed = {"python": platform.python_version(), "fulltune": __version__}
    for package in _PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed
