"""Making a person's account, for whoever may: the invited, and those who sign up."""

from __future__ import annotations

from uuid import UUID

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from tenants.models import User
from tenants.names import name_clean


def account_create(*, user_id: UUID, email: str, name: str, password: str) -> User:
    """An account for `email`, an address that is clean and whose owner asked for it.

    Raises ValidationError: fields `name`, `password`, and `email` when there is an account already.
    """
    user = User(id=user_id, email=email, name=name_clean(name))
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise ValidationError({"password": error.messages}) from error
    user.set_password(password)
    try:
        with transaction.atomic():
            user.save(force_insert=True)
    except IntegrityError as error:
        raise ValidationError({"email": "There is an account with this email already. Sign in with it."}) from error
    return user
