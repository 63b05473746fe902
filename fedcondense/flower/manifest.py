"""Whose file is whose: a manifest of site names and SHA-256, and signatures of ``ssh-keygen -Y`` if it asks for them.

Who keeps the server writes it, from what sites told over a way that they trust (a call, a letter, a signed mail)::

    allowed_signers = "allowed_signers"   # optional: then each file needs a signature of its site

    [sites.hospital-a]
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    signature = "hospital-a.sig"          # optional; by default FILE.sig

    [sites]
    hospital-b = "..."                    # short for a SHA-256 alone

JSON of the same keys will do. What a file is called and what it says of itself decide nothing.
"""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedcondense.errors import SettingError, unknown
from fedcondense.flower.sites import is_name, natural
from fedcondense.flower.untrusted import safe_text

__all__ = ["NAMESPACE", "Listed", "Manifest", "read_manifest", "signature_fault"]

NAMESPACE = "fedcondense"
"""What ``ssh-keygen -Y sign -n`` is given, so that no signature made for something else counts."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TWICE = "\0twice"  # stands in a JSON object for names that it has more than once
_NEEDED = 'a SHA-256, as sha256sum prints it, or {sha256 = "...", signature = "FILE"}'
_SECONDS = 60.0  # for a signature
_SIGNATURE = 1 << 16  # bytes: ssh-keygen's have a few hundred


class Listed(NamedTuple):
    """What a manifest says of a site's file."""

    sha256: str
    signature: Path | None = None


@dataclass(frozen=True)
class Manifest:
    """What a manifest says.

    Args:
        sites: By name.
        faults: What is wrong with single entries, by name: those sites are refused.
        allowed_signers: The file that says whose key is whose, if files are signed.
    """

    sites: Mapping[str, Listed]
    faults: Mapping[str, str]
    allowed_signers: Path | None = None


def read_manifest(path: Path) -> Manifest:
    """Read a manifest, JSON or TOML by its ending.

    Raises:
        SettingError: It cannot be read as a whole; what is wrong with a single site is among the `faults`.
    """
    given = _parsed(path)
    known = ("allowed_signers", "sites")
    wrong = [unknown("key of a manifest", str(key)[:60], known) for key in given if key not in (*known, _TWICE)]
    wrong += [f"{name!r:.60} stands there twice" for name in given.get(_TWICE, ())]
    signers, found = given.get("allowed_signers"), given.get("sites")
    sites: dict[Any, Any] = found if isinstance(found, dict) else {}
    if not sites:
        wrong.append("no sites; needed: a table called sites, NAME = SHA-256")
    if signers is not None and not (isinstance(signers, str) and signers):
        wrong.append("allowed_signers is no path")
    if wrong:
        raise SettingError(f"{path}: {'; '.join(wrong)}")
    allowed = None if signers is None else path.parent / signers
    if allowed is not None and not allowed.is_file():
        raise SettingError(f"{path}: {allowed} is no file; needed: what ssh-keygen calls allowed signers, NAME KEY")
    faults = {str(name): "stands in the manifest twice: it counts for neither" for name in sites.pop(_TWICE, ())}
    listed: dict[str, Listed] = {}
    names: dict[str, str] = {}
    owners: dict[str, str] = {}
    for name in sorted(map(str, sites.keys() - faults.keys()), key=natural):
        entry, fault = _entry(sites[name], path.parent, allowed is not None)
        if not is_name(name):
            fault = "is no name of a site; needed: letters, digits, -_. with at most 64 characters"
        elif (other := names.setdefault(name.casefold(), name)) != name:
            fault = f"differs from {other} in case alone, and files are named by sites: call it something else"
        elif entry is not None and (owner := owners.setdefault(entry.sha256, name)) != name:
            fault = f"has the very file of {owner} in the manifest: each site sends its own"
        if fault or entry is None:
            faults[name] = fault
        else:
            listed[name] = entry
    return Manifest(listed, faults, allowed)


def _parsed(path: Path) -> dict[str, Any]:
    kind = path.suffix.lower()
    if kind not in (".json", ".toml"):
        raise SettingError(f"{path} ends in {kind or 'nothing'}; needed: a manifest as .toml or .json")
    try:
        text = path.read_text(encoding="utf-8")
        given: Any = tomllib.loads(text) if kind == ".toml" else json.loads(text, object_pairs_hook=_object)
    except OSError as error:
        raise SettingError(f"{path}: {error.strerror}; give the path of a manifest") from None
    except (ValueError, RecursionError) as error:
        raise SettingError(f"{path} is no {kind[1:].upper()}: {safe_text(str(error))}") from None
    if not isinstance(given, dict):
        raise SettingError(f"{path} holds a {type(given).__name__}; needed: an object with sites")
    return given


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; Python's own would take the last of several values and say nothing."""
    found = dict(pairs)
    twice = sorted(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
    return {**found, _TWICE: twice} if twice else found


def _entry(given: Any, folder: Path, is_signed: bool) -> tuple[Listed | None, str]:
    """Return what an entry says, or what is wrong with it."""
    said = {"sha256": given} if isinstance(given, str) else given
    if not isinstance(said, dict) or not set(said) <= {"sha256", "signature"}:
        return None, f"{str(given)[:60]!r}; needed: {_NEEDED}"
    digest, signature = str(said.get("sha256", "")).lower(), said.get("signature")
    if not _SHA256.fullmatch(digest):
        return (
            None,
            f"sha256 = {str(said.get('sha256', ''))[:70]!r}; needed: 64 hexadecimal digits, as sha256sum prints",
        )
    if signature is None:
        return Listed(digest), ""
    if not isinstance(signature, str) or not signature:
        return None, f"signature = {str(signature)[:60]!r}; needed: the path of a file"
    if not is_signed:
        return None, "has a signature, and the manifest no allowed_signers, whose keys would be needed"
    return Listed(digest, folder / signature), ""


def signature_fault(blob: bytes, signature: Path, allowed_signers: Path, site: str) -> str:
    """Return why a signature of a site is none of these bytes; nothing: it is one.

    Args:
        blob: What was signed, by ``ssh-keygen -Y sign -n fedcondense -f KEY FILE``.
        signature: The file that this wrote, FILE.sig.
        allowed_signers: Lines of ``NAME KEY``; see ssh-keygen(1).
        site: The name.

    Raises:
        SettingError: There is no ``ssh-keygen``.
    """
    if not signature.is_file() or signature.stat().st_size > _SIGNATURE:
        return f"{signature.name} is not there or no signature; needed: ssh-keygen -Y sign -n {NAMESPACE} -f KEY FILE"
    paths = ["-f", str(allowed_signers.absolute()), "-s", str(signature.absolute())]
    try:
        ended = subprocess.run(
            ["ssh-keygen", "-Y", "verify", *paths, "-I", site, "-n", NAMESPACE],
            input=blob,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise SettingError(
            "ssh-keygen is not installed; install OpenSSH 8.2 or later, or leave allowed_signers out of the manifest"
        ) from None
    except subprocess.TimeoutExpired:
        return f"its signature was not checked within {_SECONDS:.0f} s"
    if ended.returncode == 0:
        return ""
    said = safe_text((ended.stderr + ended.stdout).decode(errors="replace"), 120)
    return f"{signature.name} is no signature of {site} on this file ({said})"
