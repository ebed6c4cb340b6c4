"""The settings of a test run: the real ones, from an environment that names no server of the developer's.

`DATABASE_ADMIN_URL` and `REDIS_URL` of the shell, if set, name servers *for tests* (see tests/conftest.py); everything
else of the shell that steers Mirror or names an account is taken out, also for the processes that tests start.
"""

import base64
import os
import secrets
import tempfile

_TEST_SERVERS = ("DATABASE_ADMIN_URL", "REDIS_URL")
_FOREIGN = ("DATABASE_", "REDIS_", "MIRROR_", "OPENAI_", "PORT")

for _name in _TEST_SERVERS:
    if os.environ.get(_name):
        os.environ["TEST_" + _name] = os.environ[_name]
for _name in list(os.environ):
    if _name.startswith(_FOREIGN):
        del os.environ[_name]

# Named once by the first process of the run; xdist's workers inherit it and so share one folder and one server.
# The folder itself is made by the first test that needs it.
if "TEST_RUN_HOME" not in os.environ:
    os.environ["TEST_RUN_HOME"] = os.path.join(tempfile.gettempdir(), f"mirror-tests-{secrets.token_hex(4)}")

os.environ["MIRROR_ENV"] = "development"
os.environ["MIRROR_HOME"] = os.path.join(os.environ["TEST_RUN_HOME"], "home")
os.environ["MIRROR_SECRET_KEY"] = "for-tests-only-" + "s" * 40
os.environ["MIRROR_ENCRYPTION_KEY"] = base64.b64encode(b"e" * 32).decode()

from mirror_saas.settings import *  # noqa: E402, F403

# Processes that a test starts run with the real module, on the environment above.
os.environ["DJANGO_SETTINGS_MODULE"] = "mirror_saas.settings"

# Signing in is tested, not PBKDF2.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

# Counters of attempts are a process's own; tests/mirror_saas/test_cache.py has the shared ones.
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
