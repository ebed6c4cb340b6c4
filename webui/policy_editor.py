"""A version of a policy as somebody has it on their page: as it is stored, or as they typed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.http import QueryDict

from supervision.models import PolicyVersion, ProviderCredential
from supervision.selectors.policies import policy_version_etag
from supervision.services.policies import policy_content_checked
from webui.plain import plain
from webui.policy_forms import VersionForm, settings_initial
from webui.rule_rows import RuleRow, rows_done, rows_of_form, rows_of_rules, rows_refused

# Where the service says something about the rules as a whole.
_ABOUT_RULES = ("rules", "policies", "config")


@dataclass(frozen=True, slots=True)
class TypedContent:
    """What a version would say (a `VersionContent`)."""

    rules: list[dict[str, Any]]
    config: Mapping[str, Any]
    llm_credential_id: UUID | None
    fallback_credential_id: UUID | None
    note: str

    def same_as(self, version: PolicyVersion) -> bool:
        return (
            self.rules == version.rules
            and self.config == version.config
            and self.llm_credential_id == version.llm_credential_id
            and self.fallback_credential_id == version.fallback_credential_id
            and self.note == version.note
        )


class VersionEditor:
    """A draft in the editor. `rules_errors` is what is wrong with the rules as a whole."""

    def __init__(
        self, version: PolicyVersion, *, credentials: Sequence[ProviderCredential], data: QueryDict | None = None
    ) -> None:
        self.version = version
        self._data = data
        self.rules_errors: list[str] = []
        if data is None:
            self.rows = rows_of_rules(version.rules)
        else:
            # A row that nothing was written into is no rule.
            self.rows = [row for row in rows_of_form(data) if not row.blank]
        self.form = VersionForm(data, credentials=credentials, initial=self._initial())

    def _initial(self) -> dict[str, Any]:
        version = self.version
        return {
            **settings_initial(version.config),
            "llm": version.llm_credential_id,
            "fallback": version.fallback_credential_id,
            "note": version.note,
            "etag": policy_version_etag(version),
        }

    def do(self, what: str) -> None:
        """Move, add or take away a row, as its button asks."""
        self.rows = rows_done(self.rows, what)

    def content(self) -> TypedContent | None:
        """What was typed, as it would be stored; None when something is wrong with it, which the fields say then."""
        form = self.form
        right = form.is_valid()
        given = {name: value for name, value in form.config().items() if name not in form.errors}
        try:
            rules, config = policy_content_checked(rules=[row.rule() for row in self.rows], config=given)
        except ValidationError as error:
            self.refuse(error)
            return None
        if not right:
            return None
        fields = form.version_fields()
        return TypedContent(
            rules, config, fields["llm_credential_id"], fields["fallback_credential_id"], fields["note"]
        )

    def refuse(self, error: ValidationError) -> None:
        """Show what a service says is wrong where it is wrong."""
        if not hasattr(error, "error_dict"):
            self.form.refuse(error)
            return
        found = error.message_dict
        about_rules = [text for name in _ABOUT_RULES for text in found.pop(name, ())]
        self.rows, others = rows_refused(self.rows, about_rules)
        self.rules_errors = [plain(text) for text in others]
        if found:
            self.form.refuse(ValidationError(found))

    def etag_renew(self, etag: str) -> None:
        """From now on the form is about this state of the version."""
        if self._data is not None:
            data = self._data.copy()
            data["etag"] = etag
            self.form.data = data

    @property
    def blank_row(self) -> RuleRow:
        """What a new row is made of."""
        return RuleRow(key="__key__")

    @property
    def wrong(self) -> bool:
        return bool(self.form.errors or self.rules_errors or any(row.errors for row in self.rows))
