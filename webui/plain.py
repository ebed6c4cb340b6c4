"""What the engine says is wrong with a setting or a rule, in the words of a page."""

from __future__ import annotations

from django.core.exceptions import ValidationError


def plain(message: str) -> str:
    """What the engine says is wrong, as a sentence: `rule 2: Value error, it is blank` as `Rule 2: it is blank.`"""
    text = message.replace("Value error, ", "", 1).strip()
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def plain_errors(error: ValidationError) -> ValidationError:
    """A service's complaints, each as a sentence."""
    found = error.message_dict.items() if hasattr(error, "error_dict") else [("__all__", error.messages)]
    return ValidationError({name: [plain(text) for text in texts] for name, texts in found})
