"""What a plan takes for granted, each with where it comes from: printed with every plan."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """Numbers that a trace of the model cannot give."""

    utilisation: float = 0.35
    """Share of the GPU's bf16 peak that a step reaches."""
    utilisation_from: str = (
        "assumed; torchtune's published 8 B figures on an RTX 4090 come to 0.47-0.60 of its peak "
        "(compiled), llm-foundry's 7 B on H100s to 0.46; headway's own is not measured on a GPU: "
        "--calibrate measures it on this machine"
    )
    context_bytes: int = 900 * 2**20
    """CUDA context, loaded kernels, cuBLAS's workspaces (deterministic: 8 of 4 MiB)."""
    fragmentation: float = 0.06
    """What the caching allocator holds beyond what is allocated, as a share of the peak."""
    preemptions_per_hour: float = 127 / (64 * 24)
    """PCcheck (Strati et al., ASPLOS 2025) cites 127 preemptions of 64 spot GPUs in 24 hours."""
    restart_seconds: float = 300.0
    """From a preemption to the next step: another machine, its image, the weights, the restore."""

    def lines(self) -> list[str]:
        """For the foot of a plan."""
        return [
            f"a step reaches {self.utilisation:.0%} of a GPU's bf16 peak: {self.utilisation_from}",
            f"beside its tensors a process holds {self.context_bytes / 2**20:,.0f} MiB (CUDA "
            f"context, kernels, workspaces) and {self.fragmentation:.0%} of their peak "
            "(fragmentation): assumed, not measured",
            f"a spot GPU is taken away {self.preemptions_per_hour:.3f} times an hour (127 times a "
            "day for 64 GPUs: PCcheck, ASPLOS 2025), each time losing half the time between two "
            f"checkpoints and {self.restart_seconds / 60:g} minutes to come back (assumed)",
            "one GPU; no idle time, downloads, storage or taxes; saving runs beside training",
            "that the layers headway replaces by its own are what their names say: the run "
            "proves it on numbers before step 1",
        ]
