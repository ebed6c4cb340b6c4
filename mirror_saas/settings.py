"""Django's settings, all from the environment (mirror_saas.env); `MIRROR` is the checked environment itself."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from mirror_saas.databases import database_settings, database_url_for
from mirror_saas.embedded import servers_read
from mirror_saas.env import Environment, address_in_use, environment_parse
from mirror_saas.keys import keys_load_or_create
from mirror_saas.logging import logging_config
from mirror_saas.origins import origin_of

BASE_DIR = Path(__file__).resolve().parent.parent

MIRROR: Environment = address_in_use(environment_parse(os.environ, base_dir=BASE_DIR), os.environ)

# -- keys ---------------------------------------------------------------------------------------------------------

MIRROR_ENCRYPTION_KEY_PREVIOUS: tuple[bytes, ...] = MIRROR.encryption_keys_previous
if MIRROR.secret_key is not None and MIRROR.encryption_key is not None:
    SECRET_KEY: str = MIRROR.secret_key
    MIRROR_ENCRYPTION_KEY: bytes = MIRROR.encryption_key
else:
    _keys = keys_load_or_create(MIRROR.home)
    SECRET_KEY = MIRROR.secret_key or _keys.secret_key
    MIRROR_ENCRYPTION_KEY = MIRROR.encryption_key or _keys.encryption_key

# -- servers ------------------------------------------------------------------------------------------------------

DATABASE_NAME = "mirror"
if MIRROR.database_url is not None and MIRROR.redis_url is not None:
    DATABASE_URL: str = MIRROR.database_url
    DATABASE_OWNER_URL: str | None = MIRROR.database_owner_url
    DATABASE_ADMIN_URL: str | None = MIRROR.database_admin_url
    REDIS_URL: str = MIRROR.redis_url
else:
    _servers = servers_read(MIRROR.home)
    DATABASE_ADMIN_URL = _servers.database_admin_url
    DATABASE_URL = database_url_for(_servers.database_admin_url, user="mirror_app", database=DATABASE_NAME)
    DATABASE_OWNER_URL = database_url_for(_servers.database_admin_url, user="mirror_owner", database=DATABASE_NAME)
    REDIS_URL = _servers.redis_url

_role_url = DATABASE_OWNER_URL if MIRROR.database_role == "owner" and DATABASE_OWNER_URL else DATABASE_URL
DATABASES: dict[str, dict[str, Any]] = {"default": database_settings(_role_url)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Media of calls never goes through the layer; it carries announcements ("calls.changed") to console sockets.
# The layer waits 5 s at a time for messages, and the client's own time-out is 5 s too: idle sockets would fail by it.
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.core.RedisChannelLayer",
        "CONFIG": {
            "hosts": [{"address": REDIS_URL, "socket_timeout": 15}],
            "prefix": "mirror:asgi",
            "expiry": 30,
            "capacity": 1000,
        },
    },
}

CACHES = {
    "default": {"BACKEND": "mirror_saas.cache.SharedCache", "LOCATION": REDIS_URL, "KEY_PREFIX": "mirror:cache"},
}

CELERY_BROKER_URL = REDIS_URL
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "global_keyprefix": "mirror:celery:",
    "visibility_timeout": 3600,
    # Whoever sends a task, mostly a request that a person waits for, finds out soon that the broker is down. Workers
    # have their own way of waiting for it.
    "max_retries": 1,
    "interval_start": 0,
}
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TIMEZONE = "UTC"
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BEAT_SCHEDULE = {
    # What is late by a whole round was sent again meanwhile.
    "sessions-clear": {
        "task": "mirror_saas.sessions_clear",
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600},
    },
    "calls-prune": {
        "task": "mirror_saas.each_tenant",
        "args": ("supervision.calls_prune",),
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600},
    },
    "idempotency-clear": {
        "task": "mirror_saas.each_tenant",
        "args": ("tenants.idempotency_clear",),
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600},
    },
    "webhooks-sweep": {
        "task": "supervision.webhooks_sweep",
        "schedule": timedelta(seconds=5),
        "options": {"expires": 5},
    },
    "webhooks-prune": {
        "task": "mirror_saas.each_tenant",
        "args": ("supervision.webhooks_prune",),
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600},
    },
    "alarms-sweep": {
        "task": "supervision.alarms_sweep",
        "schedule": timedelta(seconds=20),
        "options": {"expires": 20},
    },
    "alarms-check": {
        "task": "mirror_saas.each_tenant",
        "args": ("supervision.alarms_check",),
        "schedule": timedelta(minutes=10),
        "options": {"expires": 600},
    },
}
CELERY_BEAT_SCHEDULE_FILENAME = str(MIRROR.home / "celerybeat-schedule")

# -- the application ----------------------------------------------------------------------------------------------

DEBUG = False
ALLOWED_HOSTS = list(MIRROR.allowed_hosts)
ROOT_URLCONF = "mirror_saas.urls"
ASGI_APPLICATION = "mirror_saas.asgi.application"
AUTH_USER_MODEL = "tenants.User"
LOGIN_URL = "webui:sign_in"

INSTALLED_APPS = [
    "daphne",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "allauth.account",
    "allauth.mfa",
    "allauth.usersessions",
    # For its static files: the API's docs page loads nothing from elsewhere.
    "ninja",
    "mirror_saas",
    "tenants",
    "supervision",
    "webui",
]

# The headers of answers are in mirror_saas.headers, around all of Django.
MIDDLEWARE = [
    "servestatic.middleware.ServeStaticMiddleware",
    "mirror_saas.problems.ProblemMiddleware",
    "webui.middleware.PageGZipMiddleware",
    "webui.middleware.HtmxMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "tenants.sessions.SessionActivityMiddleware",
    "tenants.middleware.TenantMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "webui.middleware.TimeZoneMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "webui.context_processors.console",
            ],
        },
    },
]

STATIC_URL = "/static/"
STATIC_ROOT = str(MIRROR.home / "static")
# Collected when a server starts (mirror_saas.static_files); what is not is served straight from the packages.
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "mirror_saas.static_files.HashedStorage"},
}
SERVESTATIC_KEEP_ONLY_HASHED_FILES = True
SERVESTATIC_USE_FINDERS = True
SERVESTATIC_AUTOREFRESH = False

LANGUAGE_CODE = "en"
USE_I18N = False
TIME_ZONE = "UTC"
USE_TZ = True

# -- browsers -----------------------------------------------------------------------------------------------------

_https = MIRROR.public_url.startswith("https://")
# Browsers take a cookie named __Host- only from this very host, over TLS: no sub-domain and no eavesdropper sets it.
_cookie_prefix = "__Host-" if _https else ""
SESSION_COOKIE_NAME = f"{_cookie_prefix}sessionid"
SESSION_COOKIE_SECURE = _https
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_NAME = f"{_cookie_prefix}csrftoken"
CSRF_COOKIE_SECURE = _https
# Pages carry the token themselves; no script needs the cookie.
CSRF_COOKIE_HTTPONLY = True
CSRF_COOKIE_SAMESITE = "Lax"
# TLS usually ends at a proxy in front of us: the public address is what browsers put into Origin.
CSRF_TRUSTED_ORIGINS = [origin_of(MIRROR.public_url)]
SILENCED_SYSTEM_CHECKS = [
    # SecurityMiddleware and XFrameOptionsMiddleware: mirror_saas.headers does their work, on answers too that no
    # middleware sees. Whoever redirects from http to https is the proxy that ends TLS.
    "security.W001",
    "security.W002",
]
# What the server takes (mirror_saas.serving); the stream has a limit of its own there.
DATA_UPLOAD_MAX_MEMORY_SIZE = 10 * 1024 * 1024
# A policy's rules are rows of one form: 500 of them with five fields each.
DATA_UPLOAD_MAX_NUMBER_FIELDS = 3000

# -- people -------------------------------------------------------------------------------------------------------

LOGIN_REDIRECT_URL = "webui:calls"
ACCOUNT_ADAPTER = "webui.sign_in.AccountAdapter"
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*"]
# An address is proven by the invitation that was mailed to it.
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_LOGIN_TIMEOUT = 10 * 60
ACCOUNT_SESSION_REMEMBER = True
ACCOUNT_RATE_LIMITS = {
    "login": "60/m/ip",
    # Wrong passwords and codes: per address, and per account whoever asks.
    "login_failed": "20/m/ip,5/5m/key",
    "reset_password": "10/m/ip,3/h/key",
    "reset_password_from_key": "20/m/ip",
    # Mails to an address, and tenants from one place.
    "sign_up": "10/m/ip,3/h/key",
    "sign_up_new": "20/h/ip",
}
MFA_ADAPTER = "tenants.mfa.MFAAdapter"
MFA_SUPPORTED_TYPES = ["totp", "recovery_codes"]
MFA_RECOVERY_CODE_DIGITS = 10
MFA_ALLOW_UNVERIFIED_EMAIL = True
PASSWORD_RESET_TIMEOUT = 60 * 60
# A session ends when it was not used for this long.
SESSION_COOKIE_AGE = 14 * 24 * 3600

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

# -- mail ---------------------------------------------------------------------------------------------------------

DEFAULT_FROM_EMAIL = SERVER_EMAIL = MIRROR.email_from
EMAIL_SUBJECT_PREFIX = ""
EMAIL_TIMEOUT = 20
if MIRROR.email is None:
    # Printed, not logged: the links in it are secrets.
    EMAIL_BACKEND = "django.core.mail.backends.console.EmailBackend"
else:
    EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    EMAIL_HOST, EMAIL_PORT = MIRROR.email.host, MIRROR.email.port
    EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = MIRROR.email.username, MIRROR.email.password
    EMAIL_USE_TLS = MIRROR.email.security == "starttls"
    EMAIL_USE_SSL = MIRROR.email.security == "tls"

LOGGING = logging_config(level=MIRROR.log_level)
