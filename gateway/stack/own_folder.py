"""A folder that nobody else can put anything into.

Why: LiteLLM looks for plugins first in the folder of its configuration, and it runs them with the grants' secret and the
providers' keys in its environment. Anybody who can write there has those secrets.

What must hold:
The folder and everything in it belong to the account that runs LiteLLM (or to root).
No other account may write to the folder, or put another folder in its place.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


class FolderNotOurs(Exception):
    """Another account owns a folder or may write to it. The message names the folder and the remedy."""


def own_folder(folder: Path) -> Path:
    """Make the folder, for this account alone. If it exists, check that it belongs to this account alone.

    Raises:
        FolderNotOurs: another account owns it, may write to it, or could replace it.
        OSError: the folder cannot be made or read.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    _check(folder)
    for entry in folder.iterdir():
        if entry.lstat().st_uid not in (os.geteuid(), 0):
            raise FolderNotOurs(f"{entry} belongs to another account, which has put it there. Remove it.")
    return folder


def _check(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise FolderNotOurs(f"{folder} is not a folder, but a link or a file. Remove it.")
    if found.st_uid != os.geteuid():
        raise FolderNotOurs(f"{folder} belongs to another account (user {found.st_uid}). Name another folder.")
    if found.st_mode & 0o022:
        raise FolderNotOurs(f"Others may write to {folder}. Remove it, or forbid that: chmod 700 {folder}")
    for above in folder.resolve().parents:
        mode = above.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:  # in a sticky folder (/tmp) others cannot rename it
            raise FolderNotOurs(f"Anybody may put another folder in the place of {folder}: {above} is open to all.")
