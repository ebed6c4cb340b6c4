"""`/tenant/models`: the credentials that new drafts and new agents get."""

from datetime import datetime
from uuid import UUID

from django.http import HttpRequest
from ninja import Router
from pydantic import ConfigDict, Field

from mirror_saas.problems import problem_responses
from mirror_saas.schemas import In, Out
from supervision.models import ModelDefaults
from supervision.services.defaults import model_defaults_update
from tenants.api.auth import requires
from tenants.api.writes import writes
from tenants.roles import Scope

router = Router(tags=["tenant"])


class ModelDefaultsIn(In):
    """Both of them: what is left out is none."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"llm_credential_id": "0199d1a2-7c3e-7b1a-9f00-3d2c1b0a9e8d", "tts_credential_id": None},
            ]
        }
    )

    llm_credential_id: UUID | None = Field(None, description="The model that judges, of the kind `llm`.")
    tts_credential_id: UUID | None = Field(None, description="The voice, of the kind `tts`.")


class ModelDefaultsOut(Out):
    """What new drafts and new agents get; null: nothing."""

    llm_credential_id: UUID | None
    tts_credential_id: UUID | None
    updated_at: datetime | None
    """Null while nobody has chosen anything."""

    @classmethod
    def of(cls, row: ModelDefaults | None) -> "ModelDefaultsOut":
        if row is None:
            return cls(llm_credential_id=None, tts_credential_id=None, updated_at=None)
        return cls(
            llm_credential_id=row.llm_credential_id,
            tts_credential_id=row.tts_credential_id,
            updated_at=row.updated_at,
        )


@router.get(
    "/tenant/models",
    response={200: ModelDefaultsOut, **problem_responses(401, 403)},
    operation_id="model_defaults_get",
    summary="Default models",
)
@requires(Scope.POLICIES_READ)
def model_defaults(request: HttpRequest) -> ModelDefaultsOut:
    """The credentials that new drafts and new agents get unless they name others."""
    return ModelDefaultsOut.of(ModelDefaults.objects.first())


@router.put(
    "/tenant/models",
    response={200: ModelDefaultsOut, **problem_responses(400, 401, 403, 422)},
    operation_id="model_defaults_update",
    summary="Change the default models",
)
@writes(Scope.ADMIN)
def model_defaults_put(request: HttpRequest, body: ModelDefaultsIn) -> ModelDefaultsOut:
    """Replace both. Drafts and agents that are made from now on get them; those there are stay as they are."""
    return ModelDefaultsOut.of(
        model_defaults_update(llm_credential_id=body.llm_credential_id, tts_credential_id=body.tts_credential_id)
    )
