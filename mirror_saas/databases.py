"""Connection URLs of PostgreSQL: into Django's settings, and from one role to another."""

from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from psycopg.conninfo import conninfo_to_dict

_DJANGO_NAMES = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}


def database_settings(url: str) -> dict[str, Any]:
    """Django's entry for `url` (any libpq URL; a socket folder may stand in `?host=`).

    Parameters that Django has no name for (sslmode, connect_timeout, …) become OPTIONS.
    """
    settings: dict[str, Any] = {"ENGINE": "django.db.backends.postgresql", "ATOMIC_REQUESTS": False}
    options: dict[str, Any] = {"connect_timeout": 5}
    for name, value in conninfo_to_dict(url).items():
        if name in _DJANGO_NAMES:
            settings[_DJANGO_NAMES[name]] = str(value)
        else:
            options[name] = value
    # A server that went away must not leave a request waiting for the kernel's TCP timeout.
    settings["OPTIONS"] = options
    return settings


def database_url_for(url: str, *, user: str, database: str, password: str | None = None) -> str:
    """`url` for another role and database of the same server; without `password` the role logs in without one."""
    parts = urlsplit(url)
    address = parts.netloc.rpartition("@")[2]
    login = quote(user, safe="") + (f":{quote(password, safe='')}" if password is not None else "")
    return urlunsplit((parts.scheme, f"{login}@{address}", f"/{quote(database, safe='')}", parts.query, ""))
