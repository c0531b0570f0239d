"""Work that was begun under a prefix and not committed: on this machine, or on another one that put its files there."""

import os
import shutil
from pathlib import Path

from roboimi.storage.atomic import durable_temporary, writing
from roboimi.storage.store import Store


def unfinished_folder(store: Store, prefix: str) -> Path:
    """`store.folder(prefix)` with whatever the store has under the prefix; what is on this machine already stays.

    A copy: what is appended to or replaced in the folder changes nothing in the store.
    """
    folder = store.folder(prefix)
    names = [name for name in store.list(prefix) if not (folder / name).exists()]
    if not names:
        return folder
    fetched = store.fetch(prefix, names)
    for name in names:
        if (fetched / name).is_file():  # folders below are prefixes of their own
            with writing(folder / name), durable_temporary(folder / name) as temporary:
                shutil.copyfile(fetched / name, temporary)
                os.replace(temporary, folder / name)
    return folder
