"""A page in headless Chromium: its document after the scripts ran, and what the console said."""

import re
import shutil
import subprocess

import pytest

NAMES = ("chromium", "google-chrome", "chromium-browser")
SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --virtual-time-budget=3000 "
    "--enable-logging=stderr --host-resolver-rules=MAP*0.0.0.0"
).split()


def browse(page, tmp_path):
    """(document after loading, console lines) of a file."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(NAMES)} is on PATH")
    done = subprocess.run(
        [
            program,
            *SWITCHES,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout, re.findall(r"CONSOLE.*", done.stderr)


def with_script(page, script, path):
    """A copy of a page whose last act is `script`."""
    text = page.read_text().replace("</body>", f"<script>{script}</script></body>")
    path.write_text(text)
    return path
