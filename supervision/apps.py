from django.apps import AppConfig


class SupervisionConfig(AppConfig):
    name = "supervision"
    verbose_name = "Supervision"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from mirror_saas.metrics import REGISTRY
        from supervision.metrics import JudgingCollector, RecordingCollector

        REGISTRY.register(JudgingCollector())
        REGISTRY.register(RecordingCollector())
