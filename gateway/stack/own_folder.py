"""A folder that nobody else can put anything into.

What must hold: LiteLLM imports the plugins that it finds beside its configuration before it looks anywhere else, with
the grants' secret and the providers' keys in its environment. So that folder is the account's that runs it, nobody
else may write to it, nothing in it is anybody else's, and nobody else can put another folder in its place.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


class FolderNotOurs(Exception):
    """Somebody else owns a folder or may write to it. The message names the folder, and says what to do."""


def own_folder(folder: Path) -> Path:
    """Make the folder, for this account alone, or make sure that the one which is there is such a folder.

    Raises:
        FolderNotOurs: it is not.
        OSError: it cannot be made or read.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    _check(folder)
    for entry in folder.iterdir():
        if entry.lstat().st_uid not in (os.geteuid(), 0):
            raise FolderNotOurs(f"{entry} is not ours: another account has put it there. Remove it.")
    return folder


def _check(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise FolderNotOurs(f"{folder} is not a folder, but a link or a file. Remove it.")
    if found.st_uid != os.geteuid():
        raise FolderNotOurs(f"{folder} belongs to another account (user {found.st_uid}). Name another folder.")
    if found.st_mode & 0o022:
        raise FolderNotOurs(f"Others may write to {folder}. Remove it, or take that away: chmod 700 {folder}")
    for above in folder.resolve().parents:
        mode = above.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:  # in a sticky one (/tmp) others cannot rename what is ours
            raise FolderNotOurs(f"Anybody may put another folder in the place of {folder}: {above} is open to all.")
