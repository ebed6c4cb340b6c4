"""The Celery application. Tasks live in the apps' `tasks` modules; the broker is REDIS_URL."""

import logging.config
import os
import warnings
from typing import Any

from celery import Celery
from celery.platforms import SecurityWarning
from celery.signals import setup_logging

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mirror_saas.settings")

# As root, Celery prints seven lines at each start. Its worry is pickled messages; ours are JSON, nothing else is taken.
warnings.filterwarnings("ignore", category=SecurityWarning)

app = Celery("mirror")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@setup_logging.connect  # type: ignore[untyped-decorator]
def logging_setup(**_signal: Any) -> None:
    """Workers log like everything else: through the mask, as JSON. Celery would set up handlers of its own."""
    from django.conf import settings

    logging.config.dictConfig(settings.LOGGING)
