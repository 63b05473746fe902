"""A federation by files: sites mail their sets or drop them in a folder, and a manifest says whose each is.

What follows is what follows on answers by Flower: the same checks, limits, screens and refusals, and a run's folder. A
round is a call of `join` that took something in. A site that comes late is in from its first file on, and an absent one
stays in by its last.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from fedcondense.ambient import in_own_state
from fedcondense.errors import DataError, UntrustedSetError
from fedcondense.files import hold
from fedcondense.flower.contract import Answer, Site
from fedcondense.flower.files_run import FilesRun, Joined, Taken
from fedcondense.flower.inbox import Inbox, Refusal
from fedcondense.flower.manifest import Manifest, signature_fault
from fedcondense.flower.payloads import Payload
from fedcondense.flower.replies import check_set
from fedcondense.flower.sites import natural
from fedcondense.flower.untrusted import safe_text
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["join"]

_NO_FILE = "no file with its SHA-256 was given"


@in_own_state
def join(
    path: Path,
    files: Sequence[Path],
    manifest: Manifest,
    *,
    screens: str | None = None,
    data: str | None = None,
    size: int | None = None,
    data_root: str | None = None,
) -> Joined:
    """Take files of sites into a run's folder; what cannot be used is named, and the others go on.

    Args:
        path: The folder; a run that it holds goes on.
        files: In any order; those that an earlier call took in are passed over.
        manifest: Whose each is.
        screens: As in `FilesRun.open`.
        data: As there.
        size: As there.
        data_root: As there.

    Raises:
        DataError: No file can be used and the run has no set so far, or no new one goes with the others; the folder
            stays as it was.
        SettingError: The run in the folder has other settings, or there is no ``ssh-keygen``.
        OutputError: The folder holds something else, or cannot be written.
        ResumeError: What it holds is damaged.
    """
    with hold(path, is_folder=True):
        run = FilesRun.open(path, {"screens": screens, "data": data, "size": size}, data_root)
        post = _Post(manifest, run)
        for file in files:
            post.open(file)
        inbox = post.inbox()
        if inbox.answers:
            return run.take(inbox, post.strays, post.taken, post.known)
        refused = [Refusal(site, inbox.refused[site.node]) for site in inbox.sites] + post.strays
        if files and not run.rounds.state.sets:
            some = "; ".join(f"{one.site.name}: {one.reason}" for one in refused if one.reason != _NO_FILE)
            raise DataError(f"none of {len(files)} files can be used: {some[:500]}")
        return Joined(run.rounds.state, {}, refused, post.known)


class _Post:
    """Files as they are opened, one by one: a site's answer, a reason why it has none, or nobody's."""

    def __init__(self, manifest: Manifest, run: FilesRun) -> None:
        self.manifest, self.run, self.limits = manifest, run, run.rounds.limits
        self.owners = {listed.sha256: name for name, listed in manifest.sites.items()}
        self.answers: dict[str, Answer[Payload]] = {}  # by site
        self.reasons: dict[str, str] = {}  # why a site has none
        self.strays = [Refusal(Site(safe_text(name, 80)), fault) for name, fault in manifest.faults.items()]
        self.known: list[str] = []
        self.taken: dict[str, Taken] = {}  # where answers come from, by SHA-256
        held = {name.casefold(): name for name in run.rounds.state.sites}
        for name in manifest.sites:
            if (other := held.get(name.casefold(), name)) != name:
                self.reasons[name] = f"differs in case alone from {other}, which has a set there: call it by that name"

    def open(self, file: Path) -> None:
        """Find out whose a file is, and read it."""
        shown = safe_text(file.name, 80)
        blob, fault = _read(file, self.limits.limits.nbytes)
        digest = hashlib.sha256(blob).hexdigest()
        name = self.owners.get(digest)
        if fault:
            self.strays.append(Refusal(Site(shown), fault))
        elif digest in self.run.files:
            self.known.append(shown)
        elif name is None:
            self.strays.append(Refusal(Site(shown), self._whose(file, digest)))
        elif name in self.reasons:
            return
        elif digest in self.taken:
            self.strays.append(Refusal(Site(shown), f"is the file of {name} once more; one of them counts"))
        elif since := self.run.forgotten.get(name):
            self.reasons[name] = f"was forgotten on {since}; take it out of the manifest, or give the site a new name"
        else:
            try:
                self.answers[name] = self._answer(name, file, blob)
                self.taken[digest] = Taken(name, shown, datetime.now(UTC).isoformat(timespec="seconds"))
            except UntrustedSetError as broken:
                self.reasons[name] = safe_text(str(broken))

    def _answer(self, name: str, file: Path, blob: bytes) -> Answer[Payload]:
        listed, signers = self.manifest.sites[name], self.manifest.allowed_signers
        if signers is not None:
            signature = listed.signature or file.with_name(f"{file.name}.sig")
            if fault := signature_fault(blob, signature, signers, name):
                raise UntrustedSetError(fault)
        found = SyntheticSet.from_bytes(blob, self.limits.limits)
        check_set(found, self.limits)
        synthetic = SyntheticSet(found.parts)  # what the site says that it measured is its word
        records = max(sum(part.record.counts) for part in synthetic.parts)
        return Answer(Site(name), synthetic, records, synthetic.seconds, len(blob))

    def _whose(self, file: Path, digest: str) -> str:
        """Say why a file is nobody's; its name decides nothing, and helps whoever looks for the fault."""
        named = next((name for name in self.manifest.sites if name in (file.stem, file.name)), None)
        if named is None:
            return f"its SHA-256 {digest[:12]}... is not in the manifest"
        needed = self.manifest.sites[named].sha256
        return f"its SHA-256 is {digest[:12]}..., and {needed[:12]}... that of {named}: damaged, or another file"

    def inbox(self) -> Inbox:
        """Return what came, and who is missing, under the names of the manifest."""
        held = {one.site: digest for digest, one in self.run.files.items()}
        for name, listed in self.manifest.sites.items():
            if name not in self.answers and held.get(name) != listed.sha256:
                self.reasons.setdefault(name, _NO_FILE)
        names = sorted({*self.answers, *self.reasons}, key=natural)
        sites = [Site(name, name, number) for number, name in enumerate(names, 1)]
        found = Inbox(sites, self.limits, kept=self.run.rounds.state.sets)
        for site in sites:
            if site.name in self.answers:
                found.answers[site.node] = self.answers[site.name]._replace(site=site)
            else:
                found.refused[site.node] = self.reasons[site.name]
        return found


def _read(file: Path, most: int) -> tuple[bytes, str]:
    """Return a regular file's bytes, or why they are not read; a pipe is not waited for."""
    try:
        opened = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(opened, "rb") as reader:
            about = os.fstat(reader.fileno())
            if not stat.S_ISREG(about.st_mode):
                return b"", "is no regular file"
            if about.st_size > most:
                return b"", f"has {about.st_size} bytes; allowed: {most}"
            return reader.read(most + 1)[:most], ""
    except OSError as error:
        return b"", f"cannot be read: {error.strerror}"
