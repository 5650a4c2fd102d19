"""What a side file of a source is for: its role, which stands in front of its name in the cache."""

from collections.abc import Iterable

from common.speakers import speaker_of

MASK_ROLES = {"face_mask": "face", "lip_mask": "lip"}
"""Masks of a region, and what the region is called."""

_SPEAKER_MASK = "speaker_mask"


def speaker_mask_role(speaker: int) -> str:
    """Role of the mask that says where `speaker` (from 1) is."""
    return f"{_SPEAKER_MASK}{speaker}"


def is_mask(role: str) -> bool:
    """Whether files of the role are white somewhere."""
    return role in MASK_ROLES or is_speaker_mask(role)


def is_speaker_mask(role: str) -> bool:
    """Whether files of the role say where a speaker is."""
    return role.startswith(_SPEAKER_MASK)


def is_sound(role: str) -> bool:
    """Whether files of the role are a speaker's sound."""
    return speaker_of(role) is not None


def content_roles(roles: Iterable[str]) -> list[str]:
    """Those of `roles` whose files are judged by their content alone when the dataset is opened."""
    return [role for role in roles if role in ("control", "reference") or is_mask(role)]


def role_name(role: str) -> str:
    """The role in words, for messages."""
    if (speaker := speaker_of(role)) is not None:
        return "audio" if speaker == 1 else f"audio (of speaker {speaker})"
    if is_speaker_mask(role):
        return f"mask (of speaker {role.removeprefix(_SPEAKER_MASK)})"
    return role.replace("_", " ")
