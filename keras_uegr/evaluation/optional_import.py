"""Packages that measurements need and training doesn't."""

import importlib


def import_optional(module, purpose):
    """Import a module of the extra `evaluation`, or tell how to get it.

    Args:
        module: String, its full name.
        purpose: String, what needs it, in the plural.

    Returns:
        The module.

    Raises:
        ImportError: If it is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"{purpose} need {package}. Install it with `pip install "
            f'"keras-uegr[evaluation]"` or `pip install {package}`.'
        ) from error
