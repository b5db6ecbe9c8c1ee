"""Writes and reads reports of proofs: what a validator found when it replayed answers, for others to check.

A report carries the answers themselves, with what was asked, so that whoever has the file can replay them and compare
(`storyfi-lite verify-report`). The validator's hotkey signs it: sr25519 or ed25519 over SIGNED and the report's canonical JSON without
its signature. A signature says who claims this, and that nothing was changed since; only a replay says whether it is so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from storyfi_lite import __version__
from storyfi_lite.errors import BadInput
from storyfi_lite.grammar.check import parse_json
from storyfi_lite.protocol.messages import StoryRequest, StoryResponse
from storyfi_lite.validator.verdict import Verdict

SIGNED = b"storyfi-lite report\n"
MAX_REPORT_BYTES = 4 << 20
_CRYPTO_TYPES = (1, 0)  # sr25519 and ed25519: an address does not say which

Agreement = Literal["agrees", "open", "contradicts"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReportedAnswer(_Part):
    """Holds one answer, what was asked, and the verdict. `seed`: the challenge seed that the answer was held to; None: the one
    in its own header."""

    name: str
    request: StoryRequest
    request_sha256: str
    response: StoryResponse
    response_sha256: str
    seed: int | None = None
    verdict: Verdict


class Summary(_Part):
    """Sums up all answers of a report; margins in nats over all free positions."""

    proven: int
    refuted: int
    inconclusive: int
    positions: int
    mean_margin: float


class Report(_Part):
    """Holds what a validator found with one file. `model_sha256`: of the file that was replayed with. `signature`: hexadecimal;
    with `hotkey` None, of nobody."""

    format: Literal["storyfi-lite-report/1"]
    storyfi_lite: str
    engine: str
    device: str
    model_sha256: str
    model_name: str
    quantization: str
    answers: tuple[ReportedAnswer, ...]
    summary: Summary
    hotkey: str | None = None
    signature: str | None = None


def reported(
    name: str, request: StoryRequest, response: StoryResponse, seed: int | None, verdict: Verdict
) -> ReportedAnswer:
    """Put a verdict beside what it is about, with the hashes."""
    return ReportedAnswer(
        name=name, request=request, request_sha256=_sha256(request), response=response, response_sha256=_sha256(response),
        seed=seed, verdict=verdict,
    )  # fmt: skip


def make_report(answers: Sequence[ReportedAnswer], model_sha256: str, engine: str, device: str) -> Report:
    """Make an unsigned report of what was found with one file. `device`: what computed it, in words."""
    verdicts = [one.verdict for one in answers]
    statuses = [one.status for one in verdicts]
    positions = sum(one.positions for one in verdicts)
    mean = sum(one.mean_margin * one.positions for one in verdicts) / positions if positions else 0.0
    first = answers[0].response
    return Report(
        format="storyfi-lite-report/1", storyfi_lite=__version__, engine=engine, device=device, model_sha256=model_sha256,
        model_name=first.model_name, quantization=first.proof.quantization if first.proof else "",
        answers=tuple(answers),
        summary=Summary(
            proven=statuses.count("proven"), refuted=statuses.count("refuted"),
            inconclusive=statuses.count("inconclusive"), positions=positions, mean_margin=mean,
        ),
    )  # fmt: skip


def spell(report: Report, hotkey: str | None = None, sign: Callable[[bytes], bytes] | None = None) -> bytes:
    """Spell a report as it is kept; signed, if there is a hotkey (its address) with what signs for it."""
    data = report.model_dump(mode="json", exclude_none=True)
    if hotkey and sign:
        data["hotkey"] = hotkey
        data["signature"] = bytes(sign(SIGNED + _canonical(data))).hex()
    return _canonical(data) + b"\n"


def read_report(raw: bytes) -> Report:
    """Read a report whose signature, if it has one, is its hotkey's, and whose hashes are those of its answers. Raises BadInput
    for anything else."""
    if len(raw) > MAX_REPORT_BYTES:
        raise BadInput(f"not a report: more than {MAX_REPORT_BYTES:,} bytes")
    data = parse_json(raw)
    try:
        report = Report.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise BadInput(f"not a report: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for one in report.answers:
        if (one.request_sha256, one.response_sha256) != (_sha256(one.request), _sha256(one.response)):
            raise BadInput(f"the report was changed: {one.name} is not what its hash names")
    if not report.answers:
        raise BadInput("not a report: it has no answers")
    if (report.hotkey is None) != (report.signature is None) or not _is_signed(report, data):
        raise BadInput("the report was changed: its signature does not fit")
    return report


def _is_signed(report: Report, data: Mapping[str, Any]) -> bool:
    """Tell whether the signature is the hotkey's; true if there is none."""
    from bittensor.sp_core import Keypair

    if report.hotkey is None or report.signature is None:
        return True
    signed = {name: value for name, value in data.items() if name != "signature"}
    message, signature = SIGNED + _canonical(signed), report.signature
    try:
        keys = (Keypair(ss58_address=report.hotkey, crypto_type=kind) for kind in _CRYPTO_TYPES)
        return any(key.verify(message, bytes.fromhex(signature)) for key in keys)
    except ValueError:  # no address, or no hexadecimal number
        return False


def agreement(theirs: Verdict, ours: Verdict) -> Agreement:
    """Compare two verdicts of one answer. Only proven against refuted contradict each other: between them lies what nobody can tell."""
    if theirs.status == ours.status:
        return "agrees"
    return "open" if "inconclusive" in (theirs.status, ours.status) else "contradicts"


def _sha256(message: BaseModel) -> str:
    return hashlib.sha256(_canonical(message.model_dump(mode="json", exclude_none=True))).hexdigest()


def _canonical(data: Any) -> bytes:
    """Spell JSON with its keys in order, no spaces, in UTF-8."""
    return json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
