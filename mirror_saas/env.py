"""The environment, read once at start: typed, checked, and pure.

`environment_parse` turns a mapping of strings into one frozen `Environment` or raises `EnvironmentInvalid`, which
names every variable that is wrong together with what to do about it, so that a start fails once and not once per
mistake. Nothing here reads `os.environ`, writes a file or opens a socket; the only outside access is the injected
`read_text`, because each secret may also come as `NAME_FILE` (a path whose content is the value).
"""

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from email.utils import parseaddr
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

from mirror_saas.limits import Limits, limit_parse

Mode = Literal["development", "production"]
DatabaseRole = Literal["app", "owner"]
TTSKind = Literal["offline", "openai", "off"]
HandshakeSignature = Literal["check", "require", "ignore"]
SignUp = Literal["open", "closed"]

ADDRESS_FILE = "address"
"""In MIRROR_HOME while Mirror runs: its public URL."""
ENCRYPTION_KEY_BYTES = 32
SECRET_KEY_MIN_CHARS = 32
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

# Each of these may be given as NAME_FILE, so that it never stands in a process list or a compose file.
SECRETS = frozenset(
    {
        "DATABASE_URL",
        "DATABASE_OWNER_URL",
        "DATABASE_ADMIN_URL",
        "REDIS_URL",
        "MIRROR_METRICS_TOKEN",
        "MIRROR_SECRET_KEY",
        "MIRROR_ENCRYPTION_KEY",
        "MIRROR_ENCRYPTION_KEY_PREVIOUS",
        "MIRROR_EMAIL_URL",
        "OPENAI_API_KEY",
        "OPENAI_TTS_API_KEY",
    }
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One variable that cannot be used: its name, what is wrong, and what to set instead."""

    name: str
    message: str


class EnvironmentInvalid(ImproperlyConfigured):
    """The environment cannot be used; `problems` holds one entry per bad variable, and the text lists them all."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        lines = [f"  {problem.name}: {problem.message}" for problem in problems]
        super().__init__("Mirror cannot start, its environment is not usable:\n" + "\n".join(lines))


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where mails are handed in: `tls` from the first byte, `starttls`, or `off`, which sends in the clear."""

    host: str
    port: int
    security: Literal["starttls", "tls", "off"]
    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Environment:
    """The checked environment. Values that hold secrets are kept out of `repr`."""

    mode: Mode
    port: int
    bind: str
    public_url: str
    """Scheme, host and port under which Plivo and browsers reach us; no trailing slash."""
    allowed_hosts: tuple[str, ...]
    egress_allow: tuple[str, ...]
    """`host`, `host:port` or CIDR entries that outbound connections may reach although they are not public."""
    trusted_proxies: tuple[str, ...]
    """Addresses or CIDR networks of proxies whose `X-Forwarded-For` is believed."""
    handshake_signature: HandshakeSignature
    """What becomes of Plivo's signature of a stream's handshake when the tenant has stored its auth token: `check` one
    that is there, `require` one, or `ignore` it."""
    hsts_s: int
    """How long browsers that came by https may not come by http, in seconds; 0 makes them forget it."""
    home: Path
    journal_dir: Path
    journal_mib: int
    """What all journals in that folder may take together, in MiB."""
    log_level: str
    drain_s: float
    """How long a stopping server waits for running calls, in seconds."""
    drain_accept_s: float
    """How long a stopping server still takes new calls while its /readyz says no, in seconds: two intervals of whoever
    asks that."""
    database_role: DatabaseRole
    """Which role's URL Django connects with: `owner` only for the process that migrates."""
    tts: TTSKind | None
    """None: take the offline voice when its package is installed."""
    openai_base_url: str | None
    openai_model: str
    openai_tts_base_url: str | None
    openai_tts_model: str
    openai_tts_voice: str
    email: MailServer | None
    """None: mails are printed to standard output, for trying things out."""
    email_from: str
    """Who mails are from: an address, or `Name <address>`."""
    sign_up: SignUp
    """Whether people who were not invited may make an account, and a tenant of their own."""
    demo_agent_url: str | None
    """The demo's voice agent (`mirror_saas.demo.agent`), for new tenants to try Mirror with; None: there is none."""
    demo_judge_url: str | None
    """The script that judges the demo agent's calls (`mirror_saas.demo.judge`), with its `/v1`."""
    limits: Limits
    """What a tenant may use that has no limits of its own."""
    metrics_token: str | None = field(repr=False)
    """Who reads /metrics sends it; None: only this machine reads them."""
    judge_calls_total: int | None
    """Questions to judges that are under way at the same time in one process, of all tenants; None: no limit."""
    database_url: str | None = field(repr=False)
    database_owner_url: str | None = field(repr=False)
    database_admin_url: str | None = field(repr=False)
    redis_url: str | None = field(repr=False)
    secret_key: str | None = field(repr=False)
    encryption_key: bytes | None = field(repr=False)
    encryption_keys_previous: tuple[bytes, ...] = field(repr=False)
    """Keys that still open what they sealed, while `rotate_keys` moves it to `encryption_key`."""
    openai_api_key: str | None = field(repr=False)
    openai_tts_api_key: str | None = field(repr=False)

    @property
    def embedded(self) -> bool:
        """True when Mirror starts its own PostgreSQL and Valkey."""
        return self.database_url is None

    @property
    def loopback_upstreams_allowed(self) -> bool:
        """True when agents and LLMs may live on this machine (development only)."""
        return self.mode == "development"


def environment_parse(
    environ: Mapping[str, str],
    *,
    base_dir: Path,
    read_text: Callable[[Path], str] = Path.read_text,
) -> Environment:
    """Check `environ` and return it typed.

    `base_dir` is the folder that relative defaults (MIRROR_HOME) are resolved against. Blank values count as unset.
    Raises `EnvironmentInvalid` with every problem found.
    """
    reader = _Reader(environ, read_text)

    mode = reader.choice("MIRROR_ENV", ("development", "production"), default="production")
    port = reader.integer("PORT", default=8000, low=1, high=65535)
    bind = reader.text("MIRROR_BIND") or "127.0.0.1"
    public_url = reader.url("MIRROR_PUBLIC_URL", ("http", "https")) or f"http://127.0.0.1:{port}"
    if urlsplit(public_url).path.strip("/"):
        reader.bad(
            "MIRROR_PUBLIC_URL", "has a path; give scheme, host and port only, such as https://mirror.example.com"
        )
    home = _absolute(base_dir, reader.text("MIRROR_HOME") or ".mirror")
    journal_dir = _absolute(base_dir, reader.text("MIRROR_JOURNAL_DIR") or str(home / "journal"))

    database_url = reader.url("DATABASE_URL", ("postgresql", "postgres"))
    owner_url = reader.url("DATABASE_OWNER_URL", ("postgresql", "postgres"))
    admin_url = reader.url("DATABASE_ADMIN_URL", ("postgresql", "postgres"))
    redis_url = reader.url("REDIS_URL", ("redis", "rediss"))
    if not reader.has_problem("DATABASE_URL") and not reader.has_problem("REDIS_URL"):
        if database_url and not redis_url:
            reader.bad("REDIS_URL", "is not set although DATABASE_URL is; set both (or neither, for embedded servers)")
        if redis_url and not database_url:
            reader.bad("DATABASE_URL", "is not set although REDIS_URL is; set both (or neither, for embedded servers)")
    database_role = reader.choice("MIRROR_DATABASE_ROLE", ("app", "owner"), default="app")
    if database_role == "owner" and database_url and not owner_url:
        reader.bad("DATABASE_OWNER_URL", "is not set; migrations connect with it as the role mirror_owner")

    secret_key = reader.text("MIRROR_SECRET_KEY")
    if secret_key is not None and len(secret_key) < SECRET_KEY_MIN_CHARS:
        reader.bad("MIRROR_SECRET_KEY", f"is shorter than {SECRET_KEY_MIN_CHARS} characters; use a long random string")
    encryption_key = reader.key("MIRROR_ENCRYPTION_KEY", ENCRYPTION_KEY_BYTES)
    if mode == "production" and database_url:
        # With an outside database several machines share the data, so a key made up by one of them would lock
        # the others (and its own successor) out.
        for name, value in (("MIRROR_SECRET_KEY", secret_key), ("MIRROR_ENCRYPTION_KEY", encryption_key)):
            if value is None and not reader.has_problem(name):
                message = f"is required in production with DATABASE_URL; set it or {name}_FILE, alike on all nodes"
                reader.bad(name, message)

    email = _mail_server(reader)
    demo_agent_url, demo_judge_url = _demo(reader)
    environment = Environment(
        mode="development" if mode == "development" else "production",
        port=port,
        bind=bind,
        public_url=public_url.rstrip("/"),
        allowed_hosts=_allowed_hosts(reader.items("MIRROR_ALLOWED_HOSTS"), public_url),
        egress_allow=_egress_allow(reader),
        trusted_proxies=_trusted_proxies(reader),
        handshake_signature=_handshake_signature(reader),
        hsts_s=reader.integer("MIRROR_HSTS_S", default=31_536_000, low=0, high=63_072_000),
        home=home,
        journal_dir=journal_dir,
        journal_mib=reader.integer("MIRROR_JOURNAL_MIB", default=1024, low=8, high=1 << 20),
        log_level=reader.choice("MIRROR_LOG_LEVEL", LOG_LEVELS, default="INFO"),
        drain_s=reader.number("MIRROR_DRAIN_S", default=2.0 if mode == "development" else 300.0, low=0, high=86400),
        drain_accept_s=reader.number(
            "MIRROR_DRAIN_ACCEPT_S", default=0.0 if mode == "development" else 20.0, low=0, high=3600
        ),
        database_role="owner" if database_role == "owner" else "app",
        tts=_tts(reader),
        openai_base_url=reader.url("OPENAI_BASE_URL", ("http", "https")),
        openai_model=reader.text("OPENAI_MODEL") or "gpt-4o-mini",
        openai_tts_base_url=reader.url("OPENAI_TTS_BASE_URL", ("http", "https")),
        openai_tts_model=reader.text("OPENAI_TTS_MODEL") or "gpt-4o-mini-tts",
        openai_tts_voice=reader.text("OPENAI_TTS_VOICE") or "alloy",
        email=email,
        email_from=_email_from(reader, required=email is not None),
        sign_up=_sign_up(reader, mode, has_mail=email is not None),
        demo_agent_url=demo_agent_url,
        demo_judge_url=demo_judge_url,
        limits=Limits(
            calls=reader.limit("MIRROR_LIMIT_CALLS", default=200),
            judge_calls=reader.limit("MIRROR_LIMIT_JUDGE_CALLS", default=200),
            requests_per_minute=reader.limit("MIRROR_LIMIT_REQUESTS_PER_MINUTE", default=6000),
            key_requests_per_minute=reader.limit("MIRROR_LIMIT_KEY_REQUESTS_PER_MINUTE", default=3000),
            storage_mib=reader.limit("MIRROR_LIMIT_STORAGE_MIB", default=20 * 1024),
        ),
        metrics_token=_metrics_token(reader),
        judge_calls_total=reader.limit("MIRROR_JUDGE_CALLS_TOTAL", default=1000),
        database_url=database_url,
        database_owner_url=owner_url,
        database_admin_url=admin_url,
        redis_url=redis_url,
        secret_key=secret_key,
        encryption_key=encryption_key,
        encryption_keys_previous=reader.keys("MIRROR_ENCRYPTION_KEY_PREVIOUS", ENCRYPTION_KEY_BYTES),
        openai_api_key=reader.text("OPENAI_API_KEY"),
        openai_tts_api_key=reader.text("OPENAI_TTS_API_KEY"),
    )
    if reader.problems:
        raise EnvironmentInvalid(tuple(reader.problems))
    return environment


def _metrics_token(reader: "_Reader") -> str | None:
    token = reader.text("MIRROR_METRICS_TOKEN")
    if token is not None and not re.fullmatch(r"[\x21-\x7e]{16,}", token):
        reader.bad("MIRROR_METRICS_TOKEN", "use at least 16 characters that a header can carry, without blanks")
    return token


class _Reader:
    """Reads variables and collects what is wrong with them. Messages never repeat the value of a secret."""

    def __init__(self, environ: Mapping[str, str], read_text: Callable[[Path], str]) -> None:
        self._environ = environ
        self._read_text = read_text
        self.problems: list[Problem] = []

    def bad(self, name: str, message: str) -> None:
        self.problems.append(Problem(name, message))

    def has_problem(self, name: str) -> bool:
        return any(problem.name in (name, f"{name}_FILE") for problem in self.problems)

    def text(self, name: str) -> str | None:
        value = self._environ.get(name, "").strip() or None
        if name not in SECRETS:
            return value
        file_name = self._environ.get(f"{name}_FILE", "").strip()
        if not file_name:
            return value
        if value is not None:
            self.bad(name, f"is set and so is {name}_FILE; keep one of them")
            return None
        try:
            content = self._read_text(Path(file_name)).strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not text"
            self.bad(f"{name}_FILE", f"cannot be read ({reason}); give the path of a readable file with the value")
            return None
        if not content:
            self.bad(f"{name}_FILE", "names an empty file; put the value in it")
            return None
        return content

    def items(self, name: str) -> tuple[str, ...]:
        return tuple(item.strip() for item in (self.text(name) or "").split(",") if item.strip())

    def choice(self, name: str, allowed: tuple[str, ...], *, default: str) -> str:
        value = self.text(name)
        if value is None:
            return default
        if value not in allowed:
            self.bad(name, f"is {value!r}; use one of {', '.join(allowed)}")
            return default
        return value

    def integer(self, name: str, *, default: int, low: int, high: int) -> int:
        value = self.text(name)
        if value is None:
            return default
        if not re.fullmatch(r"[0-9]{1,9}", value) or not low <= int(value) <= high:
            self.bad(name, f"is {value!r}; use a whole number from {low} to {high}")
            return default
        return int(value)

    def number(self, name: str, *, default: float, low: float, high: float) -> float:
        value = self.text(name)
        if value is None:
            return default
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) or not low <= float(value) <= high:
            self.bad(name, f"is {value!r}; use a number of seconds from {low:g} to {high:g}")
            return default
        return float(value)

    def limit(self, name: str, *, default: int) -> int | None:
        value = self.text(name)
        if value is None:
            return default
        try:
            return limit_parse(value)
        except ValueError as error:
            self.bad(name, f"is {value!r}; {error}")
            return default

    def url(self, name: str, schemes: tuple[str, ...]) -> str | None:
        value = self.text(name)
        if value is None:
            return None
        expected = " or ".join(f"{scheme}://" for scheme in schemes)
        try:
            parts = urlsplit(value)
            parts.port  # noqa: B018  (raises ValueError for a port that is not a number)
        except ValueError:
            self.bad(name, f"is not a URL; it starts with {expected} and its port is a number")
            return None
        if parts.scheme not in schemes:
            self.bad(name, f"does not start with {expected}")
            return None
        # PostgreSQL URLs may name a socket folder in ?host= instead of a host.
        if not parts.hostname and "host=" not in parts.query:
            self.bad(name, f"names no host; write {schemes[0]}://HOST…")
            return None
        return value

    def key(self, name: str, size: int) -> bytes | None:
        value = self.text(name)
        if value is None:
            return None
        key = _key_decode(value, size)
        if key is None:
            self.bad(name, f"is not the base64 of {size} bytes; make one with: openssl rand -base64 {size}")
        return key

    def keys(self, name: str, size: int) -> tuple[bytes, ...]:
        """Keys separated by commas, spaces or lines."""
        keys = tuple(_key_decode(value, size) for value in re.split(r"[,\s]+", self.text(name) or "") if value)
        if None in keys:
            self.bad(name, f"has an entry that is not the base64 of {size} bytes; separate several keys by commas")
        return tuple(key for key in keys if key is not None)


def _key_decode(value: str, size: int) -> bytes | None:
    try:
        key = base64.b64decode(value.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == size else None


def _absolute(base_dir: Path, value: str) -> Path:
    path = Path(value).expanduser()
    return path if path.is_absolute() else base_dir / path


def _allowed_hosts(extra: tuple[str, ...], public_url: str) -> tuple[str, ...]:
    hosts = ["localhost", "127.0.0.1", "[::1]", *extra]
    public_host = urlsplit(public_url).hostname
    if public_host:
        hosts.append(f"[{public_host}]" if ":" in public_host else public_host)
    return tuple(dict.fromkeys(hosts))


def _egress_allow(reader: _Reader) -> tuple[str, ...]:
    entries = reader.items("MIRROR_EGRESS_ALLOW")
    wrong = [entry for entry in entries if not _is_egress_entry(entry)]
    if wrong:
        listed = ", ".join(wrong)
        reader.bad("MIRROR_EGRESS_ALLOW", f"cannot use {listed}; entries are host, host:port or a CIDR network")
    return entries


def _trusted_proxies(reader: _Reader) -> tuple[str, ...]:
    entries = reader.items("MIRROR_TRUSTED_PROXIES")
    for entry in entries:
        try:
            ipaddress.ip_network(entry)
        except ValueError:
            reader.bad("MIRROR_TRUSTED_PROXIES", f"cannot use {entry}; entries are IP addresses or CIDR networks")
    return entries


def _is_egress_entry(entry: str) -> bool:
    if "/" in entry:
        try:
            ipaddress.ip_network(entry)
        except ValueError:
            return False
        return True
    try:
        ipaddress.ip_address(entry)
        return True
    except ValueError:
        pass
    try:
        parts = urlsplit(f"//{entry}")
        port = parts.port
    except ValueError:
        return False
    if port == 0 or not parts.hostname or parts.username is not None:
        return False
    if ":" in parts.hostname:
        return parts.path == "" and parts.query == ""
    return re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?(:[0-9]+)?", entry) is not None


def _mail_server(reader: _Reader) -> MailServer | None:
    name = "MIRROR_EMAIL_URL"
    url = reader.url(name, ("smtp", "smtps"))
    if url is None:
        return None
    parts = urlsplit(url)
    options = parse_qsl(parts.query, keep_blank_values=True)
    security: Literal["starttls", "tls", "off"] = "tls" if parts.scheme == "smtps" else "starttls"
    if options == [("tls", "off")] and parts.scheme == "smtp":
        security = "off"
    elif options or parts.path.strip("/") or parts.fragment:
        reader.bad(
            name, "has more than a mail server; write smtp://USER:PASSWORD@HOST:PORT, smtps://… or smtp://HOST?tls=off"
        )
        return None
    username, password = unquote(parts.username or ""), unquote(parts.password or "")
    if bool(username) != bool(password):
        reader.bad(name, "has a user without a password, or the other way round; give both or neither")
        return None
    if username and security == "off":
        reader.bad(name, "would send its password in the clear; leave ?tls=off out, or the user and password")
        return None
    port = parts.port or {"tls": 465, "starttls": 587, "off": 25}[security]
    return MailServer(host=parts.hostname or "", port=port, security=security, username=username, password=password)


def _email_from(reader: _Reader, *, required: bool) -> str:
    name = "MIRROR_EMAIL_FROM"
    value = reader.text(name)
    if value is None:
        if required:
            reader.bad(name, "is not set although MIRROR_EMAIL_URL is; give the address that mails are from")
        return "Mirror <mirror@localhost>"
    address = parseaddr(value)[1]
    if not re.fullmatch(r"[^@\s<>\",;]+@[^@\s<>\",;]+", address) or not value.isprintable() or value.count("@") != 1:
        reader.bad(name, f"is {value!r}; give an address, or: Mirror <mirror@example.com>")
    return value


def _sign_up(reader: _Reader, mode: str, *, has_mail: bool) -> SignUp:
    name = "MIRROR_SIGN_UP"
    closed = reader.choice(name, ("open", "closed"), default="open" if mode == "development" else "closed") == "closed"
    if not closed and mode != "development" and not has_mail and not reader.has_problem("MIRROR_EMAIL_URL"):
        # Else anybody could make the account of any address.
        reader.bad(name, "is open, which needs a mail server: set MIRROR_EMAIL_URL, or close it")
    return "closed" if closed else "open"


def _demo(reader: _Reader) -> tuple[str | None, str | None]:
    agent = reader.url("MIRROR_DEMO_AGENT_URL", ("ws", "wss"))
    judge = reader.url("MIRROR_DEMO_JUDGE_URL", ("http", "https"))
    for name, value, other in (
        ("MIRROR_DEMO_AGENT_URL", agent, judge),
        ("MIRROR_DEMO_JUDGE_URL", judge, agent),
    ):
        if value is None and other is not None and not reader.has_problem(name):
            reader.bad(name, "is not set although the other of the two is; the demo's agent and its judge go together")
    return agent, judge


def _tts(reader: _Reader) -> TTSKind | None:
    match reader.choice("MIRROR_TTS", ("offline", "openai", "off"), default="auto"):
        case "offline":
            return "offline"
        case "openai":
            return "openai"
        case "off":
            return "off"
    return None


def _handshake_signature(reader: _Reader) -> HandshakeSignature:
    match reader.choice("MIRROR_HANDSHAKE_SIGNATURE", ("check", "require", "ignore"), default="check"):
        case "require":
            return "require"
        case "ignore":
            return "ignore"
    return "check"


def address_in_use(
    environment: Environment, environ: Mapping[str, str], *, read_text: Callable[[Path], str] = Path.read_text
) -> Environment:
    """`environment` with the address of the Mirror that runs on its home, when the environment names none itself.

    So `manage.py create_agent` beside a `PORT=9000 make run` prints URLs on port 9000.
    """
    if environ.get("MIRROR_PUBLIC_URL") or environ.get("MIRROR_PUBLIC_URL_FILE") or environ.get("PORT"):
        return environment
    try:
        address = read_text(environment.home / ADDRESS_FILE).strip()
    except OSError:
        return environment
    return replace(environment, public_url=address) if re.fullmatch(r"https?://[^/\s]+", address) else environment
