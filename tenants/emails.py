"""Addresses that people sign in with, and that mails go to."""

from __future__ import annotations

from typing import Final

from django.core.exceptions import ValidationError
from django.core.validators import validate_email

from mirror_saas.errors import InvalidInput

EMAIL_CHARS: Final = 254


def email_clean(email: str) -> str:
    """`email` as it is stored: in lower case, without blanks around it. Raises InvalidInput (field `email`)."""
    email = email.strip().lower()
    if len(email) > EMAIL_CHARS:
        raise InvalidInput("email", f"Give an email of at most {EMAIL_CHARS} characters.")
    try:
        validate_email(email)
    except ValidationError as error:
        raise InvalidInput("email", "Give an email, such as name@example.com.") from error
    # PostgreSQL lowers some letters that Python does not, and the other way round; addresses with them are not used.
    if not email.isascii():
        raise InvalidInput("email", "Give an email in ASCII; write the domain in its xn-- form.")
    return email
