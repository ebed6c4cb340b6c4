"""The project as an app: it brings the commands `serve` and `demo` and the Celery application."""

from django.apps import AppConfig


class MirrorSaasConfig(AppConfig):
    name = "mirror_saas"

    def ready(self) -> None:
        # `shared_task` in any process sends to the current app, so it must exist wherever Django runs.
        from mirror_saas import celery  # noqa: F401
