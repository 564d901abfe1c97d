"""The configuration: which file applies, what is wrong with it, which class of machine this is."""

from __future__ import annotations

from collections.abc import Iterator

from scaler import paths
from scaler.cli.examination import Finding, Patient, ok, problem
from scaler.errors import ConfigError


def examine(patient: Patient) -> Iterator[Finding]:
    """As `scaler config check` has it, but for what the levels lack, which is told with them."""
    from scaler.tiers import HardwareTierDetector

    if patient.fault:
        mend = "correct it; `scaler config check` reads it again"
        for line in patient.fault.splitlines():
            yield problem("file", line, mend)
        if patient.settings is not None:
            yield ok("instead", f"what follows is judged by the configuration that ships, {patient.settings.file}")
    settings = patient.settings
    if settings is None:
        return
    if not patient.fault:
        shipped = settings.file == str(paths.shipped_config() / "scaler.yaml")
        why = "; it ships with scaler, for you have none of your own: `scaler init` proposes one" if shipped else ""
        yield ok("file", f"{settings.file}{why}")
    try:
        detection = settings.detection(HardwareTierDetector())
        settings.policy_on(detection.tier)
    except ConfigError as error:
        for line in str(error).splitlines():
            yield problem("tier", line, "correct the file that is named; `scaler tier --list` shows every tier")
        return
    yield ok("tier", f"{detection.tier.name}: {'; '.join(detection.reasons)}")
