"""Keys that Mirror makes for itself when none are configured: kept in MIRROR_HOME/keys.json, readable by us alone."""

import base64
import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

from mirror_saas.env import ENCRYPTION_KEY_BYTES, SECRET_KEY_MIN_CHARS

KEYS_FILE = "keys.json"


@dataclass(frozen=True, slots=True)
class Keys:
    """`secret_key` signs sessions and tokens; `encryption_key` (32 bytes) seals secrets at rest."""

    secret_key: str = field(repr=False)
    encryption_key: bytes = field(repr=False)


def keys_load_or_create(home: Path) -> Keys:
    """Return the keys of `home`, making them on the first call (file mode 0600).

    Several processes may start at once: whoever links its file first wins, and all read that one.
    Raises `ImproperlyConfigured` when the file cannot be written, read or understood.
    """
    path = home / KEYS_FILE
    try:
        if not path.exists():
            _create(path)
        return _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ImproperlyConfigured(
            f"{error.filename or path}: {error.strerror}. Mirror keeps its keys there; set MIRROR_HOME to a folder that"
            " this user may write, or set MIRROR_SECRET_KEY and MIRROR_ENCRYPTION_KEY."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ImproperlyConfigured(
            f"{path} is not Mirror's keys file. Restore it from a backup; without it the sealed secrets are lost."
        ) from error


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(
        {
            "secret_key": secrets.token_urlsafe(48),
            "encryption_key": base64.b64encode(secrets.token_bytes(ENCRYPTION_KEY_BYTES)).decode(),
        }
    )
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            # A hard link appears whole or not at all, and fails when another process was first.
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink(missing_ok=True)


def _parse(content: str) -> Keys:
    stored = json.loads(content)
    keys = Keys(
        secret_key=str(stored["secret_key"]),
        encryption_key=base64.b64decode(stored["encryption_key"], validate=True),
    )
    if len(keys.encryption_key) != ENCRYPTION_KEY_BYTES or len(keys.secret_key) < SECRET_KEY_MIN_CHARS:
        raise ValueError("a key is too short")
    return keys
