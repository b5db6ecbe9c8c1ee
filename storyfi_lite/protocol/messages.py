"""Defines what a validator asks and what a miner answers: protocol 3.2.0 plus this project's optional fields (3.3.0).

Messages are typed and frozen, and parsed once, where they arrive. This module knows neither transports nor loaders. A peer that
speaks only 3.2.0 is understood: fields that are None are never sent, and unknown fields are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticUseDefault

from storyfi_lite import PROTOCOL_VERSION
from storyfi_lite.errors import BadInput
from storyfi_lite.protocol.limits import MAX_THINK_TOKENS

TaskName = Literal["blueprint", "characters", "story_arc", "chapters"]
MinerMode = Literal["LocalModelLoader", "APIFallbackLoader"]

MAX_USER_INPUT_CHARS = 10_000
MAX_BODY_BYTES = 1_000_000  # a chapters request carries blueprint, characters and arc: about 60 kB in Chinese


UNKNOWN = "unknown"  # what 3.2.0 says where it knows nothing

T = TypeVar("T")


def _or_default(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        raise PydanticUseDefault from None


# Nothing is concluded from what a miner says of itself. So null, or a value of another type, becomes the default, and is
# never a reason to refuse the story beside it.
Claim = Annotated[T, WrapValidator(_or_default)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


M = TypeVar("M", bound=_Message)


class StoryRequest(_Message):
    """Asks for one task. `seed` is unsigned 64-bit; without it the miner derives it from the signed request (protocol/seed.py)."""

    protocol_version: Claim[str] = PROTOCOL_VERSION
    task_type: TaskName
    user_input: str = Field(min_length=1, max_length=MAX_USER_INPUT_CHARS)
    blueprint: dict[str, Any] | None = None
    characters: dict[str, Any] | None = None
    story_arc: dict[str, Any] | None = None
    chapter_ids: list[int] | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**64)
    max_tokens: int | None = Field(default=None, ge=1, le=65_536)


class ModelInfo(_Message):
    """Holds 3.2.0's free-text claim about the model; only the proof decides what the claim is worth. `mode`: local, api, custom
    or unknown in 3.2.0; miners also send vllm, cloud, mock and null."""

    mode: Claim[str] = UNKNOWN
    name: Claim[str] = UNKNOWN
    version: Claim[str] = UNKNOWN
    provider: Claim[str] = UNKNOWN
    parameters: Claim[dict[str, Any]] = Field(default_factory=dict)


class ProofHeader(_Message):
    """Holds what a validator needs, beside the file and the tokens, to replay an answer (validator/proof.py, docs/proof.md)."""

    sampler: str  # name and version of the sampling rule, e.g. "gumbel-softminp-dry-words/6"
    seed: int = Field(ge=0, lt=2**64)
    temperature: float
    min_p: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    max_tokens: int  # the budget that the closing rule counted against
    model_sha256: str
    quantization: str
    kv_type: str
    prompt_version: str
    prompt_sha256: str  # of the prompt's token ids, little-endian int32
    grammar_sha256: str  # of the constraint's text, UTF-8
    engine: str  # e.g. "llama-cpp-python 0.3.36"
    think_tokens: int | None = Field(default=None, ge=1, le=MAX_THINK_TOKENS)  # before the first turn, among `tokens`


class StoryResponse(_Message):
    """Answers a request. `output_text` is the exact text generated; `tokens` its token ids without the end token."""

    output_data: dict[str, Any]
    generation_time: Claim[float] = 0.0  # seconds; the validator times the call itself
    miner_version: Claim[str] = UNKNOWN
    model_info: Claim[ModelInfo] = Field(default_factory=ModelInfo)
    miner_mode: Claim[MinerMode] = "APIFallbackLoader"  # what pays least
    model_name: Claim[str] = UNKNOWN
    gpu_memory_gb: Claim[float] = 0.0
    protocol_version: Claim[str] = PROTOCOL_VERSION
    output_text: str | None = None
    tokens: list[int] | None = None
    proof: ProofHeader | None = None

    def to_json_bytes(self) -> bytes:
        return self.model_dump_json(exclude_none=True).encode()


def parse_request(body: bytes | dict[str, Any]) -> StoryRequest:
    """Parse a request: its JSON, or the object that was read from it. Raises BadInput with the first field that is wrong; the
    message never repeats the input."""
    if isinstance(body, bytes) and len(body) > MAX_BODY_BYTES:
        raise BadInput(f"the request has {len(body)} bytes, {MAX_BODY_BYTES} are allowed")
    return _parsed(StoryRequest, "request", body)


def parse_response(body: bytes | dict[str, Any]) -> StoryResponse:
    """Parse a response: its JSON, or the object that was read from it. Raises BadInput. Bound the size of `body` before the call."""
    return _parsed(StoryResponse, "response", body)


def _parsed(kind: type[M], name: str, body: bytes | dict[str, Any]) -> M:
    try:
        return kind.model_validate(body) if isinstance(body, dict) else kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise BadInput(f"the {name} is not valid: {where}: {first['msg']}") from None
