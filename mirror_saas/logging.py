"""Logging: one JSON object a line, and secrets masked wherever they turn up.

Some secrets stand in paths (`/stream/<slug>/<key>`, `/plivo/<slug>/<key>/…`, `/invitation/<token>`,
`/reset-password/<key>`), and paths end up in log lines of Django, Twisted and Channels. The mask is a filter on the
handler, so it sees every record, whoever wrote it, including exception texts. It is the second line of defence: what is
secret is not logged in the first place.
"""

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any

MASK = "***"

# The key after a stream or plivo path, whatever it looks like (a wrong key is somebody's mistyped right key), and
# our own tokens anywhere: stream keys `sk_…`, API keys `mk_<prefix>_<secret>`.
_PATH_KEY = re.compile(r"(/(?:stream|plivo)/[^/\s\"'?#]+/)[^/\s\"'?#]+")
_PATH_TOKEN = re.compile(r"(/(?:invitation|reset-password)/)[^/\s\"'?#]+")
_AUTHORIZATION = re.compile(r"(\b(?:Bearer|Basic)\s+)(?!mk_)[^\s\"',;]{8,}", re.IGNORECASE)
# What providers of models call their keys, which their errors repeat.
_PROVIDER_KEY = re.compile(r"\b(sk-)[A-Za-z0-9_-]{16,}")
_CALL_TOKEN = re.compile(r"([?&]mt=)[^&\s\"'#]+")
_STREAM_KEY = re.compile(r"\bsk_[A-Za-z0-9_-]{16,}")
_WEBHOOK_SECRET = re.compile(r"\b(whsec_)[A-Za-z0-9+/=_-]+")
_API_KEY = re.compile(r"\b(mk_[A-Za-z0-9]+_)[A-Za-z0-9_-]+")
_URL_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^:/@\s]*:)[^@/\s]+(@)")

# What every LogRecord has; anything else came in through `extra=` and is logged as a field.
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def mask_secrets(text: str) -> str:
    """`text` with keys and tokens, ours and providers', and passwords in URLs replaced by `***`."""
    text = _PATH_KEY.sub(rf"\1{MASK}", text)
    text = _PATH_TOKEN.sub(rf"\1{MASK}", text)
    text = _AUTHORIZATION.sub(rf"\1{MASK}", text)
    text = _PROVIDER_KEY.sub(rf"\1{MASK}", text)
    text = _CALL_TOKEN.sub(rf"\1{MASK}", text)
    text = _STREAM_KEY.sub(MASK, text)
    text = _WEBHOOK_SECRET.sub(rf"\1{MASK}", text)
    text = _API_KEY.sub(rf"\1{MASK}", text)
    return _URL_PASSWORD.sub(rf"\1{MASK}\2", text)


class MaskSecrets(logging.Filter):
    """Masks the message, its arguments, the exception's text and every extra field of a record."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            # A wrong format string must not hide the line; the arguments are shown beside it.
            message = f"{record.msg} {record.args!r}"
        record.msg = mask_secrets(message)
        record.args = None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = mask_secrets(record.exc_text)
        if record.stack_info:
            record.stack_info = mask_secrets(record.stack_info)
        for name, value in record.__dict__.items():
            if name not in _STANDARD and isinstance(value, str):
                record.__dict__[name] = mask_secrets(value)
        return True


class WithoutProbes(logging.Filter):
    """Drops Django's line for each 503 of /readyz: probes ask every few seconds, and the answer says what is wrong."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (getattr(record, "status_code", None) == 503 and record.getMessage().endswith(" /readyz"))


class WithoutTraces(logging.Filter):
    """Drops the tracebacks of what Django refuses (a foreign Host, a form that is none): the message says it all, and
    whoever sends such requests must not be able to fill the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        refused = record.name == "django.request" and 400 <= getattr(record, "status_code", 0) < 500
        if refused or record.name.startswith("django.security"):
            record.exc_info = record.exc_text = None
        return True


class WithoutBodies(logging.Filter):
    """Cuts off what Celery's worker quotes of messages that it cannot use: their arguments may be anything."""

    _QUOTED = re.compile(r"\s*The full contents of the message.*", re.DOTALL)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith("celery.worker"):
            message = record.getMessage()
            if self._QUOTED.search(message):
                record.msg, record.args = self._QUOTED.sub(" What it says is not shown.", message), None
                record.exc_info = record.exc_text = None
        return True


class WithoutSweeps(logging.Filter):
    """Drops what worker and beat tell of tasks that come every few seconds and went well: it would drown the rest."""

    _SWEEPS = frozenset({"supervision.webhooks_sweep", "supervision.webhooks_send"})

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno > logging.INFO or not record.name.startswith("celery."):
            return True
        given = record.args.values() if isinstance(record.args, dict) else record.args or ()
        return not any(isinstance(each, str) and each in self._SWEEPS for each in given)


class JSONFormatter(logging.Formatter):
    """One JSON object a line: `at` (UTC), `level`, `logger`, `message`, `error` (traceback) and the extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        # Django attaches whole requests; their fields are not ours to log.
        line |= {
            name: value
            for name, value in record.__dict__.items()
            if name not in _STANDARD and isinstance(value, str | int | float | bool | None)
        }
        error = record.exc_text or (self.formatException(record.exc_info) if record.exc_info else None)
        if error:
            line["error"] = error
        return json.dumps(line, ensure_ascii=False, default=str)


def logging_config(*, level: str = "INFO") -> dict[str, Any]:
    """A dictConfig: everything goes to stderr through the mask. Access lines with paths are off."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {
            "mask": {"()": "mirror_saas.logging.MaskSecrets"},
            "without_probes": {"()": "mirror_saas.logging.WithoutProbes"},
            "without_traces": {"()": "mirror_saas.logging.WithoutTraces"},
            "without_bodies": {"()": "mirror_saas.logging.WithoutBodies"},
            "without_sweeps": {"()": "mirror_saas.logging.WithoutSweeps"},
        },
        "formatters": {"json": {"()": "mirror_saas.logging.JSONFormatter"}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "json",
                "filters": ["without_traces", "without_bodies", "without_sweeps", "mask"],
            }
        },
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {
            # Django's own handlers would print unmasked lines a second time.
            "django": {"handlers": [], "level": level, "propagate": True},
            "django.request": {"filters": ["without_probes"]},
            "django.server": {"handlers": [], "level": "WARNING", "propagate": True},
            "daphne": {"level": "WARNING"},
            "asyncio": {"level": "WARNING"},
            # At DEBUG they show what they carry: parameters of queries, what a page is made of, arguments of tasks,
            # messages, requests and answers.
            "django.db.backends": {"level": "WARNING"},
            "django.template": {"level": "WARNING"},
            "amqp": {"level": "WARNING"},
            "billiard": {"level": "WARNING"},
            "celery": {"level": "WARNING" if level in ("WARNING", "ERROR") else "INFO"},
            "kombu": {"level": "WARNING"},
            "openai": {"level": "WARNING"},
            "redis": {"level": "WARNING"},
            "httpx": {"level": "WARNING"},
            "httpx2": {"level": "WARNING"},
            "picows": {"level": "WARNING"},
            "websockets": {"level": "WARNING"},
            "httpcore": {"level": "WARNING"},
        },
    }
