"""The errors of questions about calls are everybody's (`mirror_saas.errors`)."""

from mirror_saas.errors import InvalidInput, NotFound

__all__ = ["InvalidInput", "NotFound"]
