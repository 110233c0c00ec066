"""The table of architectures, and which encoders each refuses. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from smp3d_export.encoders.spec import EncoderSpec


@dataclass(frozen=True, kw_only=True)
class ArchitectureSpec:
    """One architecture: its class, the module that holds it, the paper, and what it asks of an encoder."""

    name: str
    module: str
    paper: str
    dilated: bool = False
    """Dilates the encoder's last stages."""
    every_stage: bool = False
    """Needs a feature map from every stage."""

    def refusal(self, encoder: EncoderSpec) -> str | None:
        """Why this architecture cannot have an encoder; None where it can."""
        if self.dilated and encoder.undilatable:
            return f"{self.name} dilates the encoder's last stages, and {encoder.undilatable}"
        if self.every_stage and not encoder.has_first_map:
            return f"{self.name} needs a feature map from every stage, and {encoder.name} has none from the first"
        return None


SPECS = (ArchitectureSpec(name="Unet", module="unet", paper="arXiv:1505.04597"),)
